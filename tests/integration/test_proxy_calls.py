"""Calls to models through a served proxy: what they use is reserved, read from the reply, settled, recorded and told."""

import asyncio
import contextlib
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from gateway.plugin import Plugin, Settings
from tests.demo import ASK, a_demo_upstream, frames_of, switched
from tests.gateways import running_proxy
from tests.wire import an_upstream, eventually

PRICES = {"*": {"input_usd_per_mtok": 1, "cached_input_usd_per_mtok": 0.5, "output_usd_per_mtok": 2}}
INPUT, CACHED, OUTPUT = 1_000, 500, 2_000  # nano-USD a token
SENT = 9  # tokens of ASK, as the demo counts them
CHAT = "/v1/chat/completions"
SEEN: dict[str, Any] = {}


class Sees(Plugin[Settings]):
    """Keeps what plugins are told of usage."""

    name = "sees"

    async def post_response(self, exchange):
        SEEN[exchange.request_id] = (exchange.usage, exchange.cost_nano_usd)


def limiter(**settings):
    return {"name": "rate_limiter", "settings": settings}


class Scene:
    """A tenant of a gateway in front of the demo."""

    def __init__(self, gateway, tenant, session):
        self.gateway, self.tenant, self.session = gateway, tenant, session
        self.upstream: Any = None

    async def ask(self, path=CHAT, body=ASK, *, key=None, headers=(), **switches):
        fields = {"authorization": f"Bearer {key or self.tenant.secret}", **switched(switches), **dict(headers)}
        async with self.session.post(path, json=body, headers=fields) as reply:
            return SimpleNamespace(status=reply.status, headers=reply.headers, body=await reply.read())

    async def settled(self):
        await self.gateway.idle()
        await eventually(lambda: not any("Settler._run" in repr(task.get_coro()) for task in asyncio.all_tasks()))

    async def ledger(self):
        """Requests, input, output, cached tokens and cost of each model."""
        await self.settled()
        today = datetime.now(UTC).date()
        rows = await self.gateway.stores.usage.rows(self.tenant.id, today, today)
        return {
            row.model: (row.requests, row.input_tokens, row.output_tokens, row.cached_tokens, row.cost_nano_usd) for row in rows
        }

    async def budget(self):
        """Spent and held."""
        await self.settled()
        client = self.gateway.stores.connection.client
        (key,) = await client.keys(f"*{{{self.tenant.subdomain}}}:limit:budget:*")
        found = await client.hgetall(key)
        return int(found[b"spent"]), int(found[b"held"])


@contextlib.asynccontextmanager
async def scene(store_url, *limits, rule=(), tenant=(), chain=(), path="/v1", **sections):
    async with running_proxy(store_url, plugins=[Sees], **sections) as gateway, a_demo_upstream() as demo:
        made = await gateway.new_tenant(**dict(tenant))
        plugins = [*(limiter(**each) for each in limits), *chain]
        await gateway.new_rule(made, demo, path, plugin_chain=plugins, **({"prices": PRICES} | dict(rule)))
        async with aiohttp.ClientSession(gateway.url, headers={"host": made.host}) as session:
            yield Scene(gateway, made, session)


def usage_in(reply):
    return json.loads(reply.body)["usage"]


async def test_a_reply_tells_its_usage_in_its_head_and_the_ledger_keeps_it(store_url):
    async with scene(store_url, chain=[{"name": "sees"}]) as one:
        reply = await one.ask(cached_tokens=4)
        written = usage_in(reply)["completion_tokens"]
        cost = (SENT - 4) * INPUT + 4 * CACHED + written * OUTPUT
        assert reply.headers["x-gateway-tokens-input"] == str(SENT)
        assert reply.headers["x-gateway-tokens-output"] == str(written)
        assert int(float(reply.headers["x-gateway-cost-usd"]) * 1e9 + 0.5) == cost
        assert await one.ledger() == {"demo-small": (1, SENT, written, 4, cost)}
        line = await one.gateway.logged()
        assert (line["model"], line["input_tokens"], line["output_tokens"], line["cached_tokens"], line["cost_nano_usd"]) == (
            "demo-small", SENT, written, 4, cost,
        )  # fmt: skip
        assert f'gateway_tokens_total{{rule="{line["rule"]}",tenant="testcompany",type="cached"}}' in one.gateway.series()
        await eventually(lambda: SEEN.get(line["request_id"]))
        usage, told = SEEN[line["request_id"]]
        assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens, told) == (SENT, written, 4, cost)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, ASK),
        ("/v1/responses", {"model": "demo-small", "input": "What is a gateway?"}),
        ("/v1/messages", ASK | {"max_tokens": 100}),
        ("/v1/completions", {"model": "demo-small", "prompt": "What is a gateway?", "max_tokens": 30}),
        ("/v1/embeddings", {"model": "demo-small", "input": ["What is", "a gateway?"]}),
        ("/v1beta/models/demo-small:generateContent", {"contents": [{"role": "user", "parts": [{"text": "What?"}]}]}),
    ],
)
async def test_every_format_is_read_streamed_or_not(store_url, path, body):
    async with scene(store_url, path="/") as one:
        reply = await one.ask(path, body)
        assert reply.status == 200, reply.body
        counted = int(reply.headers["x-gateway-tokens-input"]), int(reply.headers["x-gateway-tokens-output"])
        assert counted[0] > 0
        cost = counted[0] * INPUT + counted[1] * OUTPUT
        assert await one.ledger() == {"demo-small": (1, *counted, 0, cost)}
        if path == "/v1/embeddings":
            return
        if path.endswith(":generateContent"):
            streams = [(path.replace(":generate", ":streamGenerate") + query, body) for query in ("", "?alt=sse")]
        else:
            streams = [(path, body | {"stream": True})]
        for number, (stream, asked) in enumerate(streams, 2):
            assert (await one.ask(stream, asked)).status == 200
            assert await one.ledger() == {"demo-small": (number, number * counted[0], number * counted[1], 0, number * cost)}


async def test_the_usage_of_a_stream_is_asked_for_and_hidden_from_who_did_not_ask(store_url):
    async with scene(store_url) as one, a_demo_upstream() as demo, aiohttp.ClientSession(demo) as direct:
        stream, same = ASK | {"stream": True}, {"id": "x"}
        asking = stream | {"stream_options": {"include_usage": True}}
        refusing = stream | {"stream_options": {"include_usage": False}}
        for body, framing in ((stream, "lf"), (stream, "crlf"), (asking, "lf"), (refusing, "lf")):
            through = await one.ask(body=body, framing=framing, **same)
            async with direct.post(CHAT, json=body, headers=switched({"framing": framing, **same})) as reply:
                assert through.body == await reply.read()
        _, last = frames_of(through.body)[-2]
        assert last["choices"]
        (requests, sent, written, _, _), *_ = (await one.ledger()).values()
        assert (requests, sent) == (4, 4 * SENT)
        assert written > 0


async def test_a_stream_that_tells_no_usage_is_counted(store_url):
    async with scene(store_url) as one:
        reply = await one.ask(body=ASK | {"stream": True, "max_tokens": 12}, usage="none")
        words = sum(
            bool(chunk["choices"][0]["delta"].get("content")) for _, chunk in frames_of(reply.body) if chunk != "[DONE]"
        )
        ((requests, sent, written, _, cost),) = (await one.ledger()).values()
        assert (requests, words) == (1, 12)
        assert sent > 0
        assert written == 12  # a word a piece, and never more than the client allowed
        assert cost == sent * INPUT + written * OUTPUT
        assert 'gateway_estimated_calls_total{tenant="testcompany"}' in one.gateway.series()


async def test_a_target_that_refuses_to_be_asked_for_usage_is_not_asked(store_url):
    async def answer(call):
        status = 400 if "stream_options" in json.loads(await call.read_body()) else 200
        await call.answer(status, [("content-type", "text/event-stream")], b"data: [DONE]\n\n")

    async with answered_by(store_url, answer) as one:
        assert (await one.ask(body=ASK | {"stream": True})).status == 400
        (rule,) = await one.gateway.stores.rules.all(one.tenant.id)
        await one.gateway.change_rule(one.tenant, rule.id, ask_for_usage=False)
        assert (await one.ask(body=ASK | {"stream": True})).status == 200


async def test_a_stream_that_its_target_cuts_costs_what_was_delivered(store_url):
    async with scene(store_url, {"quota": {"daily": 1}, "unit": "usd"}) as one:
        body = ASK | {"stream": True, "max_tokens": 40}
        with contextlib.suppress(aiohttp.ClientPayloadError):
            await one.ask(body=body, cut_after=5, chunks=40)
        ((_, sent, written, _, cost),) = (await one.ledger()).values()
        assert written >= 5
        assert cost == sent * INPUT + written * OUTPUT
        assert await one.budget() == (cost, 0)


async def test_a_client_that_leaves_pays_what_was_delivered(store_url):
    async with scene(store_url, {"quota": {"daily": 1}, "unit": "usd"}) as one:
        fields = {"authorization": f"Bearer {one.tenant.secret}", **switched({"chunk_delay_ms": 20, "chunks": 47})}
        async with one.session.post(CHAT, json=ASK | {"stream": True, "max_tokens": 47}, headers=fields) as reply:
            async for line in reply.content:
                if line.count(b'"content":"'):
                    break
            reply.close()
        ((_, sent, written, _, cost),) = (await one.ledger()).values()
        assert 1 <= written < 47
        assert cost == sent * INPUT + written * OUTPUT
        assert await one.budget() == (cost, 0)


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_what_the_target_refuses_costs_nothing(store_url, status):
    async with scene(store_url, {"quota": {"daily": 1}, "unit": "usd"}) as one:
        assert (await one.ask(status=status)).status == status
        assert await one.ledger() == {"demo-small": (1, 0, 0, 0, 0)}
        assert await one.budget() == (0, 0)


async def test_tokens_are_reserved_at_most_and_settled_at_what_was_used(store_url):
    async with scene(store_url, {"limit": 100, "window": "1m", "unit": "tokens"}) as one:
        first = await one.ask(body=ASK | {"max_tokens": 16})
        assert first.headers["x-ratelimit-limit-tokens"] == "100"
        reserved = 100 - int(first.headers["x-ratelimit-remaining-tokens"])
        used = usage_in(first)["total_tokens"]
        assert reserved >= used == SENT + 16
        await one.settled()
        second = await one.ask(body=ASK | {"max_tokens": 16})
        assert 100 - int(second.headers["x-ratelimit-remaining-tokens"]) == used + reserved
        await one.settled()
        third = await one.ask(body=ASK | {"max_tokens": 60})
        assert third.status == 429
        error = json.loads(third.body)["error"]
        assert error["code"] == "rate_limited"
        assert error["limits"][0]["unit"] == "tokens"
        assert 0 < int(third.headers["retry-after-ms"]) <= 61_000
        never = await one.ask(body=ASK | {"max_tokens": 101})
        assert (never.status, never.headers["x-should-retry"]) == (429, "false")


async def test_a_call_without_a_bound_is_not_refused_for_what_it_might_write(store_url):
    async with scene(store_url, {"limit": 100, "window": "1m", "unit": "tokens"}) as one:
        reply = await one.ask()
        assert (reply.status, reply.headers["x-ratelimit-remaining-tokens"]) == (200, "0")
        await one.settled()
        ((_, sent, written, _, _),) = (await one.ledger()).values()
        again = await one.ask(body=ASK | {"max_tokens": 1})
        assert again.status == 200
        assert int(again.headers["x-ratelimit-remaining-tokens"]) <= 100 - sent - written - 1


async def test_a_call_without_a_bound_is_given_one_where_a_budget_is_to_be_kept(store_url):
    quota = {"quota": {"daily": "0.00004"}, "unit": "usd"}  # 40 000 nano-USD: 20 tokens of output at most
    async with scene(store_url, quota) as one:
        reply = await one.ask()
        written = usage_in(reply)["completion_tokens"]
        assert reply.status == 200
        assert json.loads(reply.body)["choices"][0]["finish_reason"] == "length"
        spent, held = await one.budget()
        assert (spent, held) == (SENT * INPUT + written * OUTPUT, 0)
        assert spent <= 40_000
        refused = await one.ask(body=ASK | {"max_tokens": 20})
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (429, "budget_exceeded")


async def test_what_is_left_of_a_budget_bounds_the_calls_that_come_last(store_url):
    quota = {"quota": {"daily": "0.0002"}, "unit": "usd"}  # 200 000 nano-USD
    async with scene(store_url, quota) as one:
        spent, bounds = 0, []
        while (reply := await one.ask()).status == 200:
            bounds.append(usage_in(reply)["completion_tokens"])
            await one.settled()
            spent = (await one.budget())[0]
            assert spent <= 200_000
        assert (reply.status, json.loads(reply.body)["error"]["code"]) == (429, "budget_exceeded")
        assert len(bounds) >= 2
        assert 200_000 - spent < 40 * INPUT + 16 * OUTPUT
        # one that bounds itself is taken at its word
        assert (await one.ask(body=ASK | {"max_tokens": 4_000})).status == 429


async def test_limits_of_tokens_do_not_concern_other_requests(store_url):
    async with scene(store_url, {"limit": 1, "window": "1h", "unit": "tokens"}) as one:
        fields = {"authorization": f"Bearer {one.tenant.secret}"}
        for _ in range(3):
            async with one.session.get("/v1/models", headers=fields) as reply:
                assert reply.status == 200
                assert not [name for name in reply.headers if name.lower().startswith("x-ratelimit")]


@pytest.mark.parametrize("path", ["/v1//chat/completions", "/v1/chat/completions/", "/v1/chat/%63ompletions"])
async def test_no_spelling_of_a_path_avoids_a_limit_of_tokens(store_url, path):
    async with scene(store_url, {"limit": 20, "window": "1h", "unit": "tokens"}) as one:
        assert "x-ratelimit-limit-tokens" in (await one.ask(path, body=ASK | {"max_tokens": 5})).headers


async def test_an_alias_stands_for_its_model_everywhere(store_url):
    tenant = {"model_aliases": {"fast": "demo-small"}, "key": {"allowed_models": ["fast"]}}
    async with scene(store_url, tenant=tenant, path="/") as one:
        for body in (ASK, ASK | {"stream": True}):
            reply = await one.ask(body=body | {"model": "fast"})
            assert (reply.status, b'"model":"demo-small"' in reply.body) == (200, True)
        assert (await one.ask(body=ASK | {"model": "demo-large"})).status == 403
        gemini = {"contents": [{"role": "user", "parts": [{"text": "What?"}]}]}
        assert b'"modelVersion":"demo-small"' in (await one.ask("/v1beta/models/fast:generateContent", gemini)).body
        assert set(await one.ledger()) == {"demo-small"}


async def test_a_body_that_names_its_model_twice_is_sent_as_it_was_read(store_url):
    bodies = []

    async def answer(call):
        bodies.append(await call.read_body())
        await call.answer(200, body=b"{}")

    async with answered_by(store_url, answer, plugin_chain=[limiter(limit=9, window="1m", per=["model"])]) as one:
        fields = {"authorization": f"Bearer {one.tenant.secret}", "content-type": "application/json"}
        spaced = b'{ "model" : "cheap" , "messages": [ 1, 2 ] }'
        for body in (
            b'{"model": "dear", "messages": [], "model": "cheap"}',
            b'{"mod\\u0065l": "dear","model":"cheap"}',
            spaced,
        ):
            async with one.session.post(CHAT, data=body, headers=fields) as reply:
                assert reply.status == 200
        assert bodies == [b'{"model":"cheap","messages":[]}', b'{"model":"cheap"}', spaced]


async def test_an_unknown_model_costs_the_fallback_or_is_refused(store_url):
    fallback = {"fallback": {"input_usd_per_mtok": 3, "output_usd_per_mtok": 4}}
    async with scene(store_url, rule={"prices": {}}, prices=fallback) as one:
        reply = await one.ask()
        written = usage_in(reply)["completion_tokens"]
        assert await one.ledger() == {"demo-small": (1, SENT, written, 0, SENT * 3_000 + written * 4_000)}
        assert 'gateway_unpriced_calls_total{tenant="testcompany"}' in one.gateway.series()
    async with scene(store_url, rule={"prices": {}}, tenant={"subdomain": "other"}, prices={"unknown_model": "refuse"}) as one:
        reply = await one.ask()
        error = json.loads(reply.body)["error"]
        assert (reply.status, error["code"], error["param"]) == (400, "unknown_model", "model")
        known = await one.ask(body=ASK | {"model": "gpt-4o-mini"})
        assert known.status == 200


async def test_a_stream_ends_with_a_comment_where_the_rule_wants_one(store_url):
    async with scene(store_url, rule={"usage_comment": True}) as one:
        reply = await one.ask(body=ASK | {"stream": True})
        ((_, sent, written, _, cost),) = (await one.ledger()).values()
        end = f"data: [DONE]\n\n: x-gateway-cost-usd={cost / 1e9:.9f}".rstrip("0")
        assert reply.body.decode().endswith(f"{end}\n: x-gateway-tokens-input={sent}\n: x-gateway-tokens-output={written}\n\n")


async def test_nothing_is_read_where_the_rule_says_so(store_url):
    async with scene(store_url, {"limit": 5, "window": "1h", "unit": "tokens"}, rule={"format": "none"}) as one:
        reply = await one.ask(body=ASK | {"stream": True, "stream_options": {"include_usage": True}})
        assert reply.status == 200
        assert frames_of(reply.body)[-2][1]["usage"]
        assert await one.ledger() == {"demo-small": (1, 0, 0, 0, 0)}


async def test_a_budget_of_money_that_the_store_has_lost_is_restored(store_url):
    async with scene(store_url, {"quota": {"monthly": 1}, "unit": "usd"}, {"quota": {"daily": 500}, "unit": "tokens"}) as one:
        assert (await one.ask()).status == 200
        ((_, sent, written, _, cost),) = (await one.ledger()).values()
        client = one.gateway.stores.connection.client
        lost = await client.keys("*:limit:budget:*")
        assert len(lost) == 2
        await client.delete(*lost)
        assert (await one.ask(body=ASK | {"max_tokens": 1}, status=500)).status == 500
        await one.settled()
        spent = sorted([int(await client.hget(key, "spent")) for key in await client.keys("*:limit:budget:*")])
        assert spent == sorted([sent + written, cost])


def told(content_type, *pieces, fields=()):
    """A target that answers any call with these pieces, a moment after each other."""

    async def answer(call):
        await call.read_body()
        head = "".join(f"{name}: {value}\r\n" for name, value in [("content-type", content_type), *fields])
        await call.send(f"HTTP/1.1 200 OK\r\n{head}transfer-encoding: chunked\r\n\r\n".encode())
        for piece in pieces:
            await call.send_chunk(piece)
            await asyncio.sleep(0.05)
        await call.send_chunk(b"")

    return answer


USED = b'"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}'


@contextlib.asynccontextmanager
async def answered_by(store_url, target, **fields):
    async with running_proxy(store_url, plugins=[Sees]) as gateway, an_upstream(target) as upstream:
        made = await gateway.new_tenant()
        await gateway.new_rule(made, upstream.url, **({"prices": PRICES} | fields))
        async with aiohttp.ClientSession(gateway.url, headers={"host": made.host}) as session:
            one = Scene(gateway, made, session)
            one.upstream = upstream
            yield one


@pytest.mark.parametrize("filler", [100, 1 << 20, 3 << 20])
async def test_a_reply_of_any_length_is_measured_and_comes_whole(store_url, filler):
    pieces = [b'{"data":"', *[b"x" * 65_536] * (filler // 65_536), b"x" * (filler % 65_536 or 1), b'",', USED]
    async with answered_by(store_url, told("application/json", *pieces)) as one:
        reply = await one.ask()
        assert reply.body == b"".join(pieces)
        assert ("x-gateway-tokens-input" in reply.headers) == (len(reply.body) <= 1 << 20)
        assert await one.ledger() == {"demo-small": (1, 7, 3, 0, 7 * INPUT + 3 * OUTPUT)}


async def test_a_stream_that_was_asked_for_and_comes_as_json_is_read_as_such(store_url):
    async with answered_by(store_url, told("application/json", b"{", USED)) as one:
        assert (await one.ask(body=ASK | {"stream": True})).headers["x-gateway-tokens-input"] == "7"
        assert await one.ledger() == {"demo-small": (1, 7, 3, 0, 7 * INPUT + 3 * OUTPUT)}


async def test_speech_is_passed_on_as_it_comes(store_url):
    async with answered_by(store_url, told("audio/mpeg", b"one", b"two")) as one:
        fields = {"authorization": f"Bearer {one.tenant.secret}"}
        async with one.session.post("/v1/audio/speech", json={"model": "tts-1", "input": "Hello"}, headers=fields) as reply:
            assert await reply.content.readany() == b"one"
            assert await reply.read() == b"two"


async def test_a_reply_that_tells_nothing_is_counted(store_url):
    async with answered_by(store_url, told("application/json", b'{"choices":[{"text":"one two three four five"}]}')) as one:
        reply = await one.ask(body=ASK | {"max_tokens": 20})
        ((_, sent, written, _, cost),) = (await one.ledger()).values()
        assert sent > 0
        assert 5 <= written <= 20
        assert cost == sent * INPUT + written * OUTPUT
        assert reply.headers["x-gateway-tokens-output"] == str(written)
        assert 'gateway_estimated_calls_total{tenant="testcompany"}' in one.gateway.series()


async def test_a_reply_that_cannot_be_read_costs_the_most(store_url):
    squeezed = told("application/json", b"\x1f\x8b\x00", fields=[("content-encoding", "gzip")])
    async with answered_by(store_url, squeezed) as one:
        fields = {"accept-encoding": "identity", "authorization": f"Bearer {one.tenant.secret}"}
        async with one.session.post(CHAT, json=ASK | {"max_tokens": 20}, headers=fields, auto_decompress=False) as reply:
            assert await reply.read() == b"\x1f\x8b\x00"
        ((_, _, written, _, _),) = (await one.ledger()).values()
        assert written == 20


async def test_a_plugin_that_changes_the_head_does_not_make_a_stream_wait(store_url):
    class Disguises(Plugin[Settings]):
        """Calls a stream something else."""

        name = "disguises"

        async def pre_response(self, exchange):
            exchange.reply.headers.set("content-type", "application/json")

    event = b'data: {"choices":[{"delta":{"content":"one"}}]}\n\n'
    async with (
        running_proxy(store_url, plugins=[Disguises]) as gateway,
        an_upstream(told("text/event-stream", event, event)) as upstream,
    ):
        made = await gateway.new_tenant()
        await gateway.new_rule(made, upstream.url, prices=PRICES, plugin_chain=[{"name": "disguises"}])
        async with aiohttp.ClientSession(gateway.url, headers={"host": made.host}) as session:
            fields = {"authorization": f"Bearer {made.secret}"}
            async with session.post(CHAT, json=ASK | {"stream": True}, headers=fields) as reply:
                assert await reply.content.readany() == event


async def test_an_anthropic_stream_that_is_cut_costs_its_input_and_what_was_delivered(store_url):
    async with scene(store_url) as one:
        with contextlib.suppress(aiohttp.ClientPayloadError):
            await one.ask("/v1/messages", ASK | {"max_tokens": 40, "stream": True}, cut_after=6, chunks=40)
        # its stream begins with the input and an output of about one token
        ((_, sent, written, _, cost),) = (await one.ledger()).values()
        assert sent == SENT
        assert 6 <= written <= 40
        assert cost == sent * INPUT + written * OUTPUT


async def test_a_stream_whose_length_was_announced_loses_its_usage_and_stays_whole(store_url):
    shown = b'data: {"choices":[{"index":0,"delta":{"content":"one"}}]}\n\n'
    usage = b'data: {"choices":[],' + USED + b"\n\n"

    async def answer(call):
        await call.read_body()
        await call.answer(200, [("content-type", "text/event-stream")], shown + usage + b"data: [DONE]")

    async with answered_by(store_url, answer) as one:
        reply = await one.ask(body=ASK | {"stream": True})
        assert reply.body == shown + b"data: [DONE]"
        assert await one.ledger() == {"demo-small": (1, 7, 3, 0, 7 * INPUT + 3 * OUTPUT)}


async def test_a_target_that_cannot_be_reached_costs_nothing_and_no_target_is_let_compress(store_url):
    async with answered_by(store_url, told("application/json", b"{", USED)) as one:
        await one.ask(headers={"accept-encoding": "gzip, br"})
        await one.settled()
        (rule,) = await one.gateway.stores.rules.all(one.tenant.id)
        await one.gateway.change_rule(one.tenant, rule.id, target="http://127.0.0.1:1")
        assert (await one.ask()).status == 502
        assert await one.ledger() == {"demo-small": (2, 7, 3, 0, 7 * INPUT + 3 * OUTPUT)}
        assert one.upstream.requests[0].get("accept-encoding") == "identity"

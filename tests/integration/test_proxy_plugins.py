"""Plugins in the served proxy: what they may change, answer and break."""

import asyncio
from typing import Any

import pytest

from gateway.plugin import Answer, Plugin, Reject, Settings, Stage
from tests.engines import ENGINE
from tests.gateways import running_proxy
from tests.wire import an_upstream, eventually


class Scripted(Plugin[Settings]):
    """Does what a test wrote for each stage."""

    name = "scripted"
    script: Any = {}  # noqa: RUF012 - set by each test
    reads_request = reads_reply = False

    @property
    def needs_request_body(self):
        return self.reads_request

    @property
    def needs_reply_body(self):
        return self.reads_reply

    async def run(self, stage, exchange):
        does = self.script.get(stage)
        if does is not None:
            await does(exchange)

    async def pre_request(self, exchange):
        await self.run("pre_request", exchange)

    async def post_request(self, exchange):
        await self.run("post_request", exchange)

    async def pre_response(self, exchange):
        await self.run("pre_response", exchange)

    async def post_response(self, exchange):
        await self.run("post_response", exchange)


@pytest.fixture
async def scripted(store_url):
    """A function that serves one request through a plugin with the given script."""

    async def target(call):
        await call.read_body()
        if call.request.method == "HEAD":
            await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n")
        elif call.request.target == "/v1/events":
            await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9\r\n\r\ndata: 1\n\n")
        else:
            await call.answer(200, {"content-type": "application/json"}, b'{"text": 1}\n')

    class Mine(Scripted):
        """As scripted, for this test alone."""

    async with (
        running_proxy(store_url, plugins=[Mine], limits={"plugin_timeout": "200ms", "max_inspected_bytes": "1KiB"}) as gateway,
        an_upstream(target) as upstream,
    ):
        tenant = await gateway.new_tenant()
        rule = await gateway.new_rule(tenant, upstream.url, plugin_chain=[{"name": "scripted"}])

        async def serve(
            *, reads_request=False, reads_reply=False, path="/v1/x", method="POST", body=b'{"a": 1}', chain=None, **script
        ):
            Mine.script, Mine.reads_request, Mine.reads_reply = script, reads_request, reads_reply
            await gateway.change_rule(tenant, rule, plugin_chain=chain or [{"name": "scripted"}])
            return await gateway.ask(method, path, key=tenant.secret, body=body)

        serve.upstream, serve.gateway = upstream, gateway  # type: ignore[attr-defined]
        yield serve


async def test_a_plugin_changes_what_is_forwarded(scripted):
    async def change(exchange):
        exchange.request.body = exchange.request.body + b"!"
        exchange.request.headers.set("x-added", "1")
        exchange.request.headers.set("content-length", "999")
        exchange.request.headers.set("transfer-encoding", "chunked")

    assert (await scripted(reads_request=True, pre_request=change)).status == 200
    last = scripted.upstream.last
    assert (last.body, last.get("x-added"), last.get("content-length"), last.get("transfer-encoding")) == (
        b'{"a": 1}!',
        "1",
        "9",
        None,
    )


async def test_a_body_that_no_plugin_reads_is_not_there(scripted):
    seen = []

    async def look(exchange):
        seen.append((exchange.request.body, exchange.reply.body))

    await scripted(pre_response=look, body=b"x" * 100_000)
    assert seen == [(None, None)]


async def test_a_body_too_long_to_be_read_is_refused_in_both_directions(scripted):
    assert (await scripted(reads_request=True, body=b"x" * 1_025)).code == "body_too_large"
    assert scripted.upstream.connections == 0


async def test_the_gateway_s_key_is_hidden_from_plugins_and_identity_is_not(scripted):
    seen: dict[str, Any] = {}

    async def look(exchange):
        seen.update(
            names={name for name, _ in exchange.request.headers},
            tenant=exchange.tenant.subdomain,
            path=exchange.request.path,
            ip=exchange.request.client_ip,
        )

    await scripted(pre_request=look, path="/v1/x?q=1")
    assert "authorization" not in seen["names"]
    assert (seen["tenant"], seen["path"], seen["ip"]) == ("testcompany", "/v1/x", "127.0.0.1")


async def test_a_plugin_rejects_in_each_stage_that_may(scripted):
    async def reject(exchange):
        raise Reject(418, "teapot", "no coffee", headers=[("x-why", "tea")])

    for stage in ("pre_request", "post_request", "pre_response"):
        reply = await scripted(**{stage: reject})
        assert (reply.status, reply.code, reply.get("x-why")) == (418, "teapot", "tea")
    assert len(scripted.upstream.requests) == 2


async def test_a_plugin_answers_instead_of_the_target_and_the_answer_is_checked_like_a_reply(scripted):
    async def answer(exchange):
        exchange.answer = Answer(203, (("X-Made", "1"), ("content-length", "999")), b"made")

    async def stamp(exchange):
        exchange.reply.headers.set("x-stamped", str(exchange.reply.status))
        exchange.reply.body = exchange.reply.body.upper()

    reply = await scripted(pre_request=answer, pre_response=stamp)
    assert (reply.status, reply.body, reply.get("x-made"), reply.get("x-stamped")) == (203, b"MADE", "1", "203")
    if ENGINE != "granian":  # which answers in chunks before it has the body of the request
        assert reply.get("content-length") == "4"
    assert scripted.upstream.connections == 0

    async def reject(exchange):
        raise Reject(451, "blocked", "blocked")

    assert (await scripted(pre_request=answer, pre_response=reject)).code == "blocked"


async def test_an_answer_to_head_has_no_body(scripted):
    async def answer(exchange):
        exchange.answer = Answer(200, (), b"made")

    reply = await scripted(pre_request=answer, method="HEAD", body=None)
    assert (reply.status, reply.get("content-length")) == (200, "4")


async def test_a_plugin_changes_status_headers_and_body_of_the_reply(scripted):
    async def change(exchange):
        exchange.reply.status = 202
        exchange.reply.headers.set("x-new", "1")
        exchange.reply.headers.remove("content-type")
        exchange.reply.body = exchange.reply.body + b"more"

    reply = await scripted(reads_reply=True, pre_response=change)
    assert (reply.status, reply.body, reply.get("x-new"), reply.get("content-type")) == (202, b'{"text": 1}\nmore', "1", None)
    assert reply.get("content-length") == "16"
    assert scripted.upstream.last.get("accept-encoding") == "identity"


async def test_a_head_reply_keeps_its_length_when_a_plugin_reads_bodies(scripted):
    reply = await scripted(reads_reply=True, method="HEAD", body=None)
    assert (reply.status, reply.get("content-length")) == (200, "12")


async def test_an_event_stream_passes_a_plugin_that_reads_bodies(scripted):
    seen = []

    async def look(exchange):
        seen.append(exchange.reply.body)

    assert (await scripted(reads_reply=True, pre_response=look, path="/v1/events")).body == b"data: 1\n\n"
    assert seen == [None]


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("reads", [False, True])
async def test_a_status_without_body_has_none_whatever_the_upstream_sent(scripted, status, reads):
    async def change(exchange):
        exchange.reply.status = status

    reply = await scripted(reads_reply=reads, pre_response=change)
    assert (reply.status, reply.body) == (status, b"")
    assert status == 304 or reply.get("content-length") is None


async def unprintable(exchange):
    exchange.reply.headers.raw.append((b"x-a", b"b\r\nset-cookie: c"))


async def no_status(exchange):
    exchange.reply.status = 99


async def no_reply(exchange):
    exchange.reply = None


@pytest.mark.parametrize(("does", "status"), [(unprintable, 502), (no_status, 502), (no_reply, 502)])
async def test_a_reply_that_cannot_be_sent_is_an_error_in_the_usual_shape(scripted, does, status):
    reply = await scripted(pre_response=does)
    assert (reply.status, reply.error["request_id"]) == (status, reply.get("x-request-id"))
    assert reply.get("set-cookie") is None


async def test_a_plugin_cannot_break_the_framing_or_the_request_id(scripted):
    async def meddle(exchange):
        for name in ("transfer-encoding", "connection", "x-request-id", "upgrade", "trailer"):
            exchange.reply.headers.set(name, "chunked")

    reply = await scripted(pre_response=meddle)
    assert (reply.status, reply.body, reply.get("transfer-encoding"), reply.get("connection")) == (
        200,
        b'{"text": 1}\n',
        None,
        None,
    )
    assert reply.get("x-request-id") != "chunked"


async def hangs(exchange):
    await asyncio.sleep(30)


async def divides(exchange):
    raise ZeroDivisionError("secret detail")


async def exits(exchange):
    raise SystemExit


async def cancels(exchange):
    raise asyncio.CancelledError


async def groups(exchange):
    raise BaseExceptionGroup("several", [GeneratorExit()])


@pytest.mark.parametrize("does", [hangs, divides, exits, cancels, groups])
async def test_a_plugin_that_fails_is_answered_counted_and_never_forwarded_past(scripted, does):
    reply = await scripted(pre_request=does)
    assert (reply.status, reply.code) == (500, "plugin_failed")
    assert b"secret detail" not in reply.body
    assert scripted.upstream.connections == 0
    for stage in ("post_request", "pre_response"):
        reply = await scripted(**{stage: does})
        assert (reply.status, reply.code) == (502, "plugin_failed")
    text = scripted.gateway.metrics.exposition()[0].decode()
    assert 'gateway_plugin_failures_total{plugin="scripted",stage="pre_request"} 1.0' in text
    assert 'gateway_plugin_failures_total{plugin="scripted",stage="pre_response"} 1.0' in text
    await scripted.gateway.idle()


async def test_an_entry_that_may_fail_is_skipped(scripted):
    reply = await scripted(pre_request=divides, pre_response=hangs, chain=[{"name": "scripted", "on_error": "skip"}])
    assert (reply.status, reply.body) == (200, b'{"text": 1}\n')


async def test_observers_see_how_it_ended_after_the_client_has_its_reply(scripted):
    seen = []

    async def look(exchange):
        await asyncio.sleep(0.05)
        seen.append(
            (exchange.reply.status, exchange.timings.total_ms, exchange.timings.upstream_ms, exchange.timings.admission_ms)
        )

    assert (await scripted(post_response=look)).status == 200
    await eventually(lambda: seen)
    ((status, total, upstream, admission),) = seen
    assert status == 200
    assert 0 < upstream < total
    assert admission > 0


async def test_what_an_observer_does_wrong_concerns_nobody(scripted):
    assert (await scripted(post_response=divides)).status == 200
    await eventually(lambda: 'stage="post_response"} 1.0' in scripted.gateway.metrics.exposition()[0].decode())


async def test_a_stage_named_in_the_chain_is_the_only_one_that_runs(scripted):
    reply = await scripted(pre_request=divides, pre_response=None, chain=[{"name": "scripted", "stage": Stage.PRE_RESPONSE}])
    assert reply.status == 200


@pytest.mark.parametrize(
    ("method", "headers", "body", "status"),
    [
        ("GET", {}, b"", 200),
        ("POST", {"content-length": "0"}, b"", 200),
        ("POST", {"content-type": "application/json"}, b"{}", 200),
        ("POST", {}, b"{}", 415),
        ("GET", {"transfer-encoding": "chunked"}, b"2\r\n{}\r\n0\r\n\r\n", 415),
        ("POST", {"transfer-encoding": "chunked", "content-type": "text/plain"}, b"2\r\n{}\r\n0\r\n\r\n", 415),
    ],
)
async def test_a_type_is_asked_for_exactly_where_a_body_follows(store_url, method, headers, body, status):
    async def target(call):
        await call.read_body()
        await call.answer(200, {}, b"")

    async with running_proxy(store_url) as gateway, an_upstream(target) as upstream:
        tenant = await gateway.new_tenant()
        chain = [{"name": "content_validator", "settings": {"allowed_types": ["application/json"]}, "stage": "pre_request"}]
        await gateway.new_rule(tenant, upstream.url, plugin_chain=chain)
        fields = {"host": f"{tenant.subdomain}.example.com", "authorization": f"Bearer {tenant.secret}", **headers}
        if body and "transfer-encoding" not in headers:
            fields["content-length"] = str(len(body))
        async with gateway.connected() as wire:
            head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            await wire.send(f"{method} /v1/x HTTP/1.1\r\n{head}\r\n".encode() + body)
            assert (await wire.reply()).status == status

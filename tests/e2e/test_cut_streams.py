"""A thousand streams, cut by clients, by the target and by replicas that are killed: each costs what it has delivered at
least and what was reserved for it at most, nothing stays held, and the receipts say what the ledger says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.formats import endpoint_of, read_fields
from gateway.models import ModelPrice
from gateway.policy import Call
from gateway.prices import Price
from tests.builders import an_accounting
from tests.e2e.processes import GATEWAY, Gateway, a_gateway, clean_environment, run
from tests.servers import short_directory, valkey_server
from tests.sse_events import chat_events, texts_in
from tests.sse_upstream import Stream, an_sse_upstream
from tests.wire import Message

pytestmark = pytest.mark.real_store

STREAMS, AT_ONCE = 1_000, 40
LEASE_S = 4
SETTINGS = {
    "LIMITS__LEASE": f"{LEASE_S}s",
    "LIMITS__RENEW_EVERY": "1s",
    "USAGE__RECEIPTS": "true",
    "REDIS__COMMAND_TIMEOUT": "20s",
    "REDIS__CONNECT_TIMEOUT": "20s",
    "REDIS__POOL_WAIT": "20s",
    "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
}
USD, TOKENS, PLACES = "usd-per-month", "tokens-per-day", "places"
LIMITS: list[dict[str, Any]] = [
    {"unit": "usd", "quota": {"monthly": 100}, "on_lost": "charge"},
    {"unit": "tokens", "quota": {"daily": 10_000_000}, "on_lost": "release"},
    {"unit": "concurrency", "limit": 1_000, "name": PLACES},
]
INPUT, OUTPUT = 1_000, 2_000  # nano-USD a token
PRICES = {"*": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}
PRICE = Price.of(ModelPrice.model_validate(PRICES["*"]))
WORDS = ("a", " word", " naïve", " 文", " 🙂", ' "so"', "\\n", " x" * 3)
SUMS = ("requests", "input_tokens", "output_tokens", "cached_tokens", "cost_nano_usd")
SENT = 5  # tokens, as the target counts them


@dataclass
class Asked:
    """One stream: its model is a name of its own, so that the ledger has a row for it."""

    model: str
    words: int
    leaves_after: int | None
    cut_at: float | None
    replica: int = -1
    status: int = 0
    body: bytearray = field(default_factory=bytearray)

    @property
    def request(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": "Say something."}],
            "max_tokens": self.words,
            "stream": True,
        }

    @property
    def delivered(self) -> int:
        """Pieces of text that the client has got whole."""
        return len(texts_in(bytes(self.body)))

    @property
    def reserved(self) -> tuple[int, int, int]:
        """Input, output and cost at most."""
        fields = read_fields(json.dumps(self.request).encode())
        endpoint = endpoint_of("auto", "POST", "/v1/chat/completions")
        assert fields is not None
        assert endpoint is not None
        demand = an_accounting().demand(Call(endpoint, endpoint.asked(fields, "/"), ""), PRICE, ())
        return demand.input_tokens, demand.output_tokens, demand.cost_nano_usd


def streams(seed: random.Random) -> list[Asked]:
    found = []
    for number in range(STREAMS):
        words = seed.randint(1, 30)
        kind = seed.choice(("whole", "client", "target", "target"))
        leaves = seed.randint(0, words) if kind == "client" else None
        found.append(Asked(f"m{number}", words, leaves, seed.random() if kind == "target" else None))
    return found


def answers(asked: dict[str, Asked], seed: random.Random) -> Any:
    """What the target streams to a request; it may break off in the middle of an event, or of a character."""

    def answer(request: Message) -> Stream:
        body = json.loads(request.body)
        one = asked[body["model"]]
        usage = {"prompt_tokens": SENT, "completion_tokens": one.words, "total_tokens": SENT + one.words}
        includes = body.get("stream_options", {}).get("include_usage", False)
        events = chat_events(seed.choices(WORDS, k=one.words), usage=usage, asked=includes)
        steps = [step for event in events for step in (event, seed.choice((0, 0.005, 0.02)))]
        stream = Stream(steps)
        if one.cut_at is None:
            return stream
        return stream.cut(int(one.cut_at * len(stream.body)), seed.choice(("reset", "close")))

    return answer


class Clients:
    """All of them, some at once, on the replicas that are left."""

    def __init__(self, replicas: list[Gateway], key: str, seed: random.Random) -> None:
        self._replicas = dict(enumerate(replicas))
        self._key = key
        self._seed = seed
        self.killed: set[int] = set()
        self.over = 0

    async def run(self, todo: list[Asked], kills: list[int]) -> None:
        waiting = list(reversed(todo))

        async def work(session: aiohttp.ClientSession) -> None:
            while waiting:
                await self._ask(session, waiting.pop())
                self.over += 1
                if kills and self.over >= kills[0]:
                    kills.pop(0)
                    self._kill()

        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        headers = {"authorization": f"Bearer {self._key}"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session, asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work(session))

    def _kill(self) -> None:
        number = min(self._replicas)
        self._replicas.pop(number).program.kill()
        self.killed.add(number)

    async def _ask(self, session: aiohttp.ClientSession, one: Asked) -> None:
        one.replica = self._seed.choice(list(self._replicas))
        url = f"http://127.0.0.1:{self._replicas[one.replica].proxy_port}/v1/chat/completions"
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            async with session.post(url, json=one.request) as reply:
                one.status = reply.status
                if one.leaves_after == 0:
                    return
                async for chunk in reply.content.iter_any():
                    one.body += chunk
                    if one.leaves_after is not None and one.delivered >= one.leaves_after:
                        return  # without the rest, which closes the connection


def exported(folder: Path, settings: dict[str, str]) -> list[dict[str, Any]]:
    """Every receipt, from the files."""
    env = clean_environment(folder, **{f"GATEWAY_{name}": value for name, value in settings.items()})
    code, _, said = run(*GATEWAY, "export-usage", "--to", folder / "receipts", env=env, cwd=folder)
    assert code == 0, said
    return [json.loads(line) for file in (folder / "receipts").glob("*.jsonl") for line in file.read_text().splitlines()]


async def test_each_stream_costs_at_least_what_it_delivered_and_at_most_what_was_reserved():
    seed = random.Random(20_260_310)
    todo = streams(seed)
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(valkey_server())
        settings = {**SETTINGS, "REDIS__URL": store.url}

        def start() -> Gateway:
            return stack.enter_context(a_gateway(stack.enter_context(short_directory()), settings=settings))

        replicas = [await asyncio.to_thread(start) for _ in range(4)]
        upstream = await stack.enter_async_context(an_sse_upstream(answers({one.model: one for one in todo}, seed)))
        survivor = replicas[-1]
        tenant = survivor.admin("POST", "/tenants", {"name": "Cut", "subdomain": "cut", "limits": LIMITS}).json
        rule = {"path": "/", "target": upstream.url, "prices": PRICES}
        assert survivor.admin("POST", f"/tenants/{tenant['id']}/rules", rule, key=tenant["api_key"]).status == 201
        clients = Clients(replicas, tenant["api_key"], seed)
        await clients.run(todo, [STREAMS // 4, STREAMS // 2, STREAMS * 3 // 4])
        await asyncio.sleep(LEASE_S + 1)
        usage = survivor.admin("GET", f"/tenants/{tenant['id']}/usage?group_by=model", key=tenant["api_key"]).json
        receipts = await asyncio.to_thread(exported, stack.enter_context(short_directory()), settings)

    rows = {row["model"]: row for row in usage["rows"]}
    assert all(one.status == 200 for one in todo if one.replica not in clients.killed)
    lost = [one for one in todo if one.model not in rows]
    assert all(one.replica in clients.killed for one in lost)
    for one in todo:
        if one not in lost:
            row = rows[one.model]
            at_most = one.reserved
            charged = row["input_tokens"], row["output_tokens"], row["cost_nano_usd"]
            assert row["requests"] == 1
            assert one.delivered <= charged[1], one
            assert all(used <= most for used, most in zip(charged, at_most, strict=True)), (one, charged, at_most)
            assert charged[2] == charged[0] * INPUT + charged[1] * OUTPUT
    ended = {"whole": 0, "cut": 0}
    for one in todo:
        ended["whole" if one.body.endswith(b"[DONE]\n\n") else "cut"] += 1
    assert ended["cut"] > STREAMS // 3
    assert ended["whole"] > STREAMS // 5
    print(f"{ended}, {len(lost)} lost with their replicas")

    assert len({receipt["id"] for receipt in receipts}) == len(receipts) == len(rows)
    for receipt in receipts:
        assert {name: receipt[name] for name in SUMS} == {name: rows[receipt["model"]][name] for name in SUMS}

    used = {limit["name"]: limit["used"] for limit in usage["limits"]}
    total = usage["total"]
    assert used[PLACES] == 0
    assert used[TOKENS] == total["input_tokens"] + total["output_tokens"]
    # what was lost with its replica is charged in full, as this limit wants it; what never came to be admitted is not
    in_full = [one.reserved[2] for one in lost]
    known = sum(cost for one, cost in zip(lost, in_full, strict=True) if one.status == 200)
    assert known <= round(used[USD] * 10**9) - total["cost_nano_usd"] <= sum(in_full)

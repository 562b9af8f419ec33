"""Load on a running proxy while its store fails: what every caller was told, what reached the target, what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.gateways import ATenant, Gateway
from tests.servers import Server
from tests.wire import Call, Message, an_upstream

LEASE_MS = 6_000
LIMITS = {"lease": f"{LEASE_MS}ms", "renew_every": "300ms"}
# As shipped but for the deadline, which a busy machine may miss without any fault.
REDIS = {"command_timeout": 1_000, "connect_timeout": 500, "pool_wait": 500}

# What the store says to the gateway, and the gateway to nobody.
INTERNAL = (b"NOSCRIPT", b"MOVED", b"ASK ", b"CROSSSLOT", b"READONLY", b"LOADING", b"CLUSTERDOWN", b"TRYAGAIN", b"MASTERDOWN")

LONG_S = LEASE_MS / 1_000 * 0.6
WORKERS, LONG_WORKERS = 4, 2


def limited(limit: int) -> dict[str, Any]:
    """A rule: so many requests in an hour, few in flight, a quota that the ledger knows, and one that holds."""
    limits = [
        {"limit": limit, "window": "1h"},
        {"name": "places", "limit": 50, "unit": "concurrency"},
        {"name": "known", "quota": {"monthly": 100_000}},
        {"name": "held", "quota": {"daily": 1_000_000}, "on_lost": "release", "cost": 3},
    ]
    return {"plugin_chain": [{"name": "rate_limiter", "settings": {"limits": limits}}]}


@dataclass(frozen=True)
class Told:
    """What a caller was told, and when it had asked. Times are of the monotonic clock."""

    asked: float
    answered: float
    reply: Message

    @property
    def status(self) -> int:
        return self.reply.status


@dataclass
class Traffic:
    """Callers that never stop asking."""

    gateway: Gateway
    tenant: ATenant
    told: list[Told] = field(default_factory=list)
    reached: list[float] = field(default_factory=list)
    target: str = ""

    async def serve(self, call: Call) -> None:
        """The target: it notes when a request has reached it; long ones outlast a third of the lease."""
        await call.read_body()
        self.reached.append(time.monotonic())
        if call.request.target == "/v1/long":
            await asyncio.sleep(LONG_S)
        await call.answer(200, body=b"ok")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Callers ask until the context ends; then their last requests are answered."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(WORKERS + LONG_WORKERS):
                group.create_task(self._ask_on("/v1/short" if number < WORKERS else "/v1/long", stop))
            try:
                yield
            finally:
                stop.set()

    async def _ask_on(self, path: str, stop: asyncio.Event) -> None:
        while not stop.is_set():
            asked = time.monotonic()
            reply = await self.gateway.ask("GET", path, host=self.tenant.host, key=self.tenant.secret)
            self.told.append(Told(asked, time.monotonic(), reply))
            await asyncio.sleep(0.08)

    async def until(self, count: int, wanted: Callable[[Told], bool], seconds: float = 60.0) -> None:
        """Returns when callers were told that so often. Raises TimeoutError with what they were told last."""
        try:
            async with asyncio.timeout(seconds):
                while sum(map(wanted, self.told)) < count:  # noqa: ASYNC110  # a store in another process decides when
                    await asyncio.sleep(0.02)
        except TimeoutError:
            last = [(told.status, told.reply.body[:80]) for told in self.told[-5:]]
            raise TimeoutError(f"not told {count} times; last {last}") from None

    def check_answers(self) -> None:
        """Served, limited, or that the store is not available and when to try again; nothing of what servers say."""
        for told in self.told:
            assert told.status in (200, 429, 503), told.reply
            if told.status == 503:
                assert told.reply.code in ("store_unavailable", "overloaded"), told.reply
                assert told.reply.get("retry-after") == "1"
            assert not [word for word in INTERNAL if word in told.reply.body], told.reply

    def lost_replies(self, at: float) -> int:
        """How many callers waited for the store when it went away: they may have been charged, or given it back."""
        return sum(told.asked < at <= told.answered and told.status == 503 for told in self.told)

    def reached_since(self, since: float, until: float) -> int:
        """How many requests reached the target in between: those whose charge may be lost."""
        return sum(since <= at <= until for at in self.reached)


@contextlib.asynccontextmanager
async def traffic(gateway: Gateway, limit: int, *, subdomain: str = "testcompany") -> AsyncIterator[Traffic]:
    """A tenant, a limited rule and a target; nobody asks yet."""
    tenant = await gateway.new_tenant(subdomain)
    made = Traffic(gateway, tenant)
    async with an_upstream(made.serve) as upstream:
        await gateway.new_rule(tenant, upstream.url, **limited(limit))
        yield made


@dataclass(frozen=True)
class Left:
    """What the limits of the only rule say when nobody asks any more. ``endless`` are keys of limits that never end."""

    logged: int
    in_flight: int
    known: int
    holds: int
    endless: int


def left_in(servers: Iterable[Server]) -> Left:
    """Read behind the gateway's back, on the servers that take writes."""
    logged = in_flight = known = holds = endless = 0
    for server in servers:
        with server.admin(decode_responses=True) as client:
            seconds, micros = client.time()
            now = seconds * 1_000 + micros // 1_000
            for key in client.keys("*:limit:*"):
                endless += client.pttl(key) == -1
                kind, extent = key.split(":limit:")[1].split(":")[:2]
                if kind == "log":
                    logged += client.llen(key)
                elif kind == "concurrency":
                    in_flight += client.zcount(key, f"({now}", "+inf")
                elif extent == "month":
                    known += int(client.hget(key, "spent"))
                else:
                    holds += live_holds(client.hgetall(key), now)
    return Left(logged, in_flight, known, holds, endless)


def recorded_in(server: Server, rule_id: str = "") -> int:
    """Requests in the ledgers of usage, of all rules or of one."""
    with server.admin(decode_responses=True) as client:
        rows = [row for key in client.keys("*:usage:*") for row in client.hgetall(key).items()]
    return sum(int(amount) for name, amount in rows if name.startswith("r:") and rule_id in name)


def live_holds(budget: Mapping[str, str], now: int) -> int:
    """Units that a budget holds and that have not lapsed."""
    ends = {int(name[1:]): int(units) for name, units in budget.items() if name[0] in "cr" and name[1:].isdigit()}
    return sum(units for end, units in ends.items() if end > now)

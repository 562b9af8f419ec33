"""Who takes part in a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.bench.bed import Bed
from scripts.bench.contenders.direct import Direct
from scripts.bench.contenders.gateway import Callers, Checkout, GatewayContender, Running, a_gateway, create_callers
from scripts.bench.contenders.nginx_lua import NginxLua
from scripts.bench.contenders.peers import PEERS
from scripts.bench.contenders.plain import PlainForward, PlainQuart
from scripts.bench.contenders.recorded_calls import record
from scripts.bench.processes import DidNotStart
from scripts.bench.rounds import Contender, note

BASE = "nginx-lua"
UPSTREAM = "upstream"
FORWARD = "plain aiohttp"


@dataclass(frozen=True)
class Wanted:
    """What the caller asked for. ``only`` are names of contenders, ``gateway`` for all of them; empty means all."""

    checkouts: Sequence[Checkout]
    engines: Sequence[str]
    only: Sequence[str]
    peers: Sequence[str]
    rounds: int
    seconds: float
    connections: int
    streams: int
    tenants: int
    minutes: float


@dataclass(frozen=True)
class LineUp:
    """Contenders, and the callers of each checkout's gateways."""

    contenders: Sequence[Contender]
    callers: Sequence[Callers]
    engines: Sequence[str]

    @property
    def gateways(self) -> list[GatewayContender]:
        return [one for one in self.contenders if isinstance(one, GatewayContender)]


def assemble(bed: Bed, wanted: Wanted) -> LineUp:
    """Prepare the store for everybody. Raises DidNotStart, RuntimeError where not even Hypercorn runs."""
    found: list[Contender] = []
    all_callers = []
    engines: list[str] = []
    for index, checkout in enumerate(wanted.checkouts):
        with a_gateway(bed, checkout) as gateway:
            callers = create_callers(bed, gateway)
            all_callers.append(callers)
            if index == 0:
                found += [Direct(), PlainForward(callers), *_with_the_same_calls(bed, gateway, callers, checkout.db)]
        accepted = [engine for engine in wanted.engines if _accepts(bed, checkout, engine)]
        engines = engines or accepted
        found += [GatewayContender(checkout, callers, engine) for engine in accepted]
    if wanted.only:
        also = {checkout.name for checkout in wanted.checkouts[1:]}
        found = [one for one in found if _is_named(one, {*wanted.only, *also})]
    return LineUp([*found, *(PEERS[name] for name in wanted.peers)], all_callers, engines)


def _with_the_same_calls(bed: Bed, gateway: Running, callers: Callers, db: int) -> list[Contender]:
    """Those that ask of the store what the gateway asks."""
    try:
        calls = record(gateway, callers, bed.redis_port, db)
    except (RuntimeError, OSError) as error:
        note(bed, f"{BASE} and plain quart were left out: {error}")
        return []
    settling = [NginxLua(calls, callers, settles=True)] if calls.json.settle is not None else []
    return [NginxLua(calls, callers), *settling, PlainQuart(calls, callers)]


def _accepts(bed: Bed, checkout: Checkout, engine: str) -> bool:
    try:
        with a_gateway(bed, checkout, engine=engine):
            return True
    except DidNotStart as refusal:
        reason = re.search(r"Error: .*?: (server\.engine.*|.*engine.*)", str(refusal))
        note(bed, f"{checkout.name} on {engine} was left out: {reason[1] if reason else refusal}")
        return False


def _is_named(contender: Contender, names: set[str]) -> bool:
    if isinstance(contender, GatewayContender):
        return bool({contender.name, contender.checkout.name} & names)
    return contender.name in names

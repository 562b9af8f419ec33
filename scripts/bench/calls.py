"""The calls that are measured, as the gateway makes them: `gateway.store` itself writes them down.

A call is written down once and sent often, each time with another id and another moment. The moment stands where the header
of the script says (``ARGV[n]  now``), so the layout of the other arguments is nobody's business here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway.models import LimitKind, LimitSpec
from gateway.resources import lua_folder
from gateway.store import (
    Admissions,
    BoundLimit,
    Connection,
    Held,
    Known,
    Settlement,
    Settlements,
    Stores,
    Used,
    limit_of,
    place_limit,
)
from gateway.store.script_source import read_scripts
from gateway.store.scripts import ScriptRunner
from tests.gate import DIGEST, REVISION, VERSION, Gate

LEASE_MS = 60_000
TOGETHER = (1, 8, 32)
WINDOW_MS = 60_000
_ID = "0" * 32

# by a level that is in no ledger: a budget would have to be seeded first
PER = ("ip",)
SPECS = (
    LimitSpec("window", LimitKind.LOG, 10_000, PER, window_ms=WINDOW_MS),
    LimitSpec("tokens", LimitKind.RING, 1_000_000_000, PER, window_ms=WINDOW_MS),
    LimitSpec("steady", LimitKind.BUCKET, 490, PER, window_ms=WINDOW_MS, burst=1_000),
    LimitSpec("quota", LimitKind.BUDGET, 1_000_000_000, PER, period="day"),
    LimitSpec("flying", LimitKind.CONCURRENCY, 1_000, PER),
)
"""One of each kind. A steady stream of requests fills none of them."""
HELD_BUDGET = replace(SPECS[3], name="money", on_lost="charge")
"""A budget that holds its cost until the request is settled."""

RESERVED, USED = 2_000, 1_234
"""What a request may cost in tokens and money, and what it turns out to cost."""


@dataclass(frozen=True)
class Call:
    """One call of a script, with `_ID` and no moment of its own."""

    script: str
    sha: str
    keys: tuple[str, ...]
    arguments: tuple[str, ...]
    now_index: int

    def packed(self, admission_id: str, now_ms: int | None) -> bytes:
        """As it goes over the wire. Without a moment the server's clock decides."""
        keys = [key.replace(_ID, admission_id) for key in self.keys]
        arguments = [argument.replace(_ID, admission_id) for argument in self.arguments]
        if now_ms is not None:
            arguments[self.now_index] = str(now_ms)
        return packed("EVALSHA", self.sha, len(keys), *keys, *arguments)


def packed(*words: str | int) -> bytes:
    """A command as it goes over the wire."""
    encoded = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)


@dataclass(frozen=True)
class Calls:
    """What is asked of one set of limits. ``renew`` is None where nothing is held.

    ``settle_together`` ends so many admissions in one call, none of which has anything due.
    """

    admit: Call
    refused: Call
    settle: Call
    renew: Call | None
    settle_together: dict[int, Call]


class Recorder(ScriptRunner):
    """Writes calls down instead of making them."""

    def __init__(self, connection: Connection) -> None:
        self._scripts_read = read_scripts(lua_folder())
        super().__init__(connection, self._scripts_read)
        self._written: list[tuple[str, Sequence[Any], Sequence[Any]]] = []

    async def call(self, name: str, keys: Sequence[str], arguments: Sequence[Any]) -> list[Any]:
        self._written.append((name, keys, arguments))
        raise _Written

    async def call_each(self, name: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        return [await self.call(name, *one) for one in calls]

    async def write_down(self, work: Awaitable[Any]) -> Call:
        """The call that this work makes."""
        with contextlib.suppress(_Written):
            await work
        name, keys, arguments = self._written.pop()
        moment = re.search(r"^-- ARGV\[(\d+)\] +now ", self._scripts_read[name].body, re.MULTILINE)
        assert moment is not None, f"{name}.lua takes no moment"
        return Call(name, self._shas[name], tuple(keys), tuple(arguments), int(moment[1]) - 1)


class _Written(Exception):
    """There is no reply to a call that was written down."""


def bound(gate: Gate, specs: Sequence[LimitSpec]) -> list[BoundLimit]:
    """Limits at their place in a chain, for one request."""
    limits = []
    for index, spec in enumerate(specs):
        placed = place_limit(gate.keyspace, "ten_1", f"rule_{index // len(SPECS)}", spec, index, PER)
        limits.append(BoundLimit(placed, limit_of(placed.key, ("x",)), RESERVED if _is_estimated(spec) else 1))
    return limits


def _is_estimated(spec: LimitSpec) -> bool:
    return spec.kind in {LimitKind.RING, LimitKind.BUDGET}


async def calls_of(gate: Gate, recorder: Recorder, specs: Sequence[LimitSpec], live: int) -> Calls:
    """Every call for these limits. The refused one meets a full window: ``live`` requests are in it already."""
    names, limits = gate.keyspace, bound(gate, specs)
    full = bound(gate, [replace(spec, limit=live) if spec.kind is LimitKind.LOG else spec for spec in specs])
    holding = tuple(limit for limit in limits if limit.placed.spec.holds)
    dues = [(limit, USED if _is_estimated(limit.placed.spec) else None) for limit in limits]
    used = Used("ten_1", "key_1", "rule_1", "model", 1, 1_000, 234, 0, USED)
    plain = Used("ten_1", "key_1", "rule_1", "model")
    admissions = Admissions(gate.stores.connection, recorder, LEASE_MS)
    settlements = Settlements(recorder, LEASE_MS, 86_400_000)

    async def admit(limits: Sequence[BoundLimit]) -> Call:
        known = Known(VERSION, REVISION)
        return await recorder.write_down(admissions.admit(names, DIGEST, known, _ID, limits))

    return Calls(
        await admit(limits),
        await admit(full),
        await recorder.write_down(settlements.settle([Settlement(names, _ID, 1, dues, used)])),
        await recorder.write_down(settlements.renew([Held(names, _ID, 1, holding)])) if holding else None,
        {
            count: await recorder.write_down(
                settlements.settle([Settlement(names, f"{_ID}-{number}", 1, (), plain) for number in range(count)])
            )
            for count in TOGETHER
        },
    )


async def recorder_of(stores: Stores) -> Recorder:
    """Loads the scripts as a replica does."""
    recorder = Recorder(stores.connection)
    await recorder.start()
    return recorder

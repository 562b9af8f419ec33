"""The calls that are measured, as the gateway makes them: `gateway.store`'s own `Admissions` write them down.

A call is written down once and sent often, each time with another id and another moment. The moment stands where the header
of the script says (``ARGV[n]  now``), so the layout of the other arguments is nobody's business here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway.models import LimitKind, LimitSpec
from gateway.resources import lua_folder
from gateway.store import Admissions, BoundLimit, Connection, Held, Known, Stores, limit_of, place_limit
from gateway.store.script_source import read_scripts
from gateway.store.scripts import ScriptRunner
from tests.gate import DIGEST, REVISION, VERSION, Gate

LEASE_MS = 60_000
WINDOW_MS = 60_000
_ID = "0" * 32

SPECS = (
    LimitSpec("window", LimitKind.LOG, 10_000, ("rule",), window_ms=WINDOW_MS),
    LimitSpec("tokens", LimitKind.RING, 1_000_000, ("rule",), unit="tokens", window_ms=WINDOW_MS),
    LimitSpec("steady", LimitKind.BUCKET, 490, ("rule",), window_ms=WINDOW_MS, burst=1_000),
    LimitSpec("quota", LimitKind.BUDGET, 1_000_000, ("rule",), period="day"),
    LimitSpec("flying", LimitKind.CONCURRENCY, 1_000, ("rule",)),
)
"""One of each kind. A steady stream of requests fills none of them."""


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
    """What is asked of one set of limits. ``renew`` is None where nothing is held."""

    admit: Call
    refused: Call
    settle: Call
    renew: Call | None


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

    async def write_down(self, make: Callable[[Admissions], Awaitable[Any]]) -> Call:
        """The call that this makes."""
        with contextlib.suppress(_Written):
            await make(Admissions(self._connection, self, LEASE_MS))
        name, keys, arguments = self._written.pop()
        moment = re.search(r"^-- ARGV\[(\d+)\] +now ", self._scripts_read[name].body, re.MULTILINE)
        assert moment is not None, f"{name}.lua takes no moment"
        return Call(name, self._shas[name], tuple(keys), tuple(arguments), int(moment[1]) - 1)


class _Written(Exception):
    """There is no reply to a call that was written down."""


def bound(gate: Gate, specs: Sequence[LimitSpec]) -> list[BoundLimit]:
    """Limits at their place in a chain, for one request."""
    placed = [
        place_limit(gate.keyspace, "ten_1", f"rule_{index // len(SPECS)}", spec, index, ("rule",))
        for index, spec in enumerate(specs)
    ]
    return [BoundLimit(limit, limit_of(limit.key, ("x",))) for limit in placed]


def _due(limit: BoundLimit) -> int | None:
    """Tokens and money are corrected at the end; the rest keeps its charge."""
    return 3 if limit.placed.spec.kind in {LimitKind.RING, LimitKind.BUDGET} else None


async def calls_of(gate: Gate, recorder: Recorder, specs: Sequence[LimitSpec], live: int) -> Calls:
    """Every call for these limits. The refused one meets a full window: ``live`` requests are in it already."""
    names, limits, known = gate.keyspace, bound(gate, specs), Known(VERSION, REVISION)
    full = [replace(spec, limit=live) if spec.kind is LimitKind.LOG else spec for spec in specs]
    holding = tuple(limit for limit in limits if limit.placed.spec.holds)

    def admit(limits: Sequence[BoundLimit]) -> Callable[[Admissions], Awaitable[Any]]:
        return lambda admissions: admissions.admit(names, DIGEST, known, _ID, limits)

    return Calls(
        await recorder.write_down(admit(limits)),
        await recorder.write_down(admit(bound(gate, full))),
        await recorder.write_down(lambda admissions: admissions.settle(names, _ID, [(limit, _due(limit)) for limit in limits])),
        await recorder.write_down(lambda admissions: admissions.renew([Held(names, _ID, 1, holding)])) if holding else None,
    )


async def recorder_of(stores: Stores) -> Recorder:
    """Loads the scripts as a replica does."""
    recorder = Recorder(stores.connection)
    await recorder.start()
    return recorder

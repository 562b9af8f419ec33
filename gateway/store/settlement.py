"""What follows an admission: renewal while the request lasts, and settlement when it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

from gateway.errors import InternalError
from gateway.store.keyspace import Keyspace
from gateway.store.placed import BoundLimit
from gateway.store.scripts import ScriptRunner

DAY_MS = 86_400_000

_EPOCH_DAY = date(1970, 1, 1).toordinal()

Due = tuple[BoundLimit, int | None]
"""A limit and what a request turned out to cost there; None for what it was charged."""


class Used(NamedTuple):
    """What a request used, for the ledger. ``cost_nano_usd`` is billionths of a dollar."""

    tenant_id: str
    key_id: str
    rule_id: str
    model: str = ""
    requests: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_nano_usd: int = 0


class Settlement(NamedTuple):
    """The end of an admission.

    ``admitted_ms`` is the time on the store's clock, None if its reply was lost: then what it was charged goes back if it was
    admitted, and it is void if it arrives later. Limits that are not among ``dues`` keep their charge; those that hold
    something must be among them. ``used`` is None if there is nothing to record.
    """

    keyspace: Keyspace
    admission_id: str
    admitted_ms: int | None
    dues: Sequence[Due]
    used: Used | None = None


class Held(NamedTuple):
    """An admission that holds something in these limits. ``admitted_ms`` is the time on the store's clock."""

    keyspace: Keyspace
    admission_id: str
    admitted_ms: int
    limits: tuple[BoundLimit, ...]


class Settlements:
    """Calls ``settle`` and ``renew``, for many admissions in one round trip."""

    def __init__(self, runner: ScriptRunner, lease_ms: int, retention_ms: int) -> None:
        self._runner = runner
        self._lease_ms = str(lease_ms)
        self._retention_ms = str(retention_ms)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Exception | None]:
        """End admissions: free what they hold, correct what they were charged, record what they used.

        For an admission the first call counts and no other, so one that failed may be repeated within a lease. Returns
        what failed, in the order of the settlements.
        """
        replies = await self._runner.call_each("settle", [self._call_of(settlement) for settlement in settlements])
        failures: list[Exception | None] = []
        for reply in replies:
            match reply:
                case Exception():
                    failures.append(reply)
                case [b"settled" | b"settled_before" | b"not_admitted"]:
                    failures.append(None)
                case _:
                    raise InternalError from AssertionError(f"settle.lua replied {reply!r}")
        return failures

    def _call_of(self, settlement: Settlement) -> tuple[list[str], list[str]]:
        names, used, admitted_ms = settlement.keyspace, settlement.used, settlement.admitted_ms
        day = date.fromordinal(_EPOCH_DAY + (admitted_ms or 0) // DAY_MS)
        keys = [names.marker(settlement.admission_id), names.clock, names.usage("" if used is None else used.tenant_id, day)]
        arguments = [self._lease_ms, settlement.admission_id, "" if admitted_ms is None else str(admitted_ms), ""]
        if used is None:
            arguments += ["", "", "0", "0", "0", "0", "0", "0"]
        else:
            amounts = (used.requests, used.input_tokens, used.output_tokens, used.cached_tokens, used.cost_nano_usd)
            arguments += [f"{used.key_id}:{used.rule_id}:", used.model, self._retention_ms, *map(str, amounts)]
        for limit, actual in settlement.dues:
            keys.append(limit.key)
            arguments += [*limit.arguments, "" if actual is None else str(actual)]
        return keys, arguments

    async def renew(self, held: Sequence[Held]) -> None:
        """Push the end of these leases forward, all in one round trip; those that are settled stay so.

        Raises what kept the first of them from being renewed; the others are renewed all the same.
        """
        calls = []
        for one in held:
            keys = [one.keyspace.marker(one.admission_id), one.keyspace.clock, *(limit.key for limit in one.limits)]
            facts = [self._lease_ms, one.admission_id, str(one.admitted_ms), ""]
            calls.append((keys, [*facts, *(word for limit in one.limits for word in limit.arguments)]))
        for reply in await self._runner.call_each("renew", calls):
            match reply:
                case Exception():
                    raise reply
                case [b"renewed" | b"settled_before"]:
                    continue
            raise InternalError from AssertionError(f"renew.lua replied {reply!r}")

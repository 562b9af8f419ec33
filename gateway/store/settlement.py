"""What follows an admission: renewal while the request lasts, and settlement when it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

from gateway.errors import InternalError
from gateway.store.keyspace import Keyspace
from gateway.store.placed import BoundLimit
from gateway.store.receipts import ReceiptIndex
from gateway.store.scripts import ScriptRunner

DAY_MS = 86_400_000

MOST_TOGETHER = 64
"""As many admissions may one call settle, see lua/settle.lua."""

_EPOCH_DAY = date(1970, 1, 1).toordinal()
_FINE = frozenset((b"settled", b"settled_before", b"not_admitted"))
_FAILED = b"failed: "

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
    """Calls ``settle`` and ``renew``, for many admissions in one round trip.

    With an index of receipts, each admission that is recorded leaves one; ``max_receipts`` of a tenant are kept.
    """

    def __init__(
        self,
        runner: ScriptRunner,
        lease_ms: int,
        retention_ms: int,
        receipts: ReceiptIndex | None = None,
        max_receipts: int = 0,
    ) -> None:
        self._runner = runner
        self._lease_ms = str(lease_ms)
        self._retention_ms = str(retention_ms)
        self._receipts = receipts
        self._max_receipts = "" if receipts is None else str(max_receipts)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Exception | None]:
        """End admissions: free what they hold, correct what they were charged, record what they used.

        For an admission the first call counts and no other, so one that failed may be repeated within a lease. Returns
        what failed, in the order of the settlements.
        """
        failures: list[Exception | None] = [None] * len(settlements)
        places: Sequence[int] = range(len(settlements))
        if self._receipts is not None:
            places = await self._findable(self._receipts, settlements, failures)
        refused = await self._settle_groups(settlements, _groups(settlements, places), failures)
        if refused:
            # a call that the script itself refused may be the fault of one: the others are settled without it
            await self._settle_groups(settlements, [[place] for group in refused for place in group], failures)
        return failures

    async def _findable(
        self, receipts: ReceiptIndex, settlements: Sequence[Settlement], failures: list[Exception | None]
    ) -> list[int]:
        """The places of those whose receipts the export will find; the others must wait, and what kept them is entered."""
        failed = await receipts.note({one.used.tenant_id for one in settlements if one.used is not None})
        places = []
        for place, (*_, used) in enumerate(settlements):
            if used is not None and used.tenant_id in failed:
                failures[place] = failed[used.tenant_id]
            else:
                places.append(place)
        return places

    async def _settle_groups(
        self, settlements: Sequence[Settlement], groups: list[list[int]], failures: list[Exception | None]
    ) -> list[list[int]]:
        """One call for each group of places; enters what failed. Returns the groups of several whose call was refused."""
        calls = [self._call_of([settlements[place] for place in group]) for group in groups]
        refused = []
        for group, reply in zip(groups, await self._runner.call_each("settle", calls), strict=True):
            if isinstance(reply, InternalError) and len(group) > 1:
                refused.append(group)
            elif isinstance(reply, Exception):
                for place in group:
                    failures[place] = reply
            else:
                for place, outcome in zip(group, reply, strict=True):
                    failures[place] = None if outcome in _FINE else self._failure(outcome)
        return refused

    def _failure(self, outcome: Any) -> Exception:
        if isinstance(outcome, bytes) and outcome.startswith(_FAILED):
            return self._runner.failure("settle", outcome.removeprefix(_FAILED).decode("utf-8", "replace"))
        raise InternalError from AssertionError(f"settle.lua replied {outcome!r}")

    def _call_of(self, settlements: Sequence[Settlement]) -> tuple[list[str], list[str]]:
        """Settlements of one tenant as keys and arguments, see lua/settle.lua."""
        names = settlements[0].keyspace
        leaves_receipts = self._receipts is not None
        rows = _Table()
        limits = _Table()
        markers = []
        runs: list[str] = []
        head = alike = 0
        before: tuple[object, ...] = ()
        for _, admission_id, admitted_ms, dues, used in settlements:
            markers.append(names.marker(admission_id))
            told = bool(dues) or admitted_ms is None or (leaves_receipts and used is not None)
            day = (admitted_ms or 0) // DAY_MS
            this = (used, day, told, dues)
            if this == before:
                alike += 1
                runs[head] = str(alike)
            else:
                before, head, alike = this, len(runs), 1
                if used is None:
                    runs += ("1", "0", "0", "0", "0", "0", "0")
                else:
                    tenant_id, key_id, rule_id, model, *amounts = used
                    row = rows.place_of((tenant_id, day, f"{key_id}:{rule_id}:", model))
                    runs += ("1", row, *map(str, amounts))
                runs.append(str(len(dues)) if told else "")
                for limit, actual in dues:
                    runs += (limits.place_of((limit.key, limit.arguments)), "" if actual is None else str(actual))
            if told:
                runs += (admission_id, "" if admitted_ms is None else str(admitted_ms))
        keys = [names.clock, *markers]
        arguments = [self._lease_ms, "", self._retention_ms, str(len(markers)), str(len(rows)), self._max_receipts]
        for tenant_id, day, name, model in rows:
            keys.append(names.usage(tenant_id, date.fromordinal(_EPOCH_DAY + day)))
            arguments += (name, model)
        if leaves_receipts:
            keys += [names.receipts(tenant_id) for tenant_id, *_ in rows]
        for key, words in limits:
            keys.append(key)
            arguments += words
        return keys, arguments + runs

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


class _Table(dict[Any, str]):
    """What is sent once and then named by its place, counted from 1."""

    def place_of(self, value: object) -> str:
        """Of a value that may be new."""
        return self.get(value) or self.setdefault(value, str(len(self) + 1))


def _groups(settlements: Sequence[Settlement], places: Sequence[int]) -> list[list[int]]:
    """These places by what one call may settle: of one tenant, and not too many."""
    groups: list[list[int]] = []
    latest: dict[str, list[int]] = {}
    for place in places:
        tenant = settlements[place].keyspace.clock
        group = latest.get(tenant)
        if group is None or len(group) == MOST_TOGETHER:
            group = latest[tenant] = []
            groups.append(group)
        group.append(place)
    return groups

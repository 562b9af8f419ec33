"""Receipts: what each settled request used, in a stream of its tenant until an export has them safe.

A receipt is the entry ``0-<number>`` that ``lua/settle.lua`` writes. Numbers of a tenant have no gaps unless receipts were
dropped, because nobody exported them, or taken back, because their ledger is damaged; they go on when the stream is empty.
Streams are found by an index of tenants, which is written before a stream may begin: an entry without a stream is harmless, a
stream without its entry would be lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gateway.errors import InternalError
from gateway.store.connect import Connection
from gateway.store.failures import store_error, store_errors
from gateway.store.keyspace import Keyspace, receipt_index, tenant_index
from gateway.store.scripts import ScriptRunner

_LOG = logging.getLogger("gateway.store")

NOTED_AGAIN_MS = 600_000
"""How often a replica says of a tenant in use that it may have receipts."""

KEPT_IN_INDEX_MS = 7 * 86_400_000
"""A tenant of whom nobody has said so for this long, and who has none, leaves the index."""

# A server runs a pipeline to its end before it turns to other clients, so the bound is on all commands of one.
NAMES_AT_ONCE = 100
RECEIPTS_AT_ONCE = 200


class Receipt(NamedTuple):
    """What a request used. Times are of the store's clock; ``cost_nano_usd`` is billionths of a dollar."""

    number: int
    id: str
    admitted_ms: int
    settled_ms: int
    key_id: str
    rule_id: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_nano_usd: int


class ReceiptIndex:
    """Says of tenants that they may have receipts. ``clock`` counts milliseconds since 1970."""

    def __init__(self, connection: Connection, clock: Callable[[], float] = lambda: time.time() * 1_000) -> None:
        self._connection = connection
        self._clock = clock
        self._noted: dict[str, float] = {}

    async def note(self, tenant_ids: Iterable[str]) -> dict[str, Exception]:
        """Make these findable. Returns those of whom that could not be said, and why.

        Of one that this replica has noted before it is only said again, which may fail: the index forgets no one so soon.
        """
        now = self._clock()
        due = [each for each in tenant_ids if not self._noted.get(each, -NOTED_AGAIN_MS) + NOTED_AGAIN_MS > now]
        if not due:
            return {}
        try:
            with store_errors():
                await self._connection.client.zadd(receipt_index(), dict.fromkeys(due, int(now)))
        except Exception as error:
            return {each: error for each in due if each not in self._noted}
        self._noted = {each: at for each, at in self._noted.items() if at + 2 * NOTED_AGAIN_MS > now} | dict.fromkeys(due, now)
        return {}

    async def note_deleted(self, tenant_id: str) -> None:
        """Let the export find what a tenant leaves behind, if there ever was a receipt."""
        with store_errors():
            if await self._connection.client.exists(Keyspace.of_tenant(tenant_id).receipts(tenant_id)):
                await self._connection.client.zadd(receipt_index(), {tenant_id: int(self._clock())})


class ReceiptStore:
    """Reads receipts of all tenants and removes those that are safe. ``clock`` counts milliseconds since 1970."""

    def __init__(
        self, connection: Connection, runner: ScriptRunner, clock: Callable[[], float] = lambda: time.time() * 1_000
    ) -> None:
        self._connection = connection
        self._runner = runner
        self._clock = clock

    async def tenants(self) -> list[str]:
        """Ids of those who may have receipts, also of deleted ones."""
        found: set[str] = set()
        cursor = 0
        while True:
            with store_errors():
                cursor, members = await self._connection.client.zscan(receipt_index(), cursor, count=NAMES_AT_ONCE)
            found.update(member.decode() for member, _ in members)
            if int(cursor) == 0:
                return sorted(found)

    async def waiting(self, tenant_ids: Sequence[str]) -> dict[str, int | Exception]:
        """How many receipts each of these has, without those who have none, or why that cannot be told."""
        lengths = await self._each(tenant_ids, lambda pipe, names, tenant_id: pipe.xlen(names.receipts(tenant_id)))
        return {tenant_id: length for tenant_id, length in lengths.items() if length != 0}

    async def read(self, tenant_id: str, after: int, count: int) -> list[Receipt]:
        """The first receipts behind this number, at most `RECEIPTS_AT_ONCE`."""
        stream = Keyspace.of_tenant(tenant_id).receipts(tenant_id)
        most = min(count, RECEIPTS_AT_ONCE)
        with store_errors():
            entries = await self._connection.client.xrange(stream, f"0-{after + 1}", "+", count=most)
        try:
            return [_receipt(name, fields) for name, fields in entries]
        except (LookupError, ValueError) as error:  # somebody else has written there
            raise InternalError from error

    async def exported(self, tenant_id: str) -> int:
        """The number of the last receipt that was removed as safe."""
        with store_errors():
            number = await self._connection.client.get(Keyspace.of_tenant(tenant_id).exported(tenant_id))
        return int(number or 0)

    async def remove(self, last: Mapping[str, Receipt]) -> dict[str, Exception]:
        """Remove the receipts of each tenant up to this one. Returns what kept some of them from being removed.

        Where the server has lost the one that was read, nothing is removed, and what is there now must be read.
        """
        replies: list[Any] = []
        for ids in _pieces(list(last)):
            calls = [_removal(tenant_id, last[tenant_id].number, last[tenant_id].id) for tenant_id in ids]
            replies += await self._runner.call_each("remove_receipts", calls)
        failures: dict[str, Exception] = {}
        for tenant_id, reply in zip(last, replies, strict=True):
            match reply:
                case [b"removed", int()]:
                    continue
                case [b"changed"]:
                    _LOG.warning("the store has lost receipts of %s that are exported; those it has now follow", tenant_id)
                case Exception():
                    failures[tenant_id] = reply
                case _:
                    raise InternalError from AssertionError(f"remove_receipts.lua replied {reply!r}")
        return failures

    async def recover(self) -> int:
        """Put tenants back into the index who have receipts and are not in it, as the server may have lost an entry.

        Only those who were not deleted can be known. Returns how many there were.
        """
        found, position = 0, "-"
        while True:
            with store_errors():
                names = await self._connection.client.zrangebylex(tenant_index(), position, "+", start=0, num=NAMES_AT_ONCE)
            if not names:
                return found
            position = f"({names[-1].decode()}"
            waiting = await self.waiting([name.decode() for name in names])
            if waiting:
                entries = dict.fromkeys(waiting, int(self._clock()))
                with store_errors():
                    found += await self._connection.client.zadd(receipt_index(), entries, nx=True)

    async def retire(self) -> None:
        """Let go of tenants whose receipts were exported and of whom nothing was heard for long.

        What settlements write meanwhile is found all the same: they have said so anew, and only old entries leave.
        """
        now = int(self._clock())
        until = now - KEPT_IN_INDEX_MS
        old: list[str] = []
        while True:
            with store_errors():
                names = await self._connection.client.zrangebyscore(
                    receipt_index(), "-inf", until, start=len(old), num=NAMES_AT_ONCE
                )
            old += [name.decode() for name in names]
            if len(names) < NAMES_AT_ONCE:
                break
        for ids in _pieces(old):
            owners = await self._each(ids, lambda pipe, names, _: pipe.hget(names.tenant, "id"))
            gone = {each for each, owner in owners.items() if not isinstance(owner, Exception) and owner != each.encode()}
            replies = await self._runner.call_each("remove_receipts", [_removal(each, 0, "", each in gone) for each in ids])
            kept = {each: now for each, reply in zip(ids, replies, strict=True) if reply != [b"removed", 0]}
            if kept:
                with store_errors():
                    await self._connection.client.zadd(receipt_index(), kept, xx=True)
        if old:
            with store_errors():
                await self._connection.client.zremrangebyscore(receipt_index(), "-inf", until)

    async def _each(self, tenant_ids: Sequence[str], ask: Callable[[Any, Keyspace, str], Any]) -> dict[str, Any]:
        """The reply to one command for each tenant, or the gateway's error for it."""
        replies: dict[str, Any] = {}
        for ids in _pieces(tenant_ids):
            with store_errors():
                pipe = self._connection.client.pipeline(transaction=False)
                for tenant_id in ids:
                    ask(pipe, Keyspace.of_tenant(tenant_id), tenant_id)
                # a damaged key, or a part of a cluster that is away, must not keep the others waiting
                found = await pipe.execute(raise_on_error=False)
            for tenant_id, reply in zip(ids, found, strict=True):
                replies[tenant_id] = store_error(reply) if isinstance(reply, Exception) else reply
        return replies


def _pieces(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + NAMES_AT_ONCE] for start in range(0, len(names), NAMES_AT_ONCE))


def _removal(tenant_id: str, number: int, admission_id: str, gone: bool = False) -> tuple[list[str], list[str]]:
    names = Keyspace.of_tenant(tenant_id)
    return [names.receipts(tenant_id), names.exported(tenant_id)], [str(number), admission_id, "1" if gone else ""]


def _receipt(name: bytes, fields: Mapping[bytes, bytes]) -> Receipt:
    key_id, rule_id, model = fields[b"row"].decode("utf-8", "replace").split(":", 2)
    return Receipt(
        int(name.rpartition(b"-")[2]),
        fields[b"id"].decode(),
        int(fields[b"admitted"]),
        int(fields[b"settled"]),
        key_id,
        rule_id,
        model,
        int(fields[b"requests"]),
        int(fields[b"input"]),
        int(fields[b"output"]),
        int(fields[b"cached"]),
        int(fields[b"cost"]),
    )

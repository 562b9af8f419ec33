"""What a tenant has used, as settlements add it up: a hash for each UTC day of admission.

A field is ``<metric>:<key id>:<rule id>:<model>``, its value an integer. The model may be empty and may hold colons, the ids
hold none. Hashes are read in pieces: no command may keep the server from deciding requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

from gateway.config.usage import MAX_RETENTION_DAYS
from gateway.store.connect import Connection
from gateway.store.failures import store_errors
from gateway.store.keyspace import Keyspace

MAX_DAYS = 400
"""Most days to ask for at once."""

Metric = Literal["requests", "input_tokens", "output_tokens", "cached_tokens", "cost_nano_usd"]

# as they stand in a row
_LETTERS: dict[Metric, str] = {
    "requests": "r",
    "input_tokens": "i",
    "output_tokens": "o",
    "cached_tokens": "c",
    "cost_nano_usd": "u",
}
_METRICS = {f"{letter}:".encode(): index for index, letter in enumerate(_LETTERS.values())}

# A server runs a pipeline to its end before it turns to other clients, so the bound is on all commands of one.
_FIELDS_AT_ONCE = 2_000
_DAYS_AT_ONCE = 10
_NAMES_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The sums of one day, key, rule and model. ``model`` is empty for requests that name none."""

    day: date
    key_id: str
    rule_id: str
    model: str
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_nano_usd: int = 0


class UsageStore:
    """Reads the ledger. Days are UTC and inclusive on both ends; who asks bounds them by `MAX_DAYS`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def days(self, tenant_id: str, first: date, last: date) -> AsyncIterator[list[UsageRow]]:
        """The rows of each day, in no order; a long ledger is never in memory as a whole."""
        async for day, sums in self._read(tenant_id, first, last, b"*"):
            yield [_row(day, name, numbers) for name, numbers in sums.items()]

    async def rows(self, tenant_id: str, first: date, last: date) -> list[UsageRow]:
        """All rows, by day."""
        return [row async for rows in self.days(tenant_id, first, last) for row in rows]

    async def sum_of(
        self,
        metrics: Sequence[Metric],
        tenant_id: str,
        first: date,
        last: date,
        *,
        key_id: str | None = None,
        rule_id: str | None = None,
        model: str | None = None,
    ) -> int:
        """What was counted of these metrics together, of one key, rule and model where these are given."""
        wanted = [None if text is None else text.encode(errors="replace") for text in (key_id, rule_id, model)]
        total = 0
        letters = "".join(_LETTERS[metric] for metric in metrics)
        async for _, sums in self._read(tenant_id, first, last, f"[{letters}]:*".encode()):
            for name, numbers in sums.items():
                if all(text in (None, part) for text, part in zip(wanted, name.split(b":", 2), strict=True)):
                    total += sum(numbers)  # the others were not read
        return total

    async def _read(
        self, tenant_id: str, first: date, last: date, match: bytes
    ) -> AsyncIterator[tuple[date, dict[bytes, list[int]]]]:
        names = Keyspace.of_tenant(tenant_id)
        ordinals = range(first.toordinal(), last.toordinal() + 1)
        for start in range(0, len(ordinals), _DAYS_AT_ONCE):
            found: dict[date, dict[bytes, list[int]]] = {
                date.fromordinal(ordinal): {} for ordinal in ordinals[start : start + _DAYS_AT_ONCE]
            }
            cursors = dict.fromkeys(found, 0)
            while cursors:
                asked = list(cursors)
                with store_errors():
                    pipe = self._connection.client.pipeline(transaction=False)
                    for day in asked:
                        count = _FIELDS_AT_ONCE // len(asked)
                        pipe.hscan(names.usage(tenant_id, day), cursors[day], match=match, count=count)
                    replies = await pipe.execute()
                for day, (cursor, fields) in zip(asked, replies, strict=True):
                    _add(found[day], fields)
                    if int(cursor) == 0:
                        del cursors[day]
                    else:
                        cursors[day] = cursor
            for day in list(found):
                yield day, found.pop(day)
                await asyncio.sleep(0)  # requests of the proxy may be waiting for this loop


def _add(sums: dict[bytes, list[int]], fields: dict[bytes, bytes]) -> None:
    for field, value in fields.items():
        index = _METRICS.get(field[:2])
        if index is None or field.count(b":") < 3:
            continue
        name = field[2:]
        numbers = sums.get(name)
        if numbers is None:
            numbers = sums[name] = [0] * len(_METRICS)
        numbers[index] = int(value)  # set, not added: a scan may see a field twice


def _row(day: date, name: bytes, numbers: list[int]) -> UsageRow:
    key_id, rule_id, model = name.decode("utf-8", "replace").split(":", 2)
    return UsageRow(day, key_id, rule_id, model, *numbers)


async def forget_usage(connection: Connection, tenant_id: str) -> None:
    """Remove every day that may exist. A request in flight may still add to its day, which then ends by itself."""
    tomorrow = datetime.now(UTC).date().toordinal() + 1  # the store's clock may be ahead of ours
    keyspace = Keyspace.of_tenant(tenant_id)
    names = [keyspace.usage(tenant_id, date.fromordinal(tomorrow - ago)) for ago in range(MAX_RETENTION_DAYS + 2)]
    for start in range(0, len(names), _NAMES_AT_ONCE):
        with store_errors():
            await connection.client.unlink(*names[start : start + _NAMES_AT_ONCE])

"""The ledger of usage, read."""

from __future__ import annotations

from datetime import date, timedelta

from gateway.store.connect import Connection, store_errors
from gateway.store.keyspace import Keyspace


class UsageStore:
    """Reads what settlements have written."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def requests_of(
        self,
        keyspace: Keyspace,
        first: date,
        last: date,
        *,
        key_id: str | None = None,
        rule_id: str | None = None,
        model: str | None = None,
    ) -> int:
        """Sum of the requests."""
        total = 0
        day = first
        while day <= last:
            with store_errors():
                fields = await self._connection.client.hgetall(keyspace.usage(day))
            for name, value in fields.items():
                metric, key, rule, named = name.decode().split(":", 3)
                if metric == "r" and key_id in (None, key) and rule_id in (None, rule) and model in (None, named):
                    total += int(value)
            day += timedelta(days=1)
        return total

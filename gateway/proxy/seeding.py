"""Counts from the ledger what a budget has spent of which the store has no count: a new one, or one that was lost."""

from __future__ import annotations

import asyncio

from gateway.policy import spent_by_ledger
from gateway.store import Admissions, BoundLimit, Unseeded, UsageStore


class Seeding:
    """Tells the store what budgets have spent. Requests that wait for the same budget share one look at the ledger."""

    def __init__(self, admissions: Admissions, usage: UsageStore) -> None:
        self._admissions = admissions
        self._usage = usage
        self._running: dict[str, asyncio.Task[None]] = {}

    async def seed(self, tenant_id: str, unseeded: Unseeded) -> None:
        """Give every budget that the store asks for its count. Raises StoreUnavailable, Overloaded."""
        for limit in unseeded.limits:
            task = self._running.get(limit.key)
            if task is None:
                task = self._running[limit.key] = asyncio.create_task(self._seed(tenant_id, limit, unseeded.now_ms))
            # a request that is cancelled does not take the count from the others
            await asyncio.shield(task)

    async def _seed(self, tenant_id: str, limit: BoundLimit, now_ms: int) -> None:
        try:
            spent = await spent_by_ledger(self._usage, tenant_id, limit, now_ms)
            await self._admissions.seed([(limit, spent)], now_ms)
        finally:
            del self._running[limit.key]

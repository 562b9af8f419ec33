"""Counts from the ledger what a budget has spent of which the store has no count: a new one, or one that was lost."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.store import Admissions, BoundLimit, Keyspace, Unseeded, UsageStore


class Seeding:
    """Tells the store what budgets have spent."""

    def __init__(self, admissions: Admissions, usage: UsageStore) -> None:
        self._admissions = admissions
        self._usage = usage

    async def seed(self, keyspace: Keyspace, unseeded: Unseeded) -> None:
        """Give every budget that the store asks for its count. Raises StoreUnavailable, Overloaded."""
        seeds = [(limit, await self._spent(keyspace, limit, unseeded.now_ms)) for limit in unseeded.limits]
        await self._admissions.seed(seeds, unseeded.now_ms)

    async def _spent(self, keyspace: Keyspace, limit: BoundLimit, now_ms: int) -> int:
        placed = limit.placed
        values = dict(zip(placed.levels, limit.values, strict=True))
        today = datetime.fromtimestamp(now_ms / 1_000, UTC).date()
        return await self._usage.requests_of(
            keyspace,
            today.replace(day=1) if placed.spec.period == "month" else today,
            today,
            key_id=values.get("api_key", placed.key_id),
            rule_id=placed.rule_id,
            model=values.get("model"),
        )

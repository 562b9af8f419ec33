"""What a budget has spent by the ledger, where the store has no count of it: a new one, or one that was lost."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from gateway.models import Unit
from gateway.periods import period_start
from gateway.store import BoundLimit, Metric, UsageStore

METRICS: Mapping[Unit, tuple[Metric, ...]] = {
    "requests": ("requests",),
    "tokens": ("input_tokens", "output_tokens"),
    "input_tokens": ("input_tokens",),
    "output_tokens": ("output_tokens",),
    "usd": ("cost_nano_usd",),
}


async def spent_by_ledger(usage: UsageStore, tenant_id: str, limit: BoundLimit, now_ms: int) -> int:
    """Units in the period around ``now_ms``, one in UTC. Raises StoreUnavailable, Overloaded."""
    placed = limit.placed
    values = dict(zip(placed.levels, limit.values, strict=True))
    today = datetime.fromtimestamp(now_ms / 1_000, UTC).date()
    return await usage.sum_of(
        METRICS[placed.spec.unit],
        tenant_id,
        period_start(placed.spec.period or "day", today),
        today,
        key_id=values.get("api_key", placed.key_id),
        rule_id=values.get("rule", placed.rule_id),
        model=values.get("model"),
    )

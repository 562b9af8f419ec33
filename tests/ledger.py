"""The usage ledger as settlements write it."""

from __future__ import annotations

from datetime import date
from typing import Any

from gateway.store import Keyspace

METRICS = {"requests": "r", "input_tokens": "i", "output_tokens": "o", "cached_tokens": "c", "cost_nano_usd": "u"}

A_TENANT = "testcompany-0123456789ab"


def ledger(tenant_id: str, day: date) -> str:
    """The name of a day's hash."""
    return Keyspace.of_tenant(tenant_id).usage(tenant_id, day)


async def used(
    client: Any,
    day: str,
    *,
    key: str = "key_1",
    rule: str = "rule_1",
    model: str = "m",
    tenant_id: str = A_TENANT,
    **amounts: int,
) -> None:
    """Add to the sums of a day; one request unless amounts are given."""
    name = ledger(tenant_id, date.fromisoformat(day))
    for metric, amount in (amounts or {"requests": 1}).items():
        await client.hincrby(name, f"{METRICS[metric]}:{key}:{rule}:{model}", amount)

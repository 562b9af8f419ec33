"""The usage ledger as settlements write it."""

from __future__ import annotations

from datetime import date
from typing import Any

from gateway.store import Keyspace

METRICS = {"requests": "r", "input_tokens": "i", "output_tokens": "o", "cached_tokens": "c", "cost_nano_usd": "u"}


async def used(
    client: Any,
    day: str,
    *,
    key: str = "key_1",
    rule: str = "rule_1",
    model: str = "m",
    subdomain: str = "testcompany",
    **amounts: int,
) -> None:
    """Add to the sums of a day; one request unless amounts are given."""
    name = Keyspace(subdomain).usage(date.fromisoformat(day))
    for metric, amount in (amounts or {"requests": 1}).items():
        await client.hincrby(name, f"{METRICS[metric]}:{key}:{rule}:{model}", amount)

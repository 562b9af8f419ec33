"""A threshold that a limit has reached, and what is said about it."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.models import format_time, shown_amount, shown_threshold
from gateway.plugin import TenantInfo
from gateway.policy import Reached
from gateway.store import Keyspace, PlacedLimit, crossing_of

MAX_VALUE_SHOWN = 200
MARGIN_MS = 3_600_000
"""How long after its period a crossing is remembered: clocks differ."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """One limit, with the values of its levels, one threshold, one period. ``now_ms`` is when it was noticed."""

    tenant: TenantInfo
    reached: Reached
    percent: int
    now_ms: int

    @property
    def ends_ms(self) -> int:
        """The end of the period. A budget of which something is used says when it is whole again."""
        return self.now_ms + self.reached.state.reset_ms

    @property
    def life_ms(self) -> int:
        """How long the crossing is one that was told already."""
        return self.reached.state.reset_ms + MARGIN_MS

    @property
    def known_as(self) -> tuple[str, int, int, int]:
        """What tells it from others within a process, made of what is there already."""
        return self.reached.limit.key, self.reached.limit.placed.spec.limit, self.percent, self.ends_ms

    @property
    def name(self) -> str:
        """What tells it from others everywhere; 32 hexadecimal digits."""
        limit = self.reached.limit
        return crossing_of(limit.key, limit.placed.spec.limit, self.percent, self.ends_ms)

    @property
    def keyspace(self) -> Keyspace:
        """The names of the tenant's keys."""
        return Keyspace(self.tenant.subdomain)

    @property
    def event_id(self) -> str:
        """The same however often and by whomever it is told."""
        return f"alert_{self.name}"

    def event(self, signing_key: bytes | None) -> bytes:
        """The body of its webhook."""
        limit, state, _ = self.reached
        spec = limit.placed.spec
        return json.dumps(
            {
                "id": self.event_id,
                "type": "limit.threshold_reached",
                "created_at": _time(self.now_ms),
                "tenant_id": self.tenant.id,
                "subdomain": self.tenant.subdomain,
                "limit": spec.name,
                "level": _level(self.tenant.id, limit.placed, limit.values, signing_key),
                "unit": spec.unit,
                "at": self.percent / 100,
                "amount": shown_amount(spec.unit, spec.limit),
                "used": shown_amount(spec.unit, state.used),
                "period": spec.period,
                "period_end": _time(self.ends_ms),
            },
            separators=(",", ":"),
        ).encode()

    def __str__(self) -> str:
        """For the log."""
        return f"{shown_threshold(self.percent)} of limit {self.reached.state.name} of tenant {self.tenant.id}"


def _level(tenant_id: str, placed: PlacedLimit, values: tuple[str, ...], signing_key: bytes | None) -> dict[str, str | None]:
    """What the count is kept for: `per` with its values, and the rule or key that the limit belongs to."""
    found: dict[str, str | None] = {}
    if "tenant" in placed.spec.per:
        found["tenant"] = tenant_id
    if placed.rule_id is not None:
        found["rule"] = placed.rule_id
    if placed.key_id is not None:
        found["api_key"] = placed.key_id
    for level, value in zip(placed.levels, values, strict=True):
        is_private = level == "ip" or level.startswith("header:")
        found[level] = _pseudonym(tenant_id, level, value, signing_key) if is_private else value[:MAX_VALUE_SHOWN]
    return found


def _pseudonym(tenant_id: str, level: str, value: str, signing_key: bytes | None) -> str | None:
    """Tells values apart and can be checked by whoever has the secret; a plain digest of an address would tell the address."""
    if signing_key is None:
        return None
    digest = hmac.new(signing_key, "\0".join((tenant_id, level, value)).encode("utf-8", "surrogateescape"), hashlib.sha256)
    return f"hmac:{digest.hexdigest()[:32]}"


def _time(ms: int) -> str:
    return format_time(datetime.fromtimestamp(ms / 1_000, UTC))

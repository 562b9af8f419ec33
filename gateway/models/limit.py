"""Limits: how people declare them (`Limit`) and how the store evaluates them (`LimitSpec`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from gateway.models.amount import MEASURED, Amount, Unit, units_in
from gateway.models.base import Document
from gateway.models.quota import Quota, Thresholds, hundredths
from gateway.money import MAX_USD
from gateway.periods import PLAIN, Period
from gateway.units import DurationMs, format_duration_ms

MAX_EXACT = 2**53
"""Redis' Lua counts in doubles: whatever a script computes must stay below this."""

MOST_LOGGED = 10_000
"""A larger limit is counted in parts of its window instead of by every single request."""

RING_PARTS = 60

MAX_WINDOW_MS = 31 * 86_400_000

OnLost = Literal["charge", "release"]

_LEDGER_LEVELS = frozenset({"tenant", "rule", "api_key", "model"})
_LEVELS = frozenset({"tenant", "rule", "api_key", "ip", "method", "model"})
_HEADER_LEVEL = re.compile(r"header:[a-z0-9!#$%&'*+.^_`|~-]{1,64}")


class LimitKind(StrEnum):
    """The algorithm that decides a limit; the value is its name in Lua."""

    LOG = "log"
    RING = "ring"
    BUCKET = "bucket"
    BUDGET = "budget"
    CONCURRENCY = "concurrency"


def _level(value: str) -> str:
    level = value.lower()
    if level not in _LEVELS and not _HEADER_LEVEL.fullmatch(level):
        raise ValueError(f"must be one of {', '.join(sorted(_LEVELS))} or header:<name>")
    return level


Level = Annotated[str, AfterValidator(_level)]
Units = Annotated[int, Field(ge=1, le=10**9)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$"), AfterValidator(str.lower)]


class CostSource(Document):
    """Where the cost of a request is found: in a header of the request, and what it turned out to be in one of the reply."""

    header: HeaderName | None = Field(None, description="Request header with the cost as a whole number of at least 1.")
    default: Units = Field(1, description="The cost of requests without that header.")
    reply_header: HeaderName | None = Field(
        None, description="Reply header with what the request has really cost; the charge is corrected to it."
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.header is None and self.reply_header is None:
            raise ValueError("needs header or reply_header; a fixed cost is a number")
        return self


class Limit(Document):
    """One declaration: at most ``limit`` in any ``window``, or a bucket when ``burst`` is set, and/or a ``quota``.

    With the unit ``concurrency``, ``limit`` stands alone: at most so many requests in flight. Tokens and usd are reserved from
    an upper estimate before the request is forwarded, and become what it has used when it has ended.
    ``per`` lists what the count is kept for; unset means where the limit stands (the rule, the tenant or the key).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,48}$")] | None = Field(
        None, description="Shown in headers and refusals; unset means one made of unit and window."
    )
    limit: Amount | None = Field(
        None,
        description="Most units in any window; of `concurrency`, most requests in flight. Dollars have up to 9 decimals.",
    )
    window: Annotated[DurationMs, Field(ge=100, le=MAX_WINDOW_MS)] | None = Field(None, description="Length of the window.")
    burst: Amount | None = Field(None, description="Size of a token bucket that refills with `limit` per `window`.")
    quota: Quota | None = Field(None, description="Units per calendar day, week and month.")
    unit: Unit = Field(
        "requests", description="What is counted. `tokens` are those of input and output; `usd` is what they cost."
    )
    per: Annotated[tuple[Level, ...], Field(max_length=6)] | None = Field(
        None, description="Any of tenant, rule, api_key, ip, method, model, header:<name>."
    )
    cost: Units | CostSource = Field(1, description="Units that one request takes, or where that is found.")
    on_lost: OnLost | None = Field(
        None,
        description="For quotas: hold the cost until the request has ended, and if its replica dies, charge or release it when"
        " the lease ends. Unset means that the cost is charged at once; with `reply_header`, and of tokens and usd, `charge`.",
    )
    shadow: bool = Field(False, description="Evaluate and report, never refuse.")
    alert_at: Thresholds | None = Field(
        None,
        description="For quotas: shares of them, such as 0.8, at which answers carry `x-gateway-alert` and a webhook goes out.",
    )

    @field_validator("alert_at")
    @classmethod
    def _alerts_fit(cls, alert_at: Thresholds | None, info: ValidationInfo) -> Thresholds | None:
        if alert_at is not None and info.data.get("quota", alert_at) is None:
            raise ValueError("alert_at needs a quota")
        return alert_at

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.unit == "concurrency":
            self._is_concurrency()
        elif (self.limit is None) != (self.window is None):
            raise ValueError("limit and window belong together")
        if self.burst is not None and self.limit is None:
            raise ValueError("burst needs limit and window")
        if self.limit is None and self.quota is None:
            raise ValueError("a limit needs limit and window, or a quota")
        if self.per is not None and not self.per:
            raise ValueError("per must not be empty")
        return self

    @model_validator(mode="after")
    def _amounts_fit(self) -> Self:
        of_quota = [] if self.quota is None else [amount for _, amount in self.quota.amounts]
        for amount in (self.limit, self.burst, *of_quota):
            if amount is None:
                continue
            if self.unit != "usd" and not isinstance(amount, int):
                raise ValueError(f"amounts of {self.unit} must be whole numbers")
            if self.unit == "usd" and amount >= MAX_USD:
                raise ValueError(f"amounts of usd must be below {MAX_USD}")
        if self.burst is not None and self.limit is not None:
            burst, limit = units_in(self.unit, self.burst), units_in(self.unit, self.limit)
            if (burst + 1) * (self.window or 0) + limit >= MAX_EXACT:
                raise ValueError("burst times window is too large to count exactly")
        return self

    @model_validator(mode="after")
    def _cost_fits(self) -> Self:
        if self.on_lost is not None and self.quota is None:
            raise ValueError("on_lost needs a quota; only what a quota holds can be lost")
        if self.unit == "concurrency" and self.cost != 1:
            raise ValueError("unit concurrency counts requests, so it takes no cost")
        if self.unit in MEASURED:
            if self.cost != 1:
                raise ValueError(f"unit {self.unit} counts what a request has used, so it takes no cost")
            return self
        fixed = self.cost if isinstance(self.cost, int) else self.cost.default
        smallest = [self.burst or self.limit, *(amount for _, amount in (self.quota.amounts if self.quota else ()))]
        if any(bound is not None and fixed > bound for bound in smallest):
            raise ValueError("cost is larger than the limit, so no request would ever pass")
        return self

    def _is_concurrency(self) -> None:
        if self.limit is None:
            raise ValueError("unit concurrency needs limit")
        if self.window is not None or self.burst is not None or self.quota is not None:
            raise ValueError("unit concurrency takes a limit, and no window, burst or quota")


Limits = Annotated[tuple[Limit, ...], Field(max_length=16)]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request takes of a limit: ``units``, unless ``header`` of the request says another number.

    Header names are lower case. What ``reply_header`` of the reply says becomes the cost when the request is settled.
    """

    units: int = 1
    header: str | None = None
    reply_header: str | None = None


@dataclass(frozen=True, slots=True)
class LimitSpec:
    """One limit as the store evaluates it: usd in nano-USD, durations in milliseconds.

    ``period`` and its ``time_zone`` are for budgets only.

    ``name`` tells the limits of one owner apart and is what a client sees. ``per`` is sorted and never empty. A budget with
    ``on_lost`` holds the cost until the request is settled. ``alert_at`` are hundredths of a budget, smallest first.
    """

    name: str
    kind: LimitKind
    limit: int
    per: tuple[str, ...]
    unit: Unit = "requests"
    window_ms: int = 0
    burst: int = 0
    period: Period | None = None
    shadow: bool = False
    cost: Cost = Cost()
    on_lost: OnLost | None = None
    time_zone: str = PLAIN
    alert_at: tuple[int, ...] = ()

    @property
    def alerts(self) -> bool:
        """True if somebody is told when this budget is nearly or wholly spent."""
        return self.kind is LimitKind.BUDGET and bool(self.alert_at)

    @property
    def holds(self) -> bool:
        """True if an admitted request holds something until it is settled."""
        return self.kind is LimitKind.CONCURRENCY or self.on_lost is not None

    @property
    def is_measured(self) -> bool:
        """True if only the reply tells what a request costs here."""
        return self.unit in MEASURED

    @property
    def needs_bound(self) -> bool:
        """True for a budget that is kept only if a request cannot write more than what was held for it."""
        return self.kind is LimitKind.BUDGET and self.unit in MEASURED - {"input_tokens"} and not self.shadow

    @property
    def is_in_ledger(self) -> bool:
        """True for a budget whose count the ledger of usage can tell: its days are those of UTC."""
        return (
            self.kind is LimitKind.BUDGET
            and self.time_zone == PLAIN
            and self.cost == Cost()
            and _LEDGER_LEVELS.issuperset(self.per)
        )

    @property
    def window_seconds(self) -> int:
        """The window for `RateLimit-Policy`, rounded up; a day counts 24 hours, a month 31 days, and no window 0."""
        if self.period is not None:
            return {"day": 86_400, "week": 7 * 86_400, "month": 31 * 86_400}[self.period]
        return -(-self.window_ms // 1_000)

    @property
    def capacity(self) -> int:
        """What a client that was idle long enough may send at once."""
        return self.burst if self.kind is LimitKind.BUCKET else self.limit


def limit_specs(limits: Sequence[Limit], default_per: tuple[str, ...]) -> list[LimitSpec]:
    """What the store must evaluate for these declarations, with names made unique."""
    found: list[LimitSpec] = []
    taken: set[str] = set()
    for limit in limits:
        for spec in _specs_of(limit, tuple(sorted(set(limit.per or default_per)))):
            name, number = spec.name, 2
            while name in taken:
                name, number = f"{spec.name}-{number}", number + 1
            taken.add(name)
            found.append(spec if name == spec.name else replace(spec, name=name))
    return found


def _specs_of(limit: Limit, per: tuple[str, ...]) -> list[LimitSpec]:
    found = []
    given, unit = limit.cost, limit.unit
    cost = Cost(given) if isinstance(given, int) else Cost(given.default, given.header, given.reply_header)
    common: dict[str, Any] = {"per": per, "unit": unit, "shadow": limit.shadow, "cost": cost}
    if limit.limit is not None:
        most = units_in(unit, limit.limit)
        if unit == "concurrency":
            found.append(LimitSpec(limit.name or unit, LimitKind.CONCURRENCY, most, **common))
        elif limit.window is not None:
            name = limit.name or f"{unit}-per-{format_duration_ms(limit.window)}"
            burst = 0 if limit.burst is None else units_in(unit, limit.burst)
            found.append(LimitSpec(name, _window_kind(unit, most, burst), most, window_ms=limit.window, burst=burst, **common))
    if limit.quota is not None:
        on_lost = limit.on_lost or ("charge" if cost.reply_header or unit in MEASURED else None)
        common |= {"on_lost": on_lost, "time_zone": limit.quota.time_zone}
        for period, amount in limit.quota.amounts:
            name = f"{limit.name or unit}-per-{period}"
            most, alert_at = units_in(unit, amount), hundredths(limit.alert_at)
            found.append(LimitSpec(name, LimitKind.BUDGET, most, period=period, alert_at=alert_at, **common))
    return found


def _window_kind(unit: Unit, most: int, burst: int) -> LimitKind:
    if burst:
        return LimitKind.BUCKET
    # a log has an entry for each unit, and one request may take thousands of tokens
    return LimitKind.RING if unit in MEASURED or most > MOST_LOGGED else LimitKind.LOG

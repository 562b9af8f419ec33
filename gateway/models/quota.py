"""Quotas: units per calendar period, and the shares of them at which somebody is told."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from gateway.models.amount import Amount
from gateway.models.base import Document
from gateway.periods import PLAIN, Period, time_zones

MAX_ALERTS = 5


def _time_zone(value: str) -> str:
    if value not in time_zones():
        raise ValueError("must be the name of an IANA time zone, such as Europe/Berlin")
    return value


TimeZone = Annotated[str, AfterValidator(_time_zone)]


class Quota(Document):
    """Units per calendar period."""

    daily: Amount | None = Field(None, description="Most units from midnight to midnight.")
    weekly: Amount | None = Field(None, description="Most units from Monday to Sunday, the week of ISO 8601.")
    monthly: Amount | None = Field(None, description="Most units of a calendar month.")
    time_zone: TimeZone = Field(PLAIN, description="Name of the IANA time zone in whose midnights periods begin.")

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.amounts:
            raise ValueError("a quota needs daily, weekly or monthly")
        return self

    @property
    def amounts(self) -> list[tuple[Period, int | Decimal]]:
        """The periods that are limited, the shortest first."""
        given: list[tuple[Period, int | Decimal | None]] = [
            ("day", self.daily),
            ("week", self.weekly),
            ("month", self.monthly),
        ]
        return [(period, amount) for period, amount in given if amount is not None]


def _threshold(value: object) -> Decimal:
    """What was written, in decimal: 0.8 is 80 hundredths and no binary fraction."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError("must be a number")
    try:
        share = Decimal(str(value))
    except InvalidOperation:
        raise ValueError("must be a number") from None
    if not share.is_finite() or not 0 < share <= 1:
        raise ValueError("must be above 0 and at most 1")
    if share * 100 % 1:
        raise ValueError("has more than 2 decimals")
    return share


def _ordered(thresholds: tuple[Decimal, ...]) -> tuple[Decimal, ...]:
    return tuple(sorted(set(thresholds)))


Threshold = Annotated[
    Decimal,
    BeforeValidator(_threshold),
    PlainSerializer(float, return_type=float, when_used="json"),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
]
"""A share of a limit, with at most 2 decimals."""

Thresholds = Annotated[tuple[Threshold, ...], Field(min_length=1, max_length=MAX_ALERTS), AfterValidator(_ordered)]
"""Each once, smallest first."""


def hundredths(thresholds: Thresholds | None) -> tuple[int, ...]:
    """Thresholds as they are compared: 0.8 is 80."""
    return tuple(int(threshold * 100) for threshold in thresholds or ())


def shown_threshold(percent: int) -> str:
    """The same as people read it: ``0.8``, ``1.0``."""
    return str(percent / 100)

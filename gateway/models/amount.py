"""What limits count, and how much of it: whole units, or dollars that are counted in billionths."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from gateway.money import NANO, usd_number

Unit = Literal["requests", "concurrency", "tokens", "input_tokens", "output_tokens", "usd"]
MEASURED: frozenset[Unit] = frozenset({"tokens", "input_tokens", "output_tokens", "usd"})
"""Units of which only the reply tells how many a request has used."""


def _amount(value: object) -> int | Decimal:
    """Whole numbers stay integers; text and other numbers are read as what they say in decimal."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError("must be a number")
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise ValueError("must be a number") from None
    if not amount.is_finite() or not 0 < amount <= 10**12:
        raise ValueError("must be above 0 and at most 1000000000000")
    if amount == amount.to_integral_value():
        return int(amount)
    if amount * NANO % 1:
        raise ValueError("has more than 9 decimals")
    return amount


def _as_number(amount: int | Decimal) -> int | float:
    # up to 15 digits, which a float keeps
    return amount if isinstance(amount, int) else float(amount)


Amount = Annotated[
    int | Decimal,
    BeforeValidator(_amount),
    PlainSerializer(_as_number, return_type=int | float, when_used="json"),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 10**12}),
]
"""So many units; of usd, dollars with up to 9 decimals, of all others a whole number."""


def units_in(unit: Unit, amount: int | Decimal) -> int:
    """An amount as the store counts it: dollars become nano-USD."""
    return int(amount * NANO) if unit == "usd" else int(amount)


def shown_amount(unit: str, units: int) -> int | float:
    """What the store counts as people write it: dollars of `usd`, with decimals."""
    return usd_number(units) if unit == "usd" else units

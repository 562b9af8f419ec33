"""Money: whole nano-dollars inside, decimal dollars outside. No binary fraction is ever added up.

A nano-dollar is 10⁻⁹ USD. Prices are dollars per million tokens, of which one token costs down to 10⁻¹² USD: what many tokens
cost together is rounded once, up, to whole nano-dollars.
"""

from __future__ import annotations

import re
from decimal import ROUND_DOWN, Decimal
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""

MAX_USD = 1_000_000
"""Amounts stay below this, so that they are exact as JSON numbers (15 digits) and in the doubles of Redis' Lua."""

MAX_USD_PER_MTOK = 100_000

_DECIMAL = re.compile(r"[0-9]{1,7}(\.[0-9]{1,9})?")
_NANO_OF_ONE = Decimal(NANO)


def parse_usd_nano(value: object) -> int:
    """Nano-dollars of ``12``, ``0.25`` or ``"0.0000125"``. Raises ValueError for any but an exact amount below a million."""
    return int(_exact(value, 9, below=MAX_USD) * _NANO_OF_ONE)


def parse_usd_decimal(value: object) -> Decimal:
    """Dollars of a price: from 0 to 100 000, with at most 6 decimals. Raises ValueError."""
    return _exact(value, 6, below=MAX_USD_PER_MTOK + Decimal("0.000001"))


def format_usd(nano: int) -> str:
    """Dollars without an exponent or needless zeros: ``12500`` is ``"0.0000125"``."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    dollars, rest = divmod(nano, NANO)
    return f"{sign}{dollars}.{rest:09d}".rstrip("0") if rest else f"{sign}{dollars}"


def _exact(value: object, decimals: int, below: Decimal | int) -> Decimal:
    amount = _decimal(value)
    if amount is None or not 0 <= amount < below:
        raise ValueError(f"must be an amount in USD of at least 0, not above {below.__trunc__()}, such as 2.5")
    if amount != amount.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_DOWN):
        raise ValueError(f"must have at most {decimals} decimals")
    return amount


def _decimal(value: object) -> Decimal | None:
    match value:
        case bool():
            return None
        case int():
            # a huge one need not become text
            return Decimal(value) if abs(value) <= MAX_USD else None
        case float():
            # the shortest decimal that reads back as this double is what was written
            amount = Decimal(repr(value))
        case Decimal():
            amount = value
        case str():
            amount = Decimal(value) if _DECIMAL.fullmatch(value) else Decimal("NaN")
        case _:
            return None
    return amount if amount.is_finite() else None


def _number(amount: Decimal) -> int | float:
    # at most 15 digits, so the double reads back as the same decimal
    return int(amount) if amount == amount.to_integral_value() else float(amount)


def usd_number(nano: int) -> int | float:
    """Dollars as a JSON number; of less than a million exactly, as they have at most 15 digits."""
    return _number(Decimal(nano) / _NANO_OF_ONE)


Usd = Annotated[
    int,
    BeforeValidator(parse_usd_nano),
    PlainSerializer(usd_number, return_type=int | float, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "exclusiveMaximum": MAX_USD},
                {"type": "string", "pattern": r"^[0-9]{1,6}(\.[0-9]{1,9})?$"},
            ],
            "description": "USD, with at most 9 decimals",
            "examples": [12.5],
        }
    ),
]
"""An amount in nano-dollars, written as decimal dollars."""

UsdPerMtok = Annotated[
    Decimal,
    BeforeValidator(parse_usd_decimal),
    PlainSerializer(_number, return_type=int | float, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": MAX_USD_PER_MTOK},
                {"type": "string", "pattern": r"^[0-9]{1,6}(\.[0-9]{1,6})?$"},
            ],
            "description": "USD, with at most 6 decimals",
            "examples": [2.5],
        }
    ),
]
"""A price in dollars, exactly as it was written."""

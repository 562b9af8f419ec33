"""Decimal dollars outside, whole nano-dollars inside."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from gateway.money import NANO, Usd, UsdPerMtok, format_usd, parse_usd_decimal, parse_usd_nano


@pytest.mark.parametrize(
    ("value", "nano"),
    [
        (0, 0),
        (12, 12_000_000_000),
        (0.25, 250_000_000),
        (1e-9, 1),
        ("0.0000125", 12_500),
        ("0.000000001", 1),
        ("12.50", 12_500_000_000),
        (Decimal("0.3"), 300_000_000),
        (0.1, 100_000_000),
        (999_999.999999999, 999_999_999_999_999),
    ],
)
def test_an_amount_is_a_number_or_a_decimal_text(value, nano):
    assert parse_usd_nano(value) == nano


@pytest.mark.parametrize(
    "value",
    [
        True,
        None,
        "",
        "1e3",
        "-1",
        -1,
        "1.",
        ".5",
        "0.0000000001",
        1e-10,
        0.1 + 0.2,
        1_000_000,
        10**400,
        "1000000",
        float("inf"),
        float("nan"),
        Decimal("NaN"),
        Decimal("sNaN"),
        "١",
        " 1",
        "1\n",
        [],
    ],
)
def test_any_other_amount_is_refused(value):
    with pytest.raises(ValueError, match="must"):
        parse_usd_nano(value)


@pytest.mark.parametrize(("value", "usd"), [("2.5", "2.5"), (100_000, "100000"), (0.000001, "0.000001"), (3, "3")])
def test_a_price_keeps_its_decimals(value, usd):
    assert parse_usd_decimal(value) == Decimal(usd)


@pytest.mark.parametrize("value", ["0.0000001", 100_000.1, "100000.000001", 1e-7])
def test_a_price_that_is_too_fine_or_too_high_is_refused(value):
    with pytest.raises(ValueError, match="must"):
        parse_usd_decimal(value)


@pytest.mark.parametrize(
    ("nano", "text"), [(0, "0"), (12_500, "0.0000125"), (12_500_000_000, "12.5"), (1, "0.000000001"), (-12_500, "-0.0000125")]
)
def test_an_amount_is_written_without_exponent_and_needless_zeros(nano, text):
    assert format_usd(nano) == text


@given(st.integers(0, 1_000_000 * NANO - 1))
def test_a_written_amount_reads_back_the_same(nano):
    assert parse_usd_nano(format_usd(nano)) == nano


class Stored(BaseModel):
    amount: Usd = 0
    price: UsdPerMtok = Decimal(0)


@given(st.integers(0, 1_000_000 * NANO - 1), st.integers(0, 100_000_000_000))
def test_a_stored_document_reads_back_the_same(nano, micro):
    stored = Stored(amount=format_usd(nano), price=Decimal(micro).scaleb(-6))
    text = stored.model_dump_json()
    assert Stored.model_validate_json(text) == stored
    assert Stored.model_validate(json.loads(text)) == stored
    assert Stored.model_validate_json(Stored.model_validate_json(text).model_dump_json()).model_dump_json() == text


def test_a_stored_document_holds_json_numbers():
    assert json.loads(Stored(amount="12.5", price="3").model_dump_json()) == {"amount": 12.5, "price": 3}


def test_json_refuses_what_python_refuses():
    with pytest.raises(ValidationError):
        Stored.model_validate_json('{"amount": 1e400}')


def test_the_json_schema_tells_the_bounds():
    schema = Stored.model_json_schema()["properties"]
    assert schema["amount"]["anyOf"][0]["exclusiveMaximum"] == 1_000_000
    assert schema["price"]["anyOf"][0]["maximum"] == 100_000

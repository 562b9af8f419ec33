"""Prices as people write them."""

import pytest
from pydantic import TypeAdapter, ValidationError

from gateway.model_price import MAX_PRICES, ModelPrice, Prices

PRICES = TypeAdapter(Prices)
PRICE = {"input_usd_per_mtok": 0.15, "output_usd_per_mtok": "0.6"}


def test_input_and_output_are_required():
    with pytest.raises(ValidationError, match="output_usd_per_mtok"):
        ModelPrice.model_validate({"input_usd_per_mtok": 1})


def test_a_stored_price_reads_back_the_same():
    price = ModelPrice.model_validate(PRICE | {"cached_input_usd_per_mtok": 0.000001, "request_usd": "0.01"})
    text = price.model_dump_json()
    assert '"cached_input_usd_per_mtok":1e-6' in text
    assert ModelPrice.model_validate_json(text) == price
    assert ModelPrice.model_validate_json(text).model_dump_json() == text


@pytest.mark.parametrize("name", ["gpt-4o", "openai/gpt-4o*", "*", "ft:gpt-4o:org::id", "模型"])
def test_a_name_is_exact_or_a_beginning(name):
    assert list(PRICES.validate_python({name: PRICE})) == [name]


@pytest.mark.parametrize("name", ["", "a*b", "**", " a", "a b", "a" * 201, "a\x00", "a\n"])
def test_any_other_name_is_refused(name):
    with pytest.raises(ValidationError):
        PRICES.validate_python({name: PRICE})


def test_there_are_not_too_many():
    PRICES.validate_python({f"m{number}": PRICE for number in range(MAX_PRICES)})
    with pytest.raises(ValidationError):
        PRICES.validate_python({f"m{number}": PRICE for number in range(MAX_PRICES + 1)})

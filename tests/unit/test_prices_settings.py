"""Prices in the configuration."""

from decimal import Decimal

import pytest

from gateway.config import Config, load_config
from gateway.errors import ConfigurationError


def test_an_unknown_model_costs_what_the_dearest_do():
    prices = Config().prices
    assert prices.unknown_model == "price"
    assert prices.models == {}
    assert prices.fallback.input_usd_per_mtok == 30
    assert prices.fallback.output_usd_per_mtok == 180


def test_prices_are_read_from_the_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("prices:\n  models:\n    my-*: {input_usd_per_mtok: 0.1, output_usd_per_mtok: '0.4'}\n", encoding="utf-8")
    price = load_config(path).prices.models["my-*"]
    assert price.input_usd_per_mtok == Decimal("0.1")
    assert price.output_usd_per_mtok == Decimal("0.4")


def test_prices_are_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("GATEWAY_PRICES__MODELS", '{"m": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}')
    monkeypatch.setenv("GATEWAY_PRICES__UNKNOWN_MODEL", "refuse")
    prices = load_config().prices
    assert prices.unknown_model == "refuse"
    assert prices.models["m"].output_usd_per_mtok == 2


def test_a_price_that_is_too_fine_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("prices:\n  models:\n    m: {input_usd_per_mtok: 0.0000001, output_usd_per_mtok: 1}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"prices\.models\.m\.input_usd_per_mtok: must have at most 6 decimals"):
        load_config(path)

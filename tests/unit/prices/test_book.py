"""Which price is charged: the rule's, the tenant's, the configuration's, the catalogue's, the fallback."""

import pytest

from gateway.model_price import ModelPrice
from gateway.prices import Price, PriceBook, PriceList, Quote


def a_price(usd: str) -> ModelPrice:
    return ModelPrice(input_usd_per_mtok=usd, output_usd_per_mtok=usd)


class Known:
    """A catalogue of one model."""

    def __init__(self, name: str = "public", host: str = "") -> None:
        self.name, self.host = name, host

    def find(self, model, host=""):
        return Price.of(a_price("9")) if (model, host) == (self.name, self.host) else None


FALLBACK = Price.of(a_price("100"))


def test_the_first_list_that_knows_the_model_decides():
    rule, tenant, configured = (PriceList({name: a_price(usd)}) for name, usd in (("a", "1"), ("*", "2"), ("a", "3")))
    book = PriceBook(Known(), FALLBACK, configured)
    assert book.quote("a", overrides=(rule, tenant)) == Quote(Price.of(a_price("1")))
    assert book.quote("a", overrides=(None, tenant)) == Quote(Price.of(a_price("2")))
    assert book.quote("a") == Quote(Price.of(a_price("3")))


def test_an_exact_name_wins_over_the_longest_beginning():
    prices = PriceList({"*": a_price("1"), "gpt-*": a_price("2"), "gpt-4*": a_price("3"), "gpt-4o": a_price("4")})
    names = ("llama", "gpt-3", "gpt-4o-mini", "gpt-4o")
    assert [prices.find((name,)) for name in names] == [Price.of(a_price(str(usd))) for usd in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", ["GPT-4o", "openai/gpt-4o", "azure/eu/gpt-4o"])
def test_case_and_what_stands_before_the_name_do_not_matter(name):
    book = PriceBook(Known(), None, PriceList({"gpt-4O": a_price("1")}))
    assert book.quote(name) == Quote(Price.of(a_price("1")))


def test_a_price_for_a_prefixed_name_wins_over_the_plain_one():
    book = PriceBook(Known(), None, PriceList({"gpt-4o": a_price("1"), "azure/*": a_price("2"), "azure/gpt-4o": a_price("3")}))
    assert book.quote("azure/gpt-4o") == Quote(Price.of(a_price("3")))
    assert book.quote("azure/gpt-5") == Quote(Price.of(a_price("2")))
    assert book.quote("openai/gpt-4o") == Quote(Price.of(a_price("1")))


def test_the_catalogue_comes_next():
    book = PriceBook(Known(host="api.example"), FALLBACK, PriceList({"other": a_price("1")}))
    assert book.quote("public", "api.example") == Quote(Price.of(a_price("9")))


def test_an_unknown_model_costs_the_fallback_or_nothing_can_be_said():
    assert PriceBook(Known(), FALLBACK).quote("unknown") == Quote(FALLBACK, known=False)
    assert PriceBook(Known(), None).quote("unknown") is None

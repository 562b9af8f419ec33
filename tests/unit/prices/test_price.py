"""What tokens cost, to the nano-dollar."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats import Usage
from gateway.model_price import ModelPrice
from gateway.prices import Price
from gateway.prices.price import nano

RATE = st.integers(0, 10**14)
COUNT = st.integers(0, 10**9)
PRICES = st.builds(Price, *[RATE] * 8, st.integers(0, 10**12))


@st.composite
def consistent_usages(draw):
    """Classes that do not contradict each other, with the tokens of each part that is priced by itself."""
    text, cached, written, heard, cached_audio, plain, spoken, reasoning = (draw(COUNT) for _ in range(8))
    usage = Usage(
        input_tokens=text + cached + written + heard + cached_audio,
        output_tokens=plain + spoken + reasoning,
        cached_tokens=cached + cached_audio,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        input_audio_tokens=heard + cached_audio,
        output_audio_tokens=spoken,
        cached_audio_tokens=cached_audio,
    )
    return usage, (text, cached, written, heard, cached_audio, plain, spoken, reasoning)


USAGES = st.builds(Usage, *[st.integers(-(10**6), 10**9)] * 8)


@given(PRICES, consistent_usages())
def test_the_cost_is_that_of_exact_arithmetic_rounded_up(price, given_usage):
    usage, (text, cached, written, heard, cached_audio, plain, spoken, reasoning) = given_usage
    exact = Fraction(
        text * price.input
        + cached * price.cached
        + written * price.cache_write
        + heard * price.audio_input
        + cached_audio * price.cached_audio
        + plain * price.output
        + spoken * price.audio_output
        + reasoning * price.reasoning,
        1_000_000,
    )
    assert price.cost_nano_usd(usage) == math.ceil(exact) + price.request


@given(PRICES, USAGES)
def test_no_usage_however_contradictory_costs_less_than_nothing_or_more_than_its_dearest_class(price, usage):
    cost = price.cost_nano_usd(usage)
    dearest_input = max(price.input, price.cached, price.cache_write, price.audio_input, price.cached_audio)
    dearest_output = max(price.output, price.audio_output, price.reasoning)
    most = max(usage.input_tokens, 0) * dearest_input + max(usage.output_tokens, 0) * dearest_output
    assert price.request <= cost <= -(-most // 1_000_000) + price.request


@given(PRICES, USAGES, COUNT, COUNT)
def test_more_tokens_never_cost_less(price, usage, more_input, more_output):
    more = usage._replace(input_tokens=usage.input_tokens + more_input, output_tokens=usage.output_tokens + more_output)
    assert price.cost_nano_usd(more) >= price.cost_nano_usd(usage)


@given(PRICES, consistent_usages(), consistent_usages())
def test_costs_add_up_but_for_rounding(price, first, second):
    together = Usage(*map(sum, zip(first[0], second[0], strict=True)))
    apart = price.cost_nano_usd(first[0]) + price.cost_nano_usd(second[0])
    assert apart - price.request - 1 <= price.cost_nano_usd(together) <= apart - price.request


def test_tokens_from_a_cache_are_taken_out_of_the_input():
    price = Price.of(
        ModelPrice(
            input_usd_per_mtok="3", output_usd_per_mtok="15", cached_input_usd_per_mtok="0.3", cache_write_usd_per_mtok="3.75"
        )
    )
    usage = Usage(input_tokens=1_000, output_tokens=10, cached_tokens=800, cache_write_tokens=100)
    assert price.cost_nano_usd(usage) == 100 * 3_000 + 800 * 300 + 100 * 3_750 + 10 * 15_000


def test_what_is_unset_costs_what_the_wider_class_costs():
    price = Price.of(ModelPrice(input_usd_per_mtok="3", output_usd_per_mtok="15", request_usd="0.01"))
    full = Usage(100, 50, 30, 20, 10, 40, 5, 20)
    assert price.cost_nano_usd(full) == 100 * 3_000 + 50 * 15_000 + 10_000_000


def test_cached_audio_costs_what_audio_costs_unless_cached_input_has_a_price():
    dear = ModelPrice(input_usd_per_mtok="4", output_usd_per_mtok="16", audio_input_usd_per_mtok="32")
    assert Price.of(dear).cached_audio == Price.of(dear).audio_input
    cheap = dear.model_copy(update={"cached_input_usd_per_mtok": Decimal("0.4")})
    assert Price.of(cheap).cached_audio == Price.of(cheap).cached


def test_a_long_input_is_charged_at_its_tier_throughout():
    longest = Price(4, 4, 4, 4, 4, 4, 4, 4)
    long = Price(2, 2, 2, 2, 2, 2, 2, 2)
    price = Price(1, 1, 1, 1, 1, 1, 1, 1, tiers=((2_000_000, longest), (1_000_000, long)))
    assert price.cost_nano_usd(Usage(1_000_000, 1_000_000)) == 2
    assert price.cost_nano_usd(Usage(1_000_001, 1_000_000)) == 5
    assert price.cost_nano_usd(Usage(2_000_001, 1_000_000)) == 13


def test_an_amount_that_is_finer_than_a_nano_dollar_is_refused():
    assert nano(Decimal("0.000000001")) == 1
    with pytest.raises(ValueError, match="whole number"):
        nano(Decimal("0.0000000001"))

"""What is reserved for a call, and what it has used."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Config
from gateway.errors import UnknownModel
from gateway.formats import Asked, Delivered, Usage, endpoint_of
from gateway.models import Limit, ModelPrice, limit_specs
from gateway.plugin import LimitState
from gateway.policy import Call
from gateway.prices import Price
from gateway.store import Keyspace, PlacedLimit, place_limit
from tests.builders import an_accounting

CENTS = Price.of(ModelPrice.model_validate({"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}))
INPUT, OUTPUT = 1_000, 2_000  # nano-USD a token


def a_call(**fields: Any) -> Call:
    endpoint = endpoint_of("auto", "POST", "/v1/chat/completions")
    assert endpoint is not None
    given: dict[str, Any] = {"model": "m", "prompt": ("Hello",)}
    return Call(endpoint, Asked(**(given | fields)))


def placed(**declared: Any) -> list[PlacedLimit]:
    specs = limit_specs([Limit.model_validate(declared)], ("rule",))
    return [place_limit(Keyspace("t"), "t-1", "o", spec, 0, ()) for spec in specs]


def test_the_upper_estimate_the_bound_and_all_answers_are_reserved():
    demand = an_accounting().demand(a_call(max_output_tokens=50, answers=3), CENTS, [])
    assert (demand.output_tokens, demand.bound, demand.is_guess) == (150, None, False)
    assert demand.input_tokens >= 5
    assert demand.cost_nano_usd == demand.input_tokens * INPUT + 150 * OUTPUT
    units = [demand.units(placed(unit=unit, limit=10, window="1m")[0].spec) for unit in ("tokens", "input_tokens", "usd")]
    assert units == [demand.input_tokens + 150, demand.input_tokens, demand.cost_nano_usd]


def test_without_a_bound_the_default_is_reserved_but_never_more_than_a_window_has():
    demand = an_accounting().demand(a_call(), CENTS, placed(unit="tokens", limit=99, window="1m"))
    assert (demand.output_tokens, demand.bound, demand.is_guess) == (4_096, None, True)
    assert demand.units(placed(unit="tokens", limit=99, window="1m")[0].spec) == 99
    assert demand.units(placed(unit="output_tokens", limit=9_999, window="1m")[0].spec) == 4_096
    assert demand.units(placed(unit="tokens", limit=99, burst=7, window="1m")[0].spec) == 7


@pytest.mark.parametrize(
    ("quota", "answers", "bound"),
    [
        ({"unit": "usd", "quota": {"daily": 1}}, 1, 4_096),
        ({"unit": "usd", "quota": {"daily": "0.0001"}}, 1, 33),  # of 100 000 nano-USD, the input takes 33 000
        ({"unit": "usd", "quota": {"daily": "0.0001"}}, 3, 11),
        ({"unit": "usd", "quota": {"daily": "0.00001"}}, 1, 1),  # not even its input fits: the limit refuses it
        ({"unit": "output_tokens", "quota": {"daily": 70}}, 1, 70),
        ({"unit": "tokens", "quota": {"monthly": 70}}, 1, 37),
        ({"unit": "tokens", "quota": {"monthly": 70}, "shadow": True}, 1, None),
        ({"unit": "input_tokens", "quota": {"monthly": 70}}, 1, None),
        ({"quota": {"monthly": 70}}, 1, None),
    ],
)
def test_a_budget_bounds_a_call_that_does_not_bound_itself(quota, answers, bound):
    limits = placed(**quota)
    demand = an_accounting().demand(a_call(answers=answers), CENTS, limits, input_tokens=33)
    assert demand.bound == bound
    if bound is not None:
        assert demand.output_tokens == bound * answers
    assert an_accounting().demand(a_call(max_output_tokens=9), CENTS, limits).bound is None


def test_the_dearest_of_what_may_happen_is_reserved():
    fields = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2, "cache_write_usd_per_mtok": 3, "audio_input_usd_per_mtok": 9}
    price = Price.of(ModelPrice.model_validate(fields))
    accounting = an_accounting()
    demand = accounting.demand(a_call(max_output_tokens=10), price, [], input_tokens=100)
    assert demand.cost_nano_usd == 100 * 3_000 + 10 * OUTPUT
    heard = accounting.demand(a_call(max_output_tokens=10, media_parts=1), price, [], input_tokens=100)
    assert heard.cost_nano_usd >= 100 * 9_000 + 10 * OUTPUT
    spent = accounting.spent(price, Usage(100, 10, cache_write_tokens=100))
    assert (spent.cost_nano_usd, spent.is_estimate) == (demand.cost_nano_usd, False)


TEXTS = st.lists(st.text(max_size=200) | st.text(st.characters(codec="ascii"), max_size=400), max_size=4)
PIECES = st.integers(0, 500)


@given(TEXTS, st.integers(0, 2), st.none() | st.integers(1, 300), st.integers(1, 3), PIECES, PIECES, PIECES)
def test_what_is_counted_is_at_most_what_was_reserved(texts, media, bound, answers, pieces, narrow, wide):
    accounting = an_accounting()
    call = a_call(prompt=tuple(texts), media_parts=media, max_output_tokens=bound, answers=answers)
    demand = accounting.demand(call, CENTS, [])
    most = accounting.most_output_tokens(call, demand)
    assert most == accounting.most_output_tokens(call, None) == demand.output_tokens
    spent = accounting.counted(call, CENTS, demand, Delivered(pieces, narrow, wide))
    assert min(pieces, most) <= spent.usage.output_tokens <= demand.output_tokens
    assert spent.usage.input_tokens <= demand.input_tokens
    assert spent.cost_nano_usd <= demand.cost_nano_usd
    assert spent.is_estimate


def test_a_stream_that_was_cut_costs_what_it_told_or_what_it_delivered():
    accounting, told, delivered = an_accounting(), Usage(20, 1), Delivered(5, 20, 0)
    call = a_call(max_output_tokens=100)
    cut = accounting.at_least(call, CENTS, told, None, delivered)
    assert (cut.usage, cut.is_estimate) == (Usage(20, 5), True)
    assert accounting.at_least(call, CENTS, Usage(20, 8), None, delivered).usage == Usage(20, 8)
    assert accounting.at_least(a_call(max_output_tokens=3), CENTS, told, None, delivered).usage == Usage(20, 3)


def test_nobody_knows_what_some_models_cost():
    rule: Any = type("Rule", (), {"price_host": "", "prices": ()})
    assert not an_accounting().quote(rule, "no-such-model").known
    assert an_accounting().quote(rule, "gpt-4o-mini").known
    refusing = an_accounting(Config.model_validate({"prices": {"unknown_model": "refuse"}}))
    with pytest.raises(UnknownModel, match="no-such-model"):
        refusing.quote(rule, "no-such-model")


def a_state(limit: PlacedLimit, used: int, retry_after_ms: int, *, shadow: bool = False) -> LimitState:
    spec = limit.spec
    left = max(0, spec.limit - used)
    return LimitState(
        spec.name, spec.per, spec.unit, spec.limit, 0, used, left, retry_after_ms, 0, retry_after_ms != 0, shadow, "budget", 0
    )


@pytest.mark.parametrize(
    ("used", "retry_after_ms", "bound"),
    [
        (900, 5_000, 67),  # of 100 tokens that are left, the input takes 33
        (951, 5_000, 16),
        (952, 5_000, None),  # too little for an answer
        (1_000, 5_000, None),
        (900, -2, None),  # what is in flight may come back
    ],
)
def test_a_call_without_a_bound_is_given_what_is_left(used, retry_after_ms, bound):
    accounting, call = an_accounting(), a_call()
    (limit,) = placed(unit="tokens", quota={"daily": 1_000})
    demand = accounting.demand(call, CENTS, [limit], input_tokens=33)
    tighter = accounting.tighter(call, CENTS, demand, [limit], [a_state(limit, used, retry_after_ms)])
    if bound is None:
        assert tighter is None
        return
    assert tighter is not None
    assert (tighter.bound, tighter.output_tokens) == (bound, bound)
    assert tighter.cost_nano_usd == 33 * INPUT + bound * OUTPUT
    assert used + tighter.units(limit.spec) <= 1_000


def test_other_limits_and_bounds_of_clients_are_not_worked_around():
    accounting, call = an_accounting(), a_call()
    (budget,), (window,) = placed(unit="tokens", quota={"daily": 1_000}), placed(limit=1, window="1m")
    demand = accounting.demand(call, CENTS, [budget, window], input_tokens=33)
    states = [a_state(budget, 900, 5_000), a_state(window, 1, 9)]
    assert accounting.tighter(call, CENTS, demand, [budget, window], states) is None
    shadow = [states[0], a_state(window, 1, 9, shadow=True)]
    assert accounting.tighter(call, CENTS, demand, [budget, window], shadow) is not None
    own = a_call(max_output_tokens=500)
    demand = accounting.demand(own, CENTS, [budget], input_tokens=33)
    assert accounting.tighter(own, CENTS, demand, [budget], states[:1]) is None

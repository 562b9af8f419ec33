"""Public prices: those of genai-prices, to the nano-dollar."""

import math
from datetime import UTC, date, datetime, time
from decimal import Decimal

import pytest
from genai_prices import types
from genai_prices.data import providers

from gateway.formats import Usage
from gateway.prices import Catalogue, Price
from gateway.prices import catalogue as module

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def at(moment: datetime):
    return moment.timestamp


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.bundled(at(NOON))


USAGES = [
    Usage(),
    Usage(input_tokens=200_000, output_tokens=1),
    Usage(input_tokens=300_001, output_tokens=70_003, cached_tokens=100_007, cache_write_tokens=1_009),
    Usage(2_000_003, 65_537, 1_000_003, 0, 30_011, 0, 0),
    Usage(10_007, 5_003, 2_003, 0, 1_009, 3_001, 1_013, 503),
]


def as_theirs(usage: Usage) -> types.Usage:
    return types.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        cache_audio_read_tokens=usage.cached_audio_tokens,
    )


def their_price(model: types.ModelInfo, provider: types.Provider, usage: Usage, moment: datetime) -> Decimal:
    return model.calc_price(as_theirs(usage), provider, genai_request_timestamp=moment).total_price


def is_by_the_hour(model: types.ModelInfo) -> bool:
    return isinstance(model.prices, list) and any(
        isinstance(price.constraint, types.TimeOfDateConstraint) for price in model.prices
    )


def is_by_tokens(model: types.ModelInfo) -> bool:
    keys = {key for key, value in vars(model.get_prices(NOON)).items() if value is not None}
    return not keys or bool(keys & {"input_mtok", "output_mtok", "requests_kcount"})


ALL = [(provider, model) for provider in providers for model in provider.models]


def is_whole(model: types.ModelInfo) -> bool:
    """True if all its prices are whole nano-dollars; 0.08333333333333334 is not."""
    prices = [model.prices] if not isinstance(model.prices, list) else [part.prices for part in model.prices]
    rates = [rate for price in prices for rate in vars(price).values() if rate is not None]
    amounts = [
        amount
        for rate in rates
        for amount in ([rate] if isinstance(rate, Decimal) else [rate.base, *[t.price for t in rate.tiers]])
    ]
    return all(amount * 10**9 % 1 == 0 for amount in amounts)


def by_prefix(catalogue: Catalogue, provider: types.Provider, model: types.ModelInfo) -> Price | None:
    return catalogue.find(f"{provider.id}/{model.id}")


def test_every_model_costs_what_the_package_says(catalogue):
    exact = rounded = 0
    for provider, model in ALL:
        if not is_by_tokens(model):
            continue
        moments = [NOON.replace(hour=hour) for hour in range(24)] if is_by_the_hour(model) else [NOON]
        price = by_prefix(catalogue, provider, model)
        assert price is not None, (provider.id, model.id)
        for usage in USAGES:
            theirs = max(their_price(model, provider, usage, moment) for moment in moments) * 10**9
            ours = price.cost_nano_usd(usage)
            if is_whole(model):
                assert ours == math.ceil(theirs), (provider.id, model.id, usage)
                exact += 1
            else:
                assert abs(ours - theirs) <= 1 + theirs / 10**7, (provider.id, model.id, usage)
                rounded += 1
    assert exact > 2_200 * len(USAGES)
    assert rounded < 40 * len(USAGES)


def names_in(clause: types.MatchLogic) -> list[str]:
    """Names that a rule speaks of."""
    match clause:
        case types.ClauseOr(or_=parts) | types.ClauseAnd(and_=parts):
            return [name for part in parts for name in names_in(part)]
        case types.ClauseEquals(equals=name):
            return [name, name.upper()]
        case types.ClauseStartsWith(starts_with=name) | types.ClauseContains(contains=name):
            return [name, f"{name}-20260102", f"x{name}"]
        case _:
            return []


def test_a_name_means_the_model_that_the_package_finds(catalogue):
    """An identifier wins over the rules of other models; so far no name shows the difference."""
    usage = Usage(123_457, 7_919, 10_007, 1_009)
    compared, costs = 0, {}
    for provider in providers:
        identifiers = {model.id.lower(): model for model in provider.models}
        for name in {name for model in provider.models for name in [model.id, *names_in(model.match)]}:
            model = provider.find_model(name, all_providers=providers)
            if model is None or not is_by_tokens(model) or not is_whole(model):
                continue
            named = identifiers.get(name.lower(), model)
            if (provider.id, named.id) not in costs:
                hours = range(24) if is_by_the_hour(named) else [12]
                theirs = max(their_price(named, provider, usage, NOON.replace(hour=hour)) for hour in hours)
                costs[provider.id, named.id] = math.ceil(theirs * 10**9)
            price = catalogue.find(f"{provider.id}/{name}")
            assert price is not None, (provider.id, name)
            assert price.cost_nano_usd(usage) == costs[provider.id, named.id], (provider.id, name)
            compared += 1
    assert compared > 4_000


@pytest.mark.parametrize("name", ["whisper-1", "tts-1", "mistral-ocr-2503", "voxtral-mini-transcribe-3-0", "grok-voice-latest"])
def test_a_model_that_is_not_paid_for_by_tokens_is_unknown(catalogue, name):
    assert catalogue.find(name) is None


@pytest.mark.parametrize("name", ["", "/", "//", "nobody/knows-me-20260101", "-2026-01-01", "q" * 100_000, "\ud800", "a\x00"])
def test_an_unknown_model_has_no_price(catalogue, name):
    assert catalogue.find(name) is None
    assert catalogue.find(name, "api.openai.com") is None
    assert catalogue.find(name, "not a host") is None


def usd(price: Price | None) -> tuple[float, float]:
    assert price is not None
    return price.input / 10**9, price.output / 10**9


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("openai/gpt-4o", "gpt-4o"),
        ("GPT-4o", "gpt-4o"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("anthropic/claude-opus-4-1", "claude-opus-4-1-20250805"),
        ("claude-opus-4-1@20250805", "claude-opus-4-1"),
        ("gpt-5.4-20990101", "gpt-5.4"),
        ("some/proxy/gpt-4o", "gpt-4o"),
    ],
)
def test_prefixes_case_and_dates_of_names_do_not_matter(catalogue, name, same):
    assert catalogue.find(name) == catalogue.find(same) is not None


def test_the_host_decides_between_providers_of_one_model(catalogue):
    name = "llama-3.3-70b-versatile"
    provider = next(provider for provider in providers if provider.id == "groq")
    model = provider.find_model(name)
    found = catalogue.find(name, "api.groq.com/openai/v1")
    usage = Usage(1_000_000, 1_000_000)
    assert found is not None
    assert model is not None
    assert found.cost_nano_usd(usage) == their_price(model, provider, usage, NOON) * 10**9
    assert catalogue.find("gpt-4o", "x.openai.azure.com") is not None
    assert usd(catalogue.find("anthropic/claude-sonnet-4", "openrouter.ai")) == usd(
        catalogue.find("openrouter/anthropic/claude-sonnet-4")
    )


def test_an_unknown_host_gets_the_maker_s_price(catalogue):
    assert catalogue.find("gpt-4o", "llm.internal") == catalogue.find("openai/gpt-4o") is not None
    assert catalogue.find("claude-opus-4-1", "127.0.0.1:9") == catalogue.find("anthropic/claude-opus-4-1") is not None


def a_provider(*prices: types.ConditionalPrice, model: str = "m") -> types.Provider:
    match = types.ClauseEquals(equals=model)
    return types.Provider("p", "P", "https://p", models=[types.ModelInfo(id=model, match=match, prices=list(prices))])


def a_price(usd: int, constraint=None) -> types.ConditionalPrice:
    return types.ConditionalPrice(constraint, prices=types.ModelPrice(input_mtok=Decimal(usd), output_mtok=Decimal(usd)))


class Clock:
    """A clock that stands."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def __call__(self) -> float:
        return self.moment.timestamp()


def test_a_price_begins_at_midnight_of_its_day():
    clock = Clock(NOON)
    starts = [types.StartDateConstraint(date(2026, 11, 20)), types.StartDateConstraint(date(2026, 11, 24))]
    dated = Catalogue.of([a_provider(a_price(1), *(a_price(n + 2, start) for n, start in enumerate(starts)))], clock)
    assert usd(dated.find("m")) == (2, 2)
    clock.moment = datetime(2026, 11, 23, 23, 59, 59, tzinfo=UTC)
    assert usd(dated.find("m")) == (2, 2)
    clock.moment = datetime(2026, 11, 24, tzinfo=UTC)
    assert usd(dated.find("m")) == (3, 3)
    clock.moment = datetime(2030, 1, 1, tzinfo=UTC)
    assert usd(dated.find("m")) == (3, 3)


def test_of_prices_by_the_hour_the_dearer_one_counts():
    night = types.TimeOfDateConstraint(time(0), time(6))
    assert usd(Catalogue.of([a_provider(a_price(2), a_price(1, night))], Clock(NOON)).find("m")) == (2, 2)
    assert usd(Catalogue.of([a_provider(a_price(1), a_price(2, night))], Clock(NOON)).find("m")) == (2, 2)


def test_prices_of_which_none_holds_yet_are_the_first():
    later = types.StartDateConstraint(date(2027, 1, 1))
    assert usd(Catalogue.of([a_provider(a_price(7, later))], Clock(NOON)).find("m")) == (7, 7)


def test_the_first_model_that_fits_is_meant_unless_another_one_has_the_name():
    begins, equals = types.ClauseStartsWith(starts_with="a"), types.ClauseEquals(equals="ab")

    def found(*clauses, names=("x", "y")):
        models = [
            types.ModelInfo(id=name, match=clause, prices=a_price(index).prices)
            for index, (name, clause) in enumerate(zip(names, clauses, strict=True))
        ]
        return usd(Catalogue.of([types.Provider("p", "P", "https://p", models=models)], Clock(NOON)).find("AB"))

    assert found(begins, equals) == found(equals, begins) == (0, 0)
    assert found(begins, equals, names=("x", "ab")) == (1, 1)


def test_what_was_found_is_forgotten_when_there_is_too_much(catalogue, monkeypatch):
    monkeypatch.setattr(module, "MAX_FOUND", 3)
    found = [catalogue.find("gpt-4o", f"host-{number}") for number in range(10)]
    assert len(set(found)) == 1
    assert len(catalogue._found) <= 3

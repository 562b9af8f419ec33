"""One provider's models and prices, read from ``genai-prices`` into tables of integers and plain tests of names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, NamedTuple

from gateway.prices.price import Price, nano

if TYPE_CHECKING:
    from genai_prices import types

_Test = Callable[[str], object]
_Dated = tuple[tuple[int, Price], ...]
"""Prices with the day (as `date.toordinal`) from which each holds, the latest first; the last one has always held."""


class Provider(NamedTuple):
    """One provider's models. Names are lower case; rules stand in the order in which they are tried."""

    name: str
    answers_at: re.Pattern[str]
    is_called: _Test | None
    makes: _Test | None
    falls_back_to: tuple[str, ...]
    ids: dict[str, int]
    equal: dict[str, int]
    rules: tuple[tuple[int, _Test], ...]
    prices: tuple[_Dated | None, ...]

    def match(self, name: str) -> int | None:
        """Which model it is: by its identifier, else the first one whose rule fits."""
        found = self.ids.get(name)
        if found is not None:
            return found
        found = self.equal.get(name)
        for index, fits in self.rules:
            if found is not None and index > found:
                break
            if fits(name):
                return index
        return found


def read_provider(provider: types.Provider, today: date) -> Provider:
    """The tables of a provider, with its prices from today on."""
    equal: dict[str, int] = {}
    rules: list[tuple[int, _Test]] = []
    for index, model in enumerate(provider.models):
        for part in _alternatives(model.match):
            text = getattr(part, "equals", None)
            if text is None:
                rules.append((index, _test(part)))
            else:
                equal.setdefault(text.lower(), index)
    ids: dict[str, int] = {}
    for index, model in enumerate(provider.models):
        ids.setdefault(model.id.lower(), index)
    return Provider(
        name=provider.id,
        answers_at=re.compile(provider.api_pattern),
        is_called=None if provider.provider_match is None else _test(provider.provider_match),
        makes=None if provider.model_match is None else _test(provider.model_match),
        falls_back_to=tuple(provider.fallback_model_providers or ()),
        ids=ids,
        equal=equal,
        rules=tuple(rules),
        prices=tuple(_dated(model, today) for model in provider.models),
    )


def _alternatives(clause: types.MatchLogic) -> Iterator[types.MatchLogic]:
    either = getattr(clause, "or_", None)
    if either is None:
        yield clause
    else:
        for part in either:
            yield from _alternatives(part)


def _test(clause: types.MatchLogic) -> _Test:
    from genai_prices import types  # noqa: PLC0415 - imported only by those who read it

    match clause:
        case types.ClauseStartsWith(starts_with=text):
            beginning = text.lower()
            return lambda name: name.startswith(beginning)
        case types.ClauseEndsWith(ends_with=text):
            ending = text.lower()
            return lambda name: name.endswith(ending)
        case types.ClauseContains(contains=text):
            part = text.lower()
            return lambda name: part in name
        case types.ClauseEquals(equals=text):
            return text.lower().__eq__
        case types.ClauseRegex(regex=text):
            return re.compile(text).search
        case types.ClauseOr(or_=clauses):
            any_of = [_test(part) for part in clauses]
            return lambda name: any(test(name) for test in any_of)
        case types.ClauseAnd(and_=clauses):
            all_of = [_test(part) for part in clauses]
            return lambda name: all(test(name) for test in all_of)
        case _:
            raise AssertionError(f"a clause of an unknown kind: {clause!r}")


def _dated(model: types.ModelInfo, today: date) -> _Dated | None:
    """The prices of a model from today on; None if it has one that is not by tokens or requests."""
    if not isinstance(model.prices, list):
        price = _price_of([model.prices])
        return None if price is None else ((0, price),)
    starts = {getattr(conditional.constraint, "start_date", date.min) for conditional in model.prices}
    current = max((start for start in starts if start <= today), default=date.min)
    found: list[tuple[int, Price]] = []
    for start in sorted({current} | {start for start in starts if start > today}, reverse=True):
        price = _price_of(_in_force(model.prices, start))
        if price is None:
            return None
        found.append((0 if start == current else start.toordinal(), price))
    return tuple(found)


def _in_force(prices: list[types.ConditionalPrice], day: date) -> list[types.ModelPrice]:
    """All prices that hold at some time of a day: the last one that fits wins, and the first one if none does."""
    found = []
    for conditional in reversed(prices):
        start = getattr(conditional.constraint, "start_date", None)
        if start is not None and start > day:
            continue
        found.append(conditional.prices)
        if start is not None or conditional.constraint is None:
            return found
    return [*found, prices[0].prices]


def _price_of(given: list[types.ModelPrice]) -> Price | None:
    """The dearest of these prices, each class for itself."""
    found = [_one_price(price) for price in given]
    known = [price for price in found if price is not None]
    return _dearest(known) if len(known) == len(found) else None


def _dearest(prices: list[Price]) -> Price:
    if len(prices) == 1:
        return prices[0]
    thresholds = sorted({above for price in prices for above, _ in price.tiers}, reverse=True)
    flat = [_flat(price, 0) for price in prices]
    tiers = tuple((above, _highest([_flat(price, above + 1) for price in prices])) for above in thresholds)
    highest = _highest(flat)
    return _with_tiers(highest, tiers)


def _flat(price: Price, input_tokens: int) -> Price:
    return next((tier for above, tier in price.tiers if input_tokens > above), _with_tiers(price, ()))


def _with_tiers(price: Price, tiers: tuple[tuple[int, Price], ...]) -> Price:
    return Price(**{name: getattr(price, name) for name in _CLASSES}, tiers=tiers)


def _highest(prices: list[Price]) -> Price:
    return Price(**{name: max(getattr(price, name) for price in prices) for name in _CLASSES})


def _nearest(usd: Decimal) -> int:
    """Nano-dollars. A few prices of the package are quotients, such as 0.08333333333333334: off by 1 in 10⁷ at most."""
    return nano(usd.quantize(_NANO_DOLLAR, rounding=ROUND_HALF_UP))


_NANO_DOLLAR = Decimal("1E-9")
_CLASSES = tuple(field.name for field in fields(Price) if field.name != "tiers")


def _one_price(given: types.ModelPrice) -> Price | None:
    rates = {key: value for key, value in vars(given).items() if value is not None}
    if rates and not rates.keys() & {"input_mtok", "output_mtok", "requests_kcount"}:
        return None
    thresholds = {tier.start for value in rates.values() for tier in getattr(value, "tiers", ())}
    tiers = tuple((start, _flat_price(rates, start + 1)) for start in sorted(thresholds, reverse=True))
    return _with_tiers(_flat_price(rates, 0), tiers)


def _flat_price(rates: dict[str, Decimal | types.TieredPrices], input_tokens: int) -> Price:
    """One price for requests of this length. What is not given costs what the wider class costs; nothing at all is free."""

    def rate(key: str, *others: str) -> int:
        for name in (key, *others):
            value = rates.get(name)
            if value is not None:
                if isinstance(value, Decimal):
                    return _nearest(value)
                applying = [tier.price for tier in value.tiers if input_tokens > tier.start]
                return _nearest(applying[-1] if applying else value.base)
        return 0

    heard = "input_audio_mtok" in rates
    return Price(
        input=rate("input_mtok"),
        output=rate("output_mtok", "output_image_mtok"),
        cached=rate("cache_read_mtok", "input_mtok"),
        cache_write=rate("cache_write_mtok", "input_mtok"),
        audio_input=rate("input_audio_mtok", "input_mtok"),
        cached_audio=rate("cache_audio_read_mtok", *(("input_audio_mtok",) if heard else ("cache_read_mtok", "input_mtok"))),
        audio_output=rate("output_audio_mtok", "output_mtok"),
        reasoning=rate("output_reasoning_mtok", "output_mtok"),
        request=_nearest(value / 1_000) if isinstance(value := rates.get("requests_kcount"), Decimal) else 0,
    )

"""Which price a request is charged at: what people have set, else the catalogue's, else the fallback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from gateway.models import ModelPrice
from gateway.prices.price import Price

MAX_NAME = 300


class Finder(Protocol):
    """Knows public prices."""

    def find(self, model: str, host: str = "") -> Price | None:
        """The price of a model where ``host`` serves it; None if it is not known."""


class Quote(NamedTuple):
    """A price, and whether it is one of this model: a fallback is not ``known``."""

    price: Price
    known: bool = True


class PriceList:
    """Prices by the names of models, exact or the beginning of one followed by ``*``. Read-only, so it can be shared."""

    __slots__ = ("_beginnings", "_exact")

    def __init__(self, prices: Mapping[str, ModelPrice]) -> None:
        self._exact = {name.lower(): Price.of(price) for name, price in prices.items() if not name.endswith("*")}
        # the longest first
        self._beginnings = sorted(
            ((name[:-1].lower(), Price.of(price)) for name, price in prices.items() if name.endswith("*")),
            key=lambda item: -len(item[0]),
        )

    def __bool__(self) -> bool:
        return bool(self._exact or self._beginnings)

    def find(self, names: Sequence[str]) -> Price | None:
        """The price of the first of these names that has one, in lower case; an exact one wins over every beginning."""
        for name in names:
            price = self._exact.get(name)
            if price is not None:
                return price
        for name in names:
            for beginning, price in self._beginnings:
                if name.startswith(beginning):
                    return price
        return None


class PriceBook:
    """Decides on the price of a request. ``fallback`` is None where unknown models are to be refused."""

    def __init__(self, catalogue: Finder, fallback: Price | None, configured: PriceList | None = None) -> None:
        self._catalogue = catalogue
        self._fallback = fallback
        self._configured = configured

    def quote(self, model: str, host: str = "", overrides: Sequence[PriceList | None] = ()) -> Quote | None:
        """The price of a model at ``host``; None if it is unknown and to be refused.

        ``overrides`` come before the configuration's, and the first that knows the model wins: the rule's, then the tenant's. A
        name such as ``openai/gpt-4o`` is looked for as it is, and then without what stands before its last slash.
        """
        model = model[:MAX_NAME]
        configured = self._configured
        if configured or any(overrides):
            lower = model.lower()
            plain = lower.rpartition("/")[2]
            names = (lower,) if plain == lower else (lower, plain)
            for prices in (*overrides, configured):
                if prices:
                    price = prices.find(names)
                    if price is not None:
                        return Quote(price)
        price = self._catalogue.find(model, host)
        if price is not None:
            return Quote(price)
        return None if self._fallback is None else Quote(self._fallback, known=False)

"""Public prices of providers' models, from the package ``genai-prices``, as integers.

The package knows about 2 300 models of 47 providers, how requests name them, at which hosts providers answer and from which day
on a price holds. Its own calculation takes 250 µs, so it is read once, at the start, into tables of this module.

It is imported into the process itself: beside the gateway's other libraries that and the tables take 0.2 s and 8 MB. Forgetting
the modules afterwards gives nothing back to the system, since the memory was handed out in small pieces. A short-lived process
would spare 6 MB for another 0.35 s of CPU at every start of every worker, and a file kept beside the data would have to be
cleaned up, and agreed on by replicas of different versions.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from itertools import compress
from operator import not_
from typing import TYPE_CHECKING

from gateway.prices.price import Price
from gateway.prices.provider import Provider, read_provider

if TYPE_CHECKING:
    from genai_prices import types

MAX_NAME = 300
"""Names are cut to so many characters."""

MAX_FOUND = 4_096
"""How many lookups are remembered."""

MAKERS = (
    "openai",
    "anthropic",
    "google",
    "mistral",
    "deepseek",
    "x-ai",
    "cohere",
    "moonshotai",
    "minimax",
    "zai",
    "zhipuai",
    "meta",
    "perplexity",
    "voyageai",
    "elevenlabs",
    "arcee",
    "typesafe",
    "cursor",
)
"""Providers of their own models, in the order in which they are asked where the host tells none."""

RESELLERS = ("openrouter", "azure", "aws", "groq", "together", "fireworks", "cerebras")
"""Asked next; the rest follows in the order of the alphabet."""

_DAY_S = 86_400
_DATED = re.compile(r"[-@](?:20\d{2}-?(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12]\d|3[01]))$")
_COMPACT_DATE = re.compile(r"-(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


class Catalogue:
    """Public prices of providers' models, those in force on the day of the question (UTC).

    A price that holds at certain hours only is taken for the whole day where it is the dearer one. Prices for batches and for
    faster or slower service are not known here, nor are models that are not paid for by tokens or requests.
    """

    def __init__(self, providers: Iterable[Provider], clock: Callable[[], float] = time.time) -> None:
        self._providers = {provider.name: provider for provider in providers}
        order = [name for name in (*MAKERS, *RESELLERS) if name in self._providers]
        self._order = [self._providers[name] for name in dict.fromkeys((*order, *sorted(self._providers)))]
        self._clock = clock
        self._today = 0
        self._next_day = 0.0
        self._found: dict[tuple[str, str], Price | None] = {}

    @classmethod
    def bundled(cls, clock: Callable[[], float] = time.time) -> Catalogue:
        """The catalogue of the installed package."""
        from genai_prices.data import providers  # noqa: PLC0415 - 6 MB that only those pay for who read it

        return cls.of(providers, clock)

    @classmethod
    def of(cls, providers: Iterable[types.Provider], clock: Callable[[], float] = time.time) -> Catalogue:
        """The catalogue of these providers, with their prices from today on."""
        today = datetime.fromtimestamp(clock(), UTC).date()
        return cls([read_provider(provider, today) for provider in providers], clock)

    def __len__(self) -> int:
        return sum(price is not None for provider in self._providers.values() for price in provider.prices)

    def find(self, model: str, host: str = "") -> Price | None:
        """The price of a model where ``host`` serves it; None if it is not known.

        ``host`` is the host of the target, with its path where it has one (some resellers differ in that only). Its provider is
        asked first; then the one that the name is prefixed with, such as ``openai/gpt-4o``; then makers before resellers; then
        all of them again for the name without prefix, and at last without the date at its end.
        """
        if self._clock() >= self._next_day:
            self._begin_day()
        key = (model, host)
        try:
            return self._found[key]
        except KeyError:
            pass
        price = self._look_up(model[:MAX_NAME].lower(), host.lower())
        if len(self._found) >= MAX_FOUND:
            self._found.clear()
        if len(model) <= MAX_NAME:
            self._found[key] = price
        return price

    def _begin_day(self) -> None:
        days = int(self._clock() // _DAY_S)
        self._next_day = (days + 1) * _DAY_S
        self._today = days + _EPOCH
        self._found.clear()

    def _look_up(self, name: str, host: str) -> Price | None:
        serving = [provider for provider in self._order if provider.answers_at.match(f"https://{host}")] if host else []
        for spelling in _spellings(name):
            for wanted, providers in self._asked(spelling, serving):
                for provider in providers:
                    price = self._price(provider, wanted)
                    if price is not None:
                        return price
        return None

    def _asked(self, name: str, serving: list[Provider]) -> Iterator[tuple[str, Iterable[Provider]]]:
        prefix, slash, rest = name.partition("/")
        last = name.rpartition("/")[2]
        yield name, serving
        if slash:
            yield rest, serving
            yield last, serving
            yield rest, self._called(prefix)
        yield name, self._makers_first(name)
        if slash:
            yield last, self._makers_first(last)

    def _makers_first(self, name: str) -> list[Provider]:
        """All providers, those that say that they make models of such names before the others."""
        makers = [provider.makes is not None and bool(provider.makes(name)) for provider in self._order]
        return [*compress(self._order, makers), *compress(self._order, map(not_, makers))]

    def _called(self, name: str) -> list[Provider]:
        exact = self._providers.get(name)
        if exact is not None:
            return [exact]
        return [provider for provider in self._order if provider.is_called is not None and provider.is_called(name)]

    def _price(self, provider: Provider, name: str) -> Price | None:
        for asked in (provider, *(self._providers[other] for other in provider.falls_back_to if other in self._providers)):
            index = asked.match(name)
            if index is not None:
                prices = asked.prices[index]
                return None if prices is None else next(price for since, price in prices if since <= self._today)
        return None


_EPOCH = date(1970, 1, 1).toordinal()


def _spellings(name: str) -> tuple[str, ...]:
    # resellers write 20251211 where makers write 2025-12-11
    dashed = _COMPACT_DATE.sub(r"-\1-\2-\3", name)
    return tuple(dict.fromkeys((name, dashed, _DATED.sub("", name))))

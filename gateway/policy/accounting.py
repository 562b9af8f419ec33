"""What a call may use at most, and what it has used: in tokens and in nano-USD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.errors import UnknownModel
from gateway.formats import Delivered, Usage
from gateway.limit_headers import UNKNOWN
from gateway.models import LimitSpec, Unit
from gateway.plugin import LimitState
from gateway.policy.call import Call
from gateway.policy.compiled import CompiledRule
from gateway.prices import MTOK, Price, PriceBook, Quote
from gateway.store import PlacedLimit
from gateway.tokens import TokenCounter, delivered_tokens


class Demand(NamedTuple):
    """What a call may use at most, as far as that can be told; it is reserved before the call is forwarded.

    ``bound`` is what one answer must be limited to, because the client has set no limit and a quota is to be kept. Where
    ``is_guess``, the output is what requests without a limit are taken for.
    """

    input_tokens: int
    output_tokens: int
    cost_nano_usd: int
    bound: int | None = None
    is_guess: bool = False

    def units(self, spec: LimitSpec) -> int:
        """How much of a limit it takes. A guess takes no more than there ever is: it must not refuse what may be small."""
        units = units_of(spec.unit, self.input_tokens, self.output_tokens, self.cost_nano_usd)
        return min(units, spec.capacity) if self.is_guess else units


class Spent(NamedTuple):
    """What a call has used. ``is_estimate`` if the provider did not tell and it was counted here."""

    usage: Usage
    cost_nano_usd: int
    is_estimate: bool = False

    def units(self, unit: Unit) -> int:
        """How much of a limit of this unit that is."""
        return units_of(unit, self.usage.input_tokens, self.usage.output_tokens, self.cost_nano_usd)


LEAST_BOUND = 16
"""A bound of fewer tokens is not set for the sake of a quota: nobody wants such an answer."""

NOTHING = Spent(Usage(), 0)


def units_of(unit: Unit, input_tokens: int, output_tokens: int, cost_nano_usd: int) -> int:
    """Of a measured unit."""
    match unit:
        case "input_tokens":
            return input_tokens
        case "output_tokens":
            return output_tokens
        case "usd":
            return cost_nano_usd
        case _:
            return input_tokens + output_tokens


class Accounting:
    """Counts and prices calls."""

    def __init__(self, counter: TokenCounter, prices: PriceBook, default_output_tokens: int) -> None:
        self._counter = counter
        self._prices = prices
        self._default_output = default_output_tokens

    def quote(self, rule: CompiledRule, model: str) -> Quote:
        """What the model costs on a rule. Raises UnknownModel where nobody knows and that is to be refused."""
        quote = self._prices.quote(model, rule.price_host, rule.prices)
        if quote is None:
            raise UnknownModel(f"The price of the model {model[:100]!r} is not known.", param="model")
        return quote

    def demand(self, call: Call, price: Price, limits: Sequence[PlacedLimit], input_tokens: int | None = None) -> Demand:
        """What to reserve in these limits; ``input_tokens`` if somebody knows them."""
        asked = call.asked
        if input_tokens is None:
            input_tokens = self._counter.most_input_tokens(asked)
        bound: int | None = None
        answers = max(1, asked.answers)
        per_answer = asked.max_output_tokens
        if per_answer is None:
            per_answer = self._default_output
            needing = [limit.spec for limit in limits if limit.spec.needs_bound]
            if needing:
                room = min(_room(spec.unit, spec.limit, input_tokens, asked.media_parts, price) for spec in needing)
                bound = per_answer = max(1, min(per_answer, room // answers))
        output_tokens = per_answer * answers
        cost = _most_cost(price, input_tokens, output_tokens, asked.media_parts)
        return Demand(input_tokens, output_tokens, cost, bound, asked.max_output_tokens is None)

    def tighter(
        self, call: Call, price: Price, demand: Demand, limits: Sequence[PlacedLimit], states: Sequence[LimitState]
    ) -> Demand | None:
        """The same with a bound that can be paid for by what is left, where only quotas refuse that the bound is for.

        None if that would leave next to nothing, if the bound is the client's, or if waiting for requests in flight may help.
        """
        if demand.bound is None:
            return None
        known = list(zip(limits, states, strict=True))
        for limit, state in known:
            if state.refuses and not state.shadow and (not limit.spec.needs_bound or state.retry_after_ms == UNKNOWN):
                return None
        media_parts, answers = call.asked.media_parts, max(1, call.asked.answers)
        bound = demand.bound
        for limit, state in known:
            if limit.spec.needs_bound:
                room = _room(limit.spec.unit, state.remaining, demand.input_tokens, media_parts, price)
                bound = min(bound, room // answers)
        if not LEAST_BOUND <= bound < demand.bound:
            return None
        cost = _most_cost(price, demand.input_tokens, bound * answers, media_parts)
        return demand._replace(output_tokens=bound * answers, cost_nano_usd=cost, bound=bound)

    def spent(self, price: Price, usage: Usage) -> Spent:
        """What the provider says was used, at its price."""
        return Spent(usage, price.cost_nano_usd(usage))

    def most_output_tokens(self, call: Call, demand: Demand | None) -> int:
        """What a call is taken to have written at most, where nobody tells."""
        if demand is not None:
            return demand.output_tokens
        asked = call.complete().asked
        per_answer = asked.max_output_tokens
        return (self._default_output if per_answer is None else per_answer) * max(1, asked.answers)

    def counted(self, call: Call, price: Price, demand: Demand | None, delivered: Delivered) -> Spent:
        """What a call has used of which the provider told nothing: its input, and what was delivered."""
        call = call.complete()
        written = min(delivered_tokens(*delivered), self.most_output_tokens(call, demand))
        usage = Usage(self._counter.input_tokens(call.asked), written)
        return Spent(usage, price.cost_nano_usd(usage), is_estimate=True)

    def at_least(self, call: Call, price: Price, told: Usage, demand: Demand | None, delivered: Delivered) -> Spent:
        """What a stream has used that told its usage before it was cut: no less than it has delivered."""
        counted = min(delivered_tokens(*delivered), self.most_output_tokens(call, demand))
        if counted <= told.output_tokens:
            return self.spent(price, told)
        usage = told._replace(output_tokens=counted)
        return Spent(usage, price.cost_nano_usd(usage), is_estimate=True)


def _most_cost(price: Price, input_tokens: int, output_tokens: int, media_parts: int) -> int:
    """Whether the provider writes its cache, thinks or hears is not known before: the dearest is taken."""
    heard = input_tokens if media_parts and price.audio_input > max(price.input, price.cache_write) else 0
    return price.cost_nano_usd(
        Usage(
            input_tokens,
            output_tokens,
            cache_write_tokens=input_tokens if not heard and price.cache_write > price.input else 0,
            reasoning_tokens=output_tokens if price.reasoning > price.output else 0,
            input_audio_tokens=heard,
        )
    )


def _room(unit: Unit, units: int, input_tokens: int, media_parts: int, price: Price) -> int:
    """How many tokens of output can be paid for by so much of a budget, after the input."""
    match unit:
        case "output_tokens":
            return units
        case "tokens":
            return units - input_tokens
        case _:
            dearest = max(price.output, price.reasoning)
            left = units - _most_cost(price, input_tokens, 0, media_parts)
            return units if dearest == 0 else max(0, left) * MTOK // dearest

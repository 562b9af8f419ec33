"""What the tokens of one request cost, in whole nano-dollars."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from gateway.formats import Usage
from gateway.model_price import ModelPrice
from gateway.money import NANO

MTOK = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """Nano-dollars for a million tokens of each class, and for a request.

    ``tiers`` are other prices for requests with long inputs, the longest first: all tokens of a request cost what its tier
    says, not only those above the threshold.
    """

    input: int
    output: int
    cached: int
    cache_write: int
    audio_input: int
    cached_audio: int
    audio_output: int
    reasoning: int
    request: int = 0
    tiers: tuple[tuple[int, Price], ...] = ()
    """Pairs of a number of input tokens and the price of requests with more than that."""

    @classmethod
    def of(cls, price: ModelPrice) -> Price:
        """The price that somebody has written down; what is unset there costs what the wider class costs."""
        given = price.input_usd_per_mtok
        cached = given if price.cached_input_usd_per_mtok is None else price.cached_input_usd_per_mtok
        audio = given if price.audio_input_usd_per_mtok is None else price.audio_input_usd_per_mtok
        write = given if price.cache_write_usd_per_mtok is None else price.cache_write_usd_per_mtok
        output = price.output_usd_per_mtok
        spoken = output if price.audio_output_usd_per_mtok is None else price.audio_output_usd_per_mtok
        return cls(
            input=nano(given),
            output=nano(output),
            cached=nano(cached),
            cache_write=nano(write),
            audio_input=nano(audio),
            cached_audio=nano(audio if price.cached_input_usd_per_mtok is None else cached),
            audio_output=nano(spoken),
            reasoning=nano(output),
            request=nano(price.request_usd),
        )

    def cost_nano_usd(self, usage: Usage) -> int:
        """What this usage costs, rounded up once.

        Classes that overlap are counted once: tokens read from a cache, written to one and audio are taken out of the input, as
        they are among it. Where a provider's numbers contradict each other, no class counts more tokens than the wider one has
        left, so that the whole is never more than input and output at their dearest, and never negative.
        """
        given, answered, cached, written, reasoning, heard, spoken, cached_audio = usage
        for above, price in self.tiers:
            if given > above:
                return price.cost_nano_usd(usage)
        if given < 0 or answered < 0:
            return self.cost_nano_usd(_without_contradictions(usage))
        femto = given * self.input + answered * self.output
        if cached or written or heard or cached_audio:
            if not (
                0 <= cached_audio <= heard <= given - cached - written + cached_audio
                and cached_audio <= cached
                and written >= 0
            ):
                return self.cost_nano_usd(_without_contradictions(usage))
            femto += (
                (cached - cached_audio) * (self.cached - self.input)
                + cached_audio * (self.cached_audio - self.input)
                + written * (self.cache_write - self.input)
                + (heard - cached_audio) * (self.audio_input - self.input)
            )
        if spoken or reasoning:
            if not 0 <= spoken <= answered - reasoning <= answered:
                return self.cost_nano_usd(_without_contradictions(usage))
            femto += spoken * (self.audio_output - self.output) + reasoning * (self.reasoning - self.output)
        return -(-femto // MTOK) + self.request


def _without_contradictions(usage: Usage) -> Usage:
    given, answered = max(usage.input_tokens, 0), max(usage.output_tokens, 0)
    cached = min(max(usage.cached_tokens, 0), given)
    written = min(max(usage.cache_write_tokens, 0), given - cached)
    cached_audio = min(max(usage.cached_audio_tokens, 0), cached, max(usage.input_audio_tokens, 0))
    heard = min(max(usage.input_audio_tokens, 0), given - cached - written + cached_audio)
    spoken = min(max(usage.output_audio_tokens, 0), answered)
    reasoning = min(max(usage.reasoning_tokens, 0), answered - spoken)
    return Usage(given, answered, cached, written, reasoning, heard, spoken, cached_audio)


def nano(usd: Decimal) -> int:
    """Nano-dollars of an amount in dollars. Raises ValueError where it is not a whole number of them."""
    scaled = usd * NANO
    whole = int(scaled)
    if whole != scaled:
        raise ValueError(f"{usd} USD is not a whole number of nano-dollars")
    return whole

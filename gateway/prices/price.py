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
        all_input, all_output, cached, written, reasoning, heard, spoken, cached_audio = usage
        all_input = max(all_input, 0)
        for above, price in self.tiers:
            if all_input > above:
                return price.cost_nano_usd(usage)
        all_output = max(all_output, 0)
        micro = all_input * self.input + all_output * self.output
        if cached > 0 or written > 0 or heard > 0:
            cached = min(max(cached, 0), all_input)
            heard = max(heard, 0)
            cached_audio = min(max(cached_audio, 0), cached, heard)
            written = min(max(written, 0), all_input - cached)
            fresh_audio = min(heard - cached_audio, all_input - cached - written)
            micro += (
                (cached - cached_audio) * (self.cached - self.input)
                + cached_audio * (self.cached_audio - self.input)
                + written * (self.cache_write - self.input)
                + fresh_audio * (self.audio_input - self.input)
            )
        if spoken > 0 or reasoning > 0:
            spoken = min(max(spoken, 0), all_output)
            reasoning = min(max(reasoning, 0), all_output - spoken)
            micro += spoken * (self.audio_output - self.output) + reasoning * (self.reasoning - self.output)
        return -(-micro // MTOK) + self.request


def nano(usd: Decimal) -> int:
    """Nano-dollars of an amount in dollars. Raises ValueError where it is not a whole number of them."""
    scaled = usd * NANO
    whole = int(scaled)
    if whole != scaled:
        raise ValueError(f"{usd} USD is not a whole number of nano-dollars")
    return whole

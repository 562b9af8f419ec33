"""What an admitted request came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.formats import named_model
from gateway.plugin import Exchange, Headers
from gateway.policy import NOTHING, Spent, units_of
from gateway.store import BoundLimit

NOWHERE = -2
MAX_UNITS = 10**10


@dataclass(slots=True)
class Outcome:
    """How far a request has come, and what is known of its cost by then.

    ``reached`` is the chain entry it came to; limits of the key and the tenant stand at -1. ``exchange`` is set when the target
    or a plugin is asked for an answer: from then on the request counts as used. ``spent`` is what the model has used.
    """

    reached: int = NOWHERE
    exchange: Exchange | None = None
    spent: Spent = NOTHING
    _told: dict[str, int] = field(default_factory=dict)

    def note_reply(self, limits: Sequence[BoundLimit], headers: Headers) -> None:
        """Read what the reply says of the cost, before plugins change its head. What is no number is not believed."""
        for limit in limits:
            header = limit.placed.spec.cost.reply_header
            if header is None:
                continue
            told = headers.get(header)
            units = None if told is None else units_of(told.encode("latin-1", "replace"))
            if units is not None:
                self._told[header] = units

    def cost_of(self, limit: BoundLimit) -> int | None:
        """What the request turned out to cost there; None for what it was charged. A plugin knows better than the reply."""
        spec = limit.placed.spec
        said = None if self.exchange is None else self.exchange.costs.get(spec.name)
        if isinstance(said, int):  # plugins may be wrong, and settlement must go on
            return min(max(0, said), MAX_UNITS)
        if spec.is_measured:
            return self.spent.units(spec.unit)
        return None if spec.cost.reply_header is None else self._told.get(spec.cost.reply_header)

    def model_of(self, known: str | None) -> str:
        """The model that the request names, as far as its body was read."""
        body = None if self.exchange is None else self.exchange.request.body
        return known or named_model(body if isinstance(body, bytes) else None)

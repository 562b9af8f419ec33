"""A request that was decided, and what its end comes to."""

from __future__ import annotations

from typing import NamedTuple

from gateway.models import LimitKind
from gateway.policy import CompiledKey, CompiledRule, CompiledTenant, Terms
from gateway.proxy.outcome import Outcome
from gateway.store import Admission, Due, Settlement, Used


class Ticket(NamedTuple):
    """A decided request, and the terms on which it was; ``by_store`` is False where the store was away and knows of nothing."""

    id: str
    tenant: CompiledTenant
    key: CompiledKey
    rule: CompiledRule
    terms: Terms
    admission: Admission
    by_store: bool = True

    def settlement(self, outcome: Outcome) -> Settlement | None:
        """What the store is to be told; None if that is nothing.

        Limits behind the entry that the request has reached took no effect and give their charge back. Those that count
        it otherwise than it was charged are corrected.
        """
        dues: list[Due] = []
        terms = self.terms
        for limit, state in zip(terms.limits, self.admission.states, strict=True):
            if state.refuses:
                continue  # a shadow limit that counted nothing
            actual = outcome.cost_of(limit)
            if not self.by_store:
                if limit.placed.entry <= outcome.reached and limit.placed.spec.kind is not LimitKind.CONCURRENCY:
                    # the store has charged nothing, so all of it is on top
                    dues.append((limit._replace(cost=0), limit.cost if actual is None else actual))
            elif limit.placed.entry > outcome.reached:
                dues.append((limit, 0))
            elif limit.placed.spec.holds or actual is not None:
                dues.append((limit, actual))
        used = None
        if outcome.exchange is not None:
            model = outcome.model_of(terms.model)
            usage, cost_nano_usd, _ = outcome.spent
            used = Used(
                self.tenant.info.id,
                self.key.info.id,
                self.rule.info.id,
                model,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cached_tokens=usage.cached_tokens,
                cost_nano_usd=cost_nano_usd,
            )
        if terms.limits or used:  # also with nothing due: the marker of what is in flight would stay for an hour
            return Settlement(self.tenant.keyspace, self.id, self.admission.now_ms, dues, used)
        return None

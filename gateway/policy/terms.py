"""What a request needs to be decided: its model, what it may use at most, and its limits with what each of them reserves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.formats import Endpoint
from gateway.plugin import LimitState
from gateway.policy.accounting import Accounting, Demand
from gateway.policy.binding import limits_of_request
from gateway.policy.call import Call, is_decided_by_body, names_of, read_call
from gateway.policy.compiled import CompiledKey, CompiledRule
from gateway.policy.facts import RequestFacts
from gateway.policy.plan import check_model, model_of
from gateway.prices import Quote
from gateway.store import BoundLimit


class Terms(NamedTuple):
    """``call``, ``quote`` and ``demand`` are None where no model is called; ``demand`` also where nothing is reserved.

    ``body`` is as it is to be understood, see `read_call`; None if it was not read.
    """

    limits: Sequence[BoundLimit] = ()
    body: bytes | None = None
    model: str | None = None
    call: Call | None = None
    quote: Quote | None = None
    demand: Demand | None = None


def terms_of(
    accounting: Accounting,
    head: RequestFacts,
    key: CompiledKey,
    rule: CompiledRule,
    endpoint: Endpoint | None,
    body: bytes | None,
) -> Terms:
    """Raises whatever refuses the request: NotAllowed, UnknownModel, InvalidHeader, InvalidJson, UnsupportedMediaType."""
    decides = is_decided_by_body(rule, key, endpoint)
    if endpoint is None:
        model = None
        if decides:
            model = model_of(head, body or b"")
            check_model(key, head, (model,))
        return Terms(limits_of_request(head, key, rule, model, None), body, model)
    reserves = rule.is_measured or key.is_measured
    call, body = read_call(rule, endpoint, head, body, decides=decides, reserves=reserves)
    return terms_of_call(accounting, head, key, rule, call, body)


def terms_of_call(
    accounting: Accounting,
    head: RequestFacts,
    key: CompiledKey,
    rule: CompiledRule,
    call: Call,
    body: bytes | None,
    input_tokens: int | None = None,
) -> Terms:
    """The same of a call that was read; ``input_tokens`` if somebody knows them.

    Raises NotAllowed, UnknownModel, InvalidHeader.
    """
    check_model(key, head, names_of(call, rule.aliases))
    model = call.model
    quote = accounting.quote(rule, model)
    demand = None
    if rule.is_measured or key.is_measured:
        demand = accounting.demand(call, quote.price, (*key.limits, *rule.limits), input_tokens)
    limits = limits_of_request(head, key, rule, model, demand)
    return Terms(limits, body, model, call, quote, demand)


def tighter_terms(
    accounting: Accounting,
    head: RequestFacts,
    key: CompiledKey,
    rule: CompiledRule,
    terms: Terms,
    states: Sequence[LimitState],
) -> Terms | None:
    """For a call that was refused on these terms: those on which what is left of its quotas may do, if there are such."""
    call, quote, demand = terms.call, terms.quote, terms.demand
    if call is None or quote is None or demand is None:
        return None
    tighter = accounting.tighter(call, quote.price, demand, [limit.placed for limit in terms.limits], states)
    if tighter is None:
        return None
    return terms._replace(limits=limits_of_request(head, key, rule, call.model, tighter), demand=tighter)

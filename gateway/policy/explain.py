"""A dry run: what would become of a request, decided by the code that decides requests. Nothing is counted or written."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import ValidationError

from gateway.config import Config
from gateway.errors import GatewayError, InternalError
from gateway.formats import Asked
from gateway.headers import RawHeaders, forwarded
from gateway.limit_headers import alert_headers, limit_headers_in
from gateway.models import Stage
from gateway.pipeline import Chain, Entry, Stopped
from gateway.plugin import Answer, Exchange, Headers, LimitState, Request
from gateway.policy.accounting import Accounting
from gateway.policy.alerting import reached_thresholds
from gateway.policy.call import Call, endpoint_for, is_decided_by_body, renamed_path
from gateway.policy.compiled import CompiledKey, CompiledRule, CompiledTenant
from gateway.policy.compiler import BEFORE_CHAIN, Compiler
from gateway.policy.entrance import CLOSE, check_inspected_length, check_length, check_target
from gateway.policy.forecast import admitted_state, seeded_state
from gateway.policy.plan import plan_request
from gateway.policy.recent import Recent
from gateway.policy.refusals import refusal_of
from gateway.policy.terms import Terms, terms_of, terms_of_call, tighter_terms
from gateway.registry import Registry
from gateway.store import BoundLimit, Keyspace, Peeked, Stale

MAX_TENANTS = 16

Outcome = Literal["passes", "rejects", "answers", "not_run"]
Peek = Callable[[Keyspace, Sequence[BoundLimit]], Awaitable[Peeked]]
Spent = Callable[[str, BoundLimit, int], Awaitable[int]]


@dataclass(slots=True)
class Description:
    """A request as it is described. ``body`` is None where it is not known.

    ``model`` is what it then names, ``input_tokens`` what it has, and ``output_tokens`` the limit that it sets for its answer.
    """

    method: str
    path: str
    query: str
    headers: RawHeaders
    client_ip: str
    has_body: bool
    body: bytes | None
    model: str | None
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an entry of the chain does with the request."""

    entry: Entry
    outcome: Outcome
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SeenLimit:
    """A limit before the request is counted, and as it would be after. ``owner`` declares it: the key, tenant or rule."""

    bound: BoundLimit
    state: LimitState
    after: LimitState
    owner: Literal["api_key", "tenant", "rule"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the request comes to: a refusal, a plugin's answer, or the URL of the target; and how.

    ``headers`` are those of the limits. ``stopped_at`` is the chain entry that ends the request, ``BEFORE_CHAIN``
    for limits that stand there. ``uncalled`` names plugins that might have ended it earlier and could not be called.
    """

    refusal: GatewayError | None = None
    answer: Answer | None = None
    url: str | None = None
    rule: CompiledRule | None = None
    rule_name: str | None = None
    verdicts: Sequence[Verdict] = ()
    limits: Sequence[SeenLimit] = ()
    headers: RawHeaders = field(default_factory=list)
    stopped_at: int | None = None
    uncalled: Sequence[str] = ()


class Explainer:
    """Explains requests. Rules' upstream credentials stay sealed.

    ``peek`` reads the state of limits, ``spent`` what a budget without a count has spent until a moment.
    """

    def __init__(self, registry: Registry, config: Config, accounting: Accounting, peek: Peek, spent: Spent) -> None:
        self._config = config
        self._accounting = accounting
        self._peek = peek
        self._spent = spent
        self._limit_headers = limit_headers_in(config.limits.ratelimit_headers)
        self._compiler = Compiler(registry, None, config, lambda *_: None)
        self._tenants: Recent[str, CompiledTenant] = Recent(MAX_TENANTS)

    async def explain(self, asked: Description, outcome: Stale | GatewayError, request_id: str) -> Explanation:
        """``outcome`` is what presenting the key leads to: the configuration, or a refusal. Raises StoreUnavailable."""
        try:
            check_target(asked.method, asked.path, asked.query)
        except GatewayError as refusal:
            refusal.headers = (*refusal.headers, *CLOSE)
            return Explanation(refusal)
        try:
            check_length(len(asked.body or b""), self._config.limits.max_body_bytes)
            if isinstance(outcome, GatewayError):
                return Explanation(outcome)
        except GatewayError as refusal:
            return Explanation(refusal)
        try:
            tenant = self._tenant(outcome)
            key = self._compiler.key(tenant.info, outcome.key_document or b"", outcome.revision)
        except ValidationError:
            return Explanation(InternalError("This tenant's stored configuration is damaged."))
        plan = plan_request(tenant, key, asked)
        rule, planned = plan.rule, plan.refusal
        if rule is None:
            return Explanation(planned)
        matched = Explanation(planned, rule=rule, rule_name=_name(outcome, rule.info.id), verdicts=_untouched(rule.chain))
        if planned is not None:
            return matched
        try:
            terms = self._terms(asked, key, rule)
        except GatewayError as refusal:
            return replace(matched, refusal=refusal)
        seen = await self._seen(tenant, terms.limits, key, rule)
        if any(one.state.refuses for one in seen):
            tighter = tighter_terms(self._accounting, asked, key, rule, terms, [one.state for one in seen])
            if tighter is not None:
                terms, seen = tighter, await self._seen(tenant, tighter.limits, key, rule)
        exchange = _exchange(asked, tenant, key, rule, request_id)
        return await self._run(replace(matched, limits=seen), asked, exchange, rule, terms)

    def _tenant(self, stale: Stale) -> CompiledTenant:
        # no two configurations have one version, of whatever tenant
        found = self._tenants.get(stale.version)
        if found is None:
            found = self._compiler.tenant(stale)
            self._tenants.put(stale.version, found)
        return found

    def _terms(self, asked: Description, key: CompiledKey, rule: CompiledRule) -> Terms:
        """Of a body that is not known, what is said of it stands in its place."""
        endpoint = endpoint_for(rule, asked)
        if asked.body is not None:
            decides = is_decided_by_body(rule, key, endpoint)
            if decides:
                check_inspected_length(len(asked.body), self._config.limits.max_inspected_bytes)
            terms = terms_of(self._accounting, asked, key, rule, endpoint, asked.body)
            return terms if decides or endpoint is not None else terms._replace(body=None)
        model = asked.model or ""
        if endpoint is None:
            described = b"{}" if asked.model is None else json.dumps({"model": asked.model}).encode()
            return terms_of(self._accounting, asked, key, rule, None, described)._replace(body=None)
        call = Call.of(endpoint, Asked(model, max_output_tokens=asked.output_tokens), rule.aliases)
        return terms_of_call(self._accounting, asked, key, rule, call, None, asked.input_tokens or 0)

    async def _seen(
        self, tenant: CompiledTenant, bound: Sequence[BoundLimit], key: CompiledKey, rule: CompiledRule
    ) -> list[SeenLimit]:
        """The limits as they are."""
        if not bound:
            return []
        peeked = await self._peek(tenant.keyspace, bound)
        found: list[SeenLimit] = []
        keys_own = {placed.key for placed in key.limits}
        for index, (limit, peeked_state) in enumerate(zip(bound, peeked.states, strict=True)):
            spec, state = limit.placed.spec, peeked_state
            if index in peeked.unseeded:
                spent = await self._spent(tenant.info.id, limit, peeked.now_ms)
                state = seeded_state(state, spec, limit.cost, spent, peeked.now_ms)
            after = admitted_state(state, spec, limit.cost, peeked.now_ms)
            found.append(SeenLimit(limit, state, after, "api_key" if limit.placed.key in keys_own else _owner(rule, limit)))
        return found

    async def _run(
        self,
        matched: Explanation,
        asked: Description,
        exchange: Exchange,
        rule: CompiledRule,
        terms: Terms,
    ) -> Explanation:
        failed: list[str] = []
        chain = Chain(rule.chain.entries, self._config.limits.plugin_timeout, lambda name, _: failed.append(name))
        states = [seen.state for seen in matched.limits]
        refused_at: int | None = None
        refusal: GatewayError | None = None
        if any(state.refuses and not state.shadow for state in states):
            refused_at, refusal = refusal_of(states)
        else:
            states = [seen.after for seen in matched.limits]
        exchange.limits = tuple(states)
        try:
            exchange.request.body = terms.body
            if terms.body is None and asked.body is not None and chain.reads_request_body_before(refused_at):
                check_inspected_length(len(asked.body), self._config.limits.max_inspected_bytes)
                exchange.request.body = asked.body
        except GatewayError as error:
            return replace(matched, refusal=error)
        uncalled = _uncalled(chain, body_known=asked.body is not None)
        stopped = await chain.pre_request(exchange, refused_at, refusal, without=uncalled)
        reached = len(chain.entries) if stopped is None else stopped.index
        alerts = reached_thresholds(terms.limits, states, reached)
        ran = replace(
            matched,
            refusal=None if stopped is None else stopped.error,
            verdicts=_verdicts(chain, stopped, uncalled, failed),
            headers=[
                *self._limit_headers([state for state in states if state.entry <= reached]),
                *alert_headers([each.told for each in alerts]),
            ],
            stopped_at=None if stopped is None else reached,
            uncalled=[chain.entries[index].name for index in uncalled if index < reached],
        )
        if stopped is not None:
            return replace(ran, answer=exchange.answer if stopped.error is None else None)
        try:
            path = exchange.request.path if terms.call is None else renamed_path(terms.call, exchange.request.path)
            return replace(ran, url=rule.url(path, exchange.request.query))
        except GatewayError as error:
            return replace(ran, refusal=error)


def _owner(rule: CompiledRule, limit: BoundLimit) -> Literal["tenant", "rule"]:
    entry = limit.placed.entry
    return "rule" if entry != BEFORE_CHAIN and not rule.chain.entries[entry].required else "tenant"


def _name(stale: Stale, rule_id: str) -> str | None:
    rules = (json.loads(document) for document in stale.rule_documents)
    return next((rule.get("name") for rule in rules if rule["id"] == rule_id), None)


def _exchange(asked: Description, tenant: CompiledTenant, key: CompiledKey, rule: CompiledRule, request_id: str) -> Exchange:
    headers = Headers(forwarded(asked.headers))
    request = Request(asked.method, asked.path, asked.query, headers, asked.client_ip, has_body=asked.has_body)
    return Exchange(request_id, request, tenant.info, key.info, rule.info)


def _uncalled(chain: Chain, *, body_known: bool) -> dict[int, str]:
    """Entries that cannot be called, with the reason."""
    found: dict[int, str] = {}
    for index, entry in enumerate(chain.entries):
        if not entry.has_step(Stage.PRE_REQUEST):
            continue
        if not entry.plugin.dry_run:
            found[index] = "the plugin does not say that a dry run may call it"
        elif entry.plugin.needs_request_body and not body_known:
            found[index] = "needs the body"
    return found


def _untouched(chain: Chain) -> list[Verdict]:
    return [Verdict(entry, "not_run", "the request does not come this far") for entry in chain.entries]


def _verdicts(chain: Chain, stopped: Stopped | None, uncalled: dict[int, str], failed: Sequence[str]) -> list[Verdict]:
    found: list[Verdict] = []
    for index, entry in enumerate(chain.entries):
        if stopped is not None and index > stopped.index:
            found.append(Verdict(entry, "not_run", "the request does not come this far"))
        elif stopped is not None and index == stopped.index:
            ending = stopped.error
            found.append(Verdict(entry, "answers") if ending is None else Verdict(entry, "rejects", ending.message))
        elif index in uncalled:
            found.append(Verdict(entry, "not_run", uncalled[index]))
        elif not entry.plugin.runs_in(Stage.PRE_REQUEST):
            found.append(Verdict(entry, "not_run", "takes no part before the target has answered"))
        elif entry.name in failed and entry.on_error == "skip":
            found.append(Verdict(entry, "passes", "the plugin failed; with on_error skip the request goes on without it"))
        else:
            found.append(Verdict(entry, "passes"))
    return found

"""Authentication and limits of a request, on the configuration that holds at this moment."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NamedTuple

from gateway import virtual_key
from gateway.errors import (
    GatewayError,
    InternalError,
    InvalidApiKey,
    Overloaded,
    StoreUnavailable,
    TenantSuspended,
    UnknownTenant,
)
from gateway.formats import Endpoint
from gateway.policy import (
    Accounting,
    CompiledKey,
    CompiledRule,
    CompiledTenant,
    Terms,
    endpoint_for,
    is_decided_by_body,
    is_readable,
    plan_request,
    terms_of,
    tighter_terms,
)
from gateway.proxy.configurations import Configurations
from gateway.proxy.hosts import TenantDomains
from gateway.proxy.outcome import Outcome
from gateway.proxy.renewer import Renewer
from gateway.proxy.request_body import RequestBody
from gateway.proxy.request_head import RequestHead
from gateway.proxy.seeding import Seeding
from gateway.proxy.settler import Settler
from gateway.store import Admission, Admissions, BoundLimit, Due, Keyspace, Known, Settlement, Stale, Unseeded, Used

MAX_ROUNDS = 8
EARLY_BODY_BYTES = 64 << 10


class Caller(NamedTuple):
    """Which tenant a request is for, and the digest of its key; empty if the host names none, or for no usable key.

    ``is_known`` says that this replica has seen both in the store; whether they still hold, the admission decides.
    """

    subdomain: str
    digest: str
    by_host: bool
    is_known: bool


class Ticket(NamedTuple):
    """A decided request, and the terms on which it was."""

    id: str
    tenant: CompiledTenant
    key: CompiledKey
    rule: CompiledRule
    terms: Terms
    admission: Admission


class Admitter:
    """Finds the caller, asks the store, refreshes what is stale."""

    def __init__(
        self,
        admissions: Admissions,
        configurations: Configurations,
        domains: TenantDomains,
        settler: Settler,
        seeding: Seeding,
        renewer: Renewer,
        accounting: Accounting,
        max_inspected_bytes: int,
    ) -> None:
        self._admissions = admissions
        self._configurations = configurations
        self._domains = domains
        self._settler = settler
        self._seeding = seeding
        self._renewer = renewer
        self._accounting = accounting
        self._max_inspected_bytes = max_inspected_bytes

    def presume(self, head: RequestHead) -> Caller:
        """Who calls, as far as is known without asking anybody: the tenant by host, else by key. Raises MissingHost."""
        subdomain = self._domains.subdomain_of(head.authority)
        secret = head.secret
        digest = "" if secret is None else virtual_key.digest(secret)
        by_host = subdomain is not None
        if subdomain is None:
            subdomain = self._configurations.subdomain_of(digest) or ""
        if self._configurations.key(subdomain, digest) is not None:
            return Caller(subdomain, digest, by_host, is_known=True)  # what is known is well formed
        if secret is None or not virtual_key.is_well_formed(secret):
            digest = ""
        return Caller(subdomain, digest, by_host, is_known=False)

    async def identify(self, stranger: Caller) -> Caller:
        """A caller who is not known, with its tenant. Raises UnknownTenant, InvalidApiKey."""
        subdomain, digest, by_host, _ = stranger
        if not digest:
            if by_host and not await self._admissions.tenant_exists(Keyspace(subdomain)):
                raise UnknownTenant
            raise InvalidApiKey
        if subdomain:
            return stranger
        found = await self._admissions.subdomain_of_key(digest)
        if found is None:
            raise InvalidApiKey
        self._configurations.remember_subdomain(digest, found)
        return Caller(found, digest, by_host, is_known=False)

    async def admit(self, caller: Caller, head: RequestHead, body: RequestBody) -> Ticket:
        """Decide the request: one round trip unless the configuration has changed. Raises whatever refuses it.

        A refusal by limits is not raised: it takes effect at its place in the chain.
        """
        try:
            return await self._admit(caller, head, body)
        except InvalidApiKey:
            self._configurations.forget_key(caller.subdomain, caller.digest)
            raise
        except UnknownTenant:
            self._configurations.forget_key(caller.subdomain, caller.digest)
            if caller.by_host:
                raise
            # the key's tenant is gone; on a host that names none, that is nobody's business
            raise InvalidApiKey from None

    async def _admit(self, caller: Caller, head: RequestHead, body: RequestBody) -> Ticket:
        configurations = self._configurations
        keyspace = self._configurations.keyspace(caller.subdomain)
        ticket_id = secrets.token_hex(16)
        read: bytes | None = None
        for _ in range(MAX_ROUNDS):
            tenant = configurations.tenant(caller.subdomain)
            key = configurations.key(caller.subdomain, caller.digest)
            known = configurations.known(tenant, key)
            plan = plan_request(tenant, key, head)
            rule, refusal = plan.rule, plan.refusal
            terms = Terms()
            if key is not None and rule is not None and refusal is None:
                endpoint = endpoint_for(rule, head)
                if read is None and self._is_to_be_read(head, body, key, rule, endpoint):
                    if not await self._may_read(keyspace, caller, body, known):
                        continue
                    read = await body.read(self._max_inspected_bytes)
                try:
                    terms = terms_of(self._accounting, head, key, rule, endpoint, read)
                except GatewayError as error:
                    refusal = error
            outcome = await self._ask(keyspace, caller, ticket_id, terms.limits, known)
            if isinstance(outcome, Stale):
                configurations.update(caller.subdomain, caller.digest, outcome)
                continue
            if refusal is not None:
                raise refusal
            if tenant is None or key is None or rule is None:
                raise InternalError from AssertionError("admitted without a configuration")
            if isinstance(outcome, Unseeded):
                await self._seeding.seed(tenant.info.id, outcome)
                continue
            tighter = None if outcome.admitted else tighter_terms(self._accounting, head, key, rule, terms, outcome.states)
            if tighter is not None:
                second = await self._ask(keyspace, caller, ticket_id, tighter.limits, known)
                if not isinstance(second, Admission):
                    continue
                terms, outcome = (tighter, second) if second.admitted else (terms, outcome)
            if outcome.admitted:
                self._renewer.keep(keyspace, ticket_id, terms.limits, outcome)
            return Ticket(ticket_id, tenant, key, rule, terms, outcome)
        raise StoreUnavailable("The configuration changes faster than it can be read; try again.")

    async def _may_read(self, keyspace: Keyspace, caller: Caller, body: RequestBody, known: Known) -> bool:
        """Authentication before cost: only a good key makes us read a large body. False if what we knew was not current."""
        if body.length is not None and body.length <= EARLY_BODY_BYTES:
            return True
        stale = await self._admissions.validate(keyspace, caller.digest, known)
        if stale is not None:
            self._configurations.update(caller.subdomain, caller.digest, stale)
        return stale is None

    def _is_to_be_read(
        self, head: RequestHead, body: RequestBody, key: CompiledKey, rule: CompiledRule, endpoint: Endpoint | None
    ) -> bool:
        """Whether to read the body now: it decides about the request, or tells what is called and is not too long for that."""
        if is_decided_by_body(rule, key, endpoint):
            return endpoint is None or rule.needs_model or key.needs_model or is_readable(head)
        if endpoint is None or not head.has_body or not is_readable(head):
            return False
        return body.length is None or body.length <= self._max_inspected_bytes

    def knows(self, caller: Caller) -> bool:
        """True if the caller's tenant was seen in the store."""
        return self._configurations.tenant(caller.subdomain) is not None

    def settle(self, ticket: Ticket, outcome: Outcome) -> None:
        """End an admitted request, once, off its path: what it holds is free, and what it used is recorded.

        Limits behind the entry that the request has reached took no effect and give their charge back. Those that count
        it otherwise than it was charged are corrected.
        """
        if not ticket.admission.admitted:
            return
        self._renewer.let_go(ticket.id)
        dues: list[Due] = []
        terms = ticket.terms
        for limit, state in zip(terms.limits, ticket.admission.states, strict=True):
            if state.refuses:
                continue  # a shadow limit that counted nothing
            actual = outcome.cost_of(limit)
            if limit.placed.entry > outcome.reached:
                dues.append((limit, 0))
            elif limit.placed.spec.holds or actual is not None:
                dues.append((limit, actual))
        used = None
        if outcome.exchange is not None:
            model = outcome.model_of(terms.model)
            usage, cost_nano_usd, _ = outcome.spent
            used = Used(
                ticket.tenant.info.id,
                ticket.key.info.id,
                ticket.rule.info.id,
                model,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cached_tokens=usage.cached_tokens,
                cost_nano_usd=cost_nano_usd,
            )
        if terms.limits or used:  # also with nothing due: the marker of what is in flight would stay for an hour
            now_ms = ticket.admission.now_ms
            self._settler.add(Settlement(ticket.tenant.keyspace, ticket.id, now_ms, dues, used))

    async def _ask(
        self, keyspace: Keyspace, caller: Caller, ticket_id: str, limits: Sequence[BoundLimit], known: Known
    ) -> Admission | Stale | Unseeded:
        try:
            outcome = await self._admissions.admit(keyspace, caller.digest, known, ticket_id, limits)
        except (UnknownTenant, InvalidApiKey, TenantSuspended, Overloaded):
            raise  # nothing was charged, or not even sent
        except BaseException:
            # the reply is lost, the decision may not be: void it, whichever of the two arrives first
            if limits:
                self._settler.add(Settlement(keyspace, ticket_id, None, [(limit, 0) for limit in limits]))
            raise
        self._settler.store_answers()
        return outcome

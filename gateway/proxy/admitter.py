"""Authentication and limits of a request, on the configuration that holds at this moment."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from gateway import virtual_key
from gateway.errors import (
    GatewayError,
    InternalError,
    InvalidApiKey,
    Overloaded,
    StoreAway,
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
from gateway.proxy.caller import Caller
from gateway.proxy.configurations import Configurations
from gateway.proxy.hosts import TenantDomains
from gateway.proxy.last_known import LastKnown
from gateway.proxy.outcome import Outcome
from gateway.proxy.renewer import Renewer
from gateway.proxy.request_body import RequestBody
from gateway.proxy.request_head import RequestHead
from gateway.proxy.seeding import Seeding
from gateway.proxy.settler import Settler
from gateway.proxy.ticket import Ticket
from gateway.store import Admission, Admissions, BoundLimit, Keyspace, Known, Settlement, Stale, Unseeded

MAX_ROUNDS = 8
EARLY_BODY_BYTES = 64 << 10


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
        last_known: LastKnown | None = None,
    ) -> None:
        self._admissions = admissions
        self._configurations = configurations
        self._domains = domains
        self._settler = settler
        self._seeding = seeding
        self._renewer = renewer
        self._accounting = accounting
        self._max_inspected_bytes = max_inspected_bytes
        self._last_known = last_known

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
            try:
                outcome = await self._ask(keyspace, caller, ticket_id, terms.limits, known)
            except StoreAway:
                if refusal is None and (ticket := self._without_store(caller, ticket_id, tenant, key, rule, terms)):
                    return ticket
                raise
            if isinstance(outcome, Stale):
                configurations.update(caller.subdomain, caller.digest, outcome)
                continue
            compiled = _compiled(refusal, tenant, key, rule)
            if isinstance(outcome, Unseeded):
                await self._seeding.seed(compiled[0].info.id, outcome)
                continue
            ticket = Ticket(ticket_id, *compiled, terms, outcome)
            if self._last_known is not None:
                self._last_known.confirm(caller, *compiled, terms.limits, outcome)
            if outcome.admitted or (ticket := await self._on_tighter_terms(keyspace, caller, head, ticket, known)):
                if ticket.admission.admitted:
                    self._renewer.keep(keyspace, ticket_id, ticket.terms.limits, ticket.admission)
                return ticket
        raise StoreUnavailable("The configuration changes faster than it can be read; try again.")

    async def _on_tighter_terms(
        self, keyspace: Keyspace, caller: Caller, head: RequestHead, ticket: Ticket, known: Known
    ) -> Ticket | None:
        """A refused ticket again where less may do, None if that has to be decided anew."""
        tighter = tighter_terms(self._accounting, head, ticket.key, ticket.rule, ticket.terms, ticket.admission.states)
        if tighter is None:
            return ticket
        second = await self._ask(keyspace, caller, ticket.id, tighter.limits, known)
        if not isinstance(second, Admission):
            return None
        return ticket._replace(terms=tighter, admission=second) if second.admitted else ticket

    def _without_store(
        self,
        caller: Caller,
        ticket_id: str,
        tenant: CompiledTenant | None,
        key: CompiledKey | None,
        rule: CompiledRule | None,
        terms: Terms,
    ) -> Ticket | None:
        if self._last_known is None or tenant is None or key is None or rule is None or self._settler.is_full:
            return None
        admission = self._last_known.admit(caller, tenant, key, rule, terms.limits)
        return None if admission is None else Ticket(ticket_id, tenant, key, rule, terms, admission, by_store=False)

    async def _may_read(self, keyspace: Keyspace, caller: Caller, body: RequestBody, known: Known) -> bool:
        """Authentication before cost: only a good key makes us read a large body. False if what we knew was not current."""
        if body.length is not None and body.length <= EARLY_BODY_BYTES:
            return True
        try:
            stale = await self._admissions.validate(keyspace, caller.digest, known)
        except StoreAway:
            if self._last_known is not None and self._last_known.knows(caller):
                return True
            raise
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
        """End an admitted request, once, off its path: what it holds is free, and what it used is recorded."""
        if not ticket.admission.admitted:
            return
        if ticket.by_store:
            self._renewer.let_go(ticket.id)
        elif self._last_known is not None:
            self._last_known.ended(ticket.terms.limits)
        settlement = ticket.settlement(outcome)
        if settlement is not None:
            self._settler.add(settlement)

    async def _ask(
        self, keyspace: Keyspace, caller: Caller, ticket_id: str, limits: Sequence[BoundLimit], known: Known
    ) -> Admission | Stale | Unseeded:
        try:
            outcome = await self._admissions.admit(keyspace, caller.digest, known, ticket_id, limits)
        except (UnknownTenant, InvalidApiKey, TenantSuspended) as refusal:
            if self._last_known is not None:
                self._last_known.refused(caller, refusal)
            raise  # nothing was charged
        except (StoreAway, Overloaded):
            raise  # it was not even sent
        except BaseException:
            # the reply is lost, the decision may not be: void it, whichever of the two arrives first
            if limits:
                self._settler.add(Settlement(keyspace, ticket_id, None, [(limit, 0) for limit in limits]))
            raise
        self._settler.store_answers()
        return outcome


def _compiled(
    refusal: GatewayError | None, tenant: CompiledTenant | None, key: CompiledKey | None, rule: CompiledRule | None
) -> tuple[CompiledTenant, CompiledKey, CompiledRule]:
    """What the store has confirmed. Raises what else refuses the request."""
    if refusal is not None:
        raise refusal
    if tenant is None or key is None or rule is None:
        raise InternalError from AssertionError("admitted without a configuration")
    return tenant, key, rule

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
from gateway.policy import CompiledKey, CompiledRule, CompiledTenant, check_model, limits_of_request, model_of, plan_request
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
    """Which tenant a request is for and the digest of its key; neither is confirmed yet."""

    subdomain: str
    digest: str
    by_host: bool


class Ticket(NamedTuple):
    """A decided request. ``body`` and ``model`` are set if a limit or the key needed to read it."""

    id: str
    tenant: CompiledTenant
    key: CompiledKey
    rule: CompiledRule
    limits: Sequence[BoundLimit]
    admission: Admission
    body: bytes | None
    model: str | None


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
        max_inspected_bytes: int,
    ) -> None:
        self._admissions = admissions
        self._configurations = configurations
        self._domains = domains
        self._settler = settler
        self._seeding = seeding
        self._renewer = renewer
        self._max_inspected_bytes = max_inspected_bytes

    async def identify(self, head: RequestHead) -> Caller:
        """The tenant by host, on other hosts by key. Raises UnknownTenant, InvalidApiKey."""
        subdomain = self._domains.subdomain_of(head.authority)
        digest = "" if head.secret is None else virtual_key.digest(head.secret)
        if subdomain is not None and self._configurations.key(subdomain, digest) is not None:
            return Caller(subdomain, digest, by_host=True)  # what is known is well formed
        if head.secret is None or not virtual_key.is_well_formed(head.secret):
            if subdomain is not None and not await self._admissions.tenant_exists(Keyspace(subdomain)):
                raise UnknownTenant
            raise InvalidApiKey
        if subdomain is not None:
            return Caller(subdomain, digest, by_host=True)
        subdomain = self._configurations.subdomain_of(digest)
        if subdomain is None:
            subdomain = await self._admissions.subdomain_of_key(digest)
            if subdomain is None:
                raise InvalidApiKey
            self._configurations.remember_subdomain(digest, subdomain)
        return Caller(subdomain, digest, by_host=False)

    async def admit(self, caller: Caller, head: RequestHead, body: RequestBody) -> Ticket:
        """Decide the request: one round trip unless the configuration has changed. Raises whatever refuses it.

        A refusal by limits is not raised: it takes effect at its place in the chain.
        """
        try:
            return await self._admit(caller, head, body)
        except UnknownTenant:
            if caller.by_host:
                raise
            # the key's tenant is gone; on a host that names none, that is nobody's business
            raise InvalidApiKey from None

    async def _admit(self, caller: Caller, head: RequestHead, body: RequestBody) -> Ticket:
        configurations = self._configurations
        keyspace = self._configurations.keyspace(caller.subdomain)
        ticket_id = secrets.token_hex(16)
        read: bytes | None = None
        model: str | None = None
        for _ in range(MAX_ROUNDS):
            tenant = configurations.tenant(caller.subdomain)
            key = configurations.key(caller.subdomain, caller.digest)
            known = configurations.known(tenant, key)
            plan = plan_request(tenant, key, head)
            rule, refusal = plan.rule, plan.refusal
            limits: Sequence[BoundLimit] = ()
            if key is not None and rule is not None and refusal is None:
                if rule.needs_model or key.needs_model:
                    if read is None and (body.length is None or body.length > EARLY_BODY_BYTES):
                        # authentication before cost: only a good key makes us read a large body
                        stale = await self._admissions.validate(keyspace, caller.digest, known)
                        if stale is not None:
                            configurations.update(caller.subdomain, caller.digest, stale)
                            continue
                    if read is None:
                        read = await body.read(self._max_inspected_bytes)
                    model, refusal = _model(head, key, read)
                if refusal is None:
                    limits, refusal = _bound(head, key, rule, model)
            outcome = await self._ask(keyspace, caller, ticket_id, limits, known)
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
            if outcome.admitted:
                self._renewer.keep(keyspace, ticket_id, limits, outcome)
            return Ticket(ticket_id, tenant, key, rule, limits, outcome, read, model)
        raise StoreUnavailable("The configuration changes faster than it can be read; try again.")

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
        for limit, state in zip(ticket.limits, ticket.admission.states, strict=True):
            if state.refuses:
                continue  # a shadow limit that counted nothing
            actual = outcome.cost_of(limit)
            if limit.placed.entry > outcome.reached:
                dues.append((limit, 0))
            elif limit.placed.spec.holds or actual is not None:
                dues.append((limit, actual))
        used = None
        if outcome.exchange is not None:
            used = Used(ticket.tenant.info.id, ticket.key.info.id, ticket.rule.info.id, outcome.model_of(ticket.model))
        if ticket.limits or used:  # also with nothing due: the marker of what is in flight would stay for an hour
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


def _model(head: RequestHead, key: CompiledKey, body: bytes) -> tuple[str | None, GatewayError | None]:
    try:
        model = model_of(head, body)
        check_model(key, head, model)
    except GatewayError as refusal:
        return None, refusal
    return model, None


def _bound(
    head: RequestHead, key: CompiledKey, rule: CompiledRule, model: str | None
) -> tuple[Sequence[BoundLimit], GatewayError | None]:
    try:
        return limits_of_request(head, key, rule, model), None
    except GatewayError as refusal:
        return (), refusal

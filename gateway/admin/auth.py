"""Who calls the admin API, and whether they may."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from quart import Request

from gateway import virtual_key
from gateway.admin.operation import Access
from gateway.config import ServerSettings
from gateway.errors import (
    AmbiguousCredentials,
    HeadersTooLarge,
    InvalidApiKey,
    MissingHost,
    NotAllowed,
    NotFound,
    TenantSuspended,
    UriTooLong,
)
from gateway.failed_logins import FailedLogins
from gateway.models import ApiKey, Tenant
from gateway.policy import CLOSE, MAX_URL_BYTES, check_fields
from gateway.store import Stores
from gateway.web import client_address, is_within

BASIC_CHALLENGE = (("www-authenticate", 'Basic realm="gateway admin", charset="UTF-8"'),)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. ``name`` is ``operator``, the id of a key, ``open`` where no credential is needed, or ``everyone``.

    ``governs`` says that the caller may change what a tenant is given: tier, status, plugins, and its existence.
    """

    name: str
    governs: bool
    key: ApiKey | None = None
    tenant: Tenant | None = field(default=None, repr=False)
    address: str = ""
    credential: str = field(default="", repr=False)


EVERYONE = Caller("everyone", governs=False)
OPEN = Caller("open", governs=True)


class Authenticator:
    """Decides for every request who calls. Nothing about a tenant, not even that it exists, is told before that."""

    def __init__(self, stores: Stores, settings: ServerSettings, failed_logins: FailedLogins) -> None:
        self._stores = stores
        self._token = settings.admin_token.get_secret_value() if settings.admin_token is not None else None
        self._trusted = settings.trusted_proxies
        self._failed = failed_logins

    @property
    def is_open(self) -> bool:
        """True where no operator token is configured."""
        return self._token is None

    def address_of(self, request: Request) -> str:
        """Where a request comes from."""
        peer = request.scope.get("client")
        return client_address(peer[0] if peer else "", request.headers.getlist("x-forwarded-for"), self._trusted)

    async def identify(self, request: Request, access: Access, address: str) -> Caller:
        """The caller of a route, whatever they may do. Raises InvalidApiKey, RateLimited, AmbiguousCredentials."""
        if access is Access.PUBLIC:
            return EVERYONE
        if self.is_open and access is not Access.TENANT:
            return replace(OPEN, address=address)
        challenge = BASIC_CHALLENGE if access is Access.BROWSER else None
        credential = _credential(request, basic=access is Access.BROWSER)
        if credential is None:
            raise InvalidApiKey(headers=challenge) if challenge else InvalidApiKey()
        self._failed.check(address)
        if self._token is not None and hmac.compare_digest(credential.encode(), self._token.encode()):
            return Caller("operator", governs=True, address=address, credential=credential)
        found = await self._key(credential)
        if found is None:
            self._failed.note(address)
            raise InvalidApiKey(headers=challenge) if challenge else InvalidApiKey()
        tenant, key = found
        return Caller(key.id, governs=self.is_open, key=key, tenant=tenant, address=address, credential=credential)

    def authorise(self, caller: Caller, access: Access, tenant_id: str | None) -> None:
        """Raises NotAllowed, TenantSuspended, or NotFound for a tenant that is not the key's own."""
        tenant, key = caller.tenant, caller.key
        if tenant is None or key is None:
            return
        if access is Access.TENANT and tenant_id != tenant.id:
            raise NotFound
        # Where no operator could lift a suspension, the tenant's own key must be able to.
        if tenant.status == "suspended" and not self.is_open:
            raise TenantSuspended
        if "admin" not in key.scopes:
            raise NotAllowed("This API key has no scope admin.", param="scopes")
        if access is Access.OPERATOR:
            raise NotAllowed("This call needs the operator token.")
        if key.allowed_networks is not None and not is_within(caller.address, key.allowed_networks):
            raise NotAllowed("This API key may not be used from this address.", param="allowed_networks")

    async def _key(self, secret: str) -> tuple[Tenant, ApiKey] | None:
        if not virtual_key.is_well_formed(secret):
            return None
        digest = virtual_key.digest(secret)
        subdomain = await self._stores.admissions.subdomain_of_key(digest)
        stored = None if subdomain is None else await self._stores.tenants.by_subdomain(subdomain)
        if stored is None:
            return None
        try:
            key = await self._stores.api_keys.authenticate(stored.tenant.id, digest, even_suspended=True)
        except NotFound:
            return None
        return None if key is None else (stored.tenant, key)


def check_bounds(request: Request, max_head_bytes: int) -> None:
    """Raises MissingHost, HeadersTooLarge, UriTooLong for a head that the proxy would refuse as well, and closes."""
    target_bytes = len(request.scope["raw_path"]) + len(request.query_string)
    if len(request.headers.getlist("host")) > 1:
        raise MissingHost(param="Host", headers=CLOSE)
    try:
        check_fields(list(request.scope["headers"]), target_bytes, max_head_bytes)
    except HeadersTooLarge as error:
        error.headers = CLOSE
        raise
    if target_bytes > MAX_URL_BYTES:
        raise UriTooLong(headers=CLOSE)


def check_host(host: str | None, settings: ServerSettings, is_loopback: Callable[[str], bool]) -> None:
    """Raises MissingHost unless the admin API answers under this Host header.

    A page on the Internet can make a browser call an address of its own name that resolves to loopback (DNS rebinding);
    the name gives it away. With an operator token the page has no credential, so any name will do.
    """
    name = _host_name(host or "")
    if name is None:
        raise MissingHost(param="Host")
    allowed = [allowed.lower() for allowed in settings.admin_allowed_hosts]
    if allowed:
        good = name in allowed
    elif settings.admin_token is not None:
        good = True
    else:
        good = is_loopback(name) or name == settings.admin_host.strip("[]").lower()
    if not good:
        raise MissingHost("The admin API does not answer under this host name; see server.admin_allowed_hosts.", param="Host")


def _host_name(host: str) -> str | None:
    """The name without port, in lower case."""
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        port = rest.removeprefix(":")
        valid = bracket and (not rest or rest.startswith(":"))
    else:
        name, _, port = host.partition(":")
        valid = True
    return name.lower() if valid and name and (not port or port.isdigit()) else None


def _credential(request: Request, *, basic: bool) -> str | None:
    values: Sequence[str] = request.headers.getlist("authorization")
    if len(set(values)) > 1:
        raise AmbiguousCredentials(param="Authorization")
    scheme, _, rest = values[0].partition(" ") if values else ("", "", "")
    rest = rest.strip()
    if scheme.lower() == "bearer" and rest:
        return rest
    if basic and scheme.lower() == "basic":
        try:
            _, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        return password or None
    return None

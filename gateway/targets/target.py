"""The target of a rule: parsed once when it is written and once when it is compiled, joined to a path by concatenation only."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gateway.config import UpstreamSettings
from gateway.errors import InvalidField
from gateway.targets.addresses import AddressPolicy, IPAddress, is_metadata, is_public, plain

DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*")
_FORBIDDEN_PATH = re.compile(r"//|(^|/)(\.|%2e){1,2}(/|$)|%2f|%5c|%00", re.IGNORECASE)
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. ``path`` is empty or begins with a slash and does not end with one.

    ``inner`` says that only ``upstream.allowed_networks`` may be reached: scheme or port is not one for the Internet.
    ``origin`` is scheme, host and port, as in the Host header's URL; the port is left out where it is the scheme's own.
    """

    scheme: str
    host: str
    port: int
    path: str
    inner: bool
    origin: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        object.__setattr__(self, "origin", f"{self.scheme}://{host}{port}")

    def url(self, path: str, query: str) -> str:
        """The URL for a path (empty or absolute) and a query without its question mark; nothing is encoded."""
        joined = self.path + path or "/"
        return f"{self.origin}{joined}" + (f"?{query}" if query else "")


def parse_target(text: str, settings: UpstreamSettings, *, param: str = "target") -> Target:
    """Check a target as far as that is possible without resolving its name. Raises InvalidField naming ``param``.

    https on the usual ports may lead to the Internet. Plain http, other ports and addresses that are not public need
    ``upstream.allowed_networks``. The name's addresses are checked at each connection.
    """
    try:
        return _parse(text, settings)
    except _Unusable as reason:
        raise InvalidField(f"target {reason}", param=param) from None


class _Unusable(Exception):
    """Why a target is refused."""


def _parse(text: str, settings: UpstreamSettings) -> Target:
    if any(char <= " " or char >= "\x7f" or char == "\\" for char in text):
        raise _Unusable("must be printable ASCII without spaces and backslashes")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _Unusable("is not a URL") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise _Unusable("must begin with https:// (or http:// inside upstream.allowed_networks)")
    if "@" in parts.netloc:
        raise _Unusable("must not contain a user name or password; put credentials into the rule's headers")
    if "?" in text or "#" in text:
        raise _Unusable("must not contain a query or a fragment")
    host = (parts.hostname or "").removesuffix(".")
    port = DEFAULT_PORTS[parts.scheme] if port is None else port
    if port == 0:
        raise _Unusable("has port 0")
    if not _PATH.fullmatch(parts.path) or _FORBIDDEN_PATH.search(parts.path):
        raise _Unusable("must have a plain path, without empty or dot segments or encoded slashes")
    inner = parts.scheme == "http" or port not in settings.allowed_ports
    address = _check_host(host, inner, settings)
    if address is not None:
        host = str(plain(address))  # one spelling, which is also that of the URL
    return Target(parts.scheme, host, port, parts.path.rstrip("/"), inner)


def _check_host(host: str, inner: bool, settings: UpstreamSettings) -> IPAddress | None:
    """The address if the host is one."""
    address = _literal(host)
    policy = AddressPolicy.of(settings.allowed_networks, public=not inner)
    if address is not None:
        if is_metadata(address):
            raise _Unusable("is a cloud metadata address, which is never allowed")
        if not policy.is_allowed(address):
            what = "is plain http or an unusual port" if is_public(address) else "is not a public address"
            raise _Unusable(f"{what}, and {host} is not in upstream.allowed_networks")
        return address
    if not _HOST.fullmatch(host) or _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
        raise _Unusable("has no valid host name")
    if host in _LOOPBACK_NAMES or host.endswith(".localhost"):
        if not any(policy.is_allowed(ipaddress.ip_address(loopback)) for loopback in ("127.0.0.1", "::1")):
            raise _Unusable("is a loopback address, and 127.0.0.1 is not in upstream.allowed_networks")
    elif inner and not settings.allowed_networks:
        raise _Unusable("must be https on one of upstream.allowed_ports, as upstream.allowed_networks is empty")
    return None


def _literal(host: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None

"""What ``redis.url`` may say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote

from gateway.errors import ConfigurationError

Kind = Literal["single", "unix", "sentinel", "cluster"]

_SCHEMES: Mapping[str, tuple[Kind, bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("unix", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_OPTIONS: Mapping[Kind, frozenset[str]] = {
    "single": frozenset(),
    "unix": frozenset({"db"}),
    "sentinel": frozenset({"sentinel_username", "sentinel_password"}),
    "cluster": frozenset(),
}
_TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"})
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """What ``redis.url`` says. Its ``repr`` shows no secret."""

    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    options: Mapping[str, str] = field(default_factory=dict, repr=False)


def parse_url(url: str) -> StoreAddress:
    """Parse every form of ``redis.url`` except ``embedded``.

    * ``redis://[user:password@]host[:6379][/db]``, with TLS ``rediss://``
    * ``unix://[user:password@]/path[?db=0]``
    * ``redis+sentinel://[user:password@]host[:26379],…/name[/db]``; the user is the primary's, that of the sentinels
      themselves is ``?sentinel_username=…&sentinel_password=…``
    * ``redis+cluster://[user:password@]host[:6379],…``

    The TLS forms verify the server. They take ``ssl_ca_certs`` (a file; replaces the system's authorities), ``ssl_certfile``
    and ``ssl_keyfile`` (a client certificate) and ``ssl_check_hostname=false`` (the authority is still checked).

    Raises ConfigurationError, which repeats nothing of the URL: any part of it may be a piece of the password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise refusal(f"must be embedded or start with one of {', '.join(f'{name}://' for name in _SCHEMES)}")
    kind, tls = _SCHEMES[scheme]
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    login, _, hosts = authority.rpartition("@")
    if "@" in query or ("@" in path and kind != "unix"):
        raise refusal("percent-encode the characters / ? @ in the user and the password")
    username, _, password = (unquote(part) for part in login.partition(":"))
    if username and not password:
        raise refusal("a user needs a password")
    options = _options(query, kind, tls)
    service, db = "", path
    if kind == "unix":
        db = options.get("db", "")
        if hosts or not path:
            raise refusal("a unix socket is an absolute path: unix:///path")
    elif kind == "sentinel":
        service, _, db = path.partition("/")
        if not service:
            raise refusal("with Sentinel the path is the name of the primary: redis+sentinel://host/name")
    if not re.fullmatch(r"[0-9]{0,5}", db) or (kind == "cluster" and db not in {"", "0"}):
        raise refusal("the database must be a number, and 0 or absent with a cluster")
    parsed = _hosts(hosts, 26379 if kind == "sentinel" else 6379) if kind != "unix" else ()
    if kind == "single" and len(parsed) != 1:
        raise refusal("several hosts need redis+sentinel:// or redis+cluster://")
    return StoreAddress(
        kind=kind,
        hosts=parsed,
        path="/" + unquote(path) if kind == "unix" else "",
        service=unquote(service),
        db=int(db or 0),
        username=username or None,
        password=password or None,
        tls=tls,
        options=options,
    )


def _options(query: str, kind: Kind, tls: bool) -> dict[str, str]:
    known = _OPTIONS[kind] | (_TLS_OPTIONS if tls else frozenset())
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not options.keys() <= known or (query and not options):
        raise refusal(f"has an unknown option; known with this scheme: {', '.join(sorted(known)) or 'none'}")
    if options.get("ssl_check_hostname", "true") not in {"true", "false"}:
        raise refusal("ssl_check_hostname must be true or false")
    return options


def _hosts(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    found = [_HOST.fullmatch(part) for part in text.split(",")]
    hosts = tuple((match[1] or match[2], int(match[3] or default_port)) for match in found if match)
    if len(hosts) != len(found) or not all(0 < port < 65536 for _, port in hosts):
        raise refusal("a host is a name or address with an optional port: host, host:6379, [::1]:6379")
    return hosts


def refusal(reason: str) -> ConfigurationError:
    """What is wrong with ``redis.url``."""
    return ConfigurationError(f"redis.url: {reason}")

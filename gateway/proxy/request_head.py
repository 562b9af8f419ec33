"""Reads what is known of a request before its body: one pass over the header fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.errors import AmbiguousCredentials, BadRequest, GatewayError, MissingHost
from gateway.headers import CREDENTIALS, RawHeaders
from gateway.policy import CLOSE, check_fields, check_target
from gateway.targets.addresses import IPNetwork
from gateway.web import client_address, is_within

MAX_LENGTH_DIGITS = 18

_BEARER = b"bearer "


@dataclass(slots=True)
class RequestHead:
    """``path`` and ``query`` as on the wire. ``content_length`` is None for a body of unknown length."""

    method: str
    path: str
    query: str
    headers: RawHeaders
    authority: str
    scheme: str
    client_ip: str
    secret: str | None
    has_body: bool
    content_length: int | None


def read_head(scope: Any, trusted: Sequence[IPNetwork], max_bytes: int) -> RequestHead:
    """Check a request head and take it apart. Raises the GatewayError that fits, which also closes the connection.

    Who sends what is refused here for its form, whatever it asks for, sends nothing after it that is worth reading.
    """
    try:
        return _read(scope, trusted, max_bytes)
    except GatewayError as error:
        error.headers = (*error.headers, *CLOSE)
        raise


def _read(scope: Any, trusted: Sequence[IPNetwork], max_bytes: int) -> RequestHead:
    path, query = _target(scope)
    headers: RawHeaders = scope["headers"]
    check_fields(headers, len(path) + len(query), max_bytes)

    hosts: list[bytes] = []
    lengths: list[bytes] = []
    credentials: list[bytes] = []
    chunked = False
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            if chunked or value.lower() != b"chunked":
                raise BadRequest("Transfer-Encoding may only be chunked, once.")
            chunked = True
        elif name in CREDENTIALS:
            credential = _credential(name, value)
            if credential:
                credentials.append(credential)
    length = _length(lengths, chunked, scope["http_version"])
    if len(hosts) != 1:
        raise MissingHost(param="Host")
    if len(set(credentials)) > 1:
        raise AmbiguousCredentials(param="Authorization")

    secret = credentials[0].decode("latin-1") if credentials else None
    if secret and secret in query:
        raise BadRequest("The URL contains the key, which would be forwarded with it.", param="query")

    client_ip, authority, scheme = _origin(scope, headers, hosts[0].decode("latin-1"), trusted)
    return RequestHead(
        scope["method"],
        path,
        query,
        headers,
        authority,
        scheme,
        client_ip,
        secret,
        length != 0,
        length,
    )


def authority_of(scope: Any, trusted: Sequence[IPNetwork]) -> str:
    """The host that a request asks for. Raises MissingHost."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1:
        raise MissingHost(param="Host")
    return _origin(scope, scope["headers"], hosts[0].decode("latin-1"), trusted)[1]


def _target(scope: Any) -> tuple[str, str]:
    raw_path: bytes = scope["raw_path"]
    raw_query: bytes = scope["query_string"]
    path, query = raw_path.decode("latin-1"), raw_query.decode("latin-1")
    check_target(scope["method"], path, query)
    return path, query


def _length(lengths: list[bytes], chunked: bool, http_version: str) -> int | None:
    """The length of the body, None if chunks will tell. What is ambiguous is refused, not repaired."""
    if len(lengths) > 1 or (chunked and (lengths or http_version == "1.0")):
        raise BadRequest("Content-Length and Transfer-Encoding contradict each other.")
    if chunked:
        return None
    if lengths and not (lengths[0].isdigit() and len(lengths[0]) <= MAX_LENGTH_DIGITS):
        raise BadRequest("Content-Length is not a number.")
    return int(lengths[0]) if lengths else 0


def _credential(name: bytes, value: bytes) -> bytes | None:
    if name != b"authorization":
        return value.strip()
    # another scheme is no key of ours; it says nothing about who calls
    return value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else None


def _origin(scope: Any, headers: RawHeaders, host: str, trusted: Sequence[IPNetwork]) -> tuple[str, str, str]:
    """The client's address, the host it asked for and the scheme; forwarded values count only from trusted proxies."""
    peer = str(scope["client"][0]) if scope.get("client") else "0.0.0.0"  # noqa: S104 - not a bind, stands for unknown
    scheme = str(scope["scheme"])
    if not trusted or not is_within(peer, trusted):
        return peer, host, scheme
    forwarded_for = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
    for name, value in headers:
        if name == b"x-forwarded-host":
            host = value.decode("latin-1").split(",")[-1].strip()
        elif name == b"x-forwarded-proto" and value in (b"http", b"https"):
            scheme = value.decode()
    return client_address(peer, forwarded_for, trusted), host, scheme

"""Header fields on their way through: what is removed, and under which name the rest goes on. Names are lower case."""

from __future__ import annotations

import re
from collections.abc import Iterable

RawHeaders = list[tuple[bytes, bytes]]

MOST_NAMES = 64
LONGEST_NAME_BYTES = 64
"""What is remembered of the names that one rule's upstream uses."""

CREDENTIALS = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key")
"""Where clients of the common SDKs put a key."""

# RFC 9110 §7.6.1, and what older peers still send
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_FORWARDED = (
    HOP_BY_HOP
    | frozenset(CREDENTIALS)
    | {
        b"content-length",
        b"expect",
        b"forwarded",
        b"host",
        b"http2-settings",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-original-host",
        b"x-original-url",
        b"x-real-ip",
        b"x-request-id",
        b"x-rewrite-url",
    }
)
_FORWARDED = b"x-forwarded-"
_ORIGIN = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id")
_ENDS_HERE, _DROPPED = b" ends here", b" dropped"
_NOT_RETURNED_UNLESS_PASSED = frozenset({b"alt-svc", b"server", b"set-cookie", b"set-cookie2"})
_NOT_RETURNED_PREFIXES = (b"x-ratelimit-", b"ratelimit", b"x-gateway-")
# RFC 9110 §5.1 and §5.5
_NAME = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
_VALUES = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")


def is_field(field: tuple[bytes, bytes]) -> bool:
    """True if the field can be sent: nothing in it ends a line or belongs to no header."""
    return _NAME.fullmatch(field[0]) is not None and _VALUE.fullmatch(field[1]) is not None


def are_fields(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """`is_field` of all at once, for what has no white space around its values: it is asked for each reply."""
    names, values = [], []
    for name, value in fields:
        if not name:
            return False
        names.append(name)
        values.append(value)
    return not names or (_NAME.fullmatch(b"".join(names)) is not None and _VALUES.fullmatch(b"".join(values)) is not None)


def forwarded(headers: RawHeaders, secret: bytes = b"") -> RawHeaders:
    """The client's fields that an upstream may see: none for this hop, no credentials, none that pretend another origin.

    Wherever the client repeats its ``secret``, it is not forwarded.
    """
    kept = [field for field in headers if field[0] not in _NOT_FORWARDED]
    names = b" ".join([name for name, _ in kept])
    if _FORWARDED in names or b"_" in names:
        kept = [field for field in kept if not _pretends(field[0])]
    if secret:
        kept = [field for field in kept if secret not in field[1]]
    ended = _tokens([value for name, value in headers if name == b"connection"])
    return [field for field in kept if field[0] not in ended] if ended else kept


def _pretends(name: bytes) -> bool:
    """True for what is not forwarded also if it is spelled with underscores: CGI and WSGI make one name of both."""
    spelled = name.replace(b"_", b"-")
    return spelled in _NOT_FORWARDED or spelled.startswith(_FORWARDED)


class ReturnedFields:
    """The upstream's fields that the client may see; ``passed`` names those that a rule lets through.

    An ``x-request-id`` of the upstream becomes ``x-upstream-request-id``: the plain name is the gateway's own. What cannot be
    sent is dropped, as are lengths that another framing overrules. Upstreams send the same names each time, so what becomes
    of a name is found out once.
    """

    def __init__(self, passed: frozenset[bytes] = frozenset()) -> None:
        self._passed = passed
        self._fates: dict[bytes, bytes] = {}

    def __call__(self, headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
        """Names in lower case, values without white space around them."""
        kept: RawHeaders = []
        connection: list[bytes] = []
        is_chunked = False
        fates = self._fates
        for name, value in headers:
            fate = fates.get(name)
            if fate is None:
                fate = self._learn(name)
            if fate is _ENDS_HERE:
                lowered = name.lower()
                if lowered == b"connection":
                    connection.append(value)
                elif lowered == b"transfer-encoding":
                    is_chunked = True
            elif fate is not _DROPPED:
                kept.append((fate, value.strip(b" \t")))
        if not _VALUES.fullmatch(b"".join([value for _, value in kept])):
            kept = [field for field in kept if _VALUE.fullmatch(field[1])]
        ended = _tokens(connection)
        if is_chunked:
            ended |= {b"content-length"}
        return [field for field in kept if field[0] not in ended] if ended else kept

    def _learn(self, name: bytes) -> bytes:
        fate = self._fate(name.lower())
        if len(self._fates) < MOST_NAMES and len(name) <= LONGEST_NAME_BYTES:
            self._fates[name] = fate
        return fate

    def _fate(self, name: bytes) -> bytes:
        """The name under which it goes on, or one of the two marks."""
        if name in HOP_BY_HOP:
            return _ENDS_HERE
        if name == b"date" or name.startswith(_NOT_RETURNED_PREFIXES) or not _NAME.fullmatch(name):
            return _DROPPED
        if name in _NOT_RETURNED_UNLESS_PASSED and name not in self._passed:
            return _DROPPED
        return b"x-upstream-request-id" if name == b"x-request-id" else name


class ForwardedFields:
    """What the gateway itself says to a target, in place of what the client says under the same names.

    ``own`` are the rule's fields, which win over ours.
    """

    def __init__(self, own: Iterable[tuple[bytes, bytes]], *, preserve_host: bool, identity: bool) -> None:
        self._own = tuple(own)
        names = {name for name, _ in self._own}
        ours = [name for name in _ORIGIN if name not in names]
        if preserve_host and b"host" not in names:
            ours.append(b"host")
        if identity and b"accept-encoding" not in names:
            self._own += ((b"accept-encoding", b"identity"),)
        self._ours = tuple(ours)
        for name, _ in self._own:  # what CGI and WSGI take for the same
            names |= {name.replace(b"-", b"_"), name.replace(b"_", b"-")}
        self._replaced = HOP_BY_HOP | {b"content-length"} | names.union(ours) | ({b"accept-encoding"} if identity else set())

    def over(
        self, headers: RawHeaders, *, client_ip: str, scheme: str, authority: str, request_id: str, length: int | None
    ) -> RawHeaders:
        """The fields of one request; ``length`` is that of a body that is still arriving, if it is known."""
        # a plugin may have set what only the connection to the target can know
        replaced = self._replaced
        fields = [field for field in headers if field[0] not in replaced]
        said = {
            b"x-forwarded-for": client_ip,
            b"x-forwarded-proto": scheme,
            b"x-forwarded-host": authority,
            b"x-request-id": request_id,
            b"host": authority,
        }
        fields += [(name, said[name].encode("latin-1")) for name in self._ours]
        fields += self._own
        if length is not None:
            fields.append((b"content-length", b"%d" % length))
        return fields


def _tokens(values: list[bytes]) -> frozenset[bytes]:
    """What these values of Connection name."""
    if not values or all(value in (b"keep-alive", b"close") for value in values):
        return frozenset()
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))

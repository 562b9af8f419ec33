"""Checks what surrounds a request: client address, method, headers; and tidies the headers of the reply."""

from __future__ import annotations

import hmac
import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, IPvAnyNetwork

from gateway.plugin import Exchange, Headers, Pattern, PatternSet, Plugin, Reject, Settings, SizeBytes

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_MATCHED = 4_096
"""Characters of a header value that a pattern is tried on; a longer value matches nothing and is refused."""

REVEALING = (
    "server",
    "x-powered-by",
    "x-aspnet-version",
    "x-aspnetmvc-version",
    "x-generator",
    "x-runtime",
    "x-backend-server",
)

_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}")
_METHOD = re.compile(r"[A-Z0-9!#$%&'*+.^_`|~-]{1,32}")
_FRAMING = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    }
)


def _header_name(value: str) -> str:
    name = value.lower()
    if not _NAME.fullmatch(name):
        raise ValueError("is not a header name")
    return name


def _reply_header_name(value: str) -> str:
    name = _header_name(value)
    if name in _FRAMING:
        raise ValueError(f"{name} belongs to the gateway and cannot be set or removed")
    return name


def _header_value(value: str) -> str:
    if not all(char == "\t" or " " <= char <= "~" for char in value) or value != value.strip():
        raise ValueError("must be printable ASCII without white space at either end")
    return value


def _method(value: str) -> str:
    method = value.upper()
    if not _METHOD.fullmatch(method):
        raise ValueError("is not an HTTP method")
    return method


def _unmapped(network: Network) -> Network:
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        address = network.network_address.ipv4_mapped
        if address is not None:
            return ipaddress.IPv4Network((address, network.prefixlen - 96))
    return network


def _as_map(value: Any) -> Any:
    """A list of names means that each must be there, whatever its value."""
    return dict.fromkeys(value, HeaderRule()) if isinstance(value, list | tuple) else value


def _as_rule(value: Any) -> Any:
    return {"equals": value} if isinstance(value, str) else value


def _full(pattern: str) -> PatternSet:
    return PatternSet([rf"\A(?:{pattern})\z"])


def _whole(pattern: str) -> str:
    _full(pattern)
    return pattern


def _usable(patterns: tuple[str, ...]) -> tuple[str, ...]:
    PatternSet(patterns, ignore_case=True)
    return patterns


class HeaderRule(Settings):
    """What a required header must be. Without either field it must only be there."""

    equals: Annotated[str, Field(max_length=8_192)] | None = Field(None, description="The exact value.")
    pattern: Annotated[Pattern, AfterValidator(_whole)] | None = Field(
        None, description="A regular expression (RE2) that the whole value must match."
    )


HeaderName = Annotated[str, AfterValidator(_header_name)]
ReplyHeaderName = Annotated[str, AfterValidator(_reply_header_name)]
HeaderValue = Annotated[str, Field(max_length=8_192), AfterValidator(_header_value)]
Networks = Annotated[tuple[Annotated[IPvAnyNetwork, AfterValidator(_unmapped)], ...], Field(min_length=1, max_length=1_000)]
RequiredHeaders = Annotated[
    dict[HeaderName, Annotated[HeaderRule, BeforeValidator(_as_rule, json_schema_input_type=HeaderRule | str)]],
    Field(min_length=1, max_length=50),
    BeforeValidator(_as_map, json_schema_input_type=dict[str, HeaderRule | str] | list[str]),
]
UserAgents = Annotated[tuple[Pattern, ...], Field(min_length=1, max_length=50, fail_fast=True), AfterValidator(_usable)]
Methods = Annotated[tuple[Annotated[str, AfterValidator(_method)], ...], Field(min_length=1, max_length=20)]


class ResponseHeaders(Settings):
    """What happens to the headers of replies."""

    set: dict[ReplyHeaderName, HeaderValue] = Field(
        {"x-content-type-options": "nosniff"},
        max_length=50,
        description="Headers every reply gets, in place of the target's own of the same name.",
    )
    remove: tuple[ReplyHeaderName, ...] = Field(
        REVEALING, max_length=100, description="Headers taken out of every reply, before `set`."
    )


class SecurityValidatorSettings(Settings):
    """Settings of `security_validator`. Without any, only the headers of replies are tidied."""

    required_headers: RequiredHeaders | None = Field(
        None,
        description="Headers a request must have: a list of names, or an object of name to exact value, or to"
        ' `{"equals": …}` or `{"pattern": …}`. The gateway\'s own key is not visible here.',
    )
    blocked_ips: Networks | None = Field(None, description="Addresses and networks that are refused, also if allowed.")
    allowed_ips: Networks | None = Field(None, description="Addresses and networks that are let in; all others are refused.")
    allowed_methods: Methods | None = Field(None, description="HTTP methods; HEAD is not implied by GET.")
    max_header_bytes: Annotated[SizeBytes, Field(ge=1)] | None = Field(
        None, description="Largest sum of all header names and values, with 4 bytes more for each."
    )
    blocked_user_agents: UserAgents | None = Field(
        None, description="Regular expressions (RE2), in any case, that the User-Agent must not match anywhere."
    )
    response_headers: ResponseHeaders = Field(
        default_factory=ResponseHeaders, description="What is set and removed in replies; what is given replaces the default."
    )


class SecurityValidator(Plugin[SecurityValidatorSettings]):
    """Checks client address, method, headers and user agent of requests, and tidies the headers of replies."""

    name = "security_validator"
    dry_run = True

    def prepare(self) -> None:
        """Compile the patterns."""
        self._agents = PatternSet(self.settings.blocked_user_agents or (), ignore_case=True)
        self._patterns = {
            name: _full(rule.pattern)
            for name, rule in (self.settings.required_headers or {}).items()
            if rule.pattern is not None
        }

    async def pre_request(self, exchange: Exchange) -> None:
        """Refuse with 400, 403, 405 or 431; address first, so that a stranger learns nothing more."""
        request = exchange.request
        self._check_address(request.client_ip)
        self._check_method(request.method)
        self._check_size(request.headers)
        self._check_required(request.headers)
        self._check_agent(request.headers)

    async def pre_response(self, exchange: Exchange) -> None:
        """Remove what tells about the target, then set what is configured."""
        if exchange.reply is None:
            return
        headers = exchange.reply.headers
        for name in self.settings.response_headers.remove:
            headers.remove(name)
        for name, value in self.settings.response_headers.set.items():
            headers.set(name, value)

    def _check_address(self, client_ip: str) -> None:
        blocked, allowed = self.settings.blocked_ips, self.settings.allowed_ips
        if blocked is None and allowed is None:
            return
        address = _address(client_ip)
        # an address that cannot be read cannot be known to be harmless
        if address is None or _within(address, blocked or ()) or (allowed is not None and not _within(address, allowed)):
            raise Reject(403, "ip_not_allowed", "Requests from this address are not allowed.")

    def _check_method(self, method: str) -> None:
        allowed = self.settings.allowed_methods
        if allowed is not None and method not in allowed:
            headers = [("allow", ", ".join(allowed))]
            raise Reject(405, "method_not_allowed", "The method is not allowed for this path.", headers=headers)

    def _check_size(self, headers: Headers) -> None:
        most = self.settings.max_header_bytes
        if most is not None and sum(len(name) + len(value) + 4 for name, value in headers.raw) > most:
            raise Reject(431, "headers_too_large", f"The headers are longer than {most} bytes.")

    def _check_required(self, headers: Headers) -> None:
        for name, rule in (self.settings.required_headers or {}).items():
            values = headers.get_all(name)
            if not values:
                raise Reject(400, "missing_header", f"The header {name} is missing.", param=name)
            # every one of several, since nobody knows which the target reads
            if not all(self._fits(name, rule, value) for value in values):
                raise Reject(400, "invalid_header", f"The header {name} does not have the required value.", param=name)

    def _fits(self, name: str, rule: HeaderRule, value: str) -> bool:
        if rule.equals is not None and not hmac.compare_digest(rule.equals.encode(), value.encode()):
            return False
        pattern = self._patterns.get(name)
        return pattern is None or (len(value) <= MAX_MATCHED and pattern.first_match(value) is not None)

    def _check_agent(self, headers: Headers) -> None:
        if not self._agents:
            return
        for agent in headers.get_all("user-agent"):
            if len(agent) > MAX_MATCHED or self._agents.first_match(agent) is not None:
                raise Reject(403, "user_agent_blocked", "This user agent is not allowed.")


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _within(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)

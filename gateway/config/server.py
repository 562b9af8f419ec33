"""The section `server`."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from gateway.config.fields import Names, Networks, Port, PositiveBytes, PositiveMs, Section
from gateway.units import DurationMs


def is_loopback(host: str) -> bool:
    """True for ``localhost`` and loopback addresses."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _domain(value: str) -> str:
    domain = value.strip().lower().strip(".")
    labels = domain.split(".")
    if not all(label and label.replace("-", "").isalnum() and label.isascii() for label in labels):
        raise ValueError("a base domain consists of letters, digits, hyphens and dots")
    return domain


def _version(value: Any) -> Any:
    # what YAML reads where 1.2 is written without quotes
    return str(value) if isinstance(value, float) else value


class ServerSettings(Section):
    """The two listeners and how they are addressed."""

    admin_port: Port = Field(8080, description="Port of the admin API.")
    proxy_port: Port = Field(8081, description="Port that tenants' clients call.")
    base_domain: str = Field("example.com", description="Tenants are the labels directly under this domain.")
    base_domains: Names = Field(
        (), description="All base domains. Empty means `base_domain` and `localhost`.", examples=[["example.com"]]
    )
    admin_host: str = Field("127.0.0.1", description="Address the admin API binds. Anything but loopback needs `admin_token`.")
    proxy_host: str = Field("0.0.0.0", description="Address the proxy binds.")  # noqa: S104 - it serves the outside
    admin_token: SecretStr | None = Field(
        None, description="Operator token: `Authorization: Bearer …` on every admin call that is not a tenant's own."
    )
    admin_allowed_hosts: Names = Field(
        (),
        description="Host names under which the admin API answers, against DNS rebinding. Empty means loopback names and"
        " `admin_host`; with an operator token, any.",
    )
    trusted_proxies: Networks = Field((), description="Networks whose `X-Forwarded-*` headers are believed.")
    workers: int = Field(1, ge=1, le=64, description="Processes per replica, which share its ports; about one for each core.")
    engine: Literal["hypercorn", "granian", "uvicorn"] = Field(
        "hypercorn",
        description="The HTTP server. `uvicorn` and `granian` cost less CPU; they need `pip install ai-gateway[uvicorn]`"
        " or `ai-gateway[granian]`.",
    )
    tls_certificate: Path | None = Field(
        None,
        description="PEM file with the certificate and those between it and its authority. With `tls_key`, clients of the proxy"
        " speak HTTPS; both files are read again when they change.",
    )
    tls_key: Path | None = Field(None, description="PEM file with the certificate's key, not encrypted.")
    tls_min_version: Annotated[Literal["1.2", "1.3"], BeforeValidator(_version)] = Field(
        "1.2", description="Oldest version of TLS that is spoken."
    )
    admin_tls: bool | None = Field(
        None, description="Whether the admin API speaks HTTPS too; unset means unless `admin_host` is loopback."
    )
    http2: bool = Field(False, description="Whether clients that speak TLS may choose HTTP/2; with the engine `granian` only.")
    max_connections_per_ip: int = Field(
        128,
        ge=0,
        description="Most connections from one address (IPv6: one /64) to a port of a process; 0 for no bound. Addresses in"
        " `trusted_proxies` have none.",
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description="Most connections of clients to the proxy of a process; unset means what the limit of open files leaves"
        " (docs/servers.md).",
    )
    keep_alive: PositiveMs = Field(
        65_000, description="Idle keep-alive connections are closed after this; longer than most load balancers wait."
    )
    first_header_timeout: PositiveMs = Field(
        10_000,
        description="How long the first header block of a connection may take from its beginning, and a later one from its"
        " first byte.",
    )
    max_header_bytes: PositiveBytes = Field(32 << 10, description="Largest header block of a request.")
    drain_delay: DurationMs = Field(
        5_000, ge=0, description="After SIGTERM, how long to go on accepting while `/health/ready` already answers 503."
    )
    drain_timeout: PositiveMs = Field(60_000, description="After that, how long running requests may take to finish.")

    @field_validator("base_domain")
    @classmethod
    def _base_domain(cls, value: str) -> str:
        return _domain(value)

    @field_validator("base_domains")
    @classmethod
    def _base_domains(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_domain(domain) for domain in value))

    @field_validator("admin_token")
    @classmethod
    def _strong_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("an operator token has at least 16 characters")
        return value

    @model_validator(mode="after")
    def _admin_is_guarded(self) -> ServerSettings:
        if self.admin_token is None and not is_loopback(self.admin_host):
            raise ValueError(f"admin_host {self.admin_host} is reachable from outside, so admin_token must be set")
        if self.admin_port == self.proxy_port:
            raise ValueError("admin_port and proxy_port must differ")
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> ServerSettings:
        for given, missing in (("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")):
            if getattr(self, given) is not None and getattr(self, missing) is None:
                raise ValueError(f"{given} needs {missing}")
        if self.admin_tls and self.tls_certificate is None:
            raise ValueError("admin_tls needs tls_certificate and tls_key")
        if self.http2 and self.tls_certificate is None:
            raise ValueError("http2 needs tls_certificate and tls_key")
        if self.http2 and self.engine != "granian":
            raise ValueError(f"http2 needs the engine granian; {self.engine} does not speak it")
        return self

    def has_tls(self, listener: str) -> bool:
        """Whether ``admin`` or ``proxy`` speak TLS; no other listener does."""
        if self.tls_certificate is None:
            return False
        if listener == "admin":
            return not is_loopback(self.admin_host) if self.admin_tls is None else self.admin_tls
        return listener == "proxy"

    @property
    def tenant_domains(self) -> tuple[str, ...]:
        """The base domains in force, longest first, so that the most specific one matches."""
        domains = self.base_domains or (self.base_domain, "localhost")
        return tuple(sorted(dict.fromkeys(domains), key=len, reverse=True))

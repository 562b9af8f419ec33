"""The other sections of the configuration: every key, its default and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from gateway.config.fields import Networks, Port, PositiveBytes, PositiveMs, Section, comma_separated

RateLimitDialect = Literal["draft-10", "draft-7", "draft-6", "off"]


def _off_if_false(value: Any) -> Any:
    # what YAML reads where off is written without quotes
    return "off" if value is False else value


class RedisSettings(Section):
    """The store: where it is and how long to wait for it."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    host: str = Field("localhost", description="Host of a single server.")
    port: Port = Field(6379, description="Port of a single server.")
    username: str = Field(
        "", description="User of a single server; empty for `default`. See `docs/redis.acl` for one that may do little."
    )
    password: SecretStr = Field(SecretStr(""), description="Password; empty for none.")
    db: int = Field(0, ge=0, le=65535, description="Database number of a single server.")
    url: str | None = Field(
        None,
        repr=False,  # may hold the password
        description="Instead of host, port, username, password and db: `redis://`, `rediss://`, `unix://`,"
        " `redis+sentinel://h1,h2/name`, `redis+cluster://h1,h2` (`rediss+…` with TLS), or `embedded`.",
    )
    connect_timeout: PositiveMs = Field(500, description="Longest wait for a connection.")
    command_timeout: PositiveMs = Field(
        250,
        description="Longest time from a call of a script to its reply, connecting included; of other commands, the longest"
        " wait for the reply.",
    )
    pool_size: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Most connections a process opens to one server for other commands. All calls of scripts share one more, on"
        " which 4096 may wait; further ones are 503 `overloaded`.",
    )
    pool_wait: PositiveMs = Field(50, description="Longest wait for a free one of these connections before 503 `overloaded`.")
    data_dir: Path = Field(Path("data"), description="Where the embedded store keeps its files.")

    @model_validator(mode="after")
    def _user_has_a_password(self) -> RedisSettings:
        if self.username and not self.password.get_secret_value():
            raise ValueError("username needs a password")
        return self

    @property
    def is_embedded(self) -> bool:
        """True when the gateway starts its own server."""
        return self.url == "embedded"


class UpstreamSettings(Section):
    """How targets may be reached."""

    allowed_networks: Networks = Field(
        (), description="Private, loopback or link-local networks that targets may resolve to; all else must be public."
    )
    allowed_ports: Annotated[tuple[Port, ...], NoDecode, BeforeValidator(comma_separated)] = Field(
        (80, 443), description="Ports of targets outside `allowed_networks`."
    )
    connect_timeout: PositiveMs = Field(5_000, description="Looking up the name, TCP and TLS handshake, each try.")
    first_byte_timeout: PositiveMs = Field(120_000, description="From the sent request to the reply head.")
    idle_timeout: PositiveMs = Field(300_000, description="Longest pause within a reply body.")
    total_timeout: PositiveMs = Field(1_800_000, description="A whole exchange.")
    connect_retries: int = Field(1, ge=0, le=5, description="Further tries to connect where the rule does not say.")
    pool_size: int = Field(
        2_000,
        ge=1,
        le=100_000,
        description="Most connections a process opens to all targets on the Internet, and as many again to all inside"
        " `allowed_networks`. Requests beyond that wait, whosever they are: less than twice `limits.max_in_flight` lets tenants"
        " with slow targets hold up others.",
    )
    share_connections: bool = Field(
        False,
        description="Whether tenants with the same target share its connections. That saves handshakes where many tenants send"
        " few requests each; but a target that can be made to mix up its replies may then answer one tenant with another's.",
    )
    max_per_target: int | None = Field(
        None,
        ge=1,
        description="Requests of one tenant that a process has under way to one target; more are answered 503 `overloaded`."
        " Unset means a tenth of `pool_size`, but at least 200.",
    )
    breaker_failures: int = Field(
        5,
        ge=0,
        le=1_000,
        description="Requests of a tenant to a target that must get no connection or no reply, one after the other, for the"
        " target to be left alone for a while; 0 means never. Statuses are replies.",
    )
    breaker_pause: PositiveMs = Field(
        1_000,
        description="How long it is left alone before one request tries it again; up to twice as long after each that fails, to"
        " 32 times this.",
    )
    keep_alive: PositiveMs = Field(15_000, description="How long an idle upstream connection is kept.")

    @property
    def most_connections(self) -> int:
        """What `pool_size` comes to: there is a pool for the Internet and one for `allowed_networks`."""
        return 2 * self.pool_size

    @property
    def most_per_target(self) -> int:
        """What `max_per_target` comes to."""
        return self.max_per_target or max(200, self.pool_size // 10)


class LimitsSettings(Section):
    """Bounds on what a client may make the gateway do."""

    max_body_bytes: PositiveBytes = Field(32 << 20, description="Largest request body.")
    max_inspected_bytes: PositiveBytes = Field(4 << 20, description="Largest body that plugins may read.")
    body_idle_timeout: PositiveMs = Field(15_000, description="Longest pause within a request body.")
    write_stall_timeout: PositiveMs = Field(30_000, description="Longest time a client may refuse to read a chunk.")
    max_in_flight: int = Field(
        1_000,
        ge=1,
        description="Requests a process handles at once. Further ones are answered 503 `overloaded`, except for tenants with"
        " less in flight than their share, which is this number by that of active tenants.",
    )
    max_in_flight_per_tenant: int = Field(200, ge=1, description="The same for one tenant, without exception.")
    max_loop_lag: PositiveMs = Field(
        250,
        description="A process whose event loop is later than this again and again takes on fewer requests, until it keeps up.",
    )
    failed_auth_per_minute: int = Field(
        300,
        ge=1,
        description="Requests with wrong keys or none that a process takes from one client address (of IPv6, from one /64)."
        " Until the minute is over, further ones with keys it does not know are answered 429, and the store is not asked."
        " Behind a balancer, set `server.trusted_proxies`, or all clients are one address.",
    )
    default_output_tokens: int = Field(
        4_096,
        ge=1,
        le=10**7,
        description="Output reserved for a request that sets no bound of its own, where tokens or cost are limited. Where a"
        " quota of them is to be kept, it becomes the request's bound.",
    )
    count_prompts: Literal["estimate", "exact"] = Field(
        "estimate",
        description="How tokens are counted before a call. `exact` does so where the model's vocabulary is known; it needs"
        " `pip install ai-gateway[tokens]`, 110 MB and a second at the start of each process.",
    )
    plugin_timeout: PositiveMs = Field(1_000, description="Longest run of one plugin in one stage.")
    lease: PositiveMs = Field(
        60_000, description="How long requests of a replica that died keep their places in flight. Requests that last renew it."
    )
    renew_every: PositiveMs | None = Field(
        None,
        description="How often leases of requests older than a third of `lease` are renewed, all in one call; unset means a"
        " third of `lease`.",
    )

    store_failure: Literal["deny", "cached"] = Field(
        "deny",
        description="While the store is away: `deny` answers 503; `cached` admits what this process has admitted within"
        " `cached_for`, from its share of each limit (docs/limits.md).",
    )
    cached_for: Annotated[PositiveMs, Field(le=600_000)] = Field(
        60_000, description="With `cached`: how long the store's last word on a key and a rule is taken for true."
    )
    replicas: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="With `cached`, required: how many replicas share the limits; each of their `server.workers` has a share.",
    )

    ratelimit_headers: Annotated[RateLimitDialect, BeforeValidator(_off_if_false)] = Field(
        "draft-10",
        description="How the IETF draft's `RateLimit` headers are written: `draft-10`, `draft-7`, `draft-6`, or `off` for none."
        " OpenAI's `x-ratelimit-*` are always sent.",
    )

    @property
    def renewal(self) -> int:
        """Milliseconds between two renewals."""
        return self.renew_every or max(1, self.lease // 3)

    @model_validator(mode="after")
    def _renewal_fits(self) -> LimitsSettings:
        if self.renew_every is not None and self.renew_every * 2 > self.lease:
            raise ValueError("renew_every must be at most half of lease")
        return self

    @model_validator(mode="after")
    def _shares_are_known(self) -> LimitsSettings:
        if self.store_failure == "cached" and self.replicas is None:
            raise ValueError("store_failure cached needs replicas, by which limits are divided")
        return self


class SecretsSettings(Section):
    """What protects stored credentials."""

    master_key: SecretStr | None = Field(
        None,
        description="32 bytes as base64 or hex; encrypts stored upstream credentials. With the embedded store one is made"
        " in `redis.data_dir`; otherwise it is required before the first secret is stored.",
    )


class PluginsSettings(Section):
    """Where plugins come from."""

    paths: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(comma_separated)] = Field(
        (), description="Folders with plugins of your own, one file each."
    )


class LogSettings(Section):
    """What is written to standard output and error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity that is logged.")
    access: bool = Field(True, description="One JSON line for each proxied request, on standard output.")
    exception_messages: bool = Field(
        False,
        description="Whether tracebacks also have the messages of exceptions. They help to find a bug of a plugin, and may"
        " hold what clients have sent.",
    )

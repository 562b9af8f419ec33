"""Virtual keys: what a tenant's client presents instead of the provider's key."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field

from gateway.config import Network
from gateway.models.base import DisplayName, Document, Metadata, format_time
from gateway.models.limit import Limits

Scope = Literal["proxy", "admin"]
KeyStatus = Literal["active", "revoked"]


def _scopes(value: tuple[Scope, ...]) -> tuple[Scope, ...]:
    return tuple(dict.fromkeys(value))


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be within the years 1 to 9999 in UTC") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Scopes = Annotated[tuple[Scope, ...], Field(min_length=1), AfterValidator(_scopes)]
Models = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=200)]
RuleIds = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(max_length=1_000)]
Networks = Annotated[tuple[Network, ...], Field(max_length=200)]


class NewKey(Document):
    """What ``POST /tenants/{id}/api-keys`` takes."""

    name: DisplayName = "default"
    scopes: Scopes = Field(("proxy",), description="`proxy`: call the tenant's rules. `admin`: manage this tenant.")
    expires_at: Moment | None = Field(None, description="RFC 3339; unset means never.")
    limits: Limits = Field((), description="Limits of this key alone, over all rules.")
    allowed_models: Models | None = Field(None, description="Only these values of the body's `model`; unset means any.")
    allowed_rules: RuleIds | None = Field(None, description="Only these rules; unset means any.")
    allowed_networks: Networks | None = Field(None, description="Only clients from these networks; unset means any.")
    metadata: Metadata = Field(default_factory=dict, description="Text of your own.")


class ApiKey(NewKey):
    """A stored key. The secret itself is nowhere; ``hint`` is its start, enough to recognise it."""

    read_only = frozenset({"id", "hint", "status", "created_at", "updated_at", "last_used_at"})

    id: str
    hint: str
    status: KeyStatus
    created_at: str
    updated_at: str

    @property
    def expires_ms(self) -> int | None:
        """End of validity in Unix milliseconds."""
        return None if self.expires_at is None else unix_ms(self.expires_at)

    def public(self, last_used_at: str | None = None) -> dict[str, Any]:
        """The JSON object the admin API answers."""
        shown = self.model_dump(mode="json")
        shown["expires_at"] = None if self.expires_at is None else format_time(self.expires_at)
        shown["last_used_at"] = last_used_at
        return shown


def unix_ms(moment: datetime) -> int:
    """Unix time in milliseconds."""
    return round(moment.timestamp() * 1_000)

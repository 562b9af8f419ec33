"""Answers: JSON objects with entity tags, and the models that describe them in the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field
from quart import Response

from gateway.models import ApiKey, Rule, Stage, Tenant

PREFIX = "/api/v1"


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON answer. ``location`` is a path below the prefix."""

    body: Mapping[str, Any]
    status: int = 200
    etag: str | None = None
    location: str | None = None

    def response(self, *, replayed: bool = False) -> Response:
        """As Quart sends it."""
        response = Response(self.text(), self.status, content_type="application/json")
        if self.etag is not None:
            response.headers["etag"] = self.etag
        if self.location is not None:
            response.headers["location"] = PREFIX + self.location
        if replayed:
            response.headers["idempotent-replayed"] = "true"
        return response

    def text(self) -> str:
        """The body."""
        return json.dumps(self.body, ensure_ascii=False)


def no_content() -> Response:
    """The answer to a deletion."""
    return Response(b"", 204)


class CreatedTenant(Tenant):
    """A new tenant with its first key, which has the scopes `admin` and `proxy`."""

    api_key: str = Field(description="The secret. It is shown in this answer and never again.")
    api_key_id: str


class TenantPage(BaseModel):
    """Tenants by subdomain."""

    tenants: list[Tenant]
    count: int = Field(description="How many are on this page.")
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


class ShownKey(ApiKey):
    """A key as it is shown: without its secret."""

    last_used_at: str | None = Field(description="RFC 3339, to the minute or so; null if it was never used.")


class IssuedKey(ShownKey):
    """A key with its new secret."""

    api_key: str = Field(description="The secret. It is shown in this answer and never again.")


class KeyList(BaseModel):
    """All keys of a tenant, oldest first, revoked ones included."""

    api_keys: list[ShownKey]
    count: int


class ShownRule(Rule):
    """A rule as it is shown: header values that may be secrets are masked."""

    warnings: list[str] = Field(description="What is allowed and probably not meant.")


class RuleList(BaseModel):
    """All rules of a tenant, oldest first."""

    rules: list[ShownRule]
    count: int


class ShownPlugin(BaseModel):
    """An installed plugin."""

    name: str
    description: str
    stages: list[Stage]
    settings_schema: dict[str, Any] = Field(description="JSON Schema of `settings`.")


class PluginList(BaseModel):
    """All installed plugins by name."""

    plugins: list[ShownPlugin]
    count: int


class Health(BaseModel):
    """Good health."""

    status: str

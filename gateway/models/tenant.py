"""A customer of the gateway, addressed by subdomain."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gateway.model_price import Prices
from gateway.models.base import DisplayName, Document, Metadata, Slug
from gateway.models.limit import Limits
from gateway.models.plugin_ref import PluginEntry

ALL_PLUGINS = "*"

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _subdomain(value: str) -> str:
    subdomain = value.lower()
    if not _LABEL.fullmatch(subdomain):
        raise ValueError("must be one DNS label: 1 to 63 letters, digits and hyphens, no hyphen at either end")
    return subdomain


def _plugin_names(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value))


Subdomain = Annotated[str, AfterValidator(_subdomain)]
PluginName = Annotated[str, Field(pattern=r"^(\*|[a-z0-9][a-z0-9_-]{0,62})$")]
PluginNames = Annotated[tuple[PluginName, ...], Field(max_length=100), AfterValidator(_plugin_names)]
RequiredPlugins = Annotated[dict[Slug, PluginEntry], Field(max_length=50)]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]
ModelAliases = Annotated[dict[ModelName, ModelName], Field(max_length=200)]
Status = Literal["active", "suspended"]


class NewTenant(Document):
    """What ``POST /tenants`` takes."""

    name: DisplayName
    subdomain: Subdomain = Field(description="The label under the base domain; fixed for the life of the tenant.")
    tier: Slug = Field("basic", description="Chooses among the tiers of rate_limiter.")
    enabled_plugins: PluginNames = Field((ALL_PLUGINS,), description="Plugins its rules may use; `*` means all that exist.")
    required_plugins: RequiredPlugins = Field(default_factory=dict, description="Plugins that run for every rule, by name.")
    limits: Limits = Field((), description="Limits of this tenant over all rules, whatever their plugins say.")
    model_aliases: ModelAliases = Field(
        default_factory=dict,
        description="Names of your own for models: a request for the alias is sent, counted and priced as one for the model.",
    )
    prices: Prices = Field(default_factory=dict, description="What models cost this tenant, by name or beginning and `*`.")
    metadata: Metadata = Field(default_factory=dict, description="Text of your own.")


class Tenant(NewTenant):
    """A stored tenant. Times are RFC 3339 in UTC."""

    read_only = frozenset({"id", "subdomain", "created_at", "updated_at"})

    id: str
    status: Status = Field(description="A suspended tenant's requests are answered 403.")
    created_at: str
    updated_at: str

    def allows_plugin(self, name: str) -> bool:
        """True if a rule of this tenant may use the plugin."""
        return name in self.enabled_plugins or ALL_PLUGINS in self.enabled_plugins or name in self.required_plugins

    def public(self) -> dict[str, Any]:
        """The JSON object the admin API answers."""
        return self.model_dump(mode="json")

"""What the admin API writes and the proxy reads: tenants, API keys, rules and their limits."""

from gateway.model_price import ModelPattern, ModelPrice, Prices
from gateway.models.amount import MEASURED, Unit, shown_amount
from gateway.models.api_key import ApiKey, NewKey, Scope, unix_ms
from gateway.models.base import Document, edited, format_time, utc_now
from gateway.models.limit import RING_PARTS, Cost, CostSource, Limit, LimitKind, LimitSpec, limit_specs
from gateway.models.plugin_ref import OnError, PluginEntry, PluginRef, Stage
from gateway.models.quota import Quota, shown_threshold
from gateway.models.rule import MASK, METHODS, NewRule, Rule, RuleFormat, is_plain_header
from gateway.models.tenant import NewTenant, Tenant
from gateway.periods import Period

__all__ = [
    "MASK",
    "MEASURED",
    "METHODS",
    "RING_PARTS",
    "ApiKey",
    "Cost",
    "CostSource",
    "Document",
    "Limit",
    "LimitKind",
    "LimitSpec",
    "ModelPattern",
    "ModelPrice",
    "NewKey",
    "NewRule",
    "NewTenant",
    "OnError",
    "Period",
    "PluginEntry",
    "PluginRef",
    "Prices",
    "Quota",
    "Rule",
    "RuleFormat",
    "Scope",
    "Stage",
    "Tenant",
    "Unit",
    "edited",
    "format_time",
    "is_plain_header",
    "limit_specs",
    "shown_amount",
    "shown_threshold",
    "unix_ms",
    "utc_now",
]

"""Everything a plugin author needs; a plugin imports this module and nothing else of the gateway.

A plugin is a class with a settings model and up to four methods, one for each stage::

    class BlockWords(Plugin[BlockWordsSettings]):
        name = "block_words"

        async def pre_request(self, exchange: Exchange) -> None: ...

See ``docs/plugins.md`` for a walk through writing one.
"""

from gateway.errors import GatewayError, InvalidJson
from gateway.formats import Usage
from gateway.models import Cost, Limit, LimitKind, LimitSpec, Stage, limit_specs
from gateway.plugin.definition import LimitScope, Plugin, Settings
from gateway.plugin.exchange import (
    Answer,
    ApiKeyInfo,
    Exchange,
    LimitState,
    Reject,
    Reply,
    Request,
    RuleInfo,
    TenantInfo,
    Timings,
)
from gateway.plugin.header_list import Headers
from gateway.plugin.json_schema import JsonSchema, SchemaCheck
from gateway.plugin.patterns import Pattern, PatternSet
from gateway.plugin.strict_json import check_alike, check_json_type, parse_json
from gateway.plugin.texts import texts_of
from gateway.units import DurationMs, SizeBytes

__all__ = [
    "Answer",
    "ApiKeyInfo",
    "Cost",
    "DurationMs",
    "Exchange",
    "GatewayError",
    "Headers",
    "InvalidJson",
    "JsonSchema",
    "Limit",
    "LimitKind",
    "LimitScope",
    "LimitSpec",
    "LimitState",
    "Pattern",
    "PatternSet",
    "Plugin",
    "Reject",
    "Reply",
    "Request",
    "RuleInfo",
    "SchemaCheck",
    "Settings",
    "SizeBytes",
    "Stage",
    "TenantInfo",
    "Timings",
    "Usage",
    "check_alike",
    "check_json_type",
    "limit_specs",
    "parse_json",
    "texts_of",
]

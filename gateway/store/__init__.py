"""The only user of redis-py: admission, and the documents of the admin API."""

from gateway.store.admission import Admission, Admissions, Known, Peeked, Stale, Unseeded
from gateway.store.alerts import AlertStore, Claim
from gateway.store.api_keys import ApiKeyStore, StoredKey
from gateway.store.connect import Connection, certificate_files, connect, describe, sentinel_service
from gateway.store.embedded import EmbeddedServer
from gateway.store.examination import NodeFacts, Rights, SentinelFacts, StoreFacts, examine_store, stored_documents
from gateway.store.keyspace import Keyspace, crossing_of, limit_of
from gateway.store.placed import BoundLimit, PlacedLimit, place_limit
from gateway.store.receipts import Receipt, ReceiptIndex, ReceiptStore
from gateway.store.rules import CheckAmong, RuleStore, StoredRule
from gateway.store.settlement import Due, Held, Settlement, Settlements, Used
from gateway.store.standing import Standing, read_standing
from gateway.store.stores import Stores, open_stores
from gateway.store.tenants import StoredTenant, TenantStore, new_tenant_id
from gateway.store.usage import MAX_DAYS, Metric, UsageRow, UsageStore
from gateway.store.writing import Once, Repeated, new_id

__all__ = [
    "MAX_DAYS",
    "Admission",
    "Admissions",
    "AlertStore",
    "ApiKeyStore",
    "BoundLimit",
    "CheckAmong",
    "Claim",
    "Connection",
    "Due",
    "EmbeddedServer",
    "Held",
    "Keyspace",
    "Known",
    "Metric",
    "NodeFacts",
    "Once",
    "Peeked",
    "PlacedLimit",
    "Receipt",
    "ReceiptIndex",
    "ReceiptStore",
    "Repeated",
    "Rights",
    "RuleStore",
    "SentinelFacts",
    "Settlement",
    "Settlements",
    "Stale",
    "Standing",
    "StoreFacts",
    "StoredKey",
    "StoredRule",
    "StoredTenant",
    "Stores",
    "TenantStore",
    "Unseeded",
    "UsageRow",
    "UsageStore",
    "Used",
    "certificate_files",
    "connect",
    "crossing_of",
    "describe",
    "examine_store",
    "limit_of",
    "new_id",
    "new_tenant_id",
    "open_stores",
    "place_limit",
    "read_standing",
    "sentinel_service",
    "stored_documents",
]

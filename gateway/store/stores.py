"""All stores over one connection."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.config import UsageSettings
from gateway.errors import ConfigurationError
from gateway.resources import lua_folder
from gateway.store.admission import Admissions
from gateway.store.alerts import AlertStore
from gateway.store.api_keys import ApiKeyStore
from gateway.store.connect import Connection
from gateway.store.eviction import check_eviction
from gateway.store.receipts import ReceiptIndex, ReceiptStore
from gateway.store.rules import RuleStore
from gateway.store.script_source import read_scripts
from gateway.store.scripts import ScriptRunner
from gateway.store.settlement import Settlements
from gateway.store.tenants import TenantStore
from gateway.store.usage import UsageStore

RETENTION_MS = UsageSettings().retention
FIRST_VERSION_WITH_RECEIPTS = (7, 0)


@dataclass(frozen=True, slots=True)
class Stores:
    """What the admin API and the proxy are given."""

    connection: Connection
    runner: ScriptRunner
    admissions: Admissions
    settlements: Settlements
    tenants: TenantStore
    api_keys: ApiKeyStore
    rules: RuleStore
    usage: UsageStore
    receipts: ReceiptStore
    alerts: AlertStore


async def open_stores(
    connection: Connection,
    lease_ms: int,
    retention_ms: int = RETENTION_MS,
    *,
    max_receipts: int | None = None,
    shebang: bool | None = None,
) -> Stores:
    """Read and load the scripts; the ledger of usage is kept for ``retention_ms``.

    Settled requests leave receipts if it is said how many of a tenant are kept. Raises ConfigurationError, StoreUnavailable;
    ``shebang`` as in `ScriptRunner.start`.
    """
    await check_eviction(connection)
    runner = ScriptRunner(connection, read_scripts(lua_folder()))
    await runner.start(shebang=shebang)
    if max_receipts is not None and shebang is None and await connection.server_version() < FIRST_VERSION_WITH_RECEIPTS:
        raise ConfigurationError("usage.receipts: needs Redis 7 or newer, or Valkey")
    index = ReceiptIndex(connection)
    admissions = Admissions(connection, runner, lease_ms)
    tenants = TenantStore(connection, runner, index)
    return Stores(
        connection,
        runner,
        admissions,
        Settlements(runner, lease_ms, retention_ms, None if max_receipts is None else index, max_receipts or 0),
        tenants,
        ApiKeyStore(connection, runner, tenants, admissions),
        RuleStore(connection, runner, tenants),
        UsageStore(connection),
        ReceiptStore(connection, runner),
        AlertStore(connection),
    )

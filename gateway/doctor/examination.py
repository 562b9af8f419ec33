"""The whole examination, in the order in which it is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from gateway.config import Config
from gateway.doctor.configured import configured_findings
from gateway.doctor.finding import Finding, fail, ok, warn
from gateway.doctor.local import configuration_findings, file_findings, machine_findings
from gateway.doctor.store import store_findings
from gateway.errors import ConfigurationError, GatewayError
from gateway.registry import Registry
from gateway.secrets import Vault, parse_master_key
from gateway.store import EmbeddedServer, connect, describe, examine_store, sentinel_service


async def examine(config: Config, file: Path | None, clock: Callable[[], float] = time.time) -> list[Finding]:
    """Everything that is found about a configuration that could be read; ``file`` is where it came from. Writes nothing."""
    found = [*configuration_findings(config)]
    found += file_findings(config, file, datetime.fromtimestamp(clock(), UTC))
    found += machine_findings(config)
    registry, vault = None, None
    try:
        registry = Registry.load([Path(path) for path in config.plugins.paths])
        found.append(ok("plugins", ", ".join(registry.names())))
    except ConfigurationError as error:
        found.append(fail("plugins", str(error), "mend or remove it: the gateway does not start"))
    try:
        vault = _vault(config)
    except ConfigurationError as error:
        found.append(fail("secrets.master_key", str(error), "correct it: the gateway does not start"))
    found += await _store(config, registry, vault, clock)
    return found


async def _store(config: Config, registry: Registry | None, vault: Vault | None, clock: Callable[[], float]) -> list[Finding]:
    url = None
    if config.redis.is_embedded:
        url = await EmbeddedServer(config.redis.data_dir).running()
        if url is None:
            return [
                warn("store", f"{describe(config.redis)}: nobody runs it, so it was not asked", "run this beside the gateway")
            ]
    try:
        where = describe(config.redis)
        connection = connect(config.redis, url=url)
    except ConfigurationError as error:
        return [fail("store", str(error), "correct it: the gateway does not start")]
    found = []
    try:
        facts = await examine_store(connection, sentinel_service(config.redis), clock)
        found.append(ok("store", f"{where} answers"))
        found += store_findings(config, facts, embedded=config.redis.is_embedded)
        if registry is not None:
            found += [finding async for finding in configured_findings(connection, registry, vault)]
    except GatewayError as error:
        advice = "start it, or correct redis.*; the log says more"
        if await EmbeddedServer(config.redis.data_dir).running() is not None:
            advice = f"`gateway run --local` runs one of its own in {config.redis.data_dir}: asked with redis.url embedded"
        found.append(fail("store", f"{where} cannot be asked ({error.code})", advice))
    finally:
        await connection.close()
    return found


def _vault(config: Config) -> Vault | None:
    """None where the key is not in the configuration: then headers stay closed."""
    key = config.secrets.master_key
    return None if key is None else Vault(parse_master_key(key.get_secret_value()))

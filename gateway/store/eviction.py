"""What a server does when its memory is full: it must refuse, and never throw away what limits have counted or keys."""

from __future__ import annotations

import logging
import re
from typing import Any

from redis.exceptions import ResponseError

from gateway.errors import ConfigurationError
from gateway.store.connect import Connection
from gateway.store.failures import store_errors

_LOG = logging.getLogger("gateway.store")

WANTED = "noeviction"

_POLICY = re.compile(r"maxmemory_policy:(\S+)")


async def check_eviction(connection: Connection) -> None:
    """Raises ConfigurationError unless every primary refuses; where that cannot be read there is a line in the log.

    Also without ``maxmemory``, which may be set at any time. Raises StoreUnavailable.
    """
    if not (connection.is_cluster or connection.breakers()):
        return  # in this very process
    for primary in await connection.primaries():
        with store_errors():
            try:
                told = policy_in(await primary.execute_command("INFO", "memory"))
            except ResponseError:  # commands may be forbidden or missing
                told = None
        if told is None:
            _LOG.warning("the store at %s does not tell its maxmemory-policy; it must be %s", primary.name, WANTED)
        elif told != WANTED:
            raise ConfigurationError(
                f"redis: the server at {primary.name} evicts keys when its memory is full (maxmemory-policy {told}):"
                f" tenants and what limits have counted would be lost; set maxmemory-policy {WANTED} there"
            )


def policy_in(info: Any) -> str | None:
    """What the reply to INFO says, as redis-py parses it or as it came."""
    if isinstance(info, dict):
        return str(info["maxmemory_policy"]) if "maxmemory_policy" in info else None
    found = _POLICY.search(info.decode() if isinstance(info, bytes) else str(info))
    return found[1] if found else None

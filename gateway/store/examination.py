"""What a store says about itself, for `gateway doctor`. Asks what docs/redis.acl allows, changes nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from gateway.errors import StoreUnavailable
from gateway.store.connect import Connection, Node
from gateway.store.failures import store_errors
from gateway.store.keyspace import Keyspace, tenant_index
from gateway.store.permissions import NEEDED, SUPERFLUOUS

SAMPLES = 10
_SECTIONS = ("server", "clients", "memory", "persistence", "replication")
_NAMES_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Rights:
    """What a user may do. ``missing`` and ``superfluous`` are None where the server cannot be asked."""

    user: str
    missing: tuple[str, ...] | None
    superfluous: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One server. ``info`` as INFO tells it; ``skew_ms`` is how far its clock is ahead of ours, ``rights`` None if unknown."""

    name: str
    info: Mapping[str, Any]
    round_trips_ms: tuple[float, ...]
    skew_ms: float
    rights: Rights | None


@dataclass(frozen=True, slots=True)
class SentinelFacts:
    """One sentinel that answers and what it says of the primary; ``state`` is empty if it does not know the name."""

    name: str
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """``sentinels`` has None for each that does not answer; ``covered_slots`` is None without a cluster."""

    nodes: tuple[NodeFacts, ...]
    sentinels: tuple[SentinelFacts | None, ...]
    covered_slots: int | None


async def examine_store(connection: Connection, service: str = "", clock: Callable[[], float] = time.time) -> StoreFacts:
    """Ask every primary, and every sentinel for the ``service``. Raises StoreUnavailable, Overloaded."""
    sentinels = tuple([await _sentinel(client, service) for client in connection.sentinels])
    nodes = await connection.primaries()
    names = [node.name for node in connection.client.get_primaries()] if connection.is_cluster else [""]
    facts = tuple([await _node(node, name, clock) for node, name in zip(nodes, names, strict=True)])
    covered = None
    if connection.is_cluster:
        with store_errors():
            ranges = connection.client.nodes_manager.slots_cache
        covered = len(ranges)
    return StoreFacts(facts, sentinels, covered)


async def stored_documents(connection: Connection) -> AsyncIterator[tuple[str, bytes | None, dict[str, bytes]]]:
    """Each tenant's id, its document (None if it is gone) and its rules' by id, as stored. Raises StoreUnavailable."""
    position = "-"
    while True:
        with store_errors():
            names = await connection.client.zrangebylex(tenant_index(), position, "+", start=0, num=_NAMES_AT_ONCE)
        for name in names:
            tenant_id = name.decode()
            keyspace = Keyspace.of_tenant(tenant_id)
            with store_errors():
                document = (await connection.client.hmget(keyspace.tenant, ["document"]))[0]
                rules = await connection.client.hgetall(keyspace.rules)
            yield tenant_id, document, {rule_id.decode(): text for rule_id, text in rules.items()}
        if len(names) < _NAMES_AT_ONCE:
            return
        position = f"({names[-1].decode()}"


async def _node(node: Node, name: str, clock: Callable[[], float]) -> NodeFacts:
    info: dict[str, Any] = {}
    round_trips = []
    with store_errors():
        for section in _SECTIONS:
            info |= await node.execute_command("INFO", section)
        for _ in range(SAMPLES):
            began = time.perf_counter()
            await node.execute_command("PING")
            round_trips.append((time.perf_counter() - began) * 1_000)
        asked = clock()
        seconds, micros = await node.execute_command("TIME")
        there = int(seconds) + int(micros) / 1e6
        skew_ms = (there - (asked + clock()) / 2) * 1_000
    return NodeFacts(name, info, tuple(round_trips), skew_ms, await _rights(node))


async def _rights(node: Node) -> Rights | None:
    try:
        user = _text(await node.execute_command("ACL", "WHOAMI"))
    except RedisError:
        return None
    try:
        missing = [command for command, words in NEEDED.items() if not await _may(node, user, words)]
        superfluous = [what for what, words in SUPERFLUOUS.items() if await _may(node, user, words)]
    except RedisError:  # a server before 7, or a user who may not ask
        return Rights(user, None, None)
    return Rights(user, tuple(missing), tuple(superfluous))


async def _may(node: Node, user: str, words: tuple[str, ...]) -> bool:
    return _text(await node.execute_command("ACL", "DRYRUN", user, *words)) == "OK"


async def _sentinel(client: Any, service: str) -> SentinelFacts | None:
    known = client.connection_pool.connection_kwargs
    try:
        with store_errors():
            primaries = await client.sentinel_masters()
    except StoreUnavailable:
        return None
    return SentinelFacts(f"{known['host']}:{known['port']}", primaries.get(service, {}))


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)

"""Findings about the store."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.config import Config
from gateway.doctor.finding import Finding, fail, ok, warn
from gateway.store import NodeFacts, SentinelFacts, StoreFacts

MOST_SKEW_MS = 1_000.0
MOST_ROUND_TRIP_MS = 10.0
MOST_LAG_S = 10
MUCH_MEMORY = 0.8
TOO_MUCH_MEMORY = 0.95
ALL_SLOTS = 16_384
# The last number of each line from which on it is mended, and the line from which on everything is.
MENDED_REDIS: Mapping[tuple[int, int], int] = {(6, 2): 24, (7, 2): 16, (7, 4): 11, (8, 2): 9}
MENDED_VALKEY: Mapping[tuple[int, int], int] = {(7, 2): 11, (8, 0): 6, (8, 1): 4}


def store_findings(config: Config, facts: StoreFacts, *, embedded: bool) -> Iterator[Finding]:
    """Of what the store has told."""
    replicated = bool(facts.sentinels) or facts.covered_slots is not None
    for node in facts.nodes:
        subject = f"store {node.name}".strip()
        yield from _version(subject, node.info)
        yield _eviction(subject, node.info)
        yield from _persistence(subject, node.info)
        yield from _rights(subject, node, embedded=embedded)
        yield from _replicas(subject, node.info, expected=replicated)
        yield _clock(subject, node)
        yield _round_trip(subject, node, config.redis.command_timeout)
        if not embedded:
            yield _memory(subject, node.info)
            yield _clients(subject, node.info, config)
    if facts.sentinels:
        yield from _sentinels(facts.sentinels)
    if facts.covered_slots is not None:
        yield from _cluster(facts)


def _version(subject: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    valkey = info.get("valkey_version")
    name, text = ("Valkey", str(valkey)) if valkey else ("Redis", str(info.get("redis_version")))
    major, minor, patch = ([int(part) for part in re.findall(r"\d+", text)] + [0, 0, 0])[:3]
    mended = MENDED_VALKEY if valkey else MENDED_REDIS
    line = (major, minor)
    least = mended.get(line)
    if (least is not None and patch >= least) or line > max(mended):
        yield ok(subject, f"{name} {text}")
    elif least is not None:
        yield warn(
            subject,
            f"{name} {text} has known holes unless a distribution has mended it",
            f"upgrade to {major}.{minor}.{least} or later, or see that the package carries the fixes",
        )
    else:
        yield warn(
            subject,
            f"{name} {text} is of a line that gets no fixes from its project",
            "use a package that a distribution mends (Debian's 7.0.15-1~deb12u10 or later), or a line in support",
        )


def _eviction(subject: str, info: Mapping[str, Any]) -> Finding:
    policy = info.get("maxmemory_policy")
    if policy == "noeviction":
        return ok(subject, "maxmemory-policy noeviction")
    return fail(subject, f"maxmemory-policy {policy}: limits, keys and tenants may vanish", "set maxmemory-policy noeviction")


def _persistence(subject: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    if info.get("loading"):
        yield fail(subject, "is loading its data", "wait until it has")
    if info.get("aof_enabled"):
        if info.get("aof_last_write_status") != "ok" or info.get("aof_last_bgrewrite_status") != "ok":
            yield fail(subject, "cannot write its append-only file", "look for a full or failing disk in the server's log")
        else:
            yield ok(subject, "append-only file on")
    elif info.get("rdb_last_bgsave_status") != "ok":
        yield fail(subject, "its last snapshot failed, and the append-only file is off", "look into the server's log")
    else:
        yield warn(subject, "the append-only file is off: a crash forgets limits and what was configured", "set appendonly yes")


def _rights(subject: str, node: NodeFacts, *, embedded: bool) -> Iterator[Finding]:
    rights = node.rights
    if embedded:
        yield ok(subject, "reached over a socket that only this user can open")
    elif rights is not None and rights.user == "default":
        yield warn(subject, "the gateway is the user `default`", "give it one of its own, see docs/redis.acl")
    elif rights is None or rights.missing is None or rights.superfluous is None:
        yield warn(
            subject,
            "the server does not tell what the gateway's user may do",
            "allow +acl|whoami +acl|dryrun (Redis 7 or later)",
        )
    else:
        if rights.missing:
            told = ", ".join(rights.missing)
            yield fail(subject, f"the user {rights.user} may not run {told}", "take its line from docs/redis.acl")
        if rights.superfluous:
            told = ", ".join(rights.superfluous)
            yield warn(
                subject, f"the user {rights.user} may do more than it needs: {told}", "take its line from docs/redis.acl"
            )
        if not rights.missing and not rights.superfluous:
            yield ok(subject, f"the user {rights.user} may do what it needs and nothing that is dangerous")


def _replicas(subject: str, info: Mapping[str, Any], *, expected: bool) -> Iterator[Finding]:
    if info.get("role") != "master":
        yield fail(subject, "is a replica, which takes no writes", "name the primary, or use redis+sentinel://")
        return
    replicas = [value for name, value in info.items() if re.fullmatch(r"slave\d+", name) and isinstance(value, Mapping)]
    if not replicas and expected:
        yield warn(subject, "has no replica, so nothing can replace it", "connect one")
    for replica in replicas:
        where = f"{replica.get('ip')}:{replica.get('port')}"
        lag_s = int(replica.get("lag", 0))
        if replica.get("state") != "online":
            yield warn(subject, f"its replica {where} is {replica.get('state')}", "wait, or look into the replica's log")
        elif lag_s > MOST_LAG_S:
            yield warn(subject, f"its replica {where} was last heard {lag_s} s ago", "look at the replica and the network")
        else:
            behind = int(info.get("master_repl_offset", 0)) - int(replica.get("offset", 0))
            yield ok(subject, f"its replica {where} is online, {max(behind, 0)} bytes behind")


def _clock(subject: str, node: NodeFacts) -> Finding:
    if abs(node.skew_ms) > MOST_SKEW_MS:
        way = "ahead of" if node.skew_ms > 0 else "behind"
        return warn(
            subject,
            f"its clock is {abs(node.skew_ms) / 1_000:.1f} s {way} this machine's",
            "synchronise both (NTP); periods are the store's",
        )
    return ok(subject, f"its clock is this machine's within {MOST_SKEW_MS / 1_000:.0f} s")


def _round_trip(subject: str, node: NodeFacts, deadline_ms: int) -> Finding:
    median, worst = statistics.median(node.round_trips_ms), max(node.round_trips_ms)
    told = f"a round trip takes {median:.1f} ms, at worst {worst:.1f} of {len(node.round_trips_ms)}"
    if median > MOST_ROUND_TRIP_MS or worst > deadline_ms / 2:
        return warn(subject, told, "every request waits for one: bring store and gateway together")
    return ok(subject, told)


def _memory(subject: str, info: Mapping[str, Any]) -> Finding:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    told = f"uses {used / 2**20:.0f} MiB"
    if not most:
        return warn(
            subject, f"{told}, and maxmemory is unset", "set maxmemory below what the machine has: a killed server helps nobody"
        )
    told += f" of {most / 2**20:.0f}"
    if used > TOO_MUCH_MEMORY * most:
        return fail(subject, f"{told}: soon it refuses writes, and requests are 503", "raise maxmemory")
    if used > MUCH_MEMORY * most:
        return warn(subject, told, "raise maxmemory")
    return ok(subject, told)


def _clients(subject: str, info: Mapping[str, Any], config: Config) -> Finding:
    most, now = int(info.get("maxclients", 0)), int(info.get("connected_clients", 0))
    own = config.server.workers * (config.redis.pool_size + 2)
    told = f"{now} of {most} clients connected; a replica of the gateway opens up to {own}"
    if not most:
        return ok(subject, f"{now} clients connected")
    if own > most:
        return fail(subject, told, "raise maxclients, or lower redis.pool_size")
    if now + own > most:
        return warn(subject, told, "raise maxclients, or lower redis.pool_size")
    return ok(subject, told)


def _sentinels(sentinels: tuple[SentinelFacts | None, ...]) -> Iterator[Finding]:
    subject = "sentinels"
    answering = [one for one in sentinels if one is not None]
    if len(answering) < len(sentinels):
        yield warn(subject, f"{len(sentinels) - len(answering)} of {len(sentinels)} do not answer", "start or correct them")
    primaries = {(one.state.get("ip"), one.state.get("port")) for one in answering}
    if len(primaries) > 1:
        yield fail(subject, "do not agree who is the primary", "look at the network between them")
    for one in answering:
        if not one.state:
            yield fail(subject, f"{one.name} does not know that name", "correct redis.url, or its sentinel monitor")
            continue
        flags = str(one.state.get("flags"))
        known, quorum = int(one.state.get("num-other-sentinels", 0)) + 1, int(one.state.get("quorum", 0))
        if "down" in flags:
            yield fail(subject, f"{one.name} takes the primary for down ({flags})", "look at the primary")
        elif known < 3 or quorum <= known // 2:
            yield warn(
                subject, f"{one.name} knows {known} with a quorum of {quorum}", "run three or more and let most of them agree"
            )
        else:
            yield ok(subject, f"{one.name} knows {known} with a quorum of {quorum}")


def _cluster(facts: StoreFacts) -> Iterator[Finding]:
    covered = facts.covered_slots or 0
    if covered < ALL_SLOTS:
        yield fail("cluster", f"{ALL_SLOTS - covered} slots are nobody's", "redis-cli --cluster fix")
    elif len(facts.nodes) < 3:
        yield warn("cluster", f"{len(facts.nodes)} primaries cannot outvote a lost one", "run three or more")
    else:
        yield ok("cluster", f"{len(facts.nodes)} primaries have all slots")

"""lib/identity.lua, through admit.lua and validate_key.lua: which tenant, which key, which configuration."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gate import DIGEST, NOON, REVISION, VERSION, Gate, log
from tests.stores import dump

STALE_ALL = [b"stale", VERSION.encode(), b"{tenant}", REVISION.encode(), b"{key}", b""]


@pytest.fixture(params=["admit", "validate_key"])
def script(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def asked(
    script: str, gate: Gate, *, version: str = VERSION, revision: str = REVISION, digest: str = DIGEST, now: int = NOON
) -> list[Any]:
    """The reply; of admitted and valid only the word."""
    if script == "admit":
        reply = await gate.ask([log(1_000)], now, version=version, revision=revision, digest=digest)
        return [b"good"] if reply[0] == b"admitted" else reply
    names = gate.keyspace
    keys = [names.tenant, names.rules, names.api_key(digest)]
    reply = await gate.stores.runner.call("validate_key", keys, [version, revision, str(now)])
    return [b"good"] if reply == [b"valid", now] else reply


async def change(gate: Gate, **fields: str) -> None:
    await gate.stores.connection.client.hset(gate.keyspace.api_key(DIGEST), mapping=fields)


async def test_a_known_tenant_and_key_pass(gate: Gate, script: str):
    assert await asked(script, gate) == [b"good"]


async def test_a_tenant_that_does_not_exist_is_unknown_whatever_the_key(gate: Gate, script: str):
    assert await asked(script, Gate(gate.stores, "nobody")) == [b"unknown_tenant"]
    assert await asked(script, Gate(gate.stores, "nobody"), digest="0" * 64) == [b"unknown_tenant"]


async def test_a_key_that_does_not_exist_is_invalid(gate: Gate, script: str):
    assert await asked(script, gate, digest="0" * 64) == [b"invalid_key"]


async def test_a_key_of_another_tenant_is_invalid(gate: Gate, script: str):
    other = Gate(gate.stores, "other")
    await other.prepare()
    await other.stores.connection.client.delete(other.keyspace.api_key(DIGEST))
    assert await asked(script, other) == [b"invalid_key"]
    assert await asked(script, gate) == [b"good"]


@pytest.mark.parametrize("status", ["revoked", "", "Active", "suspended"])
async def test_a_key_of_any_other_status_is_invalid(gate: Gate, script: str, status: str):
    await change(gate, status=status)
    assert await asked(script, gate) == [b"invalid_key"]
    assert await asked(script, gate, version="", revision="") == [b"invalid_key"]


@pytest.mark.parametrize("field", ["expires_ms", "grace_ends_ms"])
async def test_a_key_ends_at_the_millisecond_of_its_end(gate: Gate, script: str, field: str):
    await change(gate, **{field: str(NOON)})
    assert await asked(script, gate, now=NOON - 1) == [b"good"]
    assert await asked(script, gate, now=NOON) == [b"invalid_key"]
    assert await asked(script, gate, now=NOON + 1) == [b"invalid_key"]


async def test_a_key_ends_with_whichever_end_comes_first(gate: Gate, script: str):
    await change(gate, expires_ms=str(NOON + 10), grace_ends_ms=str(NOON + 20))
    assert await asked(script, gate, now=NOON + 9) == [b"good"]
    assert await asked(script, gate, now=NOON + 10) == [b"invalid_key"]
    await change(gate, expires_ms=str(NOON + 30))
    assert await asked(script, gate, now=NOON + 20) == [b"invalid_key"]


async def test_an_empty_end_is_none(gate: Gate, script: str):
    await change(gate, expires_ms="", grace_ends_ms="")
    assert await asked(script, gate) == [b"good"]


async def test_a_suspended_tenant_is_told_to_its_own_keys_only(gate: Gate, script: str):
    await gate.stores.connection.client.hset(gate.keyspace.tenant, "status", "suspended")
    assert await asked(script, gate) == [b"suspended"]
    assert await asked(script, gate, version="") == [b"suspended"]
    assert await asked(script, gate, digest="0" * 64) == [b"invalid_key"]


async def test_who_knows_nothing_is_told_everything(gate: Gate, script: str):
    assert await asked(script, gate, version="", revision="") == STALE_ALL
    await gate.stores.connection.client.hset(gate.keyspace.rules, mapping={"rule_1": "{one}", "rule_2": "{two}"})
    told = await asked(script, gate, version="older", revision="older")
    assert told[:6] == STALE_ALL
    assert sorted(told[6:]) == [b"{one}", b"{two}"]


async def test_who_knows_the_configuration_is_told_the_key_alone(gate: Gate, script: str):
    await gate.stores.connection.client.hset(gate.keyspace.rules, "rule_1", "{one}")
    assert await asked(script, gate, revision="older") == [b"stale", b"v1", b"", b"r1", b"{key}", b""]


async def test_who_knows_the_key_is_told_the_configuration_alone(gate: Gate, script: str):
    await gate.stores.connection.client.hset(gate.keyspace.rules, "rule_1", "{one}")
    assert await asked(script, gate, version="older") == [b"stale", b"v1", b"{tenant}", b"r1", b"", b"", b"{one}"]


async def test_a_stale_caller_changes_nothing(gate: Gate, script: str):
    before = await dump(gate.stores.connection)
    await asked(script, gate, version="older")
    await asked(script, gate, revision="older")
    await asked(script, gate, digest="0" * 64)
    assert await dump(gate.stores.connection) == before


async def test_validating_never_writes(gate: Gate):
    before = await dump(gate.stores.connection)
    assert await asked("validate_key", gate) == [b"good"]
    assert await dump(gate.stores.connection) == before


async def test_last_use_is_noted_at_most_once_a_minute(gate: Gate):
    async def used() -> bytes | None:
        noted: bytes | None = await gate.stores.connection.client.hget(gate.keyspace.api_key(DIGEST), "used_ms")
        return noted

    for limits in ([], [log(1_000)]):
        start = NOON + 3_600_000 * len(limits)
        for later, noted in ((0, 0), (59_999, 0), (60_000, 60_000), (100_000, 60_000)):
            await gate.ask(limits, start + later)
            assert await used() == str(start + noted).encode()


async def test_a_refused_request_is_no_use_of_the_key(gate: Gate):
    await gate.ask([log(1)], NOON)
    await gate.ask([log(1)], NOON + 59_000)
    before = await dump(gate.stores.connection)
    assert (await gate.ask([log(1, 600_000), log(0, name="b")], NOON + 120_000))[0] == b"limited"
    assert await dump(gate.stores.connection) == before

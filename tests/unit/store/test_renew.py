"""renew.lua: what a request holds stays held while it is in flight, and no longer."""

from __future__ import annotations

import pytest

from gateway.errors import InternalError, StoreUnavailable
from gateway.models import LimitKind, LimitSpec
from gateway.resources import lua_folder
from gateway.store import BoundLimit, Held, Settlements, connect, limit_of, place_limit
from gateway.store.script_source import read_scripts
from gateway.store.scripts import ScriptRunner
from tests.gate import NOON, RETENTION_MS, Gate, concurrency, log
from tests.servers import Server
from tests.stores import LEASE_MS, dump, keys_without_end, opened, patient

LIMITS = [concurrency(1)]


async def test_a_renewed_place_is_held_for_another_lease_and_not_a_millisecond_longer(gate: Gate):
    await gate.admit(LIMITS, NOON, admission="one")
    assert await gate.renew(LIMITS, NOON + 20_000, "one") == "renewed"
    assert not (await gate.admit(LIMITS, NOON + 20_000 + LEASE_MS - 1)).admitted
    assert (await gate.admit(LIMITS, NOON + 20_000 + LEASE_MS)).admitted


async def test_a_renewed_admission_can_still_be_settled_and_takes_its_charge_back(gate: Gate):
    limits = [*LIMITS, log(2, 600_000)]
    await gate.admit(limits, NOON, admission="one")
    await gate.stores.connection.client.pexpire(gate.keyspace.marker("one"), 1_000)
    await gate.renew(LIMITS, NOON + 50_000, "one")
    assert await gate.stores.connection.client.pttl(gate.keyspace.marker("one")) > LEASE_MS - 1_000
    assert await gate.cancel(limits, NOON + 90_000, "one") == "settled"
    assert [state.used for state in (await gate.admit(limits, NOON + 90_000)).states] == [1, 1]


async def test_a_settled_admission_is_not_renewed(gate: Gate):
    await gate.admit(LIMITS, NOON, admission="one")
    await gate.settle(LIMITS, NOON, "one")
    before = await dump(gate.stores.connection)
    assert await gate.renew(LIMITS, NOON, "one") == "settled_before"
    assert await dump(gate.stores.connection) == before


async def test_what_a_failover_lost_is_there_again_after_a_renewal(gate: Gate):
    client = gate.stores.connection.client
    await gate.admit(LIMITS, NOON, admission="one")
    await client.delete(gate.keyspace.marker("one"), gate.keyspace.clock, LIMITS[0].key)
    assert await gate.renew(LIMITS, NOON + 20_000, "one") == "renewed"
    assert await client.get(gate.keyspace.marker("one")) == f"A {NOON} {NOON + 78_000}".encode()
    assert not (await gate.admit(LIMITS, NOON + 20_001)).admitted
    assert await gate.settle(LIMITS, NOON + 20_002, "one") == "settled"
    assert (await gate.admit(LIMITS, NOON + 20_003)).admitted


async def test_a_shadow_limit_that_would_have_refused_is_not_held_by_a_renewal(gate: Gate):
    shadow = [concurrency(1, shadow=True)]
    await gate.admit(shadow, NOON, admission="one")
    await gate.admit(shadow, NOON, admission="over")
    await gate.renew(shadow, NOON + 1, "over")
    assert await gate.stores.connection.client.zrange(shadow[0].key, 0, -1) == [b"one"]


async def test_a_renewal_while_the_clock_is_held_counts_from_the_held_time(gate: Gate):
    await gate.admit(LIMITS, NOON, admission="one")
    await gate.renew(LIMITS, NOON - 4_000, "one")
    assert not (await gate.admit(LIMITS, NOON + LEASE_MS - 1)).admitted


async def test_limits_that_hold_nothing_are_left_alone(gate: Gate):
    await gate.admit([log(5)], NOON, admission="one")
    before = (await dump(gate.stores.connection))[log(5).key.encode()]
    assert await gate.renew([log(5)], NOON + 1, "one") == "renewed"
    assert (await dump(gate.stores.connection))[log(5).key.encode()] == before


async def test_several_places_of_one_admission_are_renewed_together(gate: Gate):
    limits = [concurrency(3)]
    await gate.admit(limits, NOON, cost=2, admission="dear")
    await gate.renew(limits, NOON + 20_000, "dear", cost=2)
    assert await gate.drain(limits, NOON + LEASE_MS) == 1


async def test_a_renewal_of_what_is_nowhere_leaves_nothing_without_end(gate: Gate):
    kept = await keys_without_end(gate.stores.connection)
    await gate.renew(LIMITS, NOON, "one")
    assert await keys_without_end(gate.stores.connection) == kept


# Through the store


def held(gate: Gate, name: str, owner: str = "rule_1") -> Held:
    spec = LimitSpec("flying", LimitKind.CONCURRENCY, 9, ("rule",), unit="concurrency")
    placed = place_limit(gate.keyspace, "ten_1", owner, spec, 0, ())
    return Held(gate.keyspace, name, NOON, (BoundLimit(placed, limit_of(placed.key, [])),))


async def test_many_admissions_are_renewed_in_one_round_trip_whatever_the_server_has_forgotten(gate: Gate):
    many = [held(gate, f"id{number}") for number in range(50)]
    client = gate.stores.connection.client
    await gate.settle([], NOON, "id7")
    for _ in range(2):
        await client.script_flush()
        await gate.stores.settlements.renew(many)
        assert await client.zcard(many[0].limits[0].key) == 49


async def test_what_cannot_be_renewed_is_told_and_the_rest_is_renewed(gate: Gate):
    client = gate.stores.connection.client
    broken, good = held(gate, "one", owner="rule_2"), held(gate, "two")
    await client.set(broken.limits[0].key, "no set of slots")
    with pytest.raises(InternalError):
        await gate.stores.settlements.renew([broken, good])
    assert await client.zcard(good.limits[0].key) == 1


async def test_one_renewal_of_many_is_one_script_call_each_and_no_more(real_server: Server):
    async with opened(real_server) as stores:
        gate = await Gate(stores).prepare()
        await stores.connection.client.config_resetstat()
        await stores.settlements.renew([held(gate, f"id{number}") for number in range(20)])
        stats = await stores.connection.client.info("commandstats")
        assert stats["cmdstat_evalsha"]["calls"] == 20
        assert "cmdstat_eval" not in stats


async def test_a_server_that_does_not_answer_is_told_as_such(gate: Gate):
    nowhere = connect(patient("redis://127.0.0.1:1"))
    settlements = Settlements(ScriptRunner(nowhere, read_scripts(lua_folder())), LEASE_MS, RETENTION_MS)
    with pytest.raises(StoreUnavailable):
        await settlements.renew([held(gate, "one")])
    await nowhere.close()

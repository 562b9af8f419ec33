"""lib/ledger.lua and seed_budget.lua: what settlement records, once, and what a lost budget is told from it."""

from __future__ import annotations

import pytest

from gateway.store import Settlement, Used
from tests.gate import DAY, LEDGER, NOON, RETENTION_MS, Gate, budget, log, ms
from tests.stores import dump, keys_without_end

ROW = "key_1:rule_1:"


async def ledger(gate: Gate) -> dict[str, int]:
    found = await gate.stores.connection.client.hgetall(LEDGER)
    return {name.decode(): int(value) for name, value in found.items()}


async def test_a_settled_request_is_recorded_once(gate: Gate):
    await gate.admit([log(5)], NOON, admission="one")
    for word in ("settled", "settled_before", "settled_before"):
        assert await gate.settle([], NOON, "one", row=ROW, model="gpt-4o", amounts=(1, 2, 3, 4, 5)) == word
        assert await ledger(gate) == {f"{metric}:{ROW}gpt-4o": n for metric, n in zip("riocu", range(1, 6), strict=True)}


async def test_rows_add_up_and_amounts_of_nothing_take_no_field(gate: Gate):
    for number in range(4):
        await gate.settle([], NOON, f"n{number}", admitted=NOON, row=ROW, model="m:" if number else "", amounts=(1, 0, 7, 0, 0))
    assert await ledger(gate) == {f"r:{ROW}": 1, f"o:{ROW}": 7, f"r:{ROW}m:": 3, f"o:{ROW}m:": 21}


async def test_amounts_beyond_a_lua_number_stay_exact(gate: Gate):
    large = 2**53 + 1
    for number in range(2):
        await gate.settle([], NOON, f"n{number}", admitted=NOON, row=ROW, amounts=(1, 0, 0, 0, large))
    assert (await ledger(gate))[f"u:{ROW}"] == 2 * large


async def test_a_request_without_limits_has_no_marker_and_is_recorded_all_the_same(gate: Gate):
    assert await gate.settle([], NOON, "one", row=ROW, admitted=NOON - 50_000) == "settled"
    assert await gate.settle([], NOON, "one", row=ROW, admitted=NOON - 50_000) == "settled_before"
    assert await ledger(gate) == {f"r:{ROW}": 1}


async def test_what_was_never_admitted_or_has_nothing_to_record_leaves_the_ledger_alone(gate: Gate):
    assert await gate.settle([], NOON, "one", row=ROW) == "not_admitted"
    assert await gate.settle([], NOON, "two", admitted=NOON) == "settled"
    assert await ledger(gate) == {}


async def test_the_ledger_is_kept_as_long_as_it_is_told(gate: Gate):
    client, kept = gate.stores.connection.client, await keys_without_end(gate.stores.connection)
    await gate.settle([], NOON, "one", admitted=NOON, row=ROW)
    assert RETENTION_MS - 5_000 < await client.pttl(LEDGER) <= RETENTION_MS
    await client.pexpire(LEDGER, 1_000_000)
    await gate.settle([], NOON, "two", admitted=NOON, row=ROW)
    assert await client.pttl(LEDGER) <= 1_000_000
    await gate.settle([], NOON, "three", admitted=NOON, row=ROW, model="new")
    assert await client.pttl(LEDGER) > RETENTION_MS - 5_000
    assert await keys_without_end(gate.stores.connection) == kept


async def test_clients_cannot_make_the_ledger_grow_without_end(gate: Gate):
    client = gate.stores.connection.client
    await client.hset(LEDGER, mapping={f"r:k:r:{number}": "1" for number in range(19_999)})
    for name in ("last", "beyond", "further", "last"):
        await gate.settle([], NOON, f"{name}{await client.hlen(LEDGER)}", admitted=NOON, row=ROW, model=name)
        await gate.settle([], NOON, f"{name}{await client.hlen(LEDGER)} again", admitted=NOON, row=ROW, model=name)
    found = {name: count for name, count in (await ledger(gate)).items() if ROW in name}
    assert found == {f"r:{ROW}last": 4, f"r:{ROW}(other)": 4}


async def test_the_store_records_on_the_day_of_the_admission(gate: Gate):
    late = ms(2026, 3, 10) + DAY - 1
    used = Used("ten_1", "key_1", "rule_1", "gpt-4o", 1, 2, 3, 4, 5)
    one = Settlement(gate.keyspace, "one", late, (), used)
    assert await gate.stores.settlements.settle([one, one]) == [None, None]
    assert await ledger(gate) == {f"{metric}:{ROW}gpt-4o": n for metric, n in zip("riocu", range(1, 6), strict=True)}


# Budgets that the store has lost


async def test_a_budget_without_a_count_is_asked_for_before_anything_is_decided(gate: Gate):
    wanted, other = budget(5, burst=1), budget(5, name="b")
    before = await dump(gate.stores.connection)
    assert await gate.ask([log(1), wanted, other, budget(9, "month", burst=1)], NOON) == [b"unseeded", NOON, 2, 4]
    assert await dump(gate.stores.connection) == before
    assert await gate.seed([wanted], NOON, 3) == 1
    assert (await gate.admit([wanted], NOON)).state.used == 4
    await gate.stores.connection.client.delete(wanted.key)
    assert (await gate.ask([wanted], NOON))[0] == b"unseeded"


async def test_a_spent_budget_that_was_lost_still_refuses(gate: Gate):
    limit = budget(5, burst=1)
    await gate.seed([limit], NOON, 5)
    assert not (await gate.admit([limit], NOON)).admitted


async def test_what_the_store_knows_is_not_seeded_again(gate: Gate):
    limits = [budget(5), budget(50, "month")]
    await gate.admit([limits[0]], NOON, 2)
    assert await gate.seed(limits, NOON, 4) == 1
    assert [state.used for state in (await gate.peek(limits, NOON)).states] == [2, 4]


async def test_a_seed_of_a_period_that_has_ended_counts_for_nothing(gate: Gate):
    await gate.seed([budget(5, burst=1)], NOON - DAY, 4)
    assert (await gate.admit([budget(5, burst=1)], NOON)).state.used == 1


async def test_a_repeated_request_does_not_ask_for_a_count(gate: Gate):
    limit = budget(5, burst=1)
    await gate.seed([limit], NOON, 0)
    await gate.admit([limit], NOON, admission="one")
    await gate.stores.connection.client.delete(limit.key)
    assert (await gate.ask([limit], NOON, admission="one"))[0] == b"replayed"


@pytest.mark.parametrize("period", ["day", "month"])
async def test_a_seeded_budget_has_an_end(gate: Gate, period: str):
    kept = await keys_without_end(gate.stores.connection)
    await gate.seed([budget(5, period)], NOON, 4)
    assert await keys_without_end(gate.stores.connection) == kept

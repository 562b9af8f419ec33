"""settle.lua as it is used for unit costs: a cancelled admission takes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gate import NOON, Gate, Limit, bucket, budget, log
from tests.stores import dump

LIMITS = [log(5), bucket(60, burst=5), budget(5), budget(50, "month")]


async def contents(gate: Gate, limits: list[Limit]) -> dict[str, Any]:
    found = await dump(gate.stores.connection)
    return {limit.key: found[limit.key.encode()][0] for limit in limits}


@pytest.mark.parametrize("cost", [1, 3])
async def test_cancelling_puts_every_limit_back_where_it_was(gate: Gate, cost: int):
    await gate.admit(LIMITS, NOON)
    before = await contents(gate, LIMITS)
    assert (await gate.admit(LIMITS, NOON, cost, "one")).admitted
    assert await contents(gate, LIMITS) != before
    assert await gate.cancel(LIMITS, NOON, "one", amount=cost) == "settled"
    assert await contents(gate, LIMITS) == before


async def test_cancelling_twice_is_cancelling_once(gate: Gate):
    for name in ("one", "two"):
        await gate.admit(LIMITS, NOON, admission=name)
    assert await gate.cancel(LIMITS, NOON, "one") == "settled"
    before = await dump(gate.stores.connection)
    for later in (0, 10, 100_000):
        assert await gate.cancel(LIMITS, NOON + later, "one") == "settled_before"
    assert await dump(gate.stores.connection) == before
    assert (await gate.admit(LIMITS, NOON)).states[0].used == 2


async def test_a_settled_admission_is_not_replayed(gate: Gate):
    await gate.admit(LIMITS, NOON, admission="one")
    await gate.cancel(LIMITS, NOON, "one")
    assert await gate.ask(LIMITS, NOON, admission="one") == [b"settled"]


async def test_only_the_named_limits_give_back(gate: Gate):
    await gate.admit(LIMITS, NOON, admission="one")
    assert await gate.cancel([LIMITS[2], LIMITS[1]], NOON, "one") == "settled"
    assert [state.used for state in (await gate.admit(LIMITS, NOON)).states] == [2, 1, 1, 2]


async def test_a_second_cancel_for_the_other_limits_comes_too_late(gate: Gate):
    await gate.admit(LIMITS, NOON, admission="one")
    await gate.cancel([LIMITS[0]], NOON, "one")
    assert await gate.cancel([LIMITS[2]], NOON, "one") == "settled_before"
    assert [state.used for state in (await gate.admit(LIMITS, NOON)).states] == [1, 2, 2, 2]


async def test_cancelling_what_was_never_admitted_leaves_only_the_void_marker(gate: Gate):
    await gate.admit(LIMITS, NOON)
    before = await dump(gate.stores.connection)
    assert await gate.cancel(LIMITS, NOON, "unseen") == "not_admitted"
    after = await dump(gate.stores.connection)
    assert after.keys() - before.keys() == {gate.keyspace.marker("unseen").encode()}
    assert {key: after[key] for key in before} == before


async def test_a_shadow_limit_that_counted_nothing_gives_nothing_back(gate: Gate):
    shadows = [log(1, shadow=True), bucket(1, 3_600_000, burst=1, shadow=True), budget(1, shadow=True)]
    assert (await gate.admit([*shadows, log(9, name="real")], NOON)).admitted
    before = await contents(gate, shadows)
    over = await gate.admit([*shadows, log(9, name="real")], NOON, admission="over")
    assert [state.refuses for state in over.states] == [1, 1, 1, 0]
    assert await gate.cancel([*shadows, log(9, name="real")], NOON, "over") == "settled"
    assert await contents(gate, shadows) == before
    assert [state.used for state in (await gate.admit([*shadows, log(9, name="real")], NOON)).states] == [1, 1, 1, 2]


async def test_a_shadow_limit_that_counted_gives_back(gate: Gate):
    shadows = [log(1, shadow=True), log(1, shadow=True, name="full")]
    await gate.admit([shadows[1]], NOON)
    await gate.admit(shadows, NOON, admission="one")
    await gate.cancel(shadows, NOON, "one")
    assert [state.used for state in (await gate.admit(shadows, NOON)).states] == [1, 1]


async def test_a_limit_that_was_declared_after_the_admission_gives_back_nothing_it_does_not_have(gate: Gate):
    await gate.admit([log(5)], NOON, admission="one")
    assert await gate.cancel([log(5), log(5, name="new"), budget(5, name="new")], NOON, "one") == "settled"
    assert not await gate.stores.connection.client.exists(log(5, name="new").key, budget(5, name="new").key)


async def test_a_cancel_while_the_clock_is_held_counts_from_the_held_time(gate: Gate):
    limits = [bucket(1, 1_000, burst=2)]
    await gate.admit(limits, NOON)
    await gate.admit(limits, NOON + 400, admission="one")
    await gate.cancel(limits, NOON - 4_000, "one")
    decision = await gate.admit(limits, NOON + 400)
    assert (decision.state.used, decision.state.reset) == (2, 1_600)

"""peek.lua: what limits would say, without counting anything."""

from tests.gate import NOON, Gate, State, bucket, budget, concurrency, log, ring

ALL = [log(3), ring(3), bucket(3, burst=3), budget(3), concurrency(3)]


async def everything(gate: Gate):
    client = gate.stores.connection.client
    return {name: (await client.type(name), await client.dump(name)) for name in await client.keys("*")}


async def test_looking_says_what_an_admission_would_and_writes_nothing(gate: Gate):
    for used in range(4):
        before = await everything(gate)
        seen = await gate.peek(ALL, NOON)
        assert await everything(gate) == before
        decision = await gate.admit(ALL, NOON)
        assert [state.refuses for state in seen.states] == [int(used == 3)] * 5
        if used < 3:
            assert [state.used + 1 for state in seen.states] == [state.used for state in decision.states]
        else:
            assert seen.states == decision.states


async def test_what_nobody_has_used_is_all_there(gate: Gate):
    assert (await gate.peek([log(3)], NOON)).state == State(0, 0, 3, 0, 0)


async def test_looking_holds_the_clock_as_an_admission_does(gate: Gate):
    await gate.admit([log(1)], NOON)
    assert (await gate.peek([log(1)], NOON - 5_000)).now == NOON

"""How long a refusal says to wait is tight for any limits after any traffic: refused a millisecond before, admitted then."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gate import DAY, NOON, Decision, Gate, Limit, bucket, budget, concurrency, log, ms, ring
from tests.periods import ABROAD
from tests.stores import LEASE_MS

MOST = 12
NEVER, UNKNOWN = -1, -2

amounts = st.integers(1, MOST)
windows = st.one_of(st.sampled_from([100, 997, 1_000, 60_000, DAY, 31 * DAY]), st.integers(100, 100_000))
KINDS = {
    "log": st.builds(log, amounts, windows),
    "ring": st.builds(ring, amounts, windows),
    "bucket": st.builds(bucket, st.integers(1, 50), windows, burst=amounts),
    "day": st.builds(budget, amounts, st.just("day")),
    "week": st.builds(budget, amounts, st.just("week")),
    "month": st.builds(budget, amounts, st.just("month")),
    "abroad": st.builds(budget, amounts, st.sampled_from(["day", "week", "month"]), zone=st.sampled_from(ABROAD)),
    "concurrency": st.builds(concurrency, st.integers(1, 4)),
}
WAITING = [name for name in KINDS if name != "concurrency"]
# beside ordinary moments those shortly before a day or a month ends, and before the clocks of Beirut change at midnight
STARTS = [NOON, NOON + 12 * 3_600_000 - 50, ms(2026, 3, 31, 23, 59, 59), ms(2028, 2, 28, 23, 59, 59), ms(2026, 12, 31, 23, 59)]
STARTS += [ms(2026, 3, 28, 21, 59, 59), ms(2026, 10, 24, 20, 59, 59), ms(2026, 10, 24, 21, 30)]


@dataclass(frozen=True)
class Visit:
    """A request of the traffic; ``actual`` is what it turns out to cost when it is settled, None for never settled."""

    after_ms: int
    cost: int
    actual: int | None


@dataclass(frozen=True)
class Scene:
    """Limits, the traffic they have seen, and the cost of the request that asks until it is refused."""

    limits: list[Limit]
    start: int
    traffic: list[Visit]
    cost: int


def capacity(limit: Limit) -> int:
    return limit.burst if limit.kind == "bucket" else limit.limit


@st.composite
def scenes(draw: st.DrawFn, kinds: st.SearchStrategy[list[str]]) -> Scene:
    """Limits of these kinds; beside several perhaps a shadow limit, which nobody waits for."""
    drawn = [draw(KINDS[kind]) for kind in draw(kinds)]
    if len(drawn) > 1 and draw(st.booleans()):
        drawn.append(draw(st.builds(log, st.integers(1, 3), windows, shadow=st.just(True))))
    limits = [_named(limit, f"n{number}") for number, limit in enumerate(drawn)]
    window = draw(st.sampled_from(limits)).extent
    # so that several requests are in one window, in different parts of it
    steps = st.one_of(st.sampled_from([0, 0, 1]), st.integers(0, (window if isinstance(window, int) else DAY) // 4))
    visits = st.builds(Visit, steps, st.integers(1, 4), st.one_of(st.none(), st.none(), st.integers(0, 6)))
    possible = st.integers(1, min(map(capacity, limits)))
    cost = draw(st.one_of(possible, possible, amounts))
    return Scene(limits, draw(st.sampled_from(STARTS)), draw(st.lists(visits, max_size=6)), cost)


def several(*always: str) -> st.SearchStrategy[list[str]]:
    """Two to four kinds, with these among them."""
    others = st.lists(st.sampled_from(WAITING), min_size=2 - len(always), max_size=4 - len(always))
    return others.flatmap(lambda kinds: st.permutations([*kinds, *always]))


def _named(limit: Limit, name: str) -> Limit:
    return replace(limit, name=name)


@dataclass
class Stage:
    """A scene that is played: its tenant, the moment, and what is in flight (id → end of the lease and cost)."""

    gate: Gate
    scene: Scene
    now: int
    flying: dict[str, tuple[int, int]]

    @classmethod
    async def of(cls, gate: Gate, scene: Scene) -> Stage:
        """A tenant that has seen nothing but the scene's traffic."""
        await gate.stores.connection.client.flushall()
        await gate.prepare()
        stage = cls(gate, scene, scene.start, {})
        for visit in scene.traffic:
            stage.now += visit.after_ms
            name = next(gate.ids)
            if (await stage.admit(visit.cost, name)).admitted and visit.actual is not None:
                await gate.settle(scene.limits, stage.now, name, visit.cost, visit.actual)
                del stage.flying[name]
        return stage

    async def admit(self, cost: int, name: str | None = None) -> Decision:
        name = name or next(self.gate.ids)
        decision = await self.gate.admit(self.scene.limits, self.now, cost, name)
        if decision.admitted:
            self.flying[name] = (self.now + LEASE_MS, cost)
        return decision

    async def refused(self) -> Decision:
        """The scene's request, again and again until it is refused."""
        for _ in range(MOST + 1):
            decision = await self.admit(self.scene.cost)
            if not decision.admitted:
                return decision
        raise AssertionError("nothing refuses")

    def waits(self, decision: Decision) -> list[int]:
        """Of the limits that make somebody wait."""
        both = zip(self.scene.limits, decision.states, strict=True)
        return [state.retry for limit, state in both if not limit.shadow]

    async def slots_are_free(self) -> None:
        """Go to where leases enough have ended; a millisecond earlier the wait is unknown still."""
        limits = [limit.limit for limit in self.scene.limits if limit.kind == "concurrency"]
        ends = sorted(end for end, _ in self.flying.values() if end > self.now)

        def held(moment: int) -> int:
            return sum(cost for end, cost in self.flying.values() if end > moment)

        moment = next(end for end in ends if held(end) + self.scene.cost <= min(limits))
        self.now = moment - 1
        assert UNKNOWN in self.waits(await self.admit(self.scene.cost))
        self.now = moment

    async def requests_end(self) -> None:
        """Everything in flight is settled, at what was reserved."""
        for name, (_, cost) in self.flying.items():
            await self.gate.settle(self.scene.limits, self.now, name, cost)
        self.flying.clear()

    async def is_tight(self, refused: Decision) -> None:
        """Each wait runs down to nothing by itself, and when the longest has, the request passes."""
        longest, begun = max(self.waits(refused)), self.now
        assert longest > 0
        for wait in sorted({state.retry for state in refused.states if 0 < state.retry <= longest}):
            self.now = begun + wait - 1
            again = await self.admit(self.scene.cost)
            assert again.word == "limited"
            left = [state.retry if state.retry < 0 else max(0, state.retry - wait + 1) for state in refused.states]
            assert [state.retry for state in again.states] == left
        self.now = begun + longest
        assert (await self.admit(self.scene.cost)).admitted


async def check(gate: Gate, scene: Scene, leases_end: bool) -> None:
    """Everything that a wait promises."""
    stage = await Stage.of(gate, scene)
    refused = await stage.refused()
    for limit, state in zip(scene.limits, refused.states, strict=True):
        assert (state.retry == NEVER) == (scene.cost > capacity(limit))
        assert state.retry != UNKNOWN or limit.kind == "concurrency"
        assert state.refuses == (state.retry != 0)
    if NEVER in stage.waits(refused):
        stage.now += 400 * DAY
        again = await stage.admit(scene.cost)
        assert (again.word, NEVER in stage.waits(again)) == ("limited", True)
        return
    if UNKNOWN in stage.waits(refused):
        await (stage.slots_are_free() if leases_end else stage.requests_end())
        refused = await stage.admit(scene.cost)
        assert UNKNOWN not in stage.waits(refused)
        if refused.admitted:
            return
    await stage.is_tight(refused)


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count < 100,
        # each example empties the store by itself
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.mark.parametrize("kind", WAITING)
@examples(25)
@given(data=st.data())
async def test_a_limit_of_any_kind_refuses_until_the_moment_it_told_and_not_longer(gate: Gate, kind: str, data: st.DataObject):
    await check(gate, data.draw(scenes(st.just([kind]))), leases_end=False)


@examples(50)
@given(scene=scenes(several()))
async def test_of_several_limits_the_longest_wait_is_the_moment(gate: Gate, scene: Scene):
    await check(gate, scene, leases_end=False)


@pytest.mark.parametrize("leases_end", [False, True])
@examples(40)
@given(scene=scenes(several("concurrency")))
async def test_beside_requests_in_flight_the_wait_is_unknown_until_they_end_and_tight_from_then(
    gate: Gate, scene: Scene, leases_end: bool
):
    await check(gate, scene, leases_end)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("leases_end", [False, True])
@examples(3_000)
@given(scene=scenes(st.one_of(several(), several("concurrency"), st.sampled_from([[kind] for kind in KINDS]))))
async def test_any_wait_of_any_limits_after_any_traffic_is_tight(gate: Gate, scene: Scene, leases_end: bool):
    await check(gate, scene, leases_end)

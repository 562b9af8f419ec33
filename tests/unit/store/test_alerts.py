"""Who tells of a crossing: one, until it is done or gone."""

from __future__ import annotations

import asyncio

from gateway.store import Claim, Keyspace, Stores, crossing_of
from tests.stores import age, keys_without_end

NAMES = Keyspace("testcompany")
CROSSING = crossing_of("gw:{testcompany}:limit:budget:day:x", 100, 80, 0)


async def test_of_many_that_ask_one_counts_and_one_sends(stores: Stores):
    alerts = stores.alerts
    assert sum(await asyncio.gather(*(alerts.is_first(NAMES, CROSSING, 60_000) for _ in range(8)))) == 1
    claims = await asyncio.gather(*(alerts.claim(NAMES, CROSSING, f"t{number}", 9_000) for number in range(8)))
    states = [claim.state for claim in claims]
    assert (states.count("mine"), states.count("taken")) == (1, 7)
    assert all(0 < claim.left_ms <= 9_000 for claim in claims if claim.state == "taken")
    assert await keys_without_end(stores.connection) == []


async def test_a_claim_ends_with_its_lease_and_the_next_one_has_it(stores: Stores):
    alerts = stores.alerts
    assert await alerts.claim(NAMES, CROSSING, "dead", 9_000) == Claim("mine")
    await age(stores.connection, NAMES.alert(CROSSING), 8_000)
    assert (await alerts.claim(NAMES, CROSSING, "other", 9_000)).state == "taken"
    await age(stores.connection, NAMES.alert(CROSSING), 9_000)
    assert await alerts.claim(NAMES, CROSSING, "other", 9_000) == Claim("mine")
    assert not await alerts.keep(NAMES, CROSSING, "dead", 9_000)
    assert await stores.connection.client.get(NAMES.alert(CROSSING)) == b"other"


async def test_a_claim_is_kept_and_one_that_ended_is_taken_up_again_if_nobody_has(stores: Stores):
    alerts, client, key = stores.alerts, stores.connection.client, NAMES.alert(CROSSING)
    await alerts.claim(NAMES, CROSSING, "one", 9_000)
    await age(stores.connection, key, 8_000)
    assert await alerts.keep(NAMES, CROSSING, "one", 9_000)
    assert 8_000 < await client.pttl(key) <= 9_000
    await client.delete(key)
    assert await alerts.keep(NAMES, CROSSING, "one", 9_000)
    assert (await client.get(key), 8_000 < await client.pttl(key) <= 9_000) == (b"one", True)


async def test_what_was_sent_stays_sent_for_as_long_as_it_is_told(stores: Stores):
    alerts = stores.alerts
    await alerts.claim(NAMES, CROSSING, "one", 9_000)
    for ending in ("sent", "given_up"):
        await alerts.end(NAMES, CROSSING, ending, 60_000)
        claim = await alerts.claim(NAMES, CROSSING, "two", 9_000)
        assert (claim.state, 59_000 < claim.left_ms <= 60_000) == ("over", True)
        assert not await alerts.keep(NAMES, CROSSING, "one", 9_000)
    assert await keys_without_end(stores.connection) == []


def test_crossings_differ_by_limit_values_amount_threshold_and_period_and_stay_in_the_tenant_s_slot():
    names = {
        crossing_of(*facts)
        for facts in (("k", 100, 80, 0), ("l", 100, 80, 0), ("k", 101, 80, 0), ("k", 100, 81, 0), ("k", 100, 80, 86_400_000))
    }
    assert len(names) == 5
    assert {name.partition(":alert:")[0] for name in (NAMES.alert("x"), NAMES.alert_count("x"))} == {"gw:{testcompany}"}

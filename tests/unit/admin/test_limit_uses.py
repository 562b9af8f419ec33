"""Which counts ``limits`` of the usage lists. What they say of real requests: ``tests/integration/test_limit_uses.py``."""

from datetime import UTC, datetime

import pytest

from gateway.admin.limit_uses import MAX_USES
from tests.ledger import used
from tests.unit.admin.helpers import LIMIT, an_admin, an_app


def limiter(**settings):
    return {"name": "rate_limiter", "settings": LIMIT | settings}


def required(**settings):
    return {"rate_limiter": {"settings": LIMIT | settings}}


async def a_tenant(**fields):
    admin = await an_admin()
    return admin, await admin.tenant(**fields)


async def limits(admin, tenant, query="", *, truncated=False):
    before = await admin.dump()
    got = await admin.call("GET", f"/tenants/{tenant['id']}/usage?{query}")
    assert got.status == 200, got.raw
    assert await admin.dump() == before
    assert got.json["limits_truncated"] is truncated
    return got.json["limits"]


def counts(found):
    """Name, rule and key of each count."""
    return [(each["name"], each["rule"], each["api_key"]) for each in found]


async def test_all_that_is_told_of_a_limit():
    admin, tenant = await a_tenant()
    rule = await admin.rule(tenant, plugin_chain=[limiter(shadow=True)])
    assert await limits(admin, tenant) == [
        {
            "name": "requests-per-1m",
            "kind": "log",
            "level": ["rule"],
            "unit": "requests",
            "declared_by": {"kind": "rule", "id": rule["id"], "plugin": "rate_limiter"},
            "rule": rule["id"],
            "api_key": None,
            "limit": 3,
            "window_ms": 60_000,
            "period": None,
            "time_zone": None,
            "used": 0,
            "remaining": 3,
            "reset_ms": 0,
            "shadow": True,
        }
    ]


async def test_limits_of_every_kind_say_their_extent():
    admin, tenant = await a_tenant()
    more = [{"limit": 9, "window": "1s", "burst": 5}, {"limit": 4, "unit": "concurrency"}, {"limit": 20_000, "window": "1h"}]
    await admin.rule(
        tenant,
        plugin_chain=[
            limiter(quota={"daily": 7, "monthly": 8}, limits=[*more, {"quota": {"weekly": 6, "time_zone": "Asia/Beirut"}}])
        ],
    )
    found = await limits(admin, tenant)
    assert [(each["kind"], each["limit"], each["window_ms"], each["period"], each["time_zone"]) for each in found] == [
        ("log", 3, 60_000, None, None),
        ("budget", 7, None, "day", "UTC"),
        ("budget", 8, None, "month", "UTC"),
        ("bucket", 5, 1_000, None, None),
        ("concurrency", 4, None, None, None),
        ("ring", 20_000, 3_600_000, None, None),
        ("budget", 6, None, "week", "Asia/Beirut"),
    ]
    assert all(each["used"] == 0 and each["remaining"] == each["limit"] for each in found)


async def test_what_a_tenant_requires_of_all_its_rules_is_one_count():
    admin, tenant = await a_tenant(required_plugins=required())
    for path in ("/a", "/b"):
        await admin.rule(tenant, path=path)
    (found,) = await limits(admin, tenant)
    assert (found["level"], found["rule"], found["api_key"]) == (["tenant"], None, None)
    assert found["declared_by"] == {"kind": "tenant", "id": tenant["id"], "plugin": "rate_limiter"}


async def test_what_a_tenant_requires_of_each_rule_is_a_count_for_each():
    admin, tenant = await a_tenant(required_plugins=required(per=["rule"]))
    rules = [(await admin.rule(tenant, path=path))["id"] for path in ("/a", "/b")]
    found = await limits(admin, tenant)
    assert counts(found) == [("requests-per-1m", rule, None) for rule in rules]
    assert {each["declared_by"]["id"] for each in found} == {tenant["id"]}


async def test_what_rules_lift_to_the_tenant_is_one_count():
    admin, tenant = await a_tenant()
    for path in ("/a", "/b"):
        await admin.rule(tenant, path=path, plugin_chain=[limiter(per=["tenant"])])
    assert counts(await limits(admin, tenant)) == [("requests-per-1m", None, None)]


async def test_a_limit_by_key_is_a_count_for_each_key_that_may_use_the_rule():
    admin, tenant = await a_tenant()
    rule = await admin.rule(tenant, plugin_chain=[limiter(per=["api_key"])])
    other = await admin.rule(tenant, path="/other")
    second = await admin.key(tenant, allowed_rules=[rule["id"]])
    await admin.key(tenant, allowed_rules=[other["id"]])
    await admin.key(tenant, scopes=["admin"])
    revoked = await admin.key(tenant)
    await admin.call("DELETE", f"/tenants/{tenant['id']}/api-keys/{revoked['id']}")
    past = {"expires_at": datetime(2026, 1, 1, tzinfo=UTC)}
    expired = await admin.key(tenant)
    await admin.stores.api_keys.update(tenant["id"], expired["id"], lambda key: key.model_copy(update=past))
    found = await limits(admin, tenant)
    keys = {tenant["api_key_id"], second["id"]}
    assert {(each["rule"], each["api_key"], each["used"]) for each in found} == {(rule["id"], key, 0) for key in keys}
    assert len(found) == 2


async def test_a_keys_own_limits_are_listed_and_split_by_rule_where_they_say_so():
    admin, tenant = await a_tenant()
    rules = [(await admin.rule(tenant, path=path))["id"] for path in ("/a", "/b", "/c")]
    own = [LIMIT, {"limit": 5, "window": "1h", "per": ["rule"]}]
    key = await admin.key(tenant, limits=own, allowed_rules=rules[:2])
    found = await limits(admin, tenant)
    assert counts(found) == [
        ("requests-per-1m", None, key["id"]),
        ("requests-per-1h", rules[0], key["id"]),
        ("requests-per-1h", rules[1], key["id"]),
    ]
    assert {tuple(each["declared_by"].values()) for each in found} == {("api_key", key["id"], None)}


@pytest.mark.parametrize("level", ["ip", "method", "model", "header:x-user"])
async def test_what_only_a_request_can_tell_is_unknown(level):
    admin, tenant = await a_tenant()
    await admin.rule(tenant, plugin_chain=[limiter(per=["api_key", level])])
    (found,) = await limits(admin, tenant)
    assert found["level"] == sorted(["api_key", level])
    assert (found["used"], found["remaining"], found["reset_ms"], found["api_key"]) == (None,) * 4
    assert found["limit"] == 3


async def test_rules_that_take_no_requests_have_no_limits():
    admin, tenant = await a_tenant()
    await admin.rule(tenant, plugin_chain=[limiter()], active=False)
    assert await limits(admin, tenant) == []


async def test_a_sealed_header_is_not_opened_for_it():
    admin, tenant = await a_tenant()
    await admin.rule(tenant, plugin_chain=[limiter()], headers={"authorization": "Bearer secret"})
    keyless = type(admin)(an_app(admin.stores, master_key=None), admin.redis, admin.stores, admin.token)
    assert len(await limits(keyless, tenant)) == 1


async def test_one_rule_or_key_can_be_asked_for():
    admin, tenant = await a_tenant(required_plugins=required())
    rules = [(await admin.rule(tenant, path=path, plugin_chain=[limiter(per=["api_key"])]))["id"] for path in ("/a", "/b")]
    key = await admin.key(tenant, limits=[{"limit": 1, "window": "1h", "per": ["rule"]}])
    found = await limits(admin, tenant, f"rule={rules[1]}&key={key['id']}")
    assert counts(found) == [
        ("requests-per-1m", None, None),
        ("requests-per-1m", rules[1], key["id"]),
        ("requests-per-1h", rules[1], key["id"]),
    ]


async def test_many_counts_are_cut_and_that_is_told():
    admin, tenant = await a_tenant()
    for number in range(10):
        await admin.rule(tenant, path=f"/{number}", plugin_chain=[limiter(per=["api_key"])])
    for _ in range(MAX_USES // 10 - 1):
        await admin.key(tenant)
    assert len(await limits(admin, tenant)) == MAX_USES
    await admin.key(tenant)
    assert len(await limits(admin, tenant, truncated=True)) == MAX_USES
    csv = await admin.call("GET", f"/tenants/{tenant['id']}/usage?format=csv")
    assert len(csv.raw.splitlines()) == 1


async def test_a_limit_of_the_tenant_itself_is_listed_once_for_all_its_rules():
    admin, tenant = await a_tenant(limits=[{"limit": 7, "window": "1m", "name": "whole"}])
    for path in ("/a", "/b"):
        await admin.rule(tenant, path=path, plugin_chain=[])
    (found,) = await limits(admin, tenant)
    assert found["declared_by"] == {"kind": "tenant", "id": tenant["id"], "plugin": None}
    assert (found["name"], found["limit"], found["used"], found["rule"], found["level"]) == ("whole", 7, 0, None, ["tenant"])


async def test_a_quota_without_a_count_shows_what_the_ledger_says():
    admin, tenant = await a_tenant()
    rule = await admin.rule(
        tenant, plugin_chain=[{"name": "rate_limiter", "settings": {"quota": {"daily": 5}, "per": ["api_key"]}}]
    )
    today = datetime.now(UTC).date().isoformat()
    await used(admin.redis, today, key=tenant["api_key_id"], rule=rule["id"], tenant_id=tenant["id"], requests=3)
    await used(admin.redis, today, key=tenant["api_key_id"], rule="another", tenant_id=tenant["id"], requests=9)
    (found,) = await limits(admin, tenant)
    if datetime.now(UTC).date().isoformat() != today:  # a day without a ledger has begun meanwhile
        return
    assert (found["used"], found["remaining"], found["api_key"]) == (3, 2, tenant["api_key_id"])
    assert not await admin.redis.keys("*:limit:*")

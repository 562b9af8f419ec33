"""API keys: issued once, never more than their maker, rotated with grace, revoked for good."""

import datetime
from typing import Any

import pytest

from tests.unit.admin.helpers import LIMIT, OPERATOR, an_admin

DAY = datetime.timedelta(days=1)


def in_days(days):
    return (datetime.datetime.now(datetime.UTC) + days * DAY).isoformat()


async def works(admin, tenant, secret):
    """True if the key may read its tenant."""
    return (await admin.call("GET", f"/tenants/{tenant['id']}", key=secret)).status == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes.0"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2031-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-10:00"}, "expires_at"),
        ({"limits": [LIMIT, {"limit": 1}]}, "limits.1"),
        ({"limits": [{"limit": 1, "window": "1 fortnight"}]}, "limits.0.window"),
        ({"allowed_networks": ["10.0.0.0/8", "300.0.0.1"]}, "allowed_networks.1"),
        ({"allowed_networks": ["10.0.0.0/8", True]}, "allowed_networks.1"),
        ({"allowed_networks": [7]}, "allowed_networks.0"),
        ({"allowed_rules": ["rule_x"]}, "allowed_rules.0"),
        ({"status": "active"}, "status"),
        ({"scope": ["proxy"]}, "scope"),
        ({"metadata": None}, "metadata"),
    ],
)
async def test_a_refused_key_leaves_nothing_and_the_field_is_named(body, param):
    admin = await an_admin()
    tenant = await admin.tenant()
    before = await admin.dump()
    got = await admin.call("POST", f"/tenants/{tenant['id']}/api-keys", body)
    assert got.refusal == (400, "invalid_field", param)
    assert await admin.dump() == before
    key = await admin.key(tenant)
    before = await admin.dump()
    got = await admin.call("PATCH", f"/tenants/{tenant['id']}/api-keys/{key['id']}", body)
    if param != "status":  # unchanged, it may be sent back
        assert got.refusal == (400, "invalid_field", param)
        assert await admin.dump() == before


async def test_a_key_is_for_the_proxy_unless_more_is_asked():
    admin = await an_admin()
    tenant = await admin.tenant()
    plain, powerful = await admin.key(tenant), await admin.key(tenant, scopes=["admin"])
    assert plain["scopes"] == ["proxy"]
    assert not await works(admin, tenant, plain["api_key"])
    assert await works(admin, tenant, powerful["api_key"])


async def test_a_duration_means_the_same_after_any_number_of_edits():
    admin = await an_admin()
    tenant = await admin.tenant()
    key = await admin.key(tenant, limits=[{"limit": 5, "window": 90}])
    path = f"/tenants/{tenant['id']}/api-keys/{key['id']}"
    for name in ("a", "b", "c"):
        read = (await admin.call("GET", path)).json
        got = await admin.call("PATCH", path, read | {"name": name})
        assert got.json["limits"][0]["window"] == "1m30s"
    assert (await admin.stores.api_keys.get(tenant["id"], key["id"])).key.limits[0].window == 90_000


async def test_a_key_is_edited_and_its_secret_is_not_shown_again():
    admin = await an_admin()
    tenant = await admin.tenant()
    rule = await admin.rule(tenant)
    key = await admin.key(tenant, name="first")
    path = f"/tenants/{tenant['id']}/api-keys/{key['id']}"
    changes = {
        "name": "second",
        "allowed_rules": [rule["id"]],
        "allowed_models": ["m"],
        "expires_at": "2999-01-01T00:00:00+02:00",
    }
    got = await admin.call("PATCH", path, changes)
    assert got.status == 200
    assert "api_key" not in got.json
    assert (got.json["name"], got.json["expires_at"]) == ("second", "2998-12-31T22:00:00.000Z")
    assert (await admin.call("GET", path)).json == got.json
    assert (await admin.call("PATCH", path, {"expires_at": None, "allowed_models": None})).json["expires_at"] is None


async def test_a_key_keeps_a_rule_that_is_gone_but_gets_no_new_one():
    admin = await an_admin()
    tenant = await admin.tenant()
    rule = await admin.rule(tenant)
    key = await admin.key(tenant, allowed_rules=[rule["id"]])
    await admin.call("DELETE", f"/tenants/{tenant['id']}/rules/{rule['id']}")
    path = f"/tenants/{tenant['id']}/api-keys/{key['id']}"
    assert (await admin.call("PATCH", path, {"name": "still"})).status == 200
    assert (await admin.call("PATCH", path, {"allowed_rules": [rule["id"], "rule_x"]})).refusal == (
        400,
        "invalid_field",
        "allowed_rules.1",
    )


@pytest.mark.parametrize(
    ("own", "wanted", "param"),
    [
        ({"scopes": ["admin"]}, {"scopes": ["proxy"]}, "scopes"),
        ({"expires_at": in_days(5)}, {"scopes": ["admin"], "expires_at": in_days(6)}, "expires_at"),
        ({"expires_at": in_days(5)}, {"scopes": ["admin"]}, "expires_at"),
        ({"limits": [LIMIT]}, {"scopes": ["admin"]}, "limits"),
        ({"limits": [LIMIT]}, {"scopes": ["admin"], "limits": [LIMIT | {"limit": 9}]}, "limits"),
        ({"allowed_models": ["a"]}, {"scopes": ["admin"], "allowed_models": ["a", "b"]}, "allowed_models"),
        ({"allowed_models": ["a"]}, {"scopes": ["admin"]}, "allowed_models"),
        ({"allowed_rules": []}, {"scopes": ["admin"]}, "allowed_rules"),
        ({"allowed_networks": ["127.0.0.0/8"]}, {"scopes": ["admin"]}, "allowed_networks"),
        ({"allowed_networks": ["127.0.0.0/8"]}, {"scopes": ["admin"], "allowed_networks": ["0.0.0.0/0"]}, "allowed_networks"),
        ({"allowed_networks": ["127.0.0.0/8"]}, {"scopes": ["admin"], "allowed_networks": ["::1/128"]}, "allowed_networks"),
    ],
)
async def test_no_key_creates_one_that_may_do_more(own, wanted, param):
    admin = await an_admin(token=OPERATOR, server={"trusted_proxies": ["127.0.0.0/8"]})
    tenant = await admin.tenant()
    maker = (await admin.key(tenant, **{"scopes": ["admin"]} | own))["api_key"]
    path = f"/tenants/{tenant['id']}/api-keys"
    larger = await admin.key(tenant, **wanted)
    local: Any = {"x_forwarded_for": "127.0.0.1"}

    async def loopback(scope, receive, send):
        await inner(scope | {"client": ("127.0.0.1", 1)} if scope["type"] == "http" else scope, receive, send)

    inner, admin.app.asgi_app = admin.app.asgi_app, loopback
    before = await admin.dump()
    assert (await admin.call("POST", path, wanted, key=maker, **local)).refusal == (403, "not_allowed", param)
    assert (await admin.call("POST", f"{path}/{larger['id']}/rotate", {}, key=maker, **local)).refusal == (
        403,
        "not_allowed",
        param,
    )
    assert await admin.dump() == before
    same = {"scopes": ["admin"]} | own
    smaller = await admin.call("POST", path, same, key=maker, **local)
    assert smaller.status == 201
    before = await admin.dump()
    widened = await admin.call("PATCH", f"{path}/{smaller.json['id']}", {param: larger[param]}, key=maker, **local)
    assert widened.refusal == (403, "not_allowed", param)
    assert await admin.dump() == before
    assert (await admin.call("PATCH", f"{path}/{larger['id']}", {"name": "renamed"}, key=maker, **local)).status == 200


async def test_a_rotated_secret_works_until_its_grace_has_ended():
    admin = await an_admin(token=OPERATOR)
    tenant = await admin.tenant()
    key = await admin.key(tenant, scopes=["admin"])
    path = f"/tenants/{tenant['id']}/api-keys/{key['id']}/rotate"
    got = await admin.call("POST", path)
    assert (got.status, got.json["id"]) == (201, key["id"])
    new = got.json["api_key"]
    assert new != key["api_key"]
    assert got.json["hint"] != key["hint"]
    assert await works(admin, tenant, key["api_key"])
    assert await works(admin, tenant, new)
    newest = (await admin.call("POST", path, {"grace": "0s"})).json["api_key"]
    assert [await works(admin, tenant, secret) for secret in (key["api_key"], new, newest)] == [False, False, True]


async def test_the_grace_is_a_day_unless_said_otherwise():
    admin = await an_admin(token=OPERATOR)
    tenant = await admin.tenant()
    for body, seconds in ((None, 86_400), ({}, 86_400), ({"grace": "1h"}, 3_600), ({"grace": 60}, 60)):
        key = await admin.key(tenant)
        names = set(await admin.redis.keys("*:key:*"))
        await admin.call("POST", f"/tenants/{tenant['id']}/api-keys/{key['id']}/rotate", body)
        (left,) = [ttl for name in names if (ttl := await admin.redis.pttl(name)) > 0 and await admin.redis.persist(name)]
        assert seconds - 30 < left / 1_000 <= seconds


@pytest.mark.parametrize(
    ("body", "param"),
    [({"grace": "31d"}, "grace"), ({"grace": "soon"}, "grace"), ({"grace": -1}, "grace"), ({"graze": "1h"}, "graze")],
)
async def test_a_refused_rotation_changes_nothing(body, param):
    admin = await an_admin()
    tenant = await admin.tenant()
    before = await admin.dump()
    got = await admin.call("POST", f"/tenants/{tenant['id']}/api-keys/{tenant['api_key_id']}/rotate", body)
    assert got.refusal == (400, "invalid_field", param)
    assert await admin.dump() == before


async def test_a_revoked_key_stays_in_the_list_and_cannot_come_back():
    admin = await an_admin(token=OPERATOR)
    tenant = await admin.tenant()
    key = await admin.key(tenant, scopes=["admin"])
    path = f"/tenants/{tenant['id']}/api-keys/{key['id']}"
    assert (await admin.call("DELETE", path)).status == 204
    assert (await admin.call("DELETE", path)).status == 204
    listed = (await admin.call("GET", f"/tenants/{tenant['id']}/api-keys")).json
    assert {each["id"]: each["status"] for each in listed["api_keys"]}[key["id"]] == "revoked"
    assert listed["count"] == 2
    assert not await works(admin, tenant, key["api_key"])
    before = await admin.dump()
    assert (await admin.call("PATCH", path, {"status": "active"})).refusal == (400, "invalid_field", "status")
    assert (await admin.call("POST", f"{path}/rotate")).refusal == (400, "invalid_field", "status")
    assert await admin.dump() == before


async def test_an_edit_of_a_key_that_has_changed_since_is_refused():
    admin = await an_admin()
    tenant = await admin.tenant()
    key = await admin.key(tenant)
    path = f"/tenants/{tenant['id']}/api-keys/{key['id']}"
    etag = (await admin.call("GET", path)).headers["etag"]
    assert (await admin.call("PATCH", path, {"name": "a"}, if_match=etag)).status == 200
    assert (await admin.call("PATCH", path, {"name": "b"}, if_match=etag)).status == 412
    assert (await admin.call("DELETE", path, if_match=etag)).status == 412

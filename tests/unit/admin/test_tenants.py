"""Tenants: what is stored, what is answered, and what is refused without a trace."""

from typing import Any

import pytest

from tests.unit.admin.helpers import LIMIT, OPERATOR, an_admin

GOOD = {"name": "Acme", "subdomain": "acme"}
WRONG = [
    ({"subdomain": "acme"}, "name"),
    (GOOD | {"name": ""}, "name"),
    (GOOD | {"name": "a\nb"}, "name"),
    (GOOD | {"name": None}, "name"),
    (GOOD | {"subdomain": "-acme"}, "subdomain"),
    (GOOD | {"subdomain": "a.b"}, "subdomain"),
    (GOOD | {"subdomain": "a" * 64}, "subdomain"),
    (GOOD | {"subdomain": "{acme}"}, "subdomain"),
    (GOOD | {"tier": "Über"}, "tier"),
    (GOOD | {"status": "suspended"}, "status"),
    (GOOD | {"id": "x"}, "id"),
    (GOOD | {"enabled_plugins": ["rate_limiter", "no_such"]}, "enabled_plugins.1"),
    (GOOD | {"enabled_plugins": "rate_limiter"}, "enabled_plugins"),
    (GOOD | {"required_plugins": {"no_such": {}}}, "required_plugins.no_such"),
    (
        GOOD | {"required_plugins": {"rate_limiter": {"settings": {"limit": 0, "window": "1m"}}}},
        "required_plugins.rate_limiter.settings.limit",
    ),
    (
        GOOD | {"required_plugins": {"rate_limiter": {"settings": LIMIT, "stage": "post_response"}}},
        "required_plugins.rate_limiter.stage",
    ),
    (
        GOOD | {"required_plugins": {"rate_limiter": {"settings": LIMIT, "stage": "later"}}},
        "required_plugins.rate_limiter.stage",
    ),
    (GOOD | {"required_plugins": {"rate_limiter": {"setings": LIMIT}}}, "required_plugins.rate_limiter.setings"),
    (
        GOOD | {"required_plugins": {"rate_limiter": {"priority": 0, "settings": LIMIT}}},
        "required_plugins.rate_limiter.priority",
    ),
    (GOOD | {"metadata": {"a": 1}}, "metadata.a"),
]


@pytest.mark.parametrize(("body", "param"), WRONG)
async def test_a_refused_tenant_leaves_nothing_and_the_field_is_named(body, param):
    admin = await an_admin()
    before = await admin.dump()
    got = await admin.call("POST", "/tenants", body)
    assert got.refusal == (400, "invalid_field", param)
    assert got.error["message"].strip()
    assert await admin.dump() == before


async def test_a_tenant_is_answered_as_it_is_stored_with_a_key_that_works():
    admin = await an_admin()
    got = await admin.call(
        "POST", "/tenants", {"name": "Acme", "subdomain": "ACME", "required_plugins": {"rate_limiter": {"settings": LIMIT}}}
    )
    assert got.status == 201
    tenant = got.json
    assert (tenant["subdomain"], tenant["status"], tenant["tier"], tenant["enabled_plugins"]) == (
        "acme",
        "active",
        "basic",
        ["*"],
    )
    assert tenant["api_key"].startswith("gw_")
    assert got.headers["location"] == f"/api/v1/tenants/{tenant['id']}"
    read = await admin.call("GET", f"/tenants/{tenant['id']}", key=tenant["api_key"])
    assert read.json == {name: value for name, value in tenant.items() if not name.startswith("api_key")}
    assert read.headers["etag"] == got.headers["etag"]
    keys = (await admin.call("GET", f"/tenants/{tenant['id']}/api-keys", key=tenant["api_key"])).json["api_keys"]
    assert [(key["id"], key["scopes"]) for key in keys] == [(tenant["api_key_id"], ["admin", "proxy"])]


async def test_a_subdomain_is_given_once():
    admin = await an_admin()
    await admin.tenant("acme")
    before = await admin.dump()
    got = await admin.call("POST", "/tenants", GOOD | {"subdomain": "Acme"})
    assert got.refusal == (409, "subdomain_taken", "subdomain")
    assert await admin.dump() == before


async def test_the_list_comes_in_pages():
    admin = await an_admin(token=OPERATOR)
    for name in ("c", "a", "e", "b", "d"):
        await admin.tenant(name)
    pages, cursor = [], ""
    while cursor is not None:
        got = await admin.call("GET", f"/tenants?limit=2{cursor and f'&cursor={cursor}'}")
        pages.append([tenant["subdomain"] for tenant in got.json["tenants"]])
        assert got.json["count"] == len(pages[-1])
        cursor = got.json["next"]
    assert pages == [["a", "b"], ["c", "d"], ["e"]]
    assert (await admin.call("GET", "/tenants")).json["count"] == 5


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("limit=", "limit"),
        ("cursor=%7B", "cursor"),
        ("cursor=", "cursor"),
        ("page=1", "page"),
    ],
)
async def test_a_wrong_query_parameter_is_named(query, param):
    admin = await an_admin()
    assert (await admin.call("GET", f"/tenants?{query}")).refusal == (400, "invalid_field", param)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_an_edit_replaces_the_fields_given_and_no_others(method):
    admin = await an_admin()
    tenant = await admin.tenant(metadata={"a": "b"})
    path = f"/tenants/{tenant['id']}"
    before = (await admin.call("GET", path)).json
    got = await admin.call(method, path, {"name": "New", "status": "suspended"})
    assert got.status == 200
    assert got.json == before | {"name": "New", "status": "suspended", "updated_at": got.json["updated_at"]}
    assert (await admin.call("GET", path)).json == got.json


async def test_what_was_read_can_be_sent_back():
    admin = await an_admin()
    tenant = await admin.tenant(required_plugins={"rate_limiter": {"settings": LIMIT}})
    path = f"/tenants/{tenant['id']}"
    read = await admin.call("GET", path)
    got = await admin.call("PUT", path, read.json)
    assert (got.status, got.json) == (200, read.json)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"subdomain": "other"}, "subdomain"),
        ({"id": "other"}, "id"),
        ({"created_at": "2020-01-01T00:00:00.000Z"}, "created_at"),
        ({"name": None}, "name"),
        ({"tier": None}, "tier"),
        ({"status": "deleted"}, "status"),
        ({"required_plugins": None}, "required_plugins"),
        ({"teir": "pro"}, "teir"),
        ({"enabled_plugins": ["no_such"]}, "enabled_plugins.0"),
        ({"required_plugins": {"rate_limiter": {"settings": {}}}}, "required_plugins.rate_limiter.settings.limit"),
        ({"api_key": "x"}, "api_key"),
    ],
)
async def test_a_refused_edit_changes_nothing(changes, param):
    admin = await an_admin()
    tenant = await admin.tenant()
    before = await admin.dump()
    got = await admin.call("PATCH", f"/tenants/{tenant['id']}", changes)
    assert got.refusal == (400, "invalid_field", param)
    assert await admin.dump() == before


async def test_an_unknown_field_is_told_the_nearest_known_one():
    admin = await an_admin()
    tenant = await admin.tenant()
    assert "did you mean tier?" in (await admin.call("PATCH", f"/tenants/{tenant['id']}", {"teir": "pro"})).error["message"]
    nested: Any = {"required_plugins": {"rate_limiter": {"setings": {}}}}
    got = await admin.call("PATCH", f"/tenants/{tenant['id']}", nested)
    assert "did you mean settings?" in got.error["message"]


async def test_all_fields_at_fault_are_listed():
    admin = await an_admin()
    got = await admin.call("POST", "/tenants", {"subdomain": "-", "tier": "", "more": 1})
    assert [problem["param"] for problem in got.error["errors"]] == ["name", "subdomain", "tier", "more"]


async def test_a_plugin_that_a_rule_uses_cannot_be_taken_from_the_tenant():
    admin = await an_admin()
    tenant = await admin.tenant(enabled_plugins=["rate_limiter"])
    rule = await admin.rule(tenant, plugin_chain=[{"name": "rate_limiter", "settings": LIMIT}])
    path = f"/tenants/{tenant['id']}"
    got = await admin.call("PATCH", path, {"enabled_plugins": []})
    assert got.refusal == (400, "invalid_field", "enabled_plugins")
    assert rule["id"] in got.error["message"]
    required = {"enabled_plugins": [], "required_plugins": {"rate_limiter": {"settings": LIMIT}}}
    assert (await admin.call("PATCH", path, required)).status == 200


async def test_a_deleted_tenant_is_gone_with_all_it_had():
    admin = await an_admin(token=OPERATOR)
    tenant = await admin.tenant()
    await admin.rule(tenant)
    await admin.key(tenant)
    assert (await admin.call("DELETE", f"/tenants/{tenant['id']}")).status == 204
    assert await admin.dump() == {}
    assert (await admin.call("DELETE", f"/tenants/{tenant['id']}")).status == 404
    assert (await admin.call("GET", f"/tenants/{tenant['id']}", key=tenant["api_key"])).status == 401
    again = await admin.tenant()
    assert again["id"] != tenant["id"]


async def test_an_edit_of_what_has_changed_since_is_refused():
    admin = await an_admin()
    tenant = await admin.tenant()
    path = f"/tenants/{tenant['id']}"
    etag = (await admin.call("GET", path)).headers["etag"]
    first = await admin.call("PATCH", path, {"name": "First"}, if_match=etag)
    assert first.status == 200
    assert first.headers["etag"] == (await admin.call("GET", path)).headers["etag"] != etag
    before = await admin.dump()
    for method, body in (("PATCH", {"name": "Second"}), ("PUT", {"name": "Second"}), ("DELETE", None)):
        assert (await admin.call(method, path, body, if_match=etag)).refusal == (412, "precondition_failed", "If-Match")
    assert await admin.dump() == before
    assert (await admin.call("PATCH", path, {"name": "Second"}, if_match=f'"other", {first.headers["etag"]}')).status == 200
    assert (await admin.call("PATCH", path, {"name": "Third"}, if_match="*")).status == 200

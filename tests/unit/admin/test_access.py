"""Who may call what. The routes are those of the app itself, so that a new one is tested before it is thought of."""

import base64
import datetime
from typing import Any

import pytest
from quart import Quart
from werkzeug.datastructures import Headers

from gateway import virtual_key
from gateway.admin.operation import Access, operation_of
from tests.unit.admin.helpers import API, OPERATOR, an_admin, routes

PUBLIC = "public"
ANY_ADMIN = "any admin"
BROWSER = "any admin, also by a browser"
OF_OPERATOR = "operator"
OF_TENANT = "tenant"

FREE = {"*": {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}}


def kind_of(path):
    """Who may call a path, said a second time and without the app's declarations."""
    below = path.removeprefix(API)
    if below.startswith("/health"):
        return PUBLIC
    if below == "/tenants":
        return OF_OPERATOR
    if below.startswith(("/docs", "/openapi.json")):
        return BROWSER
    return OF_TENANT if below.startswith("/tenants/<tenant_id>") else ANY_ADMIN


def last_things_last(route):
    method, path, _ = route
    return method == "DELETE", -len(path)


class Scene:
    """Two tenants, and one credential of every sort."""

    async def prepare(self, *, token=OPERATOR):
        self.admin = admin = await an_admin(token=token)
        self.tenant = await admin.tenant("acme")
        admin.token = token or self.tenant["api_key"]
        self.rule = await admin.rule(self.tenant)
        self.key = await admin.key(self.tenant)
        own = f"/tenants/{self.tenant['id']}/api-keys"
        revoked = await admin.key(self.tenant, scopes=["admin"])
        await admin.call("DELETE", f"{own}/{revoked['id']}")
        replaced = await admin.key(self.tenant, scopes=["admin"])
        await admin.call("POST", f"{own}/{replaced['id']}/rotate", {"grace": 0})
        soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1000)
        expired = await admin.key(self.tenant, scopes=["admin"], expires_at=soon.isoformat())
        await admin.redis.hset(f"gw:{{acme}}:key:{virtual_key.digest(expired['api_key'])}", "expires_ms", "1")
        proxy_only = await admin.key(self.tenant, scopes=["proxy"])
        elsewhere = await admin.key(self.tenant, scopes=["admin"], allowed_networks=["203.0.113.0/24"])
        other = await admin.call("POST", "/tenants", {"name": "Other", "subdomain": "other"}, key=token)
        self.credentials = {
            "none": None,
            "garbage": "garbage",
            "unknown": virtual_key.new_secret(),
            "revoked": revoked["api_key"],
            "rotated": replaced["api_key"],
            "expired": expired["api_key"],
            "other tenant": other.json["api_key"],
            "other tenant's proxy only": (await self.key_of(other.json, scopes=["proxy"]))["api_key"],
            "proxy only": proxy_only["api_key"],
            "elsewhere": elsewhere["api_key"],
            "own": self.tenant["api_key"],
            "suspended": self.tenant["api_key"],
            "operator": OPERATOR,
            "wrong operator": OPERATOR + "s",
            "start of the operator's": OPERATOR[:-1],
            "own as Basic": self.tenant["api_key"],
            "operator as Basic": OPERATOR,
        }
        return self

    async def key_of(self, tenant, **fields):
        made = await self.admin.call("POST", f"/tenants/{tenant['id']}/api-keys", fields, key=tenant["api_key"])
        assert made.status == 201, made.raw
        return made.json

    async def suspend(self):
        assert (await self.admin.call("PATCH", f"/tenants/{self.tenant['id']}", {"status": "suspended"})).status == 200

    async def call(self, method, path, who):
        names = {"tenant_id": self.tenant["id"], "key_id": self.key["id"], "rule_id": self.rule["id"], "name": "rate_limiter"}
        if "docs" in path:
            names["name"] = "start.js"
        for name, value in names.items():
            path = path.replace(f"<{name}>", value)
        body: Any = {} if method in ("POST", "PUT", "PATCH") else None
        secret = self.credentials[who]
        if who.endswith(" as Basic"):
            basic = base64.b64encode(f"any:{secret}".encode()).decode()
            return await self.admin.call(method, path, body, key=None, authorization=f"Basic {basic}")
        return await self.admin.call(method, path, body, key=secret)


KINDS = (ANY_ADMIN, BROWSER, OF_OPERATOR, OF_TENANT)


def of_each(*statuses):
    """What a caller is answered on routes of each kind; None where they may call it."""
    return dict(zip(KINDS, statuses, strict=True))


REFUSED = {
    "other tenant": of_each(None, None, 403, 404),
    "other tenant's proxy only": of_each(403, 403, 403, 404),
    "proxy only": of_each(403, 403, 403, 403),
    "elsewhere": of_each(403, 403, 403, 403),
    "suspended": of_each(403, 403, 403, 403),
    "own": of_each(None, None, 403, None),
    "operator": of_each(None, None, None, None),
    "own as Basic": of_each(401, None, 401, 401),
    "operator as Basic": of_each(401, None, 401, 401),
}
for invalid in ("none", "garbage", "unknown", "revoked", "rotated", "expired", "wrong operator", "start of the operator's"):
    REFUSED[invalid] = of_each(401, 401, 401, 401)

DECLARED = {
    Access.PUBLIC: PUBLIC,
    Access.BROWSER: BROWSER,
    Access.ADMIN: ANY_ADMIN,
    Access.OPERATOR: OF_OPERATOR,
    Access.TENANT: OF_TENANT,
}


@pytest.mark.parametrize("who", REFUSED)
async def test_every_route_answers_exactly_those_who_may_call_it(who):
    scene = await Scene().prepare()
    if who == "suspended":
        await scene.suspend()
    for method, path, _ in sorted(routes(scene.admin.app), key=last_things_last):
        refused = REFUSED[who].get(kind_of(path))
        if (who, method, path) == ("own", "DELETE", f"{API}/tenants/<tenant_id>"):
            refused = 403
        before = await scene.admin.dump()
        got = await scene.call(method, path, who)
        if refused:
            assert got.status == refused, (method, path, got.raw)
            assert await scene.admin.dump() == before, (method, path)
        else:
            assert got.status not in (401, 403, 404, 500), (method, path, got.raw)


async def test_without_an_operator_token_the_quick_start_is_open_and_a_tenant_is_its_own_master():
    scene = await Scene().prepare(token=None)
    for who in ("none", "own"):
        for method, path, _ in sorted(routes(scene.admin.app), key=last_things_last):
            got = await scene.call(method, path, who)
            open_to = who == "own" or kind_of(path) != OF_TENANT
            assert (got.status not in (401, 403, 404, 500)) if open_to else (got.status == 401), (method, path, got.raw)


async def test_without_an_operator_token_no_other_tenants_key_passes():
    scene = await Scene().prepare(token=None)
    for who, status in (("other tenant", 404), ("proxy only", 403), ("garbage", 401), ("operator", 401)):
        for method, path, _ in routes(scene.admin.app):
            if kind_of(path) == OF_TENANT:
                assert (await scene.call(method, path, who)).status == status, (who, method, path)


async def test_a_route_that_declares_nothing_is_closed_to_everyone():
    scene = await Scene().prepare()

    async def forgotten():
        return "open"

    scene.admin.app.add_url_rule("/api/v1/forgotten", view_func=forgotten)
    assert (await scene.admin.call("GET", "/forgotten", key=OPERATOR)).status == 403


async def test_every_route_declares_who_may_call_it_and_what_it_writes():
    app: Quart = (await an_admin()).app
    for method, path, endpoint in routes(app):
        declared = operation_of(app.view_functions[endpoint])
        assert declared is not None, path
        assert DECLARED[declared.access] == kind_of(path), path
        assert (declared.writes is None) is (method == "GET" or path.endswith("/explain")), path


async def test_another_tenants_id_cannot_be_told_from_one_that_does_not_exist():
    scene = await Scene().prepare()
    key = scene.credentials["other tenant"]
    answers = [
        await scene.admin.call("GET", f"/tenants/{name}", key=key) for name in (scene.tenant["id"], "acme-0123456789ab", "x")
    ]
    errors = [got.error | {"request_id": ""} for got in answers]
    assert {got.status for got in answers} == {404}
    assert errors[0] == errors[1] == errors[2]


async def test_the_four_ways_in_which_a_key_is_not_valid_look_the_same():
    scene = await Scene().prepare()
    answers = [
        await scene.admin.call("GET", f"/tenants/{scene.tenant['id']}", key=scene.credentials[who])
        for who in ("none", "unknown", "revoked", "expired")
    ]
    assert all(got.error | {"request_id": ""} == answers[0].error | {"request_id": ""} for got in answers)
    assert answers[0].headers["www-authenticate"].startswith("Bearer")


async def test_rules_and_keys_of_another_tenant_are_not_found_under_ones_own():
    scene = await Scene().prepare()
    other = await scene.admin.tenant("third")
    for path in (f"rules/{scene.rule['id']}", f"api-keys/{scene.key['id']}"):
        for method in ("GET", "PATCH", "DELETE"):
            body: Any = {} if method == "PATCH" else None
            got = await scene.admin.call(method, f"/tenants/{other['id']}/{path}", body, key=other["api_key"])
            assert got.refusal == (404, "not_found", None)


@pytest.mark.parametrize(
    "changes",
    [
        {"tier": "pro"},
        {"status": "suspended"},
        {"enabled_plugins": []},
        {"required_plugins": {"rate_limiter": {"settings": {"limit": 1, "window": "1s"}}}},
        {"limits": [{"limit": 1, "window": "1s"}]},
        {"prices": FREE},
    ],
)
async def test_what_the_operator_grants_a_tenant_cannot_change_itself(changes):
    scene = await Scene().prepare()
    before = await scene.admin.dump()
    got = await scene.admin.call("PATCH", f"/tenants/{scene.tenant['id']}", changes, key=scene.credentials["own"])
    assert got.refusal == (403, "not_allowed", next(iter(changes)))
    assert await scene.admin.dump() == before
    assert (await scene.admin.call("PATCH", f"/tenants/{scene.tenant['id']}", changes)).status == 200


@pytest.mark.parametrize("changes", [{"format": "none"}, {"prices": FREE}])
async def test_a_tenant_cannot_change_how_the_operators_limits_count(changes):
    scene = await Scene().prepare()
    before = await scene.admin.dump()
    path, own = f"/tenants/{scene.tenant['id']}/rules", scene.credentials["own"]
    a_rule = {"path": "/free", "target": "https://api.openai.com"}
    for method, where, body in (("PATCH", f"{path}/{scene.rule['id']}", changes), ("POST", path, a_rule | changes)):
        got = await scene.admin.call(method, where, body, key=own)
        assert got.refusal == (403, "not_allowed", next(iter(changes)))
    assert await scene.admin.dump() == before
    assert (await scene.admin.call("PATCH", f"{path}/{scene.rule['id']}", changes)).status == 200
    kept = await scene.admin.call("PATCH", f"{path}/{scene.rule['id']}", changes | {"name": "same"}, key=own)
    assert kept.status == 200
    assert (await scene.admin.call("POST", path, a_rule, key=own)).status == 201


async def test_a_key_of_some_models_cannot_give_itself_others_by_an_alias():
    scene = await Scene().prepare()
    path, body = f"/tenants/{scene.tenant['id']}", {"scopes": ["admin"], "allowed_models": ["small"]}
    made = await scene.admin.call("POST", f"{path}/api-keys", body, key=scene.credentials["own"])
    got = await scene.admin.call("PATCH", path, {"model_aliases": {"small": "large"}}, key=made.json["api_key"])
    assert got.refusal == (403, "not_allowed", "model_aliases")
    changed = await scene.admin.call("PATCH", path, {"model_aliases": {"small": "large"}}, key=scene.credentials["own"])
    assert (changed.status, changed.json["model_aliases"]) == (200, {"small": "large"})


async def test_a_tenant_may_send_back_what_it_read_with_a_new_name():
    scene = await Scene().prepare()
    path, own = f"/tenants/{scene.tenant['id']}", scene.credentials["own"]
    read = await scene.admin.call("GET", path, key=own)
    got = await scene.admin.call("PUT", path, read.json | {"name": "New"}, key=own)
    assert (got.status, got.json["name"]) == (200, "New")


async def test_the_key_of_a_suspended_tenant_is_refused_where_an_operator_can_lift_it():
    scene = await Scene().prepare()
    path = f"/tenants/{scene.tenant['id']}"
    assert (await scene.admin.call("PATCH", path, {"status": "suspended"})).json["status"] == "suspended"
    got = await scene.admin.call("GET", path, key=scene.credentials["own"])
    assert got.refusal == (403, "tenant_suspended", None)
    assert (await scene.admin.call("PATCH", path, {"status": "active"})).status == 200
    assert (await scene.admin.call("GET", path, key=scene.credentials["own"])).status == 200


async def test_without_an_operator_a_tenant_can_end_its_own_suspension_but_not_with_a_proxy_key():
    scene = await Scene().prepare(token=None)
    path = f"/tenants/{scene.tenant['id']}"
    assert (await scene.admin.call("PATCH", path, {"status": "suspended"})).status == 200
    assert (await scene.admin.call("PATCH", path, {"status": "active"}, key=scene.credentials["proxy only"])).status == 403
    assert (await scene.admin.call("PATCH", path, {"status": "active"}, key=scene.credentials["revoked"])).status == 401
    assert (await scene.admin.call("PATCH", path, {"status": "active"})).status == 200


async def test_a_key_that_is_bound_to_networks_is_bound_here_too():
    admin = await an_admin(token=OPERATOR)
    tenant = await admin.tenant()
    key = await admin.key(tenant, scopes=["admin"], allowed_networks=["203.0.113.0/24"])
    got = await admin.call("GET", f"/tenants/{tenant['id']}", key=key["api_key"])
    assert got.refusal == (403, "not_allowed", "allowed_networks")


async def test_two_different_credentials_are_refused():
    admin = await an_admin(token=OPERATOR)
    headers = Headers([("authorization", f"Bearer {OPERATOR}"), ("authorization", "Bearer other")])
    response = await admin.app.test_client().get("/api/v1/tenants", headers=headers)
    assert response.status_code == 400
    assert (await response.get_json())["error"]["code"] == "ambiguous_credentials"


async def test_a_browser_may_log_in_to_the_documentation_and_to_nothing_else():
    admin = await an_admin(token=OPERATOR)
    basic = "Basic " + base64.b64encode(f"any:{OPERATOR}".encode()).decode()
    assert (await admin.call("GET", "/api/v1/docs", key=None)).headers["www-authenticate"].startswith("Basic")
    assert (await admin.call("GET", "/api/v1/docs", key=None, authorization=basic)).status == 200
    assert (await admin.call("GET", "/tenants", key=None, authorization=basic)).status == 401
    for broken in ("Basic", "Basic ???", "Basic " + base64.b64encode(b"\xff\xfe").decode()):
        assert (await admin.call("GET", "/api/v1/docs", key=None, authorization=broken)).status == 401


async def test_wrong_credentials_are_limited_for_an_address_and_missing_ones_are_not_counted():
    admin = await an_admin(token=OPERATOR, failed_logins_per_minute=3)
    for _ in range(5):
        assert (await admin.call("GET", "/tenants", key=None)).status == 401
    for _ in range(3):
        assert (await admin.call("GET", "/tenants", key="wrong")).status == 401
    got = await admin.call("GET", "/tenants")
    assert got.refusal == (429, "rate_limited", None)
    assert 1 <= int(got.headers["retry-after"]) <= 61
    assert (await admin.call("GET", "/health")).status == 200

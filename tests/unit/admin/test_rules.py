"""Rules: checked completely before anything is written, with credentials that go in and never come out."""

import pytest

from gateway.models import MASK
from gateway.secrets import Vault, is_sealed
from tests.unit.admin.helpers import LIMIT, MASTER_KEY, OPERATOR, an_admin, an_app

GOOD = {"path": "/v1", "target": "https://api.example.com"}
LIMITER = {"name": "rate_limiter", "settings": LIMIT}

WRONG = [
    ({"path": None}, "path"),
    ({"path": "v1"}, "path"),
    ({"path": "/a/../b"}, "path"),
    ({"path": "/a//b"}, "path"),
    ({"path": "/a?b"}, "path"),
    ({"path": "/a%2fb"}, "path"),
    ({"target": ""}, "target"),
    ({"target": "api.example.com"}, "target"),
    ({"target": "ftp://api.example.com"}, "target"),
    ({"target": "https://user:pw@api.example.com"}, "target"),
    ({"target": "https://api.example.com/?key=1"}, "target"),
    ({"target": "https://10.0.0.1"}, "target"),
    ({"target": "http://169.254.169.254/latest"}, "target"),
    ({"target": "http://localhost:9000"}, "target"),
    ({"methods": ["FETCH"]}, "methods"),
    ({"methods": "GET"}, "methods"),
    ({"strip_path": "perhaps"}, "strip_path"),
    ({"retry_attempts": 6}, "retry_attempts"),
    ({"pass_response_headers": ["connection"]}, "pass_response_headers"),
    ({"headers": {"bad name": "x"}}, "headers"),
    ({"headers": {"x-a": "1", "X-A": "2"}}, "headers"),
    ({"headers": {"Transfer-Encoding": "chunked"}}, "headers"),
    ({"headers": {"x-a": "a\r\nx-b: 1"}}, "headers"),
    ({"headers": {"x-a": None}}, "headers.x-a"),
    ({"headers": None}, "headers"),
    ({"headers": {"Authorization": MASK}}, "headers.Authorization"),
    ({"plugin_chain": [{"settings": LIMIT}]}, "plugin_chain.0.name"),
    ({"plugin_chain": [LIMITER, {"name": "no_such"}]}, "plugin_chain.1.name"),
    ({"plugin_chain": [{"name": "content_validator", "settings": {"max_size": 5}}]}, "plugin_chain.0.name"),
    ({"plugin_chain": [LIMITER | {"stage": "post_response"}]}, "plugin_chain.0.stage"),
    ({"plugin_chain": [LIMITER | {"on_error": "ignore"}]}, "plugin_chain.0.on_error"),
    ({"plugin_chain": [LIMITER | {"enabled": False, "settings": {"limit": 1}}]}, "plugin_chain.0.settings.window"),
    (
        {"plugin_chain": [LIMITER, {"name": "rate_limiter", "settings": {"limits": [LIMIT, {"limit": -1, "window": "1m"}]}}]},
        "plugin_chain.1.settings.limits.1.limit",
    ),
    ({"active": None}, "active"),
    ({"id": "rule_mine"}, "id"),
    ({"methds": ["GET"]}, "methds"),
]


@pytest.mark.parametrize(("wrong", "param"), WRONG)
async def test_a_refused_rule_leaves_nothing_and_the_field_is_named(wrong, param):
    admin = await an_admin()
    tenant = await admin.tenant(enabled_plugins=["rate_limiter"])
    before = await admin.dump()
    got = await admin.call("POST", f"/tenants/{tenant['id']}/rules", GOOD | wrong)
    assert got.refusal == (400, "invalid_field", param)
    assert await admin.dump() == before
    rule = await admin.rule(tenant)
    before = await admin.dump()
    for method in ("PUT", "PATCH"):
        got = await admin.call(method, f"/tenants/{tenant['id']}/rules/{rule['id']}", wrong)
        assert got.refusal == (400, "invalid_field", param)
    assert await admin.dump() == before


async def test_a_rule_is_answered_as_it_is_stored():
    admin = await an_admin()
    tenant = await admin.tenant()
    rule = await admin.rule(
        tenant, path="/v1/", methods=["post", "GET"], plugin_chain=[LIMITER], headers={"Accept": "text/plain", "x-key": "s"}
    )
    assert (rule["path"], rule["methods"], rule["warnings"]) == ("/v1", ["POST", "GET"], [])
    assert rule["headers"] == {"Accept": "text/plain", "x-key": MASK}
    got = await admin.call("GET", f"/tenants/{tenant['id']}/rules/{rule['id']}")
    assert got.json == rule
    listed = await admin.call("GET", f"/tenants/{tenant['id']}/rules")
    assert listed.json == {"rules": [rule], "count": 1}


async def test_a_required_plugin_may_be_used_in_a_chain_without_being_enabled():
    admin = await an_admin()
    tenant = await admin.tenant(enabled_plugins=[], required_plugins={"rate_limiter": {"settings": LIMIT}})
    await admin.rule(tenant, plugin_chain=[LIMITER])


async def test_what_was_read_can_be_sent_back():
    admin = await an_admin()
    tenant = await admin.tenant()
    rule = await admin.rule(
        tenant, headers={"Authorization": "Bearer sk-canary", "accept": "a/b"}, plugin_chain=[LIMITER], strip_path=True
    )
    path = f"/tenants/{tenant['id']}/rules/{rule['id']}"
    before = await admin.stores.rules.get(tenant["id"], rule["id"])
    got = await admin.call("PUT", path, (await admin.call("GET", path)).json)
    assert (got.status, got.json) == (200, rule)
    assert (await admin.stores.rules.get(tenant["id"], rule["id"])).rule == before.rule


async def headers_in_the_clear(admin, tenant, rule):
    stored = (await admin.stores.rules.get(tenant["id"], rule["id"])).rule.headers
    vault = Vault(MASTER_KEY)
    contexts = {name: f"{tenant['id']}/{rule['id']}/{name.lower()}" for name in stored}
    return {name: vault.open(value, contexts[name]) if is_sealed(value) else value for name, value in stored.items()}


async def test_a_masked_header_keeps_its_value_and_others_are_replaced_or_removed():
    admin = await an_admin()
    tenant = await admin.tenant()
    rule = await admin.rule(tenant, headers={"Authorization": "Bearer one", "x-two": "two", "x-three": "three"})
    path = f"/tenants/{tenant['id']}/rules/{rule['id']}"
    got = await admin.call("PATCH", path, {"headers": {"authorization": MASK, "x-two": "new"}})
    assert got.json["headers"] == {"authorization": MASK, "x-two": MASK}
    assert await headers_in_the_clear(admin, tenant, rule) == {"authorization": "Bearer one", "x-two": "new"}
    await admin.call("PATCH", path, {"name": "no headers given"})
    assert await headers_in_the_clear(admin, tenant, rule) == {"authorization": "Bearer one", "x-two": "new"}
    before = await admin.dump()
    got = await admin.call("PATCH", path, {"headers": {"x-three": MASK}})
    assert got.refusal == (400, "invalid_field", "headers.x-three")
    assert await admin.dump() == before


@pytest.mark.parametrize(
    "target", ["https://evil.example.net", "https://api.example.com:8443", "https://api.example.com.evil.net"]
)
async def test_a_stored_credential_does_not_follow_its_rule_to_another_origin(target):
    admin = await an_admin(upstream={"allowed_ports": (443, 8443)})
    tenant = await admin.tenant()
    rule = await admin.rule(tenant, target="https://api.example.com/v1", headers={"Authorization": "Bearer one"})
    path = f"/tenants/{tenant['id']}/rules/{rule['id']}"
    before = await admin.dump()
    for changes in ({"target": target}, {"target": target, "headers": {"authorization": MASK}}):
        got = await admin.call("PATCH", path, changes)
        assert got.refusal[:2] == (400, "invalid_field")
        assert str(got.refusal[2]).lower() == "headers.authorization"
        assert await admin.dump() == before
    assert (await admin.call("PATCH", path, {"target": "https://api.example.com/v2"})).status == 200
    assert (await admin.call("PATCH", path, {"target": target, "headers": {"Authorization": "Bearer two"}})).status == 200
    assert await headers_in_the_clear(admin, tenant, rule) == {"Authorization": "Bearer two"}


async def test_a_text_that_looks_sealed_is_sealed_like_any_other():
    admin = await an_admin()
    tenant = await admin.tenant()
    rule = await admin.rule(tenant, headers={"x-a": "sealed:v1:abc"})
    assert await headers_in_the_clear(admin, tenant, rule) == {"x-a": "sealed:v1:abc"}


async def test_without_a_master_key_a_secret_is_refused_and_a_plain_header_is_not():
    admin = await an_admin(master_key=None)
    tenant = await admin.tenant()
    got = await admin.call("POST", f"/tenants/{tenant['id']}/rules", GOOD | {"headers": {"Authorization": "x"}})
    assert got.refusal == (400, "invalid_field", "headers.Authorization")
    assert "secrets.master_key" in got.error["message"]
    await admin.rule(tenant, headers={"accept": "text/plain"})


async def test_stripping_the_whole_path_is_warned_about_with_what_to_write_instead():
    admin = await an_admin()
    tenant = await admin.tenant()
    whole = {"path": "/v1/chat/completions", "target": "https://api.openai.com", "strip_path": True}
    (warning,) = (await admin.rule(tenant, **whole))["warnings"]
    assert warning.startswith("strip_path:")
    assert "goes to https://api.openai.com/," in warning
    assert '"strip_path": false' in warning
    assert '"target": "https://api.openai.com/v1/chat/completions"' in warning
    await admin.call("DELETE", f"/tenants/{tenant['id']}/rules/{(await rules(admin, tenant))[0]['id']}")
    for better in ({"strip_path": False}, {"target": "https://api.openai.com/v1/chat/completions"}, {"path": "/"}):
        rule = await admin.rule(tenant, **whole | better)
        assert rule["warnings"] == []
        await admin.call("DELETE", f"/tenants/{tenant['id']}/rules/{rule['id']}")


async def rules(admin, tenant):
    return (await admin.call("GET", f"/tenants/{tenant['id']}/rules")).json["rules"]


async def test_two_rules_for_the_same_requests_are_warned_about():
    admin = await an_admin()
    tenant = await admin.tenant()
    first = await admin.rule(tenant, methods=["GET"])
    assert (await admin.rule(tenant, methods=["POST"]))["warnings"] == []
    assert (await admin.rule(tenant, methods=["GET"], active=False))["warnings"] == []
    assert (await admin.rule(tenant, path="/v2"))["warnings"] == []
    second = await admin.rule(tenant, methods=["GET", "PUT"])
    (warning,) = second["warnings"]
    assert warning.startswith(f"path: {first['id']} has the same path")
    assert f"{first['id']} is older" in warning
    assert len((await rules(admin, tenant))[0]["warnings"]) == 1


async def test_a_rule_whose_target_is_no_longer_allowed_can_still_be_made_inactive():
    admin = await an_admin(upstream={"allowed_networks": ["127.0.0.0/8"]})
    tenant = await admin.tenant()
    rule = await admin.rule(tenant, target="http://127.0.0.1:9000")
    admin.app = an_app(admin.stores)
    path = f"/tenants/{tenant['id']}/rules/{rule['id']}"
    assert (await admin.call("PATCH", path, {"name": "x"})).refusal == (400, "invalid_field", "target")
    assert (await admin.call("PATCH", path, {"active": False})).status == 200
    assert (await admin.call("PATCH", path, {"active": True})).refusal == (400, "invalid_field", "target")


async def test_every_write_of_a_rule_makes_replicas_ask_again():
    admin = await an_admin(token=OPERATOR)
    tenant = await admin.tenant()

    async def version():
        return (await admin.stores.tenants.get(tenant["id"])).version

    seen = [await version()]
    rule = await admin.rule(tenant)
    seen.append(await version())
    path = f"/tenants/{tenant['id']}/rules/{rule['id']}"
    await admin.call("PATCH", path, {"active": False})
    seen.append(await version())
    await admin.call("DELETE", path)
    seen.append(await version())
    assert len(set(seen)) == 4
    assert (await admin.call("GET", path)).status == 404
    assert (await admin.call("DELETE", path)).status == 404


async def test_an_edit_of_a_rule_that_has_changed_since_is_refused():
    admin = await an_admin()
    tenant = await admin.tenant()
    rule = await admin.rule(tenant)
    path = f"/tenants/{tenant['id']}/rules/{rule['id']}"
    etag = (await admin.call("GET", path)).headers["etag"]
    assert (await admin.call("PATCH", path, {"name": "a"}, if_match=etag)).status == 200
    before = await admin.dump()
    assert (await admin.call("PUT", path, {"name": "b"}, if_match=etag)).status == 412
    assert (await admin.call("DELETE", path, if_match=etag)).status == 412
    assert await admin.dump() == before


def blocking(*numbers):
    return {"name": "content_validator", "settings": {"blocked_patterns": [f"bad{number}" for number in numbers]}}


def needing(*numbers):
    headers = {f"x-{number}": {"pattern": "a+"} for number in numbers}
    return {"name": "security_validator", "settings": {"required_headers": headers}}


async def test_the_patterns_of_a_tenant_are_counted_over_all_of_its_active_rules():
    admin = await an_admin()
    tenant = await admin.tenant()
    rules = f"/tenants/{tenant['id']}/rules"
    got = await admin.call("POST", rules, GOOD | {"plugin_chain": [blocking(*range(30)), needing(*range(21))]})
    assert (got.status, got.error["param"]) == (400, "plugin_chain.1.settings")
    first = await admin.call(
        "POST", rules, GOOD | {"plugin_chain": [blocking(*range(26)), needing(*range(20))]}, idempotency_key="one"
    )
    assert first.status == 201
    again = await admin.call(
        "POST", rules, GOOD | {"plugin_chain": [blocking(*range(26)), needing(*range(20))]}, idempotency_key="one"
    )
    assert (again.status, again.json) == (201, first.json)
    assert (await admin.call("POST", rules, GOOD | {"plugin_chain": [needing(*range(4))]})).status == 201

    one_more = GOOD | {"plugin_chain": [needing(0)]}
    before = await admin.dump()
    got = await admin.call("POST", rules, one_more)
    assert (got.status, got.error["code"], got.error["param"]) == (400, "invalid_field", "plugin_chain")
    assert await admin.dump() == before
    asleep = await admin.call("POST", rules, one_more | {"active": False})
    assert asleep.status == 201
    path = f"{rules}/{asleep.json['id']}"
    assert (await admin.call("PATCH", path, {"active": True})).error["param"] == "plugin_chain"
    assert (await admin.call("PATCH", f"{rules}/{first.json['id']}", {"name": "new"})).status == 200
    assert (await admin.call("PATCH", f"{rules}/{first.json['id']}", {"active": False})).status == 200
    assert (await admin.call("PATCH", path, {"active": True})).status == 200
    other = await admin.tenant(subdomain="other")
    assert (await admin.call("POST", f"/tenants/{other['id']}/rules", one_more, key=other["api_key"])).status == 201

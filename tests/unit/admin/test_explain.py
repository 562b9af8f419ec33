"""``explain`` tells what would become of a request, and changes nothing."""

import json
from typing import Any

import pytest

from gateway import virtual_key
from gateway.admin import create_admin_app
from gateway.config import Config
from gateway.plugin import Answer, Limit, Plugin, Settings, limit_specs
from gateway.policy import Description, Explainer
from gateway.registry import Registry
from gateway.secrets import Vault
from gateway.store import Admission, Known, Peeked, Unseeded, read_standing
from tests.builders import an_accounting
from tests.gateways import registry_with
from tests.stores import dump
from tests.unit.admin.helpers import OPERATOR, Admin, an_admin, an_app

HOUR = {"limit": 2, "window": "1h"}
POST_ONLY = {"name": "security_validator", "priority": 1, "settings": {"allowed_methods": ["POST"]}}


class Quiet(Plugin[Settings]):
    """Does not say that a dry run may call it."""

    name = "quiet"

    async def pre_request(self, exchange):
        raise AssertionError("was called")


class Declares(Plugin[Settings]):
    """Has a limit, and no method that could be called."""

    name = "declares"

    def limits(self, scope):
        return limit_specs([Limit(limit=1, window="1h", name="declared")], scope.default_per)


class Answers(Plugin[Settings]):
    """Answers in place of the target."""

    name = "answers"
    dry_run = True

    async def pre_request(self, exchange):
        exchange.notes["tier"] = exchange.tenant.tier
        exchange.answer = Answer(203, (("X-Two", "a"), ("x-two", "b")), b"\xffhello")


class Watches(Plugin[Settings]):
    """Runs when all is over."""

    name = "watches"

    async def post_response(self, exchange):
        raise AssertionError("was called")


def limiter(priority=100, **settings) -> dict[str, Any]:
    return {"name": "rate_limiter", "priority": priority, "settings": HOUR | settings}


class Scene:
    """A tenant whose key with both scopes calls."""

    def __init__(self, admin: Admin, tenant: Any) -> None:
        self.admin, self.tenant = admin, tenant

    @property
    def path(self) -> str:
        return f"/tenants/{self.tenant['id']}"

    async def ask(self, path="/v1/chat", **description):
        key = description.pop("key", ...)
        return await self.admin.call("POST", f"{self.path}/explain", {"path": path} | description, key=key)

    async def explain(self, path="/v1/chat", **description) -> Any:
        """The answer; nothing in the store may have changed."""
        before = await dump(self.admin.stores.connection)
        got = await self.ask(path, **description)
        assert await dump(self.admin.stores.connection) == before
        assert got.status == 200, got.raw
        return got.json

    async def refusal(self, path="/v1/chat", **description):
        """Status and code of the answer that is foretold, and the sentence."""
        found = await self.explain(path, **description)
        assert found["answer"]["outcome"] == "refused"
        assert found["certain"]
        return found["answer"]["status"], found["answer"]["code"], found["why"]

    async def spend(self, secret: str, key_id: str, times: int, **facts: Any) -> None:
        """Charge what such requests are charged."""
        stores = self.admin.stores
        standing = await read_standing(stores, self.tenant["id"], key_id)
        known = Known(standing.outcome.version, standing.outcome.revision)  # type: ignore[union-attr]
        numbers = iter(range(times))

        async def charge(keyspace, limits):
            name, digest = f"{key_id}{next(numbers)}", virtual_key.digest(secret)
            outcome = await stores.admissions.admit(keyspace, digest, known, name, limits)
            if isinstance(outcome, Unseeded):
                await stores.admissions.seed([(limit, 0) for limit in outcome.limits], outcome.now_ms)
                outcome = await stores.admissions.admit(keyspace, digest, known, name, limits)
            assert isinstance(outcome, Admission)
            assert outcome.admitted
            return Peeked(outcome.now_ms, outcome.states, ())

        async def spent(*_):
            raise AssertionError("was asked")

        described = {"method": "POST", "path": "/v1/chat", "query": "", "headers": [], "client_ip": "127.0.0.1"}
        asked = Description(**(described | {"has_body": False, "body": b"", "model": None} | facts))
        for _ in range(times):
            explainer = Explainer(Registry.load((), entry_points=False), Config(), an_accounting(Config()), charge, spent)
            await explainer.explain(asked, standing.outcome, "req")


async def a_scene(*, chain=(), token=None, plugins=(), rule=(), **tenant) -> Scene:
    admin = await an_admin(token=token)
    if plugins:
        admin.app = create_admin_app(admin.stores, registry_with(*plugins), Vault(b"k" * 32), Config(), an_accounting(Config()))
    made = await admin.tenant(**tenant)
    scene = Scene(admin, made)
    if rule is not None:
        await admin.rule(made, plugin_chain=list(chain), **dict(rule))
    return scene


# What is told


async def test_a_request_that_passes_is_told_with_rule_plugins_limits_and_target():
    required = {"rate_limiter": {"priority": 5, "settings": HOUR | {"limit": 9}}}
    chain = [limiter(quota={"daily": 5}), POST_ONLY, {"name": "content_validator", "settings": {"max_size": "1KiB"}}]
    scene = await a_scene(chain=chain, required_plugins=required, rule={"name": "Chat", "headers": {"x-key": "sk-secret"}})
    found = await scene.explain("/v1/chat?a=%2F", model="m", tokens={"input": 7}, client_ip="203.0.113.9")
    assert found["request"] == {
        "method": "POST",
        "path": "/v1/chat?a=%2F",
        "client_ip": "203.0.113.9",
        "has_body": True,
        "model": "m",
        "tokens": {"input": 7, "output": None},
    }
    assert found["tenant"].items() >= {"id": scene.tenant["id"], "tier": "basic", "status": "active"}.items()
    assert found["api_key"] == {"id": scene.tenant["api_key_id"], "name": "default", "status": "active"}
    assert found["rule"].items() >= {"name": "Chat", "path": "/v1", "target": "https://api.example.com"}.items()
    assert [(each["name"], each["priority"], each["outcome"], each["reason"]) for each in found["plugins"]] == [
        ("security_validator", 1, "passes", None),
        ("rate_limiter", 5, "passes", None),
        ("rate_limiter", 100, "passes", None),
        ("content_validator", 100, "not_run", "needs the body"),
    ]
    by_tenant = {"kind": "tenant", "id": scene.tenant["id"], "plugin": "rate_limiter"}
    by_rule = {"kind": "rule", "id": found["rule"]["id"], "plugin": "rate_limiter"}
    assert [(each["declared_by"], each["position"], each["name"]) for each in found["limits"]] == [
        (by_tenant, 1, "requests-per-1h"),
        (by_rule, 2, "requests-per-1h"),
        (by_rule, 2, "requests-per-day"),
    ]
    assert found["answer"]["forwarded_to"] == "https://api.example.com/v1/chat?a=%2F"
    assert found["answer"]["headers"]["x-ratelimit-remaining-requests"] == "1"
    assert (found["certain"], "content_validator" in found["why"]) == (False, True)
    assert "sk-secret" not in json.dumps(found)


async def test_a_limit_is_told_as_it_is_before_the_request():
    scene = await a_scene(
        chain=[limiter(limits=[{"limit": 4, "unit": "concurrency"}], quota={"monthly": 9, "time_zone": "Asia/Tokyo"})]
    )
    await scene.spend(scene.tenant["api_key"], scene.tenant["api_key_id"], 1)
    window, quota, flight = (await scene.explain())["limits"]
    assert (window["kind"], window["used"], window["remaining"], window["limit"], window["cost"]) == ("log", 1, 1, 2, 1)
    assert (window["window_ms"], window["period"], window["level"], window["unit"]) == (3_600_000, None, ["rule"], "requests")
    assert 0 < window["reset_ms"] <= 3_600_000
    assert (quota["kind"], quota["period"], quota["window_ms"], quota["used"]) == ("budget", "month", None, 1)
    assert (quota["time_zone"], window["time_zone"]) == ("Asia/Tokyo", None)
    assert (flight["kind"], flight["used"], flight["refuses"], flight["shadow"]) == ("concurrency", 1, False, False)


async def test_no_vault_is_needed_and_none_is_opened():
    scene = await a_scene(rule={"headers": {"x-key": "sk-secret"}})
    scene.admin.app = an_app(scene.admin.stores, master_key=None)
    assert (await scene.explain())["answer"]["outcome"] == "forwarded"


async def test_a_change_holds_for_the_next_explanation():
    scene = await a_scene(rule=None)
    rule = await scene.admin.rule(scene.tenant, path="/v1")
    assert (await scene.explain())["answer"]["outcome"] == "forwarded"
    await scene.admin.call("PATCH", f"{scene.path}/rules/{rule['id']}", {"active": False})
    assert (await scene.refusal())[:2] == (404, "no_route")


# Refusals


async def test_what_is_spent_refuses_at_its_place():
    scene = await a_scene(chain=[limiter(7), POST_ONLY, {"name": "content_validator", "settings": {"max_size": 9}}])
    await scene.spend(scene.tenant["api_key"], scene.tenant["api_key_id"], 2)
    status, code, why = await scene.refusal()
    assert (status, code) == (429, "rate_limited")
    assert why.startswith("Plugin rate_limiter refuses: Limit requests-per-1h is spent: 2 of 2 requests used;")
    found = await scene.explain()
    assert [each["outcome"] for each in found["plugins"]] == ["passes", "rejects", "not_run"]
    (limit,) = found["limits"]
    assert limit["refuses"]
    assert 0 < limit["retry_after_ms"] <= 3_600_000
    (refusing,) = found["answer"]["body"]["error"]["limits"]
    assert refusing.items() >= {"name": "requests-per-1h", "used": 2, "limit": 2}.items()
    assert "request_id" not in found["answer"]["body"]["error"]
    assert found["answer"]["headers"].keys() >= {"retry-after", "retry-after-ms", "ratelimit", "x-ratelimit-limit-requests"}
    # a plugin that stands before it goes first, and then there is no word of limits
    found = await scene.explain(method="PUT")
    assert (found["answer"]["status"], found["answer"]["code"]) == (405, "method_not_allowed")
    assert [each["outcome"] for each in found["plugins"]] == ["rejects", "not_run", "not_run"]
    assert "ratelimit" not in found["answer"]["headers"]


async def test_the_limit_of_a_key_and_of_the_tenant_and_of_any_plugin():
    scene = await a_scene(chain=[limiter(1, limit=9), {"name": "declares"}], plugins=[Declares])
    key = await scene.admin.key(scene.tenant, limits=[{"limit": 1, "window": "1h", "name": "mine", "per": ["ip"]}])
    (own, *_) = (await scene.explain(api_key_id=key["id"]))["limits"]
    assert own["declared_by"] == {"kind": "api_key", "id": key["id"], "plugin": None}
    assert (own["position"], own["level"]) == (None, ["ip"])
    assert [each["outcome"] for each in (await scene.explain())["plugins"]] == ["passes", "passes"]

    scene = await a_scene(chain=[POST_ONLY], required_plugins={"rate_limiter": {"settings": HOUR}})
    key = await scene.admin.key(scene.tenant, limits=[{"limit": 1, "window": "1h"}])
    await scene.spend(key["api_key"], key["id"], 1)
    assert (await scene.refusal(method="PUT", api_key_id=key["id"]))[2].startswith("A limit of the key refuses: ")
    assert {each["outcome"] for each in (await scene.explain(api_key_id=key["id"]))["plugins"]} == {"not_run"}
    assert (await scene.refusal(method="PUT"))[1] == "method_not_allowed"
    await scene.spend(scene.tenant["api_key"], scene.tenant["api_key_id"], 1)
    assert (await scene.refusal())[:2] == (429, "rate_limited")


async def test_a_tenant_s_own_limits_stand_before_the_chain():
    scene = await a_scene(chain=[POST_ONLY], limits=[{"limit": 1, "window": "1h"}])
    (own,) = (await scene.explain())["limits"]
    assert own["declared_by"] == {"kind": "tenant", "id": scene.tenant["id"], "plugin": None}
    assert own["position"] is None
    await scene.spend(scene.tenant["api_key"], scene.tenant["api_key_id"], 1)
    assert (await scene.refusal(method="PUT"))[2].startswith("A limit of the tenant refuses: ")


async def test_the_cost_is_that_of_the_described_request():
    scene = await a_scene(chain=[limiter(limit=9, cost={"header": "x-cost", "default": 2})])
    for headers, cost, remaining in (({}, 2, "7"), ({"x-cost": "5"}, 5, "4")):
        found = await scene.explain(headers=headers)
        assert (found["limits"][0]["cost"], found["limits"][0]["remaining"]) == (cost, 9)
        assert found["answer"]["headers"]["x-ratelimit-remaining-requests"] == remaining
    assert (await scene.refusal(headers={"x-cost": "10"}))[:2] == (429, "rate_limited")
    assert (await scene.explain(headers={"x-cost": "10"}))["limits"][0]["retry_after_ms"] is None
    assert (await scene.refusal(headers={"x-cost": "much"}))[0] == 400


async def test_a_shadow_limit_says_that_it_would_refuse_and_refuses_nothing():
    scene = await a_scene(chain=[limiter(limit=1, shadow=True)])
    await scene.spend(scene.tenant["api_key"], scene.tenant["api_key_id"], 1)
    found = await scene.explain()
    assert (found["limits"][0]["refuses"], found["limits"][0]["shadow"]) == (True, True)
    assert (found["answer"]["outcome"], found["answer"]["headers"]) == ("forwarded", {})


async def test_what_a_limit_is_kept_for_is_taken_from_the_description():
    scene = await a_scene(chain=[limiter(limit=1, per=["ip", "header:x-user", "model", "method"])])
    spent = {"headers": [(b"x-user", b"a")], "client_ip": "203.0.113.9", "model": "m", "body": None, "has_body": True}
    await scene.spend(scene.tenant["api_key"], scene.tenant["api_key_id"], 1, **spent)
    same = {"headers": {"X-User": "a"}, "client_ip": "203.0.113.9", "model": "m"}
    assert (await scene.refusal(**same))[0] == 429
    assert (await scene.refusal(**(same | {"model": None, "body": {"model": "m"}})))[0] == 429
    for other in ({"headers": {"x-user": "b"}}, {"client_ip": "203.0.113.8"}, {"model": "n"}, {"method": "PUT"}):
        assert (await scene.explain(**(same | other)))["answer"]["outcome"] == "forwarded", other


async def test_keys_that_are_no_longer_good_are_told_apart_here():
    scene = await a_scene()
    revoked, expired = await scene.admin.key(scene.tenant), await scene.admin.key(scene.tenant)
    await scene.admin.call("DELETE", f"{scene.path}/api-keys/{revoked['id']}")
    record = f"gw:{{acme}}:key:{virtual_key.digest(expired['api_key'])}"
    await scene.admin.redis.hset(record, "expires_ms", "1")
    for key, state, why in ((revoked, "revoked", "is revoked."), (expired, "expired", "has expired.")):
        found = await scene.explain(api_key_id=key["id"])
        assert (found["api_key"]["status"], found["rule"], found["plugins"], found["limits"]) == (state, None, [], [])
        assert found["why"] == f"The key {key['id']} {why}"
        assert found["answer"]["body"]["error"]["code"] == "invalid_api_key"
        assert found["answer"]["headers"]["www-authenticate"].startswith("Bearer")


async def test_a_rotated_key_is_its_new_secret():
    scene = await a_scene()
    key = await scene.admin.key(scene.tenant)
    await scene.admin.call("POST", f"{scene.path}/api-keys/{key['id']}/rotate", {"grace": "1h"})
    record = f"gw:{{acme}}:key:{virtual_key.digest(key['api_key'])}"
    await scene.admin.redis.hset(record, "grace_ends_ms", "1")
    assert (await scene.explain(api_key_id=key["id"]))["answer"]["outcome"] == "forwarded"


async def test_a_key_that_is_rotated_meanwhile_is_read_again():
    scene = await a_scene()
    key = await scene.admin.key(scene.tenant)
    runner, record = scene.admin.stores.runner, f"gw:{{acme}}:key:{virtual_key.digest(key['api_key'])}"
    real = runner.call

    async def rotating(name, keys, arguments):
        if name == "validate_key" and record in keys:
            runner.call = real
            await scene.admin.call("POST", f"{scene.path}/api-keys/{key['id']}/rotate", {"grace": 0})
        return await real(name, keys, arguments)

    runner.call = rotating
    got = await scene.ask(api_key_id=key["id"])
    assert runner.call == real
    assert (got.status, got.json["api_key"]["status"], got.json["answer"]["outcome"]) == (200, "active", "forwarded")


async def test_a_suspended_tenant_and_what_a_key_may_not_do():
    scene = await a_scene(token=OPERATOR)
    other = await scene.admin.rule(scene.tenant, path="/other")
    for fields, message in (
        ({"scopes": ["admin"]}, "The API key lacks the scope proxy."),
        ({"allowed_networks": ["10.0.0.0/8"]}, "The API key may not be used from this address."),
        ({"allowed_rules": [other["id"]]}, "The API key may not use this route."),
        ({"allowed_models": ["n"]}, "The API key may not use this model."),
    ):
        key = await scene.admin.key(scene.tenant, **fields)
        assert await scene.refusal(api_key_id=key["id"], model="m") == (403, "not_allowed", message)
        passing = {"client_ip": "10.1.2.3", "model": "n"} if "allowed_rules" not in fields and "scopes" not in fields else None
        if passing:
            assert (await scene.explain(api_key_id=key["id"], **passing))["answer"]["outcome"] == "forwarded"
    await scene.admin.call("PATCH", scene.path, {"status": "suspended"})
    found = await scene.explain(api_key_id=scene.tenant["api_key_id"])
    assert (found["tenant"]["status"], found["api_key"]["status"], found["rule"]) == ("suspended", "active", None)
    assert (found["answer"]["status"], found["why"]) == (403, "This tenant is suspended.")


async def test_routes_that_do_not_match():
    scene = await a_scene(rule={"methods": ["GET"]})
    assert (await scene.refusal("/v2"))[:2] == (404, "no_route")
    assert (await scene.refusal())[:2] == (405, "method_not_allowed")
    assert (await scene.explain())["answer"]["headers"]["allow"] == "GET, HEAD"
    assert (await scene.refusal("/v1/%2e%2e/x"))[:2] == (400, "invalid_path")
    assert (await scene.explain(method="get"))["answer"]["outcome"] == "forwarded"


async def test_a_rule_that_cannot_be_used_says_why_to_its_owner_only():
    scene = await a_scene(chain=[{"name": "quiet"}], plugins=[Quiet])
    scene.admin.app = an_app(scene.admin.stores)
    status, code, why = await scene.refusal()
    assert (status, code) == (500, "internal_error")
    assert why.endswith("; there is no plugin 'quiet'.")
    assert "quiet" not in json.dumps((await scene.explain())["answer"])


# Plugins


async def test_a_plugin_that_does_not_offer_itself_is_not_called_and_the_answer_is_not_certain():
    scene = await a_scene(chain=[{"name": "quiet"}, {"name": "watches"}, limiter(200)], plugins=[Quiet, Watches])
    found = await scene.explain()
    quiet, watches, _ = found["plugins"]
    assert (quiet["outcome"], quiet["reason"]) == ("not_run", "the plugin does not say that a dry run may call it")
    assert (watches["outcome"], watches["stages"]) == ("not_run", ["post_response"])
    assert (found["certain"], found["why"].count("quiet"), found["why"].count("watches")) == (False, 1, 0)


async def test_a_plugin_that_answers_ends_the_request():
    scene = await a_scene(
        chain=[{"name": "answers"}, limiter(200), {"name": "quiet", "priority": 300}], plugins=[Answers, Quiet]
    )
    found = await scene.explain()
    assert [each["outcome"] for each in found["plugins"]] == ["answers", "not_run", "not_run"]
    assert found["answer"].items() >= {"outcome": "answered", "status": 203, "body": "\ufffdhello", "code": None}.items()
    assert found["answer"]["headers"] == {"x-two": "a, b"}
    assert found["certain"]
    assert "plugin answers answers" in found["why"]


async def test_a_plugin_that_stays_out_of_the_request_s_stage_is_said_so():
    chain = [{"name": "security_validator", "stage": "pre_response", "settings": {"allowed_methods": ["GET"]}}]
    (entry,) = (await (await a_scene(chain=chain)).explain())["plugins"]
    assert (entry["outcome"], entry["reason"]) == ("not_run", "takes no part before the target has answered")


@pytest.mark.parametrize(
    ("described", "status"),
    [
        ({"body": {"model": "m"}}, None),
        ({"body": {"a": 1}}, 400),
        ({"body": {"model": "é" * 40}}, 413),
        ({"headers": {"content-length": "0"}}, 400),
        ({"method": "GET"}, None),
    ],
)
async def test_a_body_that_is_given_is_read_by_the_plugins(described, status):
    chain = [{"name": "content_validator", "settings": {"required_fields": ["model"], "max_size": 60}}]
    found = await (await a_scene(chain=chain)).explain(**described)
    assert (found["answer"]["status"], found["certain"]) == (status, True)


# What is asked


async def test_the_calling_key_stands_for_itself_and_the_operator_names_one():
    scene = await a_scene(token=OPERATOR)
    assert (await scene.ask()).refusal == (400, "invalid_field", "api_key_id")
    assert (await scene.explain(key=scene.tenant["api_key"]))["api_key"]["id"] == scene.tenant["api_key_id"]
    assert (await scene.ask(api_key_id="key_none")).refusal == (400, "invalid_field", "api_key_id")
    other = (await scene.admin.call("POST", "/tenants", {"name": "B", "subdomain": "b"})).json
    assert (await scene.ask(api_key_id=other["api_key_id"])).refusal == (400, "invalid_field", "api_key_id")
    scene.tenant = {"id": "acme-000000000000"}
    assert (await scene.ask(api_key_id="key_none")).refusal == (404, "not_found", None)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"path": "v1"}, "path"),
        ({"path": "/é"}, "path"),
        ({"method": "G T"}, "method"),
        ({"headers": {"Authorization": "Bearer x"}}, "headers"),
        ({"headers": {"x-api-key": "x"}}, "headers"),
        ({"headers": {"host": "x"}}, "headers"),
        ({"headers": {"transfer-encoding": "chunked"}}, "headers"),
        ({"headers": {"a": "1", "A": "2"}}, "headers"),
        ({"headers": {"a": "x\r\ny"}}, "headers"),
        ({"headers": {"a b": "x"}}, "headers"),
        ({"headers": {"a": "\u20ac"}}, "headers"),
        ({"headers": {"content-length": "²"}}, "headers"),
        ({"headers": {f"a{n}": "x" for n in range(65)}}, "headers"),
        ({"client_ip": "localhost"}, "client_ip"),
        ({"tokens": {"input": -1}}, "tokens.input"),
        ({"model": "a", "body": {"model": "b"}}, "model"),
        ({"model": "a", "headers": {"content-length": "0"}}, "model"),
        ({"api_key": "gw_x"}, "api_key"),
    ],
)
async def test_what_cannot_be_described_is_refused_by_its_name(wrong, param):
    scene = await a_scene()
    assert (await scene.ask(**wrong)).refusal == (400, "invalid_field", param)

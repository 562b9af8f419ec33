"""What the admin API explains is what the proxy does: the same request is described first, and then sent."""

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway import virtual_key
from gateway.admin import create_admin_app
from gateway.plugin import Answer, Plugin, Reject, Settings
from tests.builders import an_accounting
from tests.engines import engine_differs
from tests.gateways import registry_with, running_proxy
from tests.stores import dump
from tests.wire import an_upstream, eventually

SLACK_MS = 120_000
"""How long a test may take at most, and so how far a wait may have come between explanation and request."""

TOLD = re.compile(r"x-gateway-alert|x-ratelimit-.*|ratelimit.*|retry-after.*|x-should-retry|allow|www-authenticate|connection")
SPAN = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:(\d+)ms)?")


class Greets(Plugin[Settings]):
    """Answers what has the header x-greet."""

    name = "greets"
    dry_run = True

    async def pre_request(self, exchange):
        if "x-greet" in exchange.request.headers:
            exchange.answer = Answer(203, (("x-greeting", "yes"),), b"hello")


class Moves(Plugin[Settings]):
    """Sends requests elsewhere below the target."""

    name = "moves"
    dry_run = True

    async def pre_request(self, exchange):
        exchange.request.path = "/v1/moved"


class Breaks(Plugin[Settings]):
    """Fails."""

    name = "breaks"
    dry_run = True

    async def pre_request(self, exchange):
        raise RuntimeError("broken")


class Hidden(Plugin[Settings]):
    """Rejects everything, and must not be called by a dry run."""

    name = "hidden"

    async def pre_request(self, exchange):
        exchange.notes["called"] = True
        raise Reject(418, "hidden", "hidden")


class Strict(Plugin[Settings]):
    """Rejects with a word of its own on limits what has a body that was read."""

    name = "strict"
    dry_run = True

    async def pre_request(self, exchange):
        if exchange.request.body is not None:
            raise Reject(418, "strict", "strict", headers=[("RateLimit", "mine")])


PLUGINS = [Greets, Moves, Breaks, Hidden, Strict]


def limiter(limit=3, priority=100, window: str | None = "1h", **settings):
    found = {"limit": limit, "window": window, **settings}
    kept = {name: value for name, value in found.items() if value is not None}
    return {"name": "rate_limiter", "priority": priority, "settings": kept}


def quota(daily, **settings):
    return limiter(None, window=None, quota={"daily": daily}, **settings)


def security(priority=100, **settings):
    return {"name": "security_validator", "priority": priority, "settings": settings}


def content(priority=100, **settings):
    return {"name": "content_validator", "priority": priority, "settings": settings}


@dataclass
class Case:
    """A configuration, and a request that is sent ``sent`` times before it is explained. ``code`` None: status is all."""

    status: int
    code: str | None = None
    chain: list[Any] = field(default_factory=list)
    required: dict[str, Any] = field(default_factory=dict)
    limits: list[Any] = field(default_factory=list)
    rule: dict[str, Any] = field(default_factory=dict)
    tenant: dict[str, Any] = field(default_factory=dict)
    key: dict[str, Any] = field(default_factory=dict)
    revoke: bool = False
    forget: bool = False  # the counts of limits, but not the ledger
    sent: int = 0
    method: str = "POST"
    path: str = "/v1/chat?x=%20"
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None


MODEL = {"model": "m", "messages": []}
HOUR = {"settings": {"limit": 2, "window": "1h"}}
CHAT = "/v1/chat/completions"
HELLO = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 10}
CASES = {
    "forwarded": Case(200),
    "tokens": Case(200, chain=[limiter(500, unit="tokens")], path=CHAT, body=HELLO, sent=1),
    "tokens of a stream": Case(200, chain=[limiter(500, unit="input_tokens")], path=CHAT, body=HELLO | {"stream": True}),
    "too many tokens": Case(
        429, "rate_limited", chain=[limiter(50, unit="tokens")], path=CHAT, body=HELLO | {"max_tokens": 60}
    ),
    "tokens without a bound": Case(200, limits=[{"limit": 50, "window": "1h", "unit": "tokens"}], path=CHAT, body=MODEL),
    "tokens of another path": Case(200, chain=[limiter(1, unit="tokens")], body=HELLO),
    "tokens of a format that is not read": Case(
        200, chain=[limiter(1, unit="tokens")], path=CHAT, rule={"format": "none"}, body=HELLO
    ),
    "dollars": Case(200, key={"limits": [{"unit": "usd", "quota": {"daily": 1.5}}]}, path=CHAT, body=HELLO, sent=1),
    "too few dollars": Case(
        429, "budget_exceeded", chain=[quota(0.00001, unit="usd")], path=CHAT, body=HELLO | {"max_tokens": 1_000}
    ),
    "what is left of a quota": Case(200, limits=[{"unit": "usd", "quota": {"daily": 0.001}}], path=CHAT, body=MODEL, sent=1),
    "tokens of no JSON": Case(400, "invalid_json", chain=[limiter(9, unit="tokens")], path=CHAT, body=[HELLO]),
    "alias": Case(
        200, tenant={"model_aliases": {"fast": "m"}}, key={"allowed_models": ["m"]}, path=CHAT, body=MODEL | {"model": "fast"}
    ),
    "model in the path": Case(
        200, tenant={"model_aliases": {"fast": "gemini-pro"}}, path="/v1/models/fast:generateContent", body={"contents": []}
    ),
    "model in the path is not allowed": Case(
        403, "not_allowed", key={"allowed_models": ["m"]}, path="/v1/models/n:generateContent", body={"contents": []}
    ),
    "forwarded with a stripped prefix": Case(200, rule={"strip_path": True}),
    "window": Case(200, chain=[limiter()], sent=1),
    "large window": Case(200, chain=[limiter(20_000)], sent=1),
    "bucket": Case(200, chain=[limiter(burst=9)], sent=1),
    "quotas": Case(200, chain=[limiter(None, window=None, quota={"daily": 5, "monthly": 9})]),
    "quotas in use": Case(200, chain=[limiter(None, window=None, quota={"daily": 5, "monthly": 9})], sent=1),
    "concurrency": Case(200, chain=[limiter(4, window=None, unit="concurrency")]),
    "every kind and the key's": Case(
        200, chain=[limiter(2), limiter(9, burst=2)], key={"limits": [{"limit": 7, "window": "1h"}]}, sent=1
    ),
    "window spent": Case(429, "rate_limited", chain=[limiter()], sent=3),
    "several windows": Case(200, chain=[limiter(20_000), limiter(5, window="2h")], sent=4),
    "bucket spent": Case(429, "rate_limited", chain=[limiter(burst=1)], sent=1),
    "quota spent": Case(429, "budget_exceeded", chain=[limiter(None, window=None, quota={"monthly": 1})], sent=1),
    "tenant's own limit spent": Case(429, "rate_limited", limits=[HOUR["settings"]], chain=[security(1)], sent=2),
    "cost in a header": Case(200, chain=[limiter(9, cost={"header": "x-cost"})], headers={"x-cost": "4"}, sent=1),
    "cost in a header that is too much": Case(
        429, "rate_limited", chain=[limiter(9, cost={"header": "x-cost"})], headers={"x-cost": "4"}, sent=2
    ),
    "cost in a header that is no number": Case(400, chain=[limiter(9, cost={"header": "x-cost"})], headers={"x-cost": "x"}),
    "quota that holds": Case(200, chain=[limiter(None, window=None, quota={"daily": 5}, on_lost="release")], sent=1),
    "quota whose count is lost": Case(200, chain=[limiter(None, window=None, quota={"daily": 5})], sent=3, forget=True),
    "quota spent whose count is lost": Case(
        429, "budget_exceeded", chain=[limiter(None, window=None, quota={"monthly": 3})], sent=3, forget=True
    ),
    "tenant's limit spent": Case(429, "rate_limited", required={"rate_limiter": HOUR}, sent=2),
    "key's limit spent": Case(429, "rate_limited", chain=[security(1)], key={"limits": [HOUR["settings"]]}, sent=2),
    "shadow spent": Case(200, chain=[limiter(1, shadow=True), limiter(9)], sent=2),
    "threshold": Case(200, chain=[quota(2, alert_at=[0.4, 0.5]), quota(9, alert_at=[0.9])]),
    "threshold of a quota that is spent": Case(429, "budget_exceeded", chain=[quota(1, alert_at=[0.5])], sent=1),
    "threshold behind the end": Case(203, chain=[{"name": "greets"}, quota(2, alert_at=[0.5])], headers={"x-greet": "1"}),
    "per header": Case(429, chain=[limiter(1, per=["header:x-user"])], sent=1, headers={"x-user": "a"}),
    "per model": Case(429, "rate_limited", chain=[limiter(1, per=["model"])], sent=1, body=MODEL),
    "plugin before a spent limit": Case(
        405, "method_not_allowed", chain=[limiter(1, 5), security(1, allowed_methods=["PUT"])], sent=2
    ),
    "limit before a plugin": Case(429, "rate_limited", chain=[limiter(1, 1), security(5, allowed_methods=["PUT"])], sent=2),
    "plugin behind a limit": Case(405, chain=[limiter(9, 1), security(5, allowed_methods=["PUT"]), limiter(1, 7)]),
    "body refused": Case(400, "missing_field", chain=[content(required_fields=["user"])], body=MODEL),
    "body passes": Case(200, chain=[content(required_fields=["model"]), limiter()], body=MODEL),
    "body that is missing": Case(400, chain=[content(required_fields=["model"])], headers={"content-length": "0"}),
    "plugin answers": Case(203, chain=[limiter(), {"name": "greets"}, limiter(1, 200)], headers={"x-greet": "1"}),
    "plugin changes the path": Case(200, chain=[{"name": "moves"}]),
    "plugin fails": Case(500, "plugin_failed", chain=[limiter(), {"name": "breaks"}]),
    "plugin fails and is skipped": Case(200, chain=[{"name": "breaks", "on_error": "skip"}]),
    "body that nobody reads": Case(200, chain=[limiter(9, 1), {"name": "strict"}], body=MODEL),
    "body that a limit reads": Case(418, "strict", chain=[limiter(9, 1, per=["model"]), {"name": "strict"}], body=MODEL),
    "no route": Case(404, "no_route", path="/v2", required={"rate_limiter": HOUR}),
    "route is inactive": Case(404, "no_route", rule={"active": False}),
    "method": Case(405, "method_not_allowed", rule={"methods": ["GET"]}),
    "HEAD for GET": Case(200, rule={"methods": ["GET"]}, method="HEAD"),
    "unknown method": Case(405, "method_not_allowed", method="BREW"),
    "dot segment": Case(400, "invalid_path", path="/v1/%2e%2e/x"),
    "slashes behind a stripped prefix": Case(400, "invalid_path", rule={"strip_path": True}, path="/v1//x", chain=[limiter()]),
    "query": Case(400, "bad_request", path="/v1?a#b"),
    "long URL": Case(414, "uri_too_long", path=f"/v1/{'x' * 9_000}"),
    "body too large": Case(413, "body_too_large", body={"model": "x" * 3_000}),
    "body too large to be read": Case(413, "body_too_large", body={"model": "x" * 1_500}, chain=[limiter(per=["model"])]),
    "rule that cannot be used": Case(500, "internal_error", chain=[{"name": "gone"}]),
    "key revoked": Case(401, "invalid_api_key", revoke=True),
    "key expired": Case(401, "invalid_api_key", key={"expires_at": "2020-01-01T00:00:00Z"}),
    "key without scope": Case(403, "not_allowed", key={"scopes": ["admin"]}),
    "key of another network": Case(403, "not_allowed", key={"allowed_networks": ["10.0.0.0/8"]}),
    "key of another rule": Case(403, "not_allowed", key={"allowed_rules": ["rule_other"]}),
    "key of another model": Case(403, "not_allowed", key={"allowed_models": ["n"]}, body=MODEL),
    "key of this model": Case(200, key={"allowed_models": ["m"]}, body=MODEL),
    "model in a body that is compressed": Case(
        415, "unsupported_media_type", key={"allowed_models": ["m"]}, body=MODEL, headers={"content-encoding": "br"}
    ),
    "model in a body that is no object": Case(400, "invalid_json", chain=[limiter(per=["model"])], body=["m"]),
    "tenant suspended": Case(403, "tenant_suspended", tenant={"status": "suspended"}, path="/nowhere"),
}


def ms_of(span):
    match = SPAN.fullmatch(span)
    assert match, span
    hours, minutes, seconds, ms = (float(part or 0) for part in match.groups())
    return hours * 3_600_000 + minutes * 60_000 + seconds * 1_000 + ms


def told(fields):
    """What the answer tells of limits and waiting: as it is, and all times in it in milliseconds."""
    facts, times = {}, {}
    for name, value in sorted(fields):
        if not TOLD.fullmatch(name):
            continue
        if name.startswith("x-ratelimit-reset-"):
            facts[name], times[name] = "", ms_of(value)
        elif name.startswith("retry-after"):
            facts[name], times[name] = "", float(value) * (1 if name.endswith("-ms") else 1_000)
        else:
            facts[name] = re.sub(r";t=\d+", ";t", value)
            times[name] = sum(int(seconds) for seconds in re.findall(r";t=(\d+)", value)) * 1_000.0
    return facts, times


def without_times(body):
    error = {name: value for name, value in body["error"].items() if name != "request_id"}
    error["message"] = re.sub(r"try again in .*\.", "try again.", error["message"])
    error["limits"] = [limit | {"retry_after_ms": 0} for limit in error.get("limits", [])]
    return error


async def explain(gateway, tenant, **description):
    app = create_admin_app(
        gateway.stores, registry_with(*PLUGINS), gateway.vault, gateway.config, an_accounting(gateway.config)
    )
    headers = {"authorization": f"Bearer {tenant.secret}", "content-type": "application/json"}
    path = f"/api/v1/tenants/{tenant.id}/explain"
    response = await app.test_client().post(path, headers=headers, data=json.dumps(description))
    text = await response.get_data(as_text=True)
    assert response.status_code == 200, text
    return json.loads(text)


async def settled(gateway):
    """Returns when nothing more is written for the requests before."""
    await gateway.idle()
    await eventually(lambda: not any("Settler._run" in repr(task.get_coro()) for task in asyncio.all_tasks()))


DIFFERENT = {
    "query": engine_differs(granian="drops fragments"),
    "unknown method": engine_differs(uvicorn="refuses methods that it does not know"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=DIFFERENT.get(name, ())) for name in CASES])
async def test_the_proxy_does_what_was_explained(store_url, name):
    case = CASES[name]
    bounds = {"max_body_bytes": 2_000, "max_inspected_bytes": 1_000}
    async with running_proxy(store_url, plugins=PLUGINS, limits=bounds) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant(required_plugins=case.required, limits=case.limits)
        rule = {"plugin_chain": case.chain, "headers": {"x-provider-key": "sk-secret"}} | case.rule
        await gateway.new_rule(tenant, upstream.url, **rule)
        secret = await gateway.new_key(tenant, **case.key)
        found = [key for key in await gateway.stores.api_keys.all(tenant.id) if virtual_key.digest(secret) in key.digests]

        async def ask():
            body = None if case.body is None else json.dumps(case.body, separators=(",", ":")).encode()
            fields = case.headers | ({} if body is None else {"content-type": "application/json"})
            return await gateway.ask(case.method, case.path, key=secret, fields=fields, body=body)

        for _ in range(case.sent):
            await ask()
        await settled(gateway)
        if case.forget:
            for key in [key for key in await dump(gateway.stores.connection) if b":limit:" in key]:
                await gateway.stores.connection.client.delete(key)
        if case.revoke:
            await gateway.revoke(tenant, secret)
        await gateway.change_tenant(tenant, **case.tenant)

        described = {name: getattr(case, name) for name in ("method", "path", "headers", "body")}
        before = await dump(gateway.stores.connection)
        explained = await explain(gateway, tenant, api_key_id=found[0].key.id, **described)
        assert await dump(gateway.stores.connection) == before
        upstream.requests.clear()
        reply = await ask()

        answer = explained["answer"]
        assert (reply.status, explained["certain"]) == (case.status, True)
        assert "sk-secret" not in json.dumps(explained)
        if answer["outcome"] == "forwarded":
            assert upstream.url + upstream.last.target == answer["forwarded_to"]
            assert answer["status"] is None
        else:
            assert upstream.requests == []
            assert answer["status"] == reply.status
        if answer["outcome"] == "refused":
            assert without_times(answer["body"]) == without_times(json.loads(reply.body))
            assert answer["code"] == reply.code == (case.code or reply.code)
        if answer["outcome"] == "answered":
            assert (answer["body"], answer["headers"]["x-greeting"]) == (reply.body.decode(), reply.get("x-greeting"))
        facts, times = told(reply.fields)
        explained_facts, explained_times = told(answer["headers"].items())
        assert explained_facts == facts
        for header, ms in times.items():
            assert abs(explained_times[header] - ms) <= SLACK_MS, header


async def test_what_cannot_be_called_is_said_to_be_unknown(store_url):
    async with running_proxy(store_url, plugins=PLUGINS) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[{"name": "hidden"}, limiter()])
        explained = await explain(gateway, tenant, path="/v1/x")
        assert (await gateway.ask("POST", "/v1/x", key=tenant.secret)).status == 418
        assert (explained["answer"]["outcome"], explained["certain"]) == ("forwarded", False)
        assert "hidden" in explained["why"]
        assert [(each["name"], each["outcome"]) for each in explained["plugins"]] == [
            ("hidden", "not_run"),
            ("rate_limiter", "passes"),
        ]

"""One line for each write: who, what, and what changed."""

import asyncio
import json
import logging
from typing import Any

from gateway.admin.operation import operation_of
from gateway.telemetry import JsonFormatter
from tests.asgi import a_scope
from tests.unit.admin.helpers import API, OPERATOR, an_admin, routes


def lines(caplog):
    return [record.audit for record in caplog.records if record.name == "gateway.audit"]


async def test_every_write_is_recorded_with_who_did_it(caplog):
    admin = await an_admin(token=OPERATOR)
    with caplog.at_level(logging.INFO, logger="gateway.audit"):
        tenant = await admin.tenant()
        base, own = f"/tenants/{tenant['id']}", tenant["api_key"]
        rule = await admin.rule(tenant, headers={"x-key": "canary"})
        key = await admin.key(tenant)
        await admin.call("PATCH", base, {"status": "suspended"})
        await admin.call("PATCH", base, {"status": "active"})
        await admin.call("PATCH", f"{base}/rules/{rule['id']}", {"path": "/v2", "headers": {"x-key": "other"}}, key=own)
        await admin.call("PATCH", f"{base}/api-keys/{key['id']}", {"name": "n"}, key=own, x_request_id="trace-1")
        await admin.call("POST", f"{base}/api-keys/{key['id']}/rotate", key=own)
        await admin.call("DELETE", f"{base}/api-keys/{key['id']}", key=own)
        await admin.call("DELETE", f"{base}/rules/{rule['id']}", key=own)
        await admin.call("DELETE", base)
    found = lines(caplog)
    by_key = tenant["api_key_id"]
    assert [(line["action"], line["by"], line["object"]) for line in found] == [
        ("tenant.create", "operator", tenant["id"]),
        ("rule.create", "operator", rule["id"]),
        ("api_key.create", "operator", key["id"]),
        ("tenant.edit", "operator", tenant["id"]),
        ("tenant.edit", "operator", tenant["id"]),
        ("rule.edit", by_key, rule["id"]),
        ("api_key.edit", by_key, key["id"]),
        ("api_key.rotate", by_key, key["id"]),
        ("api_key.revoke", by_key, key["id"]),
        ("rule.delete", by_key, rule["id"]),
        ("tenant.delete", "operator", tenant["id"]),
    ]
    assert all(line["tenant"] == tenant["id"] for line in found)
    assert all((line["outcome"], line["address"]) == ("done", "192.0.2.7") for line in found)
    assert found[9]["changes"]["path"] == ["/v2", None]
    assert found[3]["changes"] == {"status": ["active", "suspended"]}
    assert found[5]["changes"] == {"path": ["/v1", "/v2"]}
    assert (found[6]["changes"], found[6]["request_id"]) == ({"name": ["default", "n"]}, "trace-1")
    assert "canary" not in caplog.text


async def test_refusals_and_repetitions_say_what_they_are_and_reads_leave_no_line(caplog):
    admin = await an_admin()
    body = {"name": "A", "subdomain": "acme"}
    tenant = (await admin.call("POST", "/tenants", body, idempotency_key="k")).json
    path = f"/tenants/{tenant['id']}"
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="gateway.audit"):
        await admin.call("GET", path, key=tenant["api_key"])
        await admin.call("GET", f"{path}/rules/nowhere", key=tenant["api_key"])
        await admin.call("GET", path)
        await admin.call("GET", "/nowhere", key="wrong")
        await admin.call("POST", f"{path}/explain", {}, key=tenant["api_key"])
        assert lines(caplog) == []
        await admin.call("POST", "/tenants", body, idempotency_key="k")
        await admin.call("POST", "/tenants", body)
        await admin.call("PATCH", path, {"tier": 1}, key=tenant["api_key"])
        await admin.call("PATCH", f"{path}/rules/nowhere", {"tier": 1}, key=tenant["api_key"])
        await admin.call("GET", path, key="wrong")
        await admin.call("GET", "/tenants/another", key=tenant["api_key"])
    by_key = tenant["api_key_id"]
    assert [(line["action"], line["outcome"], line["by"], line["object"]) for line in lines(caplog)] == [
        ("tenant.create", "repeated", "open", ""),
        ("tenant.create", "refused", "open", ""),
        ("tenant.edit", "refused", by_key, tenant["id"]),
        ("rule.edit", "refused", by_key, "nowhere"),
        ("read", "denied", "nobody", tenant["id"]),
        ("read", "denied", by_key, "another"),
    ]


class Scene:
    """A tenant with a rule and a key, and every write of the API."""

    async def prepare(self):
        self.admin = await an_admin(token=OPERATOR)
        self.tenant = await self.admin.tenant()
        self.rule, self.key = await self.admin.rule(self.tenant), await self.admin.key(self.tenant)
        self.weak = await self.admin.key(self.tenant, scopes=["proxy"])
        # deletions last, that of the tenant behind all others
        self.writes = sorted(
            (
                (declared.writes, method, path)
                for method, path, endpoint in routes(self.admin.app)
                if (declared := operation_of(self.admin.app.view_functions[endpoint])) and declared.writes
            ),
            key=lambda write: (write[1] == "DELETE", -len(write[2])),
        )
        assert len(self.writes) >= 11
        return self

    async def call(self, method, path, **how):
        for name, value in {"tenant_id": self.tenant["id"], "key_id": self.key["id"], "rule_id": self.rule["id"]}.items():
            path = path.replace(f"<{name}>", value)
        good: dict[str, Any] = {"name": f"n{len(self.admin.seen)}"}
        if method == "POST" and path.endswith("/tenants"):
            good = {"name": "A", "subdomain": f"new{len(self.admin.seen)}"}
        elif method == "POST" and path.endswith("/rules"):
            good = {"path": "/other", "target": "https://api.example.com"}
        elif path.endswith("/rotate"):
            good = {}
        return await self.admin.call(method, path, None if method == "DELETE" else good, **how)


async def test_every_write_leaves_exactly_one_line_whatever_becomes_of_it(caplog):
    scene = await Scene().prepare()
    server = scene.admin.redis.connection_pool.connection_kwargs["server"]
    outcomes = {"done": OPERATOR, "denied": None, "denied ": "wrong", "denied  ": scene.weak["api_key"], "unknown": OPERATOR}
    for action, method, path in scene.writes:
        for outcome, credential in sorted(outcomes.items(), key=lambda each: each[0] == "done"):
            server.connected = outcome != "unknown"
            caplog.clear()
            with caplog.at_level(logging.INFO, logger="gateway.audit"):
                got = await scene.call(method, path, key=credential, x_request_id="trace-9")
            server.connected = True
            (line,) = lines(caplog)
            assert (line["action"], line["outcome"]) == (action, outcome.strip()), (method, path, got.raw)
            by = {OPERATOR: "operator", scene.weak["api_key"]: scene.weak["id"]}.get(credential, "nobody")
            assert (line["by"], line["request_id"], line["address"]) == (by, "trace-9", "192.0.2.7")
            assert (got.status < 400) is (outcome == "done"), (method, path, got.raw)
            if outcome == "done":
                assert line["tenant"]
                assert line["object"]
                assert line["changes"], line


async def test_a_write_whose_client_has_left_leaves_a_line(caplog):
    scene = await Scene().prepare()
    asked = asyncio.Event()

    async def slow(*_):
        asked.set()
        await asyncio.Event().wait()

    object.__setattr__(scene.admin.stores.tenants, "delete", slow)
    path = f"{API}/tenants/{scene.tenant['id']}"
    scope = a_scope("localhost", OPERATOR, b"", path, "DELETE")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="gateway.audit"):
        async with asyncio.timeout(10):
            await scene.admin.app.asgi_app(scope, leaving_after(asked), nobody_reads)
    assert [(line["action"], line["outcome"], line["by"]) for line in lines(caplog)] == [
        ("tenant.delete", "unknown", "operator")
    ]


def leaving_after(event):
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await event.wait()
        return {"type": "http.disconnect"}

    return receive


async def nobody_reads(_):
    raise AssertionError("the client had left")


async def test_what_a_client_writes_cannot_become_a_line_of_its_own(caplog):
    admin = await an_admin(token=OPERATOR)
    forged = 'x"}%0a{"action": "tenant.delete"}%0d%e2%80%a8' + "y" * 500
    with caplog.at_level(logging.INFO, logger="gateway.audit"):
        await admin.call(
            "DELETE", f"/tenants/{forged}/rules/{forged}", key="wrong", x_forwarded_for='"10.0.0.1', user_agent="\u00e9"
        )
    (record,) = (record for record in caplog.records if record.name == "gateway.audit")
    line = JsonFormatter().format(record)
    assert line.isprintable()
    assert line.isascii()
    assert len(line) < 700
    assert json.loads(line)["audit"] == record.audit
    assert record.audit["action"] == "rule.delete"


async def test_what_nobody_had_to_log_in_for_is_recorded_as_open(caplog):
    admin = await an_admin()
    with caplog.at_level(logging.INFO, logger="gateway.audit"):
        await admin.tenant()
    assert lines(caplog)[0]["by"] == "open"

"""One line for each write: who, what, and what changed."""

import json
import logging

from tests.unit.admin.helpers import OPERATOR, an_admin


def lines(caplog):
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "gateway.audit"]


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
    assert found[3]["changes"] == {"status": ["active", "suspended"]}
    assert found[5]["changes"] == {"path": ["/v1", "/v2"]}
    assert (found[6]["changes"], found[6]["request_id"]) == ({"name": ["default", "n"]}, "trace-1")
    assert "canary" not in caplog.text


async def test_reads_refusals_and_repetitions_leave_no_line(caplog):
    admin = await an_admin()
    body = {"name": "A", "subdomain": "acme"}
    tenant = (await admin.call("POST", "/tenants", body, idempotency_key="k")).json
    with caplog.at_level(logging.INFO, logger="gateway.audit"):
        await admin.call("POST", "/tenants", body, idempotency_key="k")
        await admin.call("POST", "/tenants", body)
        await admin.call("GET", f"/tenants/{tenant['id']}", key=tenant["api_key"])
        await admin.call("PATCH", f"/tenants/{tenant['id']}", {"tier": 1}, key=tenant["api_key"])
    assert lines(caplog) == []


async def test_what_nobody_had_to_log_in_for_is_recorded_as_open(caplog):
    admin = await an_admin()
    with caplog.at_level(logging.INFO, logger="gateway.audit"):
        await admin.tenant()
    assert lines(caplog)[0]["by"] == "open"

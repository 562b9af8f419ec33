"""Canaries: secrets go in and come out of nothing but the one answer that issues them."""

import logging

import pytest

from tests.unit.admin.helpers import OPERATOR, an_admin, texts

CANARY = "sk-canary-of-the-upstream"


@pytest.mark.parametrize("token", [None, OPERATOR])
async def test_a_secret_is_in_one_answer_and_nowhere_else(token, caplog):
    admin = await an_admin(token=token)
    with caplog.at_level(logging.DEBUG):
        tenant = await admin.tenant()
        base = f"/tenants/{tenant['id']}"
        issued = await admin.call("POST", f"{base}/api-keys", {"scopes": ["admin"]}, idempotency_key="k-1")
        rotated = await admin.call("POST", f"{base}/api-keys/{issued.json['id']}/rotate", idempotency_key="k-2")
        rule = await admin.rule(tenant, headers={"Authorization": f"Bearer {CANARY}", "x-api-key": CANARY})
        given_once = len(admin.seen)
        for method, path, body in (
            ("GET", base, None),
            ("GET", "/tenants", None),
            ("PATCH", base, {"name": "New"}),
            ("GET", f"{base}/api-keys", None),
            ("GET", f"{base}/api-keys/{issued.json['id']}", None),
            ("PATCH", f"{base}/api-keys/{issued.json['id']}", {"name": "n"}),
            ("GET", f"{base}/rules", None),
            ("GET", f"{base}/rules/{rule['id']}", None),
            ("PATCH", f"{base}/rules/{rule['id']}", {"headers": rule["headers"] | {"x-more": CANARY}}),
            ("PUT", f"{base}/rules/{rule['id']}", {"headers": {"x-api-key": CANARY + "\n"}}),
            ("PUT", f"{base}/rules/{rule['id']}", {"headers": CANARY}),
            ("PUT", f"{base}/rules/{rule['id']}", {"target": f"https://{CANARY}:pw@example.com"}),
            ("PUT", f"{base}/rules/{rule['id']}", {"methods": 5, "active": CANARY, "retry_attempts": CANARY}),
            ("POST", f"{base}/api-keys", {"expires_at": CANARY, "scopes": [CANARY], "allowed_networks": [CANARY]}),
            ("POST", f"{base}/api-keys/{issued.json['id']}/rotate", {"grace": CANARY}),
            ("PATCH", base, {"tier": f"{CANARY} ", "status": CANARY}),
            ("DELETE", f"{base}/rules/{rule['id']}", None),
        ):
            await admin.call(method, path, body)
        assert (await admin.call("GET", base, key="gw_" + CANARY)).status == 401
    secrets = [tenant["api_key"], issued.json["api_key"], rotated.json["api_key"]]
    answers = b"".join(got.raw + str(list(got.headers)).encode() for got in admin.seen[given_once:])
    everything = {"store": texts(await admin.dump()), "log": caplog.text, "answers": answers.decode()}
    for where, text in everything.items():
        for secret in (*secrets, CANARY, OPERATOR):
            assert secret not in text, where
    for secret in secrets:
        assert sum(secret.encode() in got.raw for got in admin.seen) == 1


async def test_what_a_secret_is_stored_as_differs_each_time():
    admin = await an_admin()
    tenant = await admin.tenant()
    for path in ("/a", "/b"):
        await admin.rule(tenant, path=path, headers={"Authorization": CANARY, "x-a": CANARY})
    stored = [value for rule in await admin.stores.rules.all(tenant["id"]) for value in rule.headers.values()]
    assert len(set(stored)) == 4

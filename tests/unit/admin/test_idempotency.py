"""A POST that is repeated with its Idempotency-Key is answered as before and does nothing."""

import pytest

from tests.unit.admin.helpers import OPERATOR, an_admin


async def posts(admin, tenant):
    """Every POST there is, with two different bodies for each."""
    base = f"/tenants/{tenant['id']}"
    rule = {"path": "/v1", "target": "https://api.example.com"}
    return [
        ("/tenants", {"name": "Other", "subdomain": "other"}, {"name": "Third", "subdomain": "third"}),
        (f"{base}/api-keys", {"name": "a"}, {"name": "b"}),
        (f"{base}/rules", rule, rule | {"path": "/v2"}),
        (f"{base}/api-keys/{tenant['api_key_id']}/rotate", {"grace": "1h"}, {"grace": "2h"}),
    ]


async def test_a_repeated_post_gives_the_first_answer_and_changes_nothing():
    admin = await an_admin(token=OPERATOR)
    for number, (path, body, _) in enumerate(await posts(admin, await admin.tenant())):
        first = await admin.call("POST", path, body, idempotency_key=f"k-{number}")
        assert first.status == 201
        assert "idempotent-replayed" not in first.headers
        before = await admin.dump()
        again = await admin.call("POST", path, body, idempotency_key=f"k-{number}")
        assert (again.status, again.json) == (201, first.json), path
        assert again.headers["idempotent-replayed"] == "true"
        for name in ("etag", "location"):
            assert again.headers[name] == first.headers[name]
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
        assert await admin.dump() == before, path


async def test_another_request_with_the_same_key_is_refused():
    admin = await an_admin(token=OPERATOR)
    for number, (path, body, other) in enumerate(await posts(admin, await admin.tenant())):
        assert (await admin.call("POST", path, body, idempotency_key=f"k-{number}")).status == 201
        before = await admin.dump()
        got = await admin.call("POST", path, other, idempotency_key=f"k-{number}")
        assert got.refusal == (409, "idempotency_conflict", "Idempotency-Key"), path
        assert await admin.dump() == before, path


async def test_a_key_is_for_one_path():
    admin = await an_admin(token=OPERATOR)
    (_, keys, rules, _) = await posts(admin, await admin.tenant())
    assert (await admin.call("POST", *keys[:2], idempotency_key="k")).status == 201
    assert (await admin.call("POST", *rules[:2], idempotency_key="k")).status == 409


async def test_two_callers_may_use_the_same_key():
    admin = await an_admin(token=OPERATOR)
    tenant = await admin.tenant()
    path = f"/tenants/{tenant['id']}/api-keys"
    first = await admin.call("POST", path, {}, idempotency_key="k")
    second = await admin.call("POST", path, {}, idempotency_key="k", key=tenant["api_key"])
    assert (first.status, second.status) == (201, 201)
    assert first.json["api_key"] != second.json["api_key"]


async def test_a_refused_request_may_be_corrected_and_sent_with_the_same_key():
    admin = await an_admin(token=OPERATOR)
    await admin.tenant("taken")
    before = await admin.dump()
    for wrong in ({"name": "", "subdomain": "free"}, {"name": "A", "subdomain": "taken"}):
        assert (await admin.call("POST", "/tenants", wrong, idempotency_key="k")).status in (400, 409)
        assert await admin.dump() == before
    assert (await admin.call("POST", "/tenants", {"name": "A", "subdomain": "free"}, idempotency_key="k")).status == 201


async def test_without_a_key_every_post_counts():
    admin = await an_admin()
    tenant = await admin.tenant()
    first, second = await admin.key(tenant), await admin.key(tenant)
    assert first["id"] != second["id"]


async def test_the_stored_answer_ages_out_and_tells_nothing():
    admin = await an_admin(token=OPERATOR)
    got = await admin.call("POST", "/tenants", {"name": "A", "subdomain": "acme"}, idempotency_key="readable-key")
    names = [name for name in await admin.redis.keys("*") if b"idem" in name]
    assert len(names) == 2
    for name in names:
        assert 0 < await admin.redis.pttl(name) <= 86_400_000
    dump = repr(await admin.dump())
    assert got.json["api_key"] not in dump
    assert "readable-key" not in dump


@pytest.mark.parametrize("key", ["", " ", "a b", "ä", "x" * 256])
async def test_a_key_that_is_no_key_is_refused(key):
    admin = await an_admin()
    got = await admin.call("POST", "/tenants", {"name": "A", "subdomain": "acme"}, idempotency_key=key)
    assert got.refusal == (400, "invalid_field", "Idempotency-Key")
    assert await admin.dump() == {}

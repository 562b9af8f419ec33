"""What an operator changes holds for the very next request, and what is damaged harms nobody else."""

import asyncio
import logging

import pytest

from gateway.plugin import Plugin, Settings
from tests.gateways import running_proxy
from tests.wire import an_upstream


@pytest.fixture
async def served(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        rule = await gateway.new_rule(tenant, upstream.url)
        assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).status == 200
        yield gateway, tenant, rule, upstream


async def test_a_revoked_key_is_refused_at_the_very_next_request(served):
    gateway, tenant, _, upstream = served
    key = await gateway.new_key(tenant)
    async with gateway.connected() as wire:
        assert (await wire.ask("GET", "/v1/x", gateway.fields(key=key))).status == 200
        await gateway.revoke(tenant, key)
        assert (await wire.ask("GET", "/v1/x", gateway.fields(key=key))).status == 401
    assert (await gateway.ask("GET", "/v1/x", key=key, host="127.0.0.1")).status == 401
    assert len(upstream.requests) == 2


async def test_a_suspended_tenant_is_refused_at_the_very_next_request_and_served_after_its_return(served):
    gateway, tenant, _, upstream = served
    await gateway.change_tenant(tenant, status="suspended")
    for host in (tenant.host, "127.0.0.1"):
        reply = await gateway.ask("GET", "/v1/x", key=tenant.secret, host=host)
        assert (reply.status, reply.code) == (403, "tenant_suspended")
    assert (await gateway.ask("GET", "/v1/x", key="sk-1")).status == 401
    await gateway.change_tenant(tenant, status="active")
    assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).status == 200
    assert len(upstream.requests) == 2


async def test_a_changed_rule_holds_at_the_very_next_request(served):
    gateway, tenant, rule, upstream = served
    async with an_upstream() as other:
        await gateway.change_rule(tenant, rule, target=other.url + "/moved", strip_path=True)
        assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).status == 200
        assert other.last.target == "/moved/x"
        await gateway.change_rule(tenant, rule, active=False)
        assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).code == "no_route"
        await gateway.change_rule(tenant, rule, active=True, methods=["POST"])
        assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).get("allow") == "POST"
        await gateway.stores.rules.delete(tenant.id, rule)
        assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).code == "no_route"
    assert len(upstream.requests) == 1


async def test_a_changed_limit_holds_at_the_very_next_request_also_on_another_replica(served, valkey_store_server):
    gateway, tenant, rule, _ = served
    async with running_proxy(valkey_store_server.url) as replica:
        assert (await replica.ask("GET", "/v1/x", key=tenant.secret)).status == 200
        await gateway.change_rule(
            tenant, rule, plugin_chain=[{"name": "rate_limiter", "settings": {"limit": 2, "window": "1m"}}]
        )
        asked = [await each.ask("GET", "/v1/x", key=tenant.secret) for each in (gateway, replica, gateway, replica)]
        assert [reply.status for reply in asked] == [200, 200, 429, 429]
        await gateway.change_rule(tenant, rule, plugin_chain=[])
        assert [(await each.ask("GET", "/v1/x", key=tenant.secret)).status for each in (gateway, replica)] == [200, 200]


async def test_a_changed_key_holds_at_the_very_next_request(served):
    gateway, tenant, rule, _ = served
    key = await gateway.new_key(tenant)
    assert (await gateway.ask("GET", "/v1/x", key=key)).status == 200
    for found in await gateway.stores.api_keys.all(tenant.id):
        await gateway.stores.api_keys.update(
            tenant.id, found.key.id, lambda key: key.model_copy(update={"allowed_rules": (rule,)})
        )
    assert (await gateway.ask("GET", "/v1/x", key=key)).status == 200
    for found in await gateway.stores.api_keys.all(tenant.id):
        await gateway.stores.api_keys.update(tenant.id, found.key.id, lambda key: key.model_copy(update={"allowed_rules": ()}))
    assert (await gateway.ask("GET", "/v1/x", key=key)).code == "not_allowed"


async def test_a_deleted_tenant_is_unknown_and_one_that_takes_its_subdomain_is_another(served):
    gateway, tenant, _, upstream = served
    # so that the gateway has learnt whose key it is
    assert (await gateway.ask("GET", "/v1/x", key=tenant.secret, host="127.0.0.1")).status == 200
    await gateway.stores.tenants.delete(tenant.id)
    assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).code == "unknown_tenant"
    # where no host names it, nobody is told that there was a tenant
    assert (await gateway.ask("GET", "/v1/x", key=tenant.secret, host="127.0.0.1")).code == "invalid_api_key"
    again = await gateway.new_tenant()
    assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).code == "invalid_api_key"
    assert (await gateway.ask("GET", "/v1/x", key=tenant.secret, host="127.0.0.1")).code == "invalid_api_key"
    assert (await gateway.ask("GET", "/v1/x", key=again.secret)).code == "no_route"
    assert len(upstream.requests) == 2


async def test_changes_while_requests_run_disturb_none_of_them(served):
    gateway, tenant, rule, _ = served

    async def change():
        for number in range(20):
            await gateway.change_rule(tenant, rule, metadata={"n": str(number)})

    async def ask():
        async with gateway.connected() as wire:
            return [(await wire.ask("GET", "/v1/x", gateway.fields(key=tenant.secret))).status for _ in range(20)]

    results = await asyncio.gather(change(), *(ask() for _ in range(5)))
    assert {status for statuses in results[1:] for status in statuses} == {200}


# Damage


async def damage(gateway, tenant, rule, document):
    """Write past the admin API, and tell every replica to read it."""
    keyspace = (await gateway.stores.tenants.get(tenant.id)).keyspace
    client = gateway.stores.connection.client
    if rule is None:
        await client.hset(keyspace.tenant, mapping={"document": document, "version": "damaged"})
    else:
        await client.hset(keyspace.rules, rule, document)
        await client.hset(keyspace.tenant, "version", "damaged")


GARBAGE = [b" ", b"{", b"null", b"\xff\xfe", b"[]", b'{"id": 1}', b"\x00" * 100]


@pytest.mark.parametrize("document", GARBAGE)
@pytest.mark.parametrize("what", ["tenant", "rule"])
async def test_the_last_good_configuration_stays_in_force_where_a_stored_one_is_damaged(served, document, what, caplog):
    gateway, tenant, rule, _ = served
    other = await gateway.new_tenant("other")
    await damage(gateway, tenant, rule if what == "rule" else None, document)
    for _ in range(2):
        assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).status == 200
    assert "the stored configuration of tenant testcompany is damaged" in caplog.text
    assert (await gateway.ask("GET", "/v1/x", key=other.secret, host=other.host)).code == "no_route"
    # a revocation is no part of the document
    key = await gateway.new_key(other)
    await gateway.revoke(other, key)
    assert (await gateway.ask("GET", "/v1/x", key=key, host=other.host)).status == 401


async def test_a_replica_that_knows_no_good_configuration_refuses_that_tenant_only(served, valkey_store_server):
    gateway, tenant, rule, upstream = served
    await damage(gateway, tenant, rule, b"{")
    async with running_proxy(valkey_store_server.url) as replica:
        reply = await replica.ask("GET", "/v1/x", key=tenant.secret)
        assert (reply.status, reply.code) == (500, "internal_error")
        other = await replica.new_tenant("other")
        await replica.new_rule(other, upstream.url)
        assert (await replica.ask("GET", "/v1/x", key=other.secret, host=other.host)).status == 200


class LimitsFail(Plugin[Settings]):
    """Its limits cannot be declared."""

    name = "limits_fail"

    def limits(self, scope):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "fields",
    [
        {"plugin_chain": [{"name": "no-such-plugin"}]},
        {"plugin_chain": [{"name": "rate_limiter", "settings": {"limit": -1}}]},
        {"plugin_chain": [{"name": "limits_fail"}]},
        {"target": "http://10.0.0.1"},
        {"target": "https://user@a.example"},
        {"headers": {"authorization": "sealed:v1:AAAA"}},
    ],
)
async def test_a_rule_that_cannot_be_used_fails_alone(store_url, fields, caplog):
    async with running_proxy(store_url, plugins=[LimitsFail]) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        good = await gateway.new_rule(tenant, upstream.url, "/good")
        bad = await gateway.new_rule(tenant, upstream.url, "/bad")
        await gateway.change_rule(tenant, bad, **fields)
        with caplog.at_level(logging.ERROR):
            reply = await gateway.ask("GET", "/bad", key=tenant.secret)
        assert (reply.status, reply.code) == (500, "internal_error")
        assert bad in caplog.text
        assert good
        assert (await gateway.ask("GET", "/good", key=tenant.secret)).status == 200

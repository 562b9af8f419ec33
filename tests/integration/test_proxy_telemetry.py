"""What a served proxy tells its operators, and what it keeps to itself."""

import json
import random
import string

from gateway import virtual_key
from tests.gateways import running_proxy
from tests.wire import an_upstream


async def test_each_request_is_one_line_that_tells_what_became_of_it(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        rule = await gateway.new_rule(tenant, upstream.url)
        reply = await gateway.ask("POST", "/v1/x?secret=1", key=tenant.secret, body=b"four")
        line = await gateway.logged()
        assert (line["tenant"], line["rule"], line["method"], line["path"]) == ("testcompany", rule, "POST", "/v1/x")
        assert (line["status"], line["code"], line["bytes_in"], line["bytes_out"]) == (200, "", 4, 5)
        assert line["request_id"] == reply.get("x-request-id")
        assert line["key_id"].startswith("key_")
        assert line["client_ip"] == "127.0.0.1"
        assert 0 < line["upstream_ms"] < line["total_ms"]
        assert 0 < line["admission_ms"] < line["total_ms"]


async def test_no_secret_and_no_query_reaches_a_log_a_metric_or_an_answer(gateway, caplog):
    canaries = {
        "upstream": "sk-CANARY-upstream",
        "query": "CANARY-query",
        "body": "CANARY-body",
        "unknown": virtual_key.new_secret(),
        "header": "CANARY-header",
    }

    async def echoing(call):
        await call.read_body()
        await call.answer(
            401, {"x-echo": call.request.get("authorization") or ""}, (call.request.get("authorization") or "").encode()
        )

    with caplog.at_level("DEBUG"):
        async with an_upstream(echoing) as upstream:
            tenant = await gateway.new_tenant()
            canaries["key"] = tenant.secret
            await gateway.new_rule(tenant, upstream.url, headers={"Authorization": f"Bearer {canaries['upstream']}"})
            await gateway.new_rule(
                tenant, "http://127.0.0.1:1", "/dead", headers={"Authorization": f"Bearer {canaries['upstream']}"}
            )
            replies = [
                await gateway.ask(
                    "POST",
                    f"{path}?q={canaries['query']}",
                    key=key,
                    body=canaries["body"].encode(),
                    fields={"x-h": canaries["header"]},
                )
                for path in ("/v1/x", "/dead", "/nowhere", "/v1/../x")
                for key in (tenant.secret, canaries["unknown"], "CANARY-header")
            ]
        await gateway.logged(len(replies))
    shown = gateway.log.getvalue() + caplog.text + gateway.metrics.exposition()[0].decode()
    shown += "".join(reply.raw_head.decode("latin-1") + reply.body.decode() for reply in replies)
    found = [name for name, canary in canaries.items() if canary in shown]
    assert found == []


async def test_a_path_cannot_forge_a_line(gateway):
    await gateway.new_tenant()
    for path in ("/%0a%22%7d%0d%0a{%22status%22:200}", "/%c3%a9%e2%80%a8", "/%1b[31m"):
        await gateway.ask("GET", path, key=None)
    await gateway.logged(3)
    lines = gateway.log.getvalue().split("\n")
    assert len(lines) == 4
    assert gateway.log.getvalue().isascii()
    assert all(json.loads(line)["status"] == 401 for line in lines[:3])


async def test_hosts_paths_keys_models_and_methods_add_no_series(gateway):
    rng = random.Random(7)

    def word():
        return "".join(rng.choices(string.ascii_lowercase, k=8))

    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)

        async def each_kind(count):
            for _ in range(count):
                await gateway.ask("GET", f"/{word()}", key=tenant.secret)
                await gateway.ask("GET", f"/v1/{word()}?{word()}", key=tenant.secret, fields={"x-request-id": word()})
                await gateway.ask("GET", "/v1", key=virtual_key.new_secret(), host=f"{word()}.example.com")
                await gateway.ask("GET", "/v1", key=virtual_key.new_secret(), host=word())
                await gateway.ask("GET", "/v1", key=virtual_key.new_secret())
                await gateway.ask(word().upper(), "/v1", key=tenant.secret)
                await gateway.ask("POST", "/v1", key=tenant.secret, body=json.dumps({"model": word()}).encode())
            await gateway.idle()

        await each_kind(2)
        before = gateway.series()
        await each_kind(15)
        assert gateway.series() == before
        assert 'gateway_requests_total{rule="",status="404",tenant=""}' in before


async def test_the_metrics_page_shows_them(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        rule = await gateway.new_rule(tenant, upstream.url)
        await gateway.ask("GET", "/v1/x", key=tenant.secret)
        await gateway.logged()
        page = await gateway.ask("GET", "/metrics", key=None, host="127.0.0.1")
        assert page.get("content-type").startswith("text/plain; version=0.0.4")
        text = page.body.decode()
        assert f'gateway_requests_total{{rule="{rule}",status="200",tenant="testcompany"}} 1.0' in text
        assert "gateway_requests_in_flight 0.0" in text


async def test_readiness_follows_the_store_and_the_shutdown(store_url, valkey_store_server):
    redis = {"command_timeout": 200, "connect_timeout": 200}
    async with running_proxy(store_url, redis=redis) as gateway:

        async def ask(page):
            return await gateway.ask("GET", page, key=None, host="127.0.0.1")

        assert (await ask("/health/ready")).status == 200
        with valkey_store_server.hung():
            assert (await ask("/health/ready")).code == "store_unavailable"
            assert (await ask("/health/live")).status == 200
        gateway.leaving.set()
        reply = await ask("/health")
        assert (reply.status, reply.code) == (503, "draining")


async def test_work_in_the_background_is_finished_before_the_proxy_stops(store_url):
    async with running_proxy(store_url) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        chain = [
            {"name": "security_validator", "priority": 1, "settings": {"allowed_methods": ["GET"]}},
            {"name": "rate_limiter", "settings": {"limit": 5, "window": "1h"}},
        ]
        await gateway.new_rule(tenant, upstream.url, plugin_chain=chain)
        for _ in range(3):
            assert (await gateway.ask("POST", "/v1/x", key=tenant.secret)).status == 405
    async with running_proxy(store_url) as again, an_upstream() as upstream:
        reply = await again.ask("GET", "/v1/x", key=tenant.secret)
        assert reply.get("x-ratelimit-remaining-requests") == "4"

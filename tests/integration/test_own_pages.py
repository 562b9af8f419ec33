"""What the proxy says itself tells nothing that helps an attacker, on every engine, over TLS too."""

import ssl

import pytest

from tests.gateways import running_proxy
from tests.single_server import make_certificates
from tests.wire import an_upstream, connected_to

ASKED = [("GET", "/health"), ("GET", "/health/ready"), ("GET", "/metrics"), ("GET", "/health/nothing"), ("GET", "/nothing")]


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize("engine", ["hypercorn", "granian", "uvicorn"])
async def test_own_pages_and_errors_name_no_server_and_are_not_sniffed(store_url, engine, is_tls, tmp_path):
    files = make_certificates(tmp_path)
    tls = {"tls_certificate": files.certificate, "tls_key": files.key} if is_tls else {}
    how = {"ssl": ssl.create_default_context(cafile=str(files.authority)), "server_hostname": "localhost"} if is_tls else {}
    async with running_proxy(store_url, server={"engine": engine, **tls}) as gateway:
        for host in ("localhost", "nobody.example.com"):
            for method, target in ASKED:
                async with connected_to(gateway.port, **how) as wire:
                    reply = await wire.ask(method, target, {"host": host, "origin": "http://evil.example"})
                assert reply.get("x-content-type-options") == "nosniff", target
                assert not reply.get("server")
                assert not {name for name in reply.names if name.startswith("access-control-") or name == "x-powered-by"}


@pytest.mark.parametrize("engine", ["hypercorn", "granian", "uvicorn"])
async def test_trace_echoes_nothing_and_reaches_no_target(store_url, engine):
    async with running_proxy(store_url, server={"engine": engine}) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        async with gateway.connected() as wire:
            fields = {"host": tenant.host, "authorization": f"Bearer {tenant.secret}", "x-mine": "echo-me"}
            reply = await wire.ask("TRACE", "/v1/x", fields)
        assert reply.status == 405
        assert b"echo-me" not in reply.body
        assert tenant.secret.encode() not in reply.body
        assert upstream.requests == []

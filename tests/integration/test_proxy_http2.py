"""A whole proxy over TLS and HTTP/2: targets see what they see over HTTP/1.1, and clients can leave."""

import asyncio
import ssl

import pytest

from tests.gateways import running_proxy
from tests.h2_client import h2_connected
from tests.single_server import make_certificates
from tests.wire import an_upstream, connected_to

CHAT = b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}'


@pytest.fixture
async def secured(store_url, tmp_path):
    """A proxy over TLS with both versions of HTTP, and how a client trusts it."""
    files = make_certificates(tmp_path)
    server = {"engine": "granian", "http2": True, "tls_certificate": files.certificate, "tls_key": files.key}
    async with running_proxy(store_url, server=server) as gateway:
        yield gateway, ssl.create_default_context(cafile=str(files.authority))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models?a=%20&b=c%2Fd", None),
        ("POST", "/v1/chat/completions", CHAT),
        ("POST", "/v1/files", bytes(range(256)) * 1_000),
        ("POST", "/v1/nothing", b""),
        ("DELETE", "/v1/files/1", None),
    ],
)
async def test_a_target_sees_the_same_bytes_as_over_http_1_1(secured, method, path, body):
    gateway, trust = secured
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        common = [("authorization", f"Bearer {tenant.secret}"), ("x-custom", "a"), ("x-request-id", "the-same-0123456789")]
        common += [] if body is None else [("content-length", str(len(body)))]
        async with connected_to(gateway.port, ssl=trust, server_hostname="localhost") as wire:
            first = await wire.ask(method, path, [("host", tenant.host), *common], body or b"")
        async with h2_connected(("127.0.0.1", gateway.port)) as client:
            second = await client.ask(method, path, *common, body=body, authority=tenant.host)
        assert (second["status"], second["body"]) == (first.status, first.body) == (200, b"hello")
        one, other = upstream.requests
        assert one.raw_head == other.raw_head
        assert one.body == other.body == (body or b"")
        assert other.get("x-forwarded-proto") == "https"


async def test_a_body_of_unknown_length_arrives_as_one(secured):
    gateway, _ = secured
    async with an_upstream() as upstream, h2_connected(("127.0.0.1", gateway.port)) as client:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        key = ("authorization", f"Bearer {tenant.secret}")
        assert (await client.ask("POST", "/v1/x", key, body=b"of unknown length", authority=tenant.host))["status"] == 200
        assert upstream.last.body == b"of unknown length"


async def test_the_tenant_is_found_by_the_authority_and_another_host_counts_as_the_host(secured):
    gateway, _ = secured
    async with an_upstream() as upstream, h2_connected(("127.0.0.1", gateway.port)) as client:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        key = ("authorization", f"Bearer {tenant.secret}")
        assert (await client.ask("GET", "/v1/x", key, authority=tenant.host))["status"] == 200
        assert (await client.ask("GET", "/v1/x", key, authority="nobody.example.com"))["status"] in (401, 404)
        # Granian does not tell the authority where there is a Host
        other = await client.ask("GET", "/v1/x", key, ("host", "nobody.example.com"), authority=tenant.host)
        assert other["status"] in (401, 404)
        twice = await client.ask("GET", "/v1/x", key, ("host", tenant.host), ("host", tenant.host))
        assert twice["status"] == 400
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("path", ["/v1/../admin", "/v1/%2e%2e/x", "//evil/x", "/v1\\x", "*"])
async def test_paths_are_judged_as_over_http_1_1(secured, path):
    gateway, _ = secured
    async with an_upstream() as upstream, h2_connected(("127.0.0.1", gateway.port)) as client:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, path="/")
        reply = await client.ask("GET", path, ("authorization", f"Bearer {tenant.secret}"), authority=tenant.host)
        assert "reset" in reply or reply["status"] == 400
        assert upstream.requests == []


async def test_who_cancels_a_stream_cancels_it_at_the_target(secured):
    gone = asyncio.Event()

    async def endless(call):
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await call.send_chunk(b"data: 1\n\n")
        await call.until_gone()
        gone.set()

    gateway, _ = secured
    async with an_upstream(endless) as upstream, h2_connected(("127.0.0.1", gateway.port)) as client:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        key = ("authorization", f"Bearer {tenant.secret}")
        stream = client.begin("POST", "/v1/chat/completions", key, body=CHAT, authority=tenant.host)
        await client.until(lambda: b"data: 1" in client.streams[stream].get("body", b""))
        client.h2.reset_stream(stream, 8)
        client.flush()
        async with asyncio.timeout(5):
            await gone.wait()
        await gateway.idle()

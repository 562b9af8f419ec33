"""Who gets in: hosts, keys, paths and framing, against raw sockets."""

import asyncio
import contextlib
import re

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import virtual_key
from tests.engines import ENGINE, engine_differs
from tests.gateways import running_proxy
from tests.wire import an_upstream, head_of


@pytest.fixture
async def served(gateway):
    """A gateway, a tenant with a rule for everything, and the upstream behind it."""
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, "/")
        yield gateway, tenant, upstream


# Hosts


@pytest.mark.parametrize(
    "host",
    [
        "testcompany.example.com",
        "TestCompany.EXAMPLE.com",
        "testcompany.example.com.",
        "testcompany.example.com:8081",
        "testcompany.localhost",
        "testcompany.localhost:1",
    ],
)
async def test_one_label_under_a_base_domain_is_the_tenant(served, host):
    gateway, tenant, upstream = served
    assert (await gateway.ask("GET", "/x", key=tenant.secret, host=host)).status == 200
    assert upstream.last.get("x-forwarded-host") == host


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "localhost:8081",
        "[::1]:8081",
        "gateway.internal",
        "a.testcompany.example.com",
        "testcompanyexample.com",
        "example.com",
    ],
)
async def test_on_any_other_host_the_key_names_the_tenant(served, host):
    gateway, tenant, _ = served
    assert (await gateway.ask("GET", "/x", key=tenant.secret, host=host)).status == 200
    for key in (None, virtual_key.new_secret(), "sk-1234"):
        reply = await gateway.ask("GET", "/x", key=key, host=host)
        assert (reply.status, reply.code) == (401, "invalid_api_key")


async def test_on_a_tenant_s_host_only_its_own_keys_pass(served):
    gateway, tenant, upstream = served
    other = await gateway.new_tenant("other")
    for key in (other.secret, virtual_key.new_secret(), "gw_wrong", None):
        reply = await gateway.ask("GET", "/x", key=key, host=tenant.host)
        assert (reply.status, reply.code, reply.get("www-authenticate")) == (401, "invalid_api_key", 'Bearer realm="gateway"')
    assert upstream.connections == 0


async def test_a_host_of_nobody_is_unknown_with_and_without_a_key(served):
    gateway, tenant, _ = served
    for key in (None, tenant.secret, virtual_key.new_secret(), "sk-1"):
        reply = await gateway.ask("GET", "/x", key=key, host="nobody.example.com")
        assert (reply.status, reply.code) == (404, "unknown_tenant")


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "a@testcompany.example.com",
        "testcompany.example.com:x",
        "testcompany.example.com:123456",
        "a/b",
        "[::1",
        "é.example.com",
        "a,b",
    ],
)
async def test_a_host_that_is_none_is_malformed(served, host):
    gateway, tenant, upstream = served
    assert (await gateway.ask("GET", "/x", key=tenant.secret, host=host)).status == 400
    assert upstream.connections == 0


async def test_two_hosts_or_none_are_malformed(served):
    gateway, tenant, upstream = served
    for hosts in ([], ["testcompany.example.com", "testcompany.example.com"], ["testcompany.example.com", "evil.example"]):
        fields = [*(("host", host) for host in hosts), ("authorization", f"Bearer {tenant.secret}")]
        async with gateway.connected() as wire:
            assert (await wire.ask("GET", "/x", fields)).status == 400
    assert upstream.connections == 0


async def test_forwarded_hosts_and_addresses_count_only_from_trusted_proxies(store_url):
    claims = {
        "x-forwarded-host": "testcompany.example.com",
        "x-forwarded-for": "6.6.6.6, 203.0.113.9",
        "x-forwarded-proto": "https",
    }
    for trusted in (False, True):
        server = {"trusted_proxies": "127.0.0.0/8"} if trusted else {}
        async with running_proxy(store_url, server=server) as gateway, an_upstream() as upstream:
            tenant = await gateway.new_tenant("testcompany" if trusted else "untrusting")
            await gateway.new_rule(tenant, upstream.url, "/")
            reply = await gateway.ask("GET", "/x", key=tenant.secret, host="inner.lb", fields=claims)
            assert reply.status == 200
            seen = [upstream.last.get(f"x-forwarded-{name}") for name in ("host", "for", "proto")]
            assert seen == (
                ["testcompany.example.com", "203.0.113.9", "https"] if trusted else ["inner.lb", "127.0.0.1", "http"]
            )
            # a tenant's host has no pages of the gateway's own, whichever header names it
            own = await gateway.ask("GET", "/metrics", key=None, host="inner.lb", fields=claims)
            assert own.status == (401 if trusted else 200)


async def test_own_pages_exist_only_on_hosts_that_are_no_tenant_s(served):
    gateway, tenant, upstream = served
    for page in ("/health", "/health/live", "/health/ready", "/metrics"):
        assert (await gateway.ask("GET", page, key=None, host="127.0.0.1")).status == 200
        assert (await gateway.ask("GET", page, key=None)).status == 401
        assert (await gateway.ask("GET", page, key=tenant.secret)).status == 200
        assert upstream.last.target == page
    assert (await gateway.ask("GET", "/healthy", key=None, host="127.0.0.1")).status == 401
    assert (await gateway.ask("GET", "/health", key=None, host="a@b")).status == 400


@engine_differs(granian="drops the authority of the request line")
async def test_a_second_authority_in_the_request_line_is_refused(served):
    gateway, tenant, upstream = served
    for target in ("http://testcompany.example.com/x", "http://other.example.com/x", "https://evil/", "//evil/x", "*", "evil"):
        assert (await gateway.ask("GET", target, key=tenant.secret)).status == 400
    assert upstream.connections == 0


@engine_differs(granian="closes without an answer")
async def test_http2_without_tls_is_refused(served):
    gateway, tenant, upstream = served
    async with gateway.connected() as wire:
        client = H2Connection(H2Configuration(client_side=True))
        client.initiate_connection()
        await wire.send(client.data_to_send())
        assert (await wire.reader.read(65_536)).startswith(b"HTTP/1.1 505 ")
        assert await wire.reader.read(1) == b""
    upgrade = {"connection": "upgrade, http2-settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAARAAAAAAAIAAAAA"}
    assert (await gateway.ask("GET", "/x", key=tenant.secret, fields=upgrade)).status == 200
    assert upstream.last.get("upgrade") is None


# Credentials


@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key"])
async def test_a_key_is_found_where_the_common_sdks_put_it(served, name):
    gateway, tenant, upstream = served
    value = f"bearer  {tenant.secret} " if name == "Authorization" else f" {tenant.secret}"
    assert (await gateway.ask("GET", "/x", key=None, fields={name: value})).status == 200
    assert tenant.secret.encode() not in upstream.last.raw_head


async def test_two_different_credentials_are_refused_and_the_same_one_twice_is_not(served):
    gateway, tenant, upstream = served
    for other in (virtual_key.new_secret(), "sk-anything"):
        for name in ("x-api-key", "authorization", "api-key"):
            value = f"Bearer {other}" if name == "authorization" else other
            reply = await gateway.ask("GET", "/x", key=tenant.secret, fields={name: value})
            assert (reply.status, reply.code) == (400, "ambiguous_credentials")
    assert upstream.connections == 0
    assert (await gateway.ask("GET", "/x", key=tenant.secret, fields={"x-api-key": tenant.secret, "api-key": ""})).status == 200


async def test_missing_unknown_revoked_and_expired_keys_are_answered_alike(served):
    gateway, tenant, _ = served
    revoked = await gateway.new_key(tenant)
    await gateway.revoke(tenant, revoked)
    expired = await gateway.new_key(tenant, expires_at="2020-01-01T00:00:00Z")
    replies = [await gateway.ask("GET", "/x", key=key) for key in (None, virtual_key.new_secret(), revoked, expired, "x")]
    shown = {re.sub(rb"req_[0-9a-f]+", b"", reply.body) for reply in replies}
    assert [reply.status for reply in replies] == [401] * 5
    assert len(shown) == 1


@pytest.mark.parametrize(
    ("restriction", "allowed"),
    [
        ({"scopes": ["admin"]}, False),
        ({"scopes": ["proxy"]}, True),
        ({"allowed_networks": ["10.0.0.0/8"]}, False),
        ({"allowed_networks": ["127.0.0.1"]}, True),
        ({"allowed_rules": ["rule_other"]}, False),
    ],
)
async def test_a_key_does_only_what_it_may(served, restriction, allowed):
    gateway, tenant, upstream = served
    reply = await gateway.ask("GET", "/x", key=await gateway.new_key(tenant, **restriction))
    assert reply.status == (200 if allowed else 403)
    assert allowed or reply.code == "not_allowed"
    assert upstream.connections == allowed


async def test_a_key_for_some_models_calls_no_others_and_none_unnamed(served):
    gateway, tenant, upstream = served
    key = await gateway.new_key(tenant, allowed_models=["small"])
    cases = [
        (b'{"model": "small"}', 200),
        (b'{"model": "large"}', 403),
        (b"{}", 403),
        (b'{"model": 1}', 403),
        (b"[]", 400),
        (b"{", 400),
        (b'{"model": "large", "model": "small"}', 400),
    ]
    for body, status in cases:
        assert (await gateway.ask("POST", "/x", key=key, body=body)).status == status
    reply = await gateway.ask("POST", "/x", key=key, body=b'{"model": "small"}', fields={"content-encoding": "gzip"})
    assert reply.status == 415
    assert (await gateway.ask("GET", "/models", key=key)).status == 200
    assert [request.body for request in upstream.requests] == [b'{"model": "small"}', b""]


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "/a/../b",
        "/..",
        "/a/%2e%2e/b",
        "/a/.%2E",
        "/./a",
        "/a/%2F/b",
        "/a%5Cb",
        "/a\\b",
        "/a%00",
        "/a/..;/b",
        "//a",
        pytest.param("/a#b", marks=engine_differs(granian="drops fragments")),
        pytest.param("/a?b#c", marks=engine_differs(granian="drops fragments")),
        "/" + "a" * 8_200,
        "/a?" + "b" * 8_200,
    ],
)
async def test_a_url_that_could_mean_something_else_is_refused(served, path):
    gateway, tenant, upstream = served
    reply = await gateway.ask("GET", path, key=tenant.secret)
    assert reply.status in (400, 414)
    assert reply.get("x-request-id")
    assert upstream.connections == 0


pieces = st.sampled_from(
    [
        "/",
        "//",
        "a",
        "%61",
        "..",
        ".",
        "%2e",
        "%2E%2e",
        ";",
        "%3b",
        "%2f",
        "%2F",
        "%5c",
        "\\",
        "%00",
        "%",
        "%zz",
        "@",
        ":",
        "http:",
        "evil.example",
        "v1",
        "%76%31",
        "?",
        *([] if ENGINE == "granian" else ["#"]),  # it drops fragments
        "~",
        "'",
        "[",
        "|",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pieces, min_size=1, max_size=8).map("".join))
def test_what_passes_reaches_the_target_byte_for_byte_and_nobody_else(valkey_store_server, loop_with_gateway, path):
    run, gateway, tenant, upstream = loop_with_gateway
    before = len(upstream.requests)

    async def ask():
        return await gateway.ask("GET", f"/{path}", key=tenant.secret)

    reply = run(ask())
    if reply.status == 200:
        assert upstream.last.target in (f"/{path}", f"/{path}".removesuffix("?"))
        assert upstream.last.get("host") == f"127.0.0.1:{upstream.port}"
        decoded = re.sub("%2[eE]", ".", f"/{path}".partition("?")[0]).replace("%3b", ";")
        assert not {".", ".."} & {segment.partition(";")[0] for segment in decoded.split("/")}
        assert "%2f" not in decoded.lower()
        assert not decoded.startswith("//")
    else:
        assert reply.status == 400
        assert len(upstream.requests) == before


@pytest.fixture
def loop_with_gateway(valkey_store_server):
    """One gateway for many generated requests."""
    valkey_store_server.command("FLUSHALL")
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()

        async def start():
            gateway = await stack.enter_async_context(running_proxy(valkey_store_server.url))
            upstream = await stack.enter_async_context(an_upstream())
            tenant = await gateway.new_tenant()
            await gateway.new_rule(tenant, upstream.url, "/")
            return gateway, tenant, upstream

        gateway, tenant, upstream = runner.run(start())
        yield runner.run, gateway, tenant, upstream
        runner.run(stack.aclose())


# Framing


COUNTS_ONCE = engine_differs(granian="counts a length that is given twice once")
DROPS_LENGTH = engine_differs(granian="drops the length beside chunks and closes the connection after the reply")
RAW = "POST /x HTTP/{version}\r\nHost: testcompany.example.com\r\nAuthorization: Bearer {key}\r\n"


@pytest.mark.parametrize(
    ("version", "rest"),
    [
        pytest.param("1.1", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", marks=DROPS_LENGTH),
        pytest.param("1.1", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", marks=DROPS_LENGTH),
        ("1.0", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        pytest.param("1.1", "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", marks=COUNTS_ONCE),
        ("1.1", "Content-Length: 5, 5\r\n\r\nhello"),
        ("1.1", "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        ("1.1", "Content-Length: 5, 6\r\n\r\nhello!"),
        ("1.1", "Content-Length: +5\r\n\r\nhello"),
        ("1.1", "Content-Length: 0x5\r\n\r\nhello"),
        ("1.1", "Content-Length: -1\r\n\r\nhello"),
        ("1.1", "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ("1.1", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("1.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("1.1", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    ],
)
async def test_ambiguous_framing_is_refused_and_the_connection_closed(served, version, rest):
    gateway, tenant, upstream = served
    async with gateway.connected() as wire:
        await wire.send(
            (RAW.format(version=version, key=tenant.secret) + rest).encode() + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        assert (await wire.reply()).status == 400
        assert await wire.is_closed()
    assert upstream.connections == 0


@pytest.mark.parametrize(
    ("target", "fields", "status"),
    [
        ("//evil/x", {}, 400),
        ("/a/../b", {}, 400),
        ("/a%2fb", {}, 400),
        ("/a?b#c", {}, 400),
        ("*", {}, 400),
        ("x", {}, 400),
        ("testcompany.example.com:80", {}, 400),
        ("@evil/x", {}, 400),
        ("/" + "a" * 8_192, {}, 414),
        ("/x", {"host": "testcompany.example.com"}, 400),
        ("/x", {"x": "a" * 8_192}, 431),
        ("/x", {"x" * 8_192: "a"}, 431),
        ("/x", [(f"x{n}", "a" * 8_000) for n in range(5)], 431),  # whole in one read, so no engine has waited for more
        ("/x", [("x", "1")] * 99, 431),
        ("/x", {"x-api-key": "another"}, 400),
    ],
)
async def test_who_sends_a_head_that_is_refused_is_not_heard_again(served, target, fields, status):
    gateway, tenant, upstream = served
    if ENGINE == "granian" and "#" in target:
        pytest.skip("Granian drops fragments")
    async with gateway.connected() as wire:
        refused = head_of("GET", target, gateway.fields(key=tenant.secret, fields=fields))
        await wire.send(refused + head_of("GET", "/smuggled", gateway.fields(key=tenant.secret)))
        assert (await wire.reply()).status == status
        assert await wire.is_closed()
    assert upstream.connections == 0


async def test_too_many_or_too_long_fields_are_refused(served):
    gateway, tenant, upstream = served
    reply = await gateway.ask("GET", "/x", key=tenant.secret, fields=[("x", "1")] * 99)
    assert reply.status == 431
    assert ENGINE == "granian" or reply.code == "headers_too_large"  # Granian's own limit is the same and comes first
    reply = await gateway.ask("GET", "/x", key=tenant.secret, fields={"x": "a" * 8_192})
    assert (reply.status, reply.code) == (431, "headers_too_large")
    assert (await gateway.ask("GET", "/x", key=tenant.secret, fields=[("x", "1")] * 98)).status == 200
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "method",
    [
        "TRACE",
        "CONNECT",
        "PROPFIND",
        pytest.param("get", marks=engine_differs(uvicorn="refuses methods that it does not know")),
        pytest.param("GE~T", marks=engine_differs(uvicorn="refuses methods that it does not know")),
    ],
)
async def test_a_method_that_no_rule_can_name_is_refused(served, method):
    gateway, tenant, upstream = served
    reply = await gateway.ask(method, "/x", key=tenant.secret)
    assert (reply.status, reply.code) == (405, "method_not_allowed")
    assert reply.get("allow") == "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
    assert upstream.connections == 0


async def test_a_websocket_is_refused_on_every_host(served):
    gateway, tenant, upstream = served
    fields = {
        "upgrade": "websocket",
        "connection": "upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for host in (tenant.host, "127.0.0.1", "nobody.example.com"):
        reply = await gateway.ask("GET", "/x", key=tenant.secret, host=host, fields={**fields, "x-request-id": "mine"})
        assert (reply.status, reply.code, reply.get("x-request-id")) == (426, "websocket_not_supported", "mine")
    assert upstream.connections == 0


async def test_an_upgrade_to_anything_else_is_an_ordinary_request(served):
    gateway, tenant, upstream = served
    assert (
        await gateway.ask("GET", "/x", key=tenant.secret, fields={"upgrade": "tls/1.0", "connection": "upgrade"})
    ).status == 200
    assert upstream.last.get("upgrade") is None


async def test_a_second_request_on_the_connection_is_judged_for_itself(served):
    gateway, tenant, upstream = served
    other = await gateway.new_tenant("other")
    async with gateway.connected() as wire:
        first = head_of("GET", "/x", gateway.fields(key=tenant.secret))
        await wire.send(
            first
            + head_of("GET", "/x", gateway.fields(key=tenant.secret, host=other.host))
            + head_of("GET", "/y", gateway.fields(key=None))
        )
        assert [(await wire.reply()).status for _ in range(3)] == [200, 401, 401]
    assert len(upstream.requests) == 1

"""What goes to the target and what comes back, byte for byte, through the served proxy."""

import asyncio
import gzip
import json

import pytest

from tests.gateways import running_proxy
from tests.wire import an_upstream, head_of, ok


async def test_a_request_reaches_its_target_and_the_reply_its_client(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        reply = await gateway.ask("POST", "/v1/chat/completions?a=%20b&&c", key=tenant.secret, body=b'{"x": 1}')
        assert (reply.status, reply.body) == (200, b"hello")
        assert upstream.last.start == "POST /v1/chat/completions?a=%20b&&c HTTP/1.1"
        assert upstream.last.body == b'{"x": 1}'
        assert upstream.last.get("host") == f"127.0.0.1:{upstream.port}"
        assert upstream.last.get("x-forwarded-host") == tenant.host
        assert upstream.last.get("x-forwarded-for") == "127.0.0.1"
        assert upstream.last.get("x-forwarded-proto") == "http"
        assert upstream.last.get("x-request-id") == reply.get("x-request-id")


async def test_the_key_is_forwarded_nowhere_and_what_pretends_another_origin_neither(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, headers={"X-Api-Key": "sk-upstream"})
        fields = {
            "x-api-key": tenant.secret,
            "cookie": f"k={tenant.secret}",
            "x-copy": tenant.secret,
            "x-forwarded-for": "6.6.6.6",
            "x-real-ip": "6.6.6.6",
            "forwarded": "for=6.6.6.6",
            "x-http-method-override": "DELETE",
            "x-original-url": "/admin",
            "connection": "x-gone, keep-alive",
            "x-gone": "1",
            "proxy-authorization": "Basic x",
            "te": "trailers",
            "x-kept": "1",
        }
        await gateway.ask("GET", "/v1/x", key=tenant.secret, fields=fields)
        assert tenant.secret.encode() not in upstream.last.raw_head
        assert b"6.6.6.6" not in upstream.last.raw_head
        assert upstream.last.names == {
            "host",
            "x-kept",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-request-id",
            "x-api-key",
        }
        assert upstream.last.get("x-api-key") == "sk-upstream"


async def test_a_key_in_the_url_is_refused_before_it_is_forwarded(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        reply = await gateway.ask("GET", f"/v1/x?key={tenant.secret}", key=tenant.secret)
        assert (reply.status, reply.error["param"]) == (400, "query")
        assert upstream.connections == 0


async def test_headers_of_a_rule_win_over_the_client_s_and_the_gateway_s(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        rule = {"Authorization": "Bearer sk-up", "User-Agent": "rule", "Host": "virtual.example", "X-Forwarded-Proto": "https"}
        await gateway.new_rule(tenant, upstream.url, headers=rule, preserve_host=True)
        await gateway.ask("GET", "/v1/x", key=tenant.secret, fields={"user-agent": "client"})
        last = upstream.last
        assert (last.get("authorization"), last.get("user-agent"), last.get("host")) == (
            "Bearer sk-up",
            "rule",
            "virtual.example",
        )
        assert last.get("x-forwarded-proto") == "https"


async def test_preserve_host_sends_what_the_client_asked_for(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, preserve_host=True)
        await gateway.ask("GET", "/v1/x", key=tenant.secret, host=f"{tenant.host}:8081")
        assert upstream.last.get("host") == f"{tenant.host}:8081"


@pytest.mark.parametrize(
    ("rule", "strip", "base", "asked", "sent"),
    [
        ("/v1", False, "", "/v1/chat?x=%2F", "/v1/chat?x=%2F"),
        ("/v1", True, "", "/v1/chat?x=1", "/chat?x=1"),
        ("/v1", True, "", "/v1", "/"),
        ("/v1", True, "", "/v1/", "/"),
        ("/v1", True, "/base", "/v1", "/base"),
        ("/v1", True, "/base/", "/v1/a//b/", "/base/a//b/"),
        ("/", True, "/base", "/v1/%C3%A9", "/base/v1/%C3%A9"),
        ("/v1/chat", True, "/p", "/v1/ch%61t/x%zz", "/p/x%zz"),
        ("/v1", False, "", "/v1/a?", "/v1/a"),
        ("/v1", False, "", "/v1/a?b?c=/../x&d=//", "/v1/a?b?c=/../x&d=//"),
    ],
)
async def test_path_and_query_are_joined_to_the_target_byte_for_byte(gateway, rule, strip, base, asked, sent):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url + base, rule, strip_path=strip)
        reply = await gateway.ask("GET", asked, key=tenant.secret)
        assert reply.status == 200
        assert upstream.last.target == sent


async def test_every_body_arrives_whole_and_framed_once(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        async with gateway.connected() as wire:
            for body in (b"", b"x", b"x" * 70_000, bytes(range(256)) * 4_000):
                fields = gateway.fields(key=tenant.secret, body=body)
                assert (await wire.ask("POST", "/v1/x", fields, body)).status == 200
                assert upstream.last.body == body
                assert upstream.last.get("content-length") == str(len(body))
                assert upstream.last.get("transfer-encoding") is None


async def test_a_post_without_any_length_has_an_empty_body(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        assert (await gateway.ask("POST", "/v1/x", key=tenant.secret)).status == 200
        assert upstream.last.get("content-length") == "0"


async def test_a_chunked_upload_arrives_chunked_and_without_its_trailers(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        async with gateway.connected() as wire:
            fields = [*gateway.fields(key=tenant.secret), ("transfer-encoding", "chunked"), ("trailer", "x-t")]
            await wire.send(head_of("PUT", "/v1/x", fields) + b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nx-t: 1\r\n\r\n")
            assert (await wire.reply()).status == 200
        assert upstream.last.body == b"abcde"
        assert upstream.last.get("transfer-encoding") == "chunked"
        assert upstream.last.get("trailer") is None


async def test_a_client_that_waits_for_100_continue_is_told_to_send(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        async with gateway.connected() as wire:
            fields = [*gateway.fields(key=tenant.secret), ("content-length", "5"), ("expect", "100-continue")]
            await wire.send(head_of("POST", "/v1/x", fields))
            assert (await asyncio.wait_for(wire.reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 100")
            await wire.send(b"hello")
            assert (await wire.reply()).status == 200
        assert upstream.last.body == b"hello"
        assert upstream.last.get("expect") is None


async def test_a_compressed_reply_passes_untouched(gateway):
    packed = gzip.compress(b"hello" * 100)

    async def compressed(call):
        await call.answer(200, {"content-encoding": "gzip", "etag": '"x"'}, packed)

    async with an_upstream(compressed) as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        reply = await gateway.ask("GET", "/v1/x", key=tenant.secret, fields={"accept-encoding": "gzip, br"})
        assert reply.body == packed
        assert (reply.get("content-encoding"), reply.get("etag"), reply.get("content-length")) == (
            "gzip",
            '"x"',
            str(len(packed)),
        )
        assert upstream.last.get("accept-encoding") == "gzip, br"


async def test_a_compressed_upload_passes_untouched(gateway):
    packed = gzip.compress(b"hello" * 100)
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        await gateway.ask("POST", "/v1/x", key=tenant.secret, fields={"content-encoding": "gzip"}, body=packed)
        assert upstream.last.body == packed


async def test_a_head_request_gets_a_head_and_the_connection_goes_on(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, methods=["GET"])
        async with gateway.connected() as wire:
            reply = await wire.ask("HEAD", "/v1/x", gateway.fields(key=tenant.secret))
            assert (reply.status, reply.get("content-length")) == (200, "5")
            assert (await wire.ask("HEAD", "/v1/x", gateway.fields(key=None))).status == 401
            assert (await wire.ask("HEAD", "/nowhere", gateway.fields(key=tenant.secret))).status == 404
            assert (await wire.ask("GET", "/v1/x", gateway.fields(key=tenant.secret))).body == b"hello"
        assert [request.method for request in upstream.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("status", [204, 304])
async def test_a_reply_without_a_body_has_none_and_the_connection_goes_on(gateway, status):
    async def bodiless(call):
        if call.request.target == "/v1/bodiless":
            await call.send(b'HTTP/1.1 %d x\r\netag: "a"\r\n\r\n' % status)
        else:
            await ok(call)

    async with an_upstream(bodiless) as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        async with gateway.connected() as wire:
            reply = await wire.ask("GET", "/v1/bodiless", gateway.fields(key=tenant.secret))
            assert (reply.status, reply.get("etag"), reply.get("transfer-encoding")) == (status, '"a"', None)
            assert (await wire.ask("GET", "/v1/x", gateway.fields(key=tenant.secret))).body == b"hello"


async def test_what_speaks_for_the_upstream_does_not_come_back_unless_the_rule_says_so(gateway):
    async def talkative(call):
        fields = [
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
            ("Server", "nginx"),
            ("Alt-Svc", "h3"),
            ("Connection", "x-gone"),
            ("X-Gone", "1"),
            ("Keep-Alive", "timeout=5"),
            ("X-RateLimit-Limit-Requests", "5"),
            ("Trailer", "x"),
            ("X-Request-Id", "theirs"),
            ("Retry-After", "7"),
            ("X-Kept", "1"),
            ("X-Kept", "2"),
        ]
        await call.answer(503, fields, b"busy")

    async with an_upstream(talkative) as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        await gateway.new_rule(tenant, upstream.url, "/open", pass_response_headers=["set-cookie", "server"])
        reply = await gateway.ask("GET", "/v1/x", key=tenant.secret, fields={"x-request-id": "mine"})
        assert (reply.status, reply.body) == (503, b"busy")
        assert (reply.get("server") or "") == ""  # Granian's replies have the field, without a value
        assert reply.names - {"server"} == {
            "x-upstream-request-id",
            "x-request-id",
            "retry-after",
            "x-kept",
            "content-length",
            "date",
        }
        assert (reply.get("x-request-id"), reply.get("x-upstream-request-id"), reply.all("x-kept")) == (
            "mine",
            "theirs",
            ["1", "2"],
        )
        reply = await gateway.ask("GET", "/open", key=tenant.secret)
        assert (reply.all("set-cookie"), reply.get("server"), reply.get("alt-svc")) == (["a=1", "b=2"], "nginx", None)


async def test_a_redirect_is_passed_on_and_not_followed(gateway):
    async def redirecting(call):
        await call.answer(307, {"location": other.url + "/secret"})

    async with an_upstream() as other, an_upstream(redirecting) as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, headers={"authorization": "Bearer sk-up"})
        reply = await gateway.ask("POST", "/v1/x", key=tenant.secret, body=b"{}")
        assert (reply.status, reply.get("location")) == (307, other.url + "/secret")
        assert other.connections == 0


@pytest.mark.parametrize("status", [401, 403])
async def test_an_upstream_that_refuses_our_credentials_is_a_bad_gateway_without_its_words(gateway, status):
    async def refusing(call):
        await call.answer(status, {"www-authenticate": "Bearer", "x-org": "acme-inc"}, b'{"error": "bad key sk-up-123"}')

    async with an_upstream(refusing) as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        reply = await gateway.ask("GET", "/v1/x", key=tenant.secret)
        assert (reply.status, reply.code, reply.get("x-should-retry")) == (502, "upstream_auth_failed", "false")
        assert b"sk-up-123" not in reply.body
        assert reply.get("x-org") is None


async def test_an_upstream_that_cannot_be_reached_is_a_bad_gateway(gateway):
    async with an_upstream() as upstream:
        gone = upstream.url
    tenant = await gateway.new_tenant()
    await gateway.new_rule(tenant, gone)
    await gateway.new_rule(tenant, "https://no-such-name.invalid", "/dns")
    for path in ("/v1", "/dns"):
        reply = await gateway.ask("GET", path, key=tenant.secret)
        assert (reply.status, reply.code) == (502, "upstream_unreachable")
        assert gone.removeprefix("http://") not in reply.body.decode()


async def test_an_upstream_that_does_not_answer_in_time_is_a_gateway_timeout(store_url):
    async def silent(call):
        await call.until_gone()

    async with running_proxy(store_url, upstream={"first_byte_timeout": "100ms"}) as gateway, an_upstream(silent) as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        reply = await gateway.ask("GET", "/v1/x", key=tenant.secret)
        assert (reply.status, reply.code) == (504, "upstream_timeout")
        await gateway.idle()


async def test_a_target_in_a_network_that_is_not_allowed_is_never_connected_to(store_url):
    async with running_proxy(store_url, upstream={"allowed_networks": "10.0.0.0/8"}) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        await gateway.new_rule(tenant, f"http://localhost:{upstream.port}", "/name")
        for path in ("/v1", "/name"):
            assert (await gateway.ask("GET", path, key=tenant.secret)).status == 500
        assert upstream.connections == 0


async def test_hostile_fields_of_an_upstream_do_not_reach_the_client(gateway):
    async def hostile(call):
        await call.send(b"HTTP/1.1 200 OK\r\nx-ok: 1\r\nx-bad: a\x01b\r\ncontent-length: 2\r\n\r\nok")

    async with an_upstream(hostile) as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        reply = await gateway.ask("GET", "/v1/x", key=tenant.secret)
        assert (reply.status, reply.body, reply.get("x-ok"), reply.get("x-bad")) == (200, b"ok", "1", None)


async def test_the_request_id_of_the_client_is_kept_and_a_bad_one_replaced(gateway):
    for given, kept in [
        ("abc-1", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("a b", False),
        ('a"b', False),
        ("", False),
        ("\xe9", False),
    ]:
        reply = await gateway.ask("GET", "/v1/x", key=None, fields={"x-request-id": given})
        assert (reply.get("x-request-id") == given) == kept
        assert reply.error["request_id"] == reply.get("x-request-id")
    twice = await gateway.ask("GET", "/v1/x", key=None, fields=[("x-request-id", "a"), ("x-request-id", "b")])
    assert twice.get("x-request-id") not in ("a", "b")


async def test_every_error_has_the_shape_that_openai_s_clients_parse(gateway):
    reply = await gateway.ask("GET", "/v1/x", key=None, host="nobody.example.com")
    assert reply.get("content-type") == "application/json"
    assert json.loads(reply.body) == {
        "error": {
            "message": "No tenant has this subdomain.",
            "type": "invalid_request_error",
            "param": None,
            "code": "unknown_tenant",
            "request_id": reply.get("x-request-id"),
        }
    }

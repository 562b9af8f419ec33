"""What every request must be, and what every answer carries."""

import json
import logging

import pytest

from gateway.admin.auth import check_host
from gateway.config import ServerSettings, is_loopback
from gateway.errors import MissingHost
from tests.unit.admin.helpers import OPERATOR, an_admin

BODY = {"name": "Acme", "subdomain": "acme"}


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080", "LocalHost"])
async def test_it_answers_under_loopback_names(host):
    admin = await an_admin()
    assert (await admin.call("GET", "/tenants", host=host)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.0.2.1",
        "[::2]",
        "",
        "localhost:x",
    ],
)
async def test_a_page_that_rebinds_its_name_to_loopback_is_refused(host):
    admin = await an_admin()
    before = await admin.dump()
    for method, path in (("GET", "/tenants"), ("POST", "/tenants"), ("GET", "/docs"), ("GET", "/nowhere")):
        got = await admin.call(method, path, BODY if method == "POST" else None, host=host)
        assert got.refusal == (400, "invalid_host", "Host")
    assert await admin.dump() == before


async def test_allowed_hosts_replace_the_default_and_probes_need_none():
    admin = await an_admin(server={"admin_allowed_hosts": ["admin.internal", "localhost"]})
    assert (await admin.call("GET", "/tenants", host="admin.internal:8080")).status == 200
    assert (await admin.call("GET", "/tenants", host="127.0.0.1")).status == 400
    assert (await admin.call("GET", "/health/ready", host="10.0.0.7:8080")).status == 200


async def test_with_an_operator_token_any_host_name_will_do_unless_they_are_listed():
    assert (await (await an_admin(token=OPERATOR)).call("GET", "/tenants", host="gateway.example")).status == 200
    listed = await an_admin(token=OPERATOR, server={"admin_allowed_hosts": ["admin.example"]})
    assert (await listed.call("GET", "/tenants", host="gateway.example")).status == 400


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/jsonx"],
)
async def test_only_json_is_read(content_type):
    admin = await an_admin()
    got = await admin.call("POST", "/tenants", BODY, content_type=content_type)
    assert got.refusal == (415, "unsupported_media_type", "Content-Type")
    assert await admin.dump() == {}


async def test_a_charset_beside_the_content_type_is_fine():
    admin = await an_admin()
    assert (await admin.call("POST", "/tenants", BODY, content_type="application/json; charset=utf-8")).status == 201


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"name": "a", "name": "b", "subdomain": "acme"}',
        b'{"name": NaN}',
        b'{"name": "\\ud800", "subdomain": "acme"}',
        b'\xef\xbb\xbf{"name": "a", "subdomain": "acme"}',
        b'{"name": "\xff"}',
        b'{"metadata": ' + b"[" * 100 + b"]" * 100 + b"}",
    ],
)
async def test_a_body_that_is_not_a_strict_json_object_is_refused(data):
    admin = await an_admin()
    got = await admin.call("POST", "/tenants", data=data)
    assert got.refusal == (400, "invalid_json", None)
    assert await admin.dump() == {}


async def test_a_body_may_have_a_mebibyte_and_no_byte_more():
    admin = await an_admin()
    room = (1 << 20) - len(json.dumps(BODY))
    assert (await admin.call("POST", "/tenants", data=json.dumps(BODY).encode() + b" " * room)).status == 201
    got = await admin.call("POST", "/tenants", data=json.dumps(BODY | {"subdomain": "b"}).encode() + b" " * (room + 4))
    assert got.refusal == (413, "body_too_large", None)


async def test_a_wrong_method_is_told_the_right_ones():
    admin = await an_admin()
    for method in ("DELETE", "OPTIONS", "PATCH", "TRACE"):
        got = await admin.call(method, "/tenants")
        assert got.refusal == (405, "method_not_allowed", "method")
        assert got.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    "path", ["/api/v1/nowhere", "/api/v1/tenants/", "/api/v1//tenants", "/api/v2/tenants", "/docs/../tenants"]
)
async def test_an_unknown_path_is_not_found(path):
    assert (await (await an_admin()).call("GET", path)).refusal == (404, "not_found", None)


async def test_every_answer_can_be_traced_and_is_stored_by_nobody():
    admin = await an_admin()
    await admin.tenant()
    for method, path in (
        ("GET", "/tenants"),
        ("GET", "/nowhere"),
        ("PUT", "/tenants"),
        ("GET", "/docs"),
        ("GET", "/health"),
        ("GET", "/tenants/x"),
    ):
        got = await admin.call(method, path)
        assert got.headers["cache-control"] == "no-store"
        assert got.headers["x-request-id"].startswith("req_")
        assert got.headers["x-content-type-options"] == "nosniff"
        assert not [name for name, _ in got.headers if name.lower().startswith("access-control-")]
        assert len(got.headers.getlist("x-request-id")) == 1
        if got.status >= 400:
            assert got.error["request_id"] == got.headers["x-request-id"]


async def test_the_clients_own_request_id_is_kept():
    admin = await an_admin()
    assert (await admin.call("GET", "/nowhere", x_request_id="mine-1")).error["request_id"] == "mine-1"
    assert (await admin.call("GET", "/tenants", x_request_id='a"b')).headers["x-request-id"].startswith("req_")


async def test_a_query_parameter_that_no_route_knows_is_refused():
    admin = await an_admin()
    tenant = await admin.tenant()
    for path in (f"/tenants/{tenant['id']}", f"/tenants/{tenant['id']}/rules", "/plugins"):
        assert (await admin.call("GET", f"{path}?verbose=1")).refusal == (400, "invalid_field", "verbose")


async def test_a_bug_is_logged_with_its_traceback_and_tells_the_client_nothing(caplog):
    admin = await an_admin()

    async def broken(*_):
        raise RuntimeError("the secret is sk-canary")

    object.__setattr__(admin.stores.tenants, "page", broken)
    with caplog.at_level(logging.ERROR, logger="gateway.web"):
        got = await admin.call("GET", "/tenants", x_request_id="bug-1")
    assert got.refusal == (500, "internal_error", None)
    assert b"canary" not in got.raw
    assert "bug-1" in caplog.text
    assert "Traceback" in caplog.text


async def test_a_store_that_is_down_is_said_to_be():
    admin = await an_admin()
    tenant = await admin.tenant()
    admin.redis.connection_pool.connection_kwargs["server"].connected = False
    await admin.redis.connection_pool.disconnect()
    for method, path in (
        ("GET", "/tenants"),
        ("GET", f"/tenants/{tenant['id']}"),
        ("GET", "/health/ready"),
        ("GET", "/health"),
    ):
        got = await admin.call(method, path)
        assert got.refusal == (503, "store_unavailable", None)
        assert got.headers["retry-after"] == "1"
    assert (await admin.call("GET", "/health/live")).status == 200


async def test_plugins_are_described():
    admin = await an_admin()
    listed = (await admin.call("GET", "/plugins")).json
    assert listed["count"] == len(listed["plugins"]) >= 3
    one = (await admin.call("GET", "/plugins/rate_limiter")).json
    assert one in listed["plugins"]
    assert one["stages"] == ["pre_request"]
    assert one["settings_schema"]["properties"]["limit"]
    assert (await admin.call("GET", "/plugins/no_such")).status == 404


@pytest.mark.parametrize("host", [None, "", "[::1", "[::1]x", "[]", ":80", "localhost:80:80"])
def test_a_host_that_cannot_be_read_is_refused(host):
    with pytest.raises(MissingHost):
        check_host(host, ServerSettings(), is_loopback)

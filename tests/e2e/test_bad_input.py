"""Whatever is wrong with a request, the answer says what, and nothing has been written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from gateway import virtual_key
from tests.e2e.calls import Answer, call, raw
from tests.e2e.processes import HOST, Gateway, a_gateway
from tests.engines import ENGINE, engine_differs
from tests.servers import short_directory, wait_until

LIMITER = {"name": "rate_limiter", "settings": {"limit": 3, "window": "1m"}}
MAX_BODY = 100_000


@dataclass
class Scene:
    """A gateway with one tenant and one rule, and everything its store held then."""

    gateway: Gateway
    tenant_id: str
    rule_id: str
    key: str
    stored: dict[bytes, bytes]

    def dump(self) -> dict[bytes, bytes]:
        """Every key, byte for byte."""
        with redis.Redis(unix_socket_path=str(self.gateway.data_dir / "store.sock")) as client:
            return {key: client.dump(key) for key in client.keys("*")}

    def rule(self, **fields: Any) -> Answer:
        """Try to create a rule that would be good but for these fields; None leaves a field out."""
        good = {"path": "/v2", "target": f"http://{HOST}:9", "plugin_chain": [LIMITER]}
        body = {name: value for name, value in (good | fields).items() if value is not None}
        return self.gateway.admin("POST", f"/tenants/{self.tenant_id}/rules", body, key=self.key)

    def tenant(self, **fields: Any) -> Answer:
        """Try to create a tenant that would be good but for these fields; None leaves a field out."""
        body = {name: value for name, value in ({"name": "Other", "subdomain": "other"} | fields).items() if value is not None}
        return self.gateway.admin("POST", "/tenants", body)


@pytest.fixture(scope="module")
def whole_scene() -> Iterator[Scene]:
    more = {"UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8", "LIMITS__MAX_BODY_BYTES": str(MAX_BODY)}
    with short_directory() as path, a_gateway(path, "--local", settings=more) as gateway:
        tenant = gateway.admin("POST", "/tenants", {"name": "Acme", "subdomain": "acme"}).json
        scene = Scene(gateway, tenant["id"], "", tenant["api_key"], {})
        # what the tests below send with one thing wrong is good
        created = scene.rule()
        assert created.status == 201, created
        # without a limit a request leaves nothing in the store that could expire meanwhile
        scene.rule_id = scene.rule(path="/v1", plugin_chain=None).json["id"]
        control = gateway.proxy("GET", "/v1/models", tenant="acme", key=scene.key)
        assert control.refusal == (502, "upstream_unreachable", None)
        wait_until(lambda: any(b":usage:" in key for key in scene.dump()), "settled")
        scene.stored = scene.dump()
        yield scene


@pytest.fixture
def scene(whole_scene: Scene) -> Iterator[Scene]:
    """The scene, which must not have changed afterwards."""
    yield whole_scene
    assert whole_scene.dump() == whole_scene.stored


def test_a_body_that_is_no_json_object_is_refused(scene: Scene):
    cases = {
        b"": "invalid_json",
        b'{"name": "Other", "subdomain": "other"': "invalid_json",
        b'{"name": "Other", "subdomain": "other", "subdomain": "another"}': "invalid_json",
        b'{"name": "Other", "subdomain": "other", "x": NaN}': "invalid_json",
        b'{"name": "Other\xff", "subdomain": "other"}': "invalid_json",
        b'["Other", "other"]': "invalid_json",
        b"[" * 100_000: "invalid_json",
    }
    answers = {data: scene.gateway.admin("POST", "/tenants", data=data).refusal for data in cases}
    assert answers == {data: (400, code, None) for data, code in cases.items()}


def test_a_body_of_another_type_or_size_is_refused(scene: Scene):
    good = b'{"name": "Other", "subdomain": "other"}'
    form = scene.gateway.admin("POST", "/tenants", data=good, headers=[("Content-Type", "text/plain")])
    assert form.refusal == (415, "unsupported_media_type", "Content-Type")
    assert scene.gateway.admin("POST", "/tenants", data=good + b" " * (1 << 20)).refusal == (413, "body_too_large", None)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"subdomian": "x"}, "invalid_field", "subdomian"),
        ({"name": None}, "invalid_field", "name"),
        ({"name": ""}, "invalid_field", "name"),
        ({"name": 7}, "invalid_field", "name"),
        ({"name": "x" * 201}, "invalid_field", "name"),
        ({"subdomain": None}, "invalid_field", "subdomain"),
        ({"subdomain": "no label"}, "invalid_field", "subdomain"),
        ({"subdomain": "a.b"}, "invalid_field", "subdomain"),
        ({"subdomain": "x" * 64}, "invalid_field", "subdomain"),
        ({"subdomain": ["other"]}, "invalid_field", "subdomain"),
        ({"tier": "Very Pro"}, "invalid_field", "tier"),
        ({"id": "mine"}, "invalid_field", "id"),
        ({"enabled_plugins": ["rate_limitr"]}, "invalid_field", "enabled_plugins.0"),
        ({"enabled_plugins": "rate_limiter"}, "invalid_field", "enabled_plugins"),
        ({"required_plugins": {"nothing": {}}}, "invalid_field", "required_plugins.nothing"),
        (
            {"required_plugins": {"rate_limiter": {"settings": {"limit": 1, "window": "soon"}}}},
            "invalid_field",
            "required_plugins.rate_limiter.settings.window",
        ),
        ({"metadata": {"a": 1}}, "invalid_field", "metadata.a"),
    ],
)
def test_a_tenant_with_something_wrong_is_refused_by_field(scene: Scene, fields: dict[str, Any], code: str, param: str):
    assert scene.tenant(**fields).refusal == (400, code, param)


def test_a_subdomain_is_given_once(scene: Scene):
    assert scene.tenant(subdomain="acme").refusal == (409, "subdomain_taken", "subdomain")
    assert scene.tenant(subdomain="ACME").refusal == (409, "subdomain_taken", "subdomain")


def a_chain(**settings: Any) -> dict[str, Any]:
    return {"plugin_chain": [{"name": "rate_limiter", "settings": settings}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"target": None}, "target"),
        ({"target": "ftp://example.com"}, "target"),
        ({"target": "https://user:secret@example.com"}, "target"),
        ({"target": "https://example.com/?key=1"}, "target"),
        ({"target": "http://169.254.169.254/latest"}, "target"),
        ({"target": "https://10.0.0.1"}, "target"),
        ({"target": "https://[::ffff:10.0.0.1]"}, "target"),
        ({"target": "https://2130706433"}, "target"),
        ({"target": "http://192.168.1.1"}, "target"),
        ({"path": "v1"}, "path"),
        ({"path": "/v1/../admin"}, "path"),
        ({"path": "/v1/%2e%2e"}, "path"),
        ({"path": "/v1?x=1"}, "path"),
        ({"methods": ["FETCH"]}, "methods"),
        ({"methods": "GET"}, "methods"),
        ({"strip_path": "perhaps"}, "strip_path"),
        ({"retry_attempts": 99}, "retry_attempts"),
        ({"headers": {"Content-Length": "0"}}, "headers"),
        ({"headers": {"X-Key": "a\r\nX-Evil: b"}}, "headers"),
        ({"headers": {"X-Key": "•••"}}, "headers.X-Key"),
        ({"plugin_chian": []}, "plugin_chian"),
        ({"plugin_chain": [{"name": "nothing"}]}, "plugin_chain.0.name"),
        ({"plugin_chain": [LIMITER, {"name": "../rules"}]}, "plugin_chain.1.name"),
        ({"plugin_chain": [LIMITER | {"priority": 0}]}, "plugin_chain.0.priority"),
        ({"plugin_chain": [LIMITER | {"stage": "whenever"}]}, "plugin_chain.0.stage"),
        (a_chain(limit=3, window="soon"), "plugin_chain.0.settings.window"),
        (a_chain(limit=3, window="1 fortnight"), "plugin_chain.0.settings.window"),
        (a_chain(limit=3, window="-1s"), "plugin_chain.0.settings.window"),
        (a_chain(limit=0, window="1m"), "plugin_chain.0.settings.limit"),
        (a_chain(limit="many", window="1m"), "plugin_chain.0.settings.limit"),
        (a_chain(limit=3), "plugin_chain.0.settings.window"),
        (a_chain(limit=3, window="1m", brust=9), "plugin_chain.0.settings.brust"),
        (a_chain(limit=3, window="1m", per=["moon"]), "plugin_chain.0.settings.per.0"),
    ],
)
def test_a_rule_with_something_wrong_is_refused_by_field(scene: Scene, fields: dict[str, Any], param: str):
    assert scene.rule(**fields).refusal == (400, "invalid_field", param)


def test_an_edit_with_something_wrong_changes_nothing(scene: Scene):
    gateway, key = scene.gateway, scene.key
    tenant, rule = f"/tenants/{scene.tenant_id}", f"/tenants/{scene.tenant_id}/rules/{scene.rule_id}"
    assert gateway.admin("PATCH", tenant, {"name": "New", "status": "gone"}, key=key).refusal == (
        400,
        "invalid_field",
        "status",
    )
    assert gateway.admin("PATCH", tenant, {"name": "New", "subdomain": "new"}, key=key).refusal[2] == "subdomain"
    assert gateway.admin("PUT", rule, {"path": "/v9", "target": "x"}, key=key).refusal == (400, "invalid_field", "target")
    stale = gateway.admin("PATCH", rule, {"path": "/v9"}, key=key, headers=[("If-Match", '"stale"')])
    assert stale.refusal[:2] == (412, "precondition_failed")


def test_a_key_with_something_wrong_is_refused_by_field(scene: Scene):
    cases: dict[str, Any] = {"expires_at": "2001-01-01T00:00:00Z", "scopes": ["root"], "allowed_networks": ["10.0.0.0/99"]}
    for field, value in cases.items():
        answer = scene.gateway.admin("POST", f"/tenants/{scene.tenant_id}/api-keys", {field: value}, key=scene.key)
        assert (answer.status, answer.refusal[1]) == (400, "invalid_field")
        assert str(answer.refusal[2]).startswith(field)


def test_the_admin_api_refuses_what_it_does_not_have(scene: Scene):
    admin, key = scene.gateway.admin, scene.key
    assert admin("GET", "/nothing", key=key).refusal == (404, "not_found", None)
    assert admin("GET", "/tenants/other-000000000000", key=key).refusal == (404, "not_found", None)
    assert admin("GET", f"/tenants/{scene.tenant_id}/rules/rule_0", key=key).refusal == (404, "not_found", None)
    assert admin("GET", "/tenants?limit=no").refusal == (400, "invalid_field", "limit")
    assert admin("GET", "/tenants?page=2").refusal == (400, "invalid_field", "page")
    wrong = admin("DELETE", "/tenants")
    assert wrong.refusal == (405, "method_not_allowed", "method")
    assert {"GET", "POST"} <= set(wrong.headers["allow"].split(", "))


def test_the_admin_api_refuses_callers_it_does_not_know(scene: Scene):
    path = f"/tenants/{scene.tenant_id}"
    unknown = virtual_key.new_secret()
    assert scene.gateway.admin("GET", path).refusal == (401, "invalid_api_key", None)
    assert scene.gateway.admin("GET", path, key="nonsense").refusal == (401, "invalid_api_key", None)
    assert scene.gateway.admin("GET", path, key=unknown).refusal == (401, "invalid_api_key", None)
    twice = scene.gateway.admin("GET", path, key=unknown, headers=[("Authorization", f"Bearer {scene.key}")])
    assert twice.refusal == (400, "ambiguous_credentials", "Authorization")
    rebound = scene.gateway.admin("GET", "/tenants", host="evil.example")
    assert rebound.refusal == (400, "invalid_host", "Host")


@pytest.mark.parametrize(
    ("how", "refusal"),
    [
        ({"key": None}, (401, "invalid_api_key", None)),
        ({"key": "nonsense"}, (401, "invalid_api_key", None)),
        ({"key": virtual_key.new_secret()}, (401, "invalid_api_key", None)),
        ({"headers": [("x-api-key", "another")]}, (400, "ambiguous_credentials", "Authorization")),
        ({"host": "nobody.example.com"}, (404, "unknown_tenant", None)),
        ({"host": "nobody.example.com", "key": None}, (404, "unknown_tenant", None)),
        ({"host": "a b.example.com"}, (400, "invalid_host", "Host")),
        ({"host": "acme.example.com:http"}, (400, "invalid_host", "Host")),
        ({"host": "acme.example.com@evil"}, (400, "invalid_host", "Host")),
        ({"path": "/v1/../v2"}, (400, "invalid_path", "path")),
        ({"path": "/v1/%2E%2e/v2"}, (400, "invalid_path", "path")),
        ({"path": "/v1/a%2Fb"}, (400, "invalid_path", "path")),
        ({"path": "/v1/a%5cb"}, (400, "invalid_path", "path")),
        ({"path": "/v1/a\\b"}, (400, "invalid_path", "path")),
        ({"path": "/v1/%00"}, (400, "invalid_path", "path")),
        ({"path": "//evil.example/v1"}, (400, "invalid_path", "path")),
        ({"path": "/v1/" + "a" * 9_000}, (414, "uri_too_long", None)),
        ({"path": "/v10/models"}, (404, "no_route", None)),
        ({"method": "TRACE"}, (405, "method_not_allowed", "method")),
        pytest.param(
            {"method": "BREW"},
            (405, "method_not_allowed", "method"),
            marks=engine_differs(uvicorn="refuses methods that it does not know"),
        ),
        ({"headers": [("x-much", "a" * 9_000)]}, (431, "headers_too_large", "x-much")),
        ({"method": "POST", "data": b"x" * (MAX_BODY + 1)}, (413, "body_too_large", None)),
    ],
)
def test_the_proxy_refuses_a_request_with_something_wrong(
    scene: Scene, how: dict[str, Any], refusal: tuple[int, str, str | None]
):
    good = {"method": "GET", "path": "/v1/models", "host": "acme.example.com", "key": scene.key}
    assert call(scene.gateway.proxy_port, **(good | how)).refusal == refusal


def test_the_proxy_refuses_a_host_that_is_missing_or_given_twice(scene: Scene):
    port, key = scene.gateway.proxy_port, f"Authorization: Bearer {scene.key}\r\nConnection: close\r\n\r\n"
    for host in ("", "Host: acme.example.com\r\nHost: other.example.com\r\n"):
        assert raw(port, f"GET /v1/models HTTP/1.1\r\n{host}{key}".encode()).status == 400


def test_the_proxy_refuses_too_many_header_fields(scene: Scene):
    head = f"GET /v1/models HTTP/1.1\r\nHost: acme.example.com\r\nAuthorization: Bearer {scene.key}\r\n"
    fields = "".join(f"x-{number}: a\r\n" for number in range(120))
    answer = raw(scene.gateway.proxy_port, f"{head}Connection: close\r\n{fields}\r\n".encode())
    assert answer.status == 431
    if ENGINE == "granian":  # its own limit is the same and comes first
        assert answer.body == b""
    else:
        assert answer.refusal == (431, "headers_too_large", None)


def test_the_admin_api_bounds_heads_as_the_proxy_does(scene: Scene):
    head = "GET /api/v1/tenants HTTP/1.1\r\nHost: localhost\r\n"
    fields = "".join(f"x-{number}: a\r\n" for number in range(100))
    long_url = head.replace("tenants", "tenants/" + "a" * 8_200)
    cases = {
        head + "\r\n": 200,
        head + fields + "\r\n": 431,
        f"{head}x: {'a' * 8_192}\r\n\r\n": 431,
        f"{head}{'x' * 8_192}: a\r\n\r\n": 431,
        head + "".join(f"x{number}: {'a' * 8_000}\r\n" for number in range(5)) + "\r\n": 431,
        long_url + "\r\n": 414,
        head + "Host: localhost\r\n\r\n": 400,
        head + "Content-Length: 0\r\nContent-Length: 1\r\n\r\n": 400,
    }
    assert {request: raw(scene.gateway.admin_port, request.encode()).status for request in cases} == cases


def test_the_proxy_refuses_two_lengths_of_one_body(scene: Scene):
    head = f"POST /v1/x HTTP/1.1\r\nHost: acme.example.com\r\nAuthorization: Bearer {scene.key}\r\n"
    differing = "Content-Length: 3\r\nContent-Length: 4\r\n"
    for fields in (differing, "Transfer-Encoding: gzip, chunked\r\n"):
        assert raw(scene.gateway.proxy_port, f"{head}{fields}\r\n0\r\n\r\n".encode()).status == 400


@engine_differs(granian="drops the length and closes the connection after the reply")
def test_the_proxy_refuses_a_length_besides_chunks(scene: Scene):
    head = f"POST /v1/x HTTP/1.1\r\nHost: acme.example.com\r\nAuthorization: Bearer {scene.key}\r\n"
    fields = "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"
    assert raw(scene.gateway.proxy_port, f"{head}{fields}\r\n0\r\n\r\n".encode()).status == 400


def test_no_answer_and_no_log_line_holds_a_secret_or_a_traceback(scene: Scene):
    said = scene.gateway.program.stdout() + scene.gateway.program.stderr()
    assert scene.key not in said
    assert "Traceback" not in said
    assert '"level": "error"' not in said

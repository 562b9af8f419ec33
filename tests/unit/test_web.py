"""Request ids, errors as bytes, validation errors as fields, and the health pages."""

import asyncio
import ipaddress
import json

import pytest
from pydantic import ValidationError
from quart import Quart

from gateway.errors import MethodNotAllowed, StoreUnavailable
from gateway.models import NewKey, NewRule, NewTenant
from gateway.web import (
    client_address,
    error_reply,
    health_blueprint,
    install_error_handlers,
    invalid_field,
    is_within,
    new_request_id,
    request_id_of,
)


@pytest.mark.parametrize("value", ["a", "x" * 128, "req_1", "a-b:c/d=e~!", "{7}", "<1>"])
def test_a_visible_request_id_is_kept(value):
    assert request_id_of(value) == value


@pytest.mark.parametrize("value", [None, "", "x" * 129, "a b", "a\tb", "a\r\nb", 'a"b', "a'b", "a\\b", "ä", "a\x7f", "a\n"])
def test_any_other_request_id_is_replaced(value):
    assert request_id_of(value).startswith("req_")


def test_request_ids_differ_and_are_request_ids_themselves():
    made = {new_request_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(request_id_of(each) == each for each in made)


def test_an_error_is_ready_to_be_sent():
    status, headers, body = error_reply(MethodNotAllowed(headers=[("Allow", "GET")], param="method"), "req_1")
    assert status == 405
    fields = dict(headers)
    assert fields[b"allow"] == b"GET"
    assert fields[b"x-request-id"] == b"req_1"
    assert fields[b"content-type"] == b"application/json"
    assert fields[b"cache-control"] == b"no-store"
    assert int(fields[b"content-length"]) == len(body)
    assert json.loads(body)["error"] == {
        "message": "The method is not allowed for this path.",
        "type": "invalid_request_error",
        "param": "method",
        "code": "method_not_allowed",
        "request_id": "req_1",
    }


def refusal(model, document):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(document)
    return invalid_field(caught.value, model)


@pytest.mark.parametrize(
    ("model", "document", "param", "message"),
    [
        (NewTenant, {"subdomain": "a"}, "name", "name: is required"),
        (NewTenant, {"name": "a", "subdomian": "a"}, "subdomain", "subdomain: is required"),
        (NewTenant, {"name": "a", "subdomain": "a", "naem": 1}, "naem", "naem: unknown field; did you mean name?"),
        (NewTenant, {"name": "a", "subdomain": "a", "zzz": 1}, "zzz", "zzz: unknown field"),
        (
            NewKey,
            {"limits": [{"limit": 1, "window": "1m", "qota": {}}]},
            "limits.0.qota",
            "limits.0.qota: unknown field; did you mean quota?",
        ),
        (
            NewKey,
            {"limits": [{"quota": {"dayly": 1, "daily": 1}}]},
            "limits.0.quota.dayly",
            "limits.0.quota.dayly: unknown field; did you mean daily?",
        ),
        (
            NewTenant,
            {"name": "a", "subdomain": "a", "required_plugins": {"x": {"prioriti": 1}}},
            "required_plugins.x.prioriti",
            "required_plugins.x.prioriti: unknown field; did you mean priority?",
        ),
        (
            NewTenant,
            {"name": "a", "subdomain": "a", "metadata": {"": "x"}},
            "metadata.",
            "metadata.: String should have at least 1 character",
        ),
        (NewRule, {"path": "x", "target": "t"}, "path", "path: must begin with /"),
        (NewKey, {"scopes": ["x"]}, "scopes.0", "scopes.0: should be 'proxy' or 'admin'"),
    ],
)
def test_a_validation_error_names_the_field_and_says_what_is_wrong(model, document, param, message):
    error = refusal(model, document)
    assert (error.param, error.message) == (param, message)


def test_a_document_that_is_no_object_has_no_field_at_fault():
    assert refusal(NewTenant, []).param is None


def test_no_value_is_repeated_and_long_lists_are_cut():
    many = {f"field-{number}": "sk-canary" for number in range(100)}
    error = refusal(NewTenant, {"name": ["sk-canary"], "subdomain": "sk-canary!", "tier": "sk-canary "} | many)
    assert len(error.details["errors"]) == 20
    assert "canary" not in json.dumps(error.body("r"))


TRUSTED = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.66, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.66, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.66", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_only_what_trusted_proxies_say_is_believed(peer, forwarded, expected):
    assert client_address(peer, forwarded, TRUSTED) == expected


def test_a_mapped_address_is_in_the_network_of_the_address_it_maps():
    assert is_within("::ffff:10.1.1.1", TRUSTED)
    assert not is_within("::ffff:11.1.1.1", TRUSTED)
    assert not is_within("fe80::1%eth0", TRUSTED)


async def health(path, check, draining=False, deadline_s=0.5):
    app = Quart("health", static_folder=None)
    install_error_handlers(app)
    app.register_blueprint(health_blueprint(check, lambda: draining, deadline_s=deadline_s))
    response = await app.test_client().get(path)
    return response.status_code, await response.get_json()


async def good():
    return None


async def down():
    raise StoreUnavailable


async def hung():
    await asyncio.Event().wait()


async def test_health_says_whether_requests_should_come():
    for path in ("/health", "/health/ready", "/health/live"):
        assert await health(path, good) == (200, {"status": "ok"})
        assert (await health(path, down))[0] == (200 if path.endswith("live") else 503)
        assert (await health(path, hung, deadline_s=0.01))[0] == (200 if path.endswith("live") else 503)
        assert (await health(path, good, draining=True))[0] == (200 if path.endswith("live") else 503)
    assert (await health("/health/ready", hung, deadline_s=0.01))[1]["error"]["code"] == "store_unavailable"
    assert (await health("/health/ready", down, draining=True))[1]["error"]["code"] == "draining"

"""What was decided by is what the target reads, whatever parser it has; a body that two parsers read differently is refused."""

import contextlib
from typing import Any

import pytest

from tests.gateways import running_proxy
from tests.json_readers import BODIES, REFUSED, readings
from tests.wire import an_upstream

SCHEMA = {"type": "object", "required": ["model"], "properties": {"model": {"const": "small"}}}
VALIDATED = [{"name": "content_validator", "settings": {"json_schema": SCHEMA}}]


class Scene:
    """A gateway that sends bodies on, and what came of them."""

    def __init__(self, gateway, secret, path):
        self.gateway, self.secret, self.path = gateway, secret, path
        self.arrived: list[bytes] = []

    async def send(self, body, *types, **fields):
        """Status, code, and the body that reached the target, or None."""
        before = len(self.arrived)
        more = [("content-type", kind) for kind in types] + [(name.replace("_", "-"), value) for name, value in fields.items()]
        reply = await self.gateway.ask("POST", self.path, key=self.secret, fields=more, body=body)
        code = reply.code if reply.status != 200 else ""
        return reply.status, code, self.arrived[before] if len(self.arrived) > before else None


@contextlib.asynccontextmanager
async def scene(store_url, path, *, key=(), **rule):
    async with running_proxy(store_url) as gateway:

        async def handler(call):
            one.arrived.append(await call.read_body())
            await call.answer(200, [("content-type", "application/json")], b"{}")

        async with an_upstream(handler) as upstream:
            tenant = await gateway.new_tenant(key=dict(key), model_aliases={"nick": "small"})
            await gateway.new_rule(tenant, upstream.url, **rule)
            one = Scene(gateway, tenant.secret, path)
            yield one


SMALL = {"allowed_models": ["small"]}
PLACES: dict[str, dict[str, Any]] = {
    "a call that is understood": {"path": "/v1/chat/completions", "key": SMALL},
    "a call that nobody understands": {"path": "/v1/of/our/own", "key": SMALL},
    "a call whose cost is limited": {
        "path": "/v1/chat/completions",
        "key": SMALL | {"limits": [{"unit": "tokens", "limit": 10**9, "window": "1h"}]},
    },
    "a validated body": {"path": "/v1/of/our/own", "plugin_chain": VALIDATED},
}


@pytest.mark.parametrize("place", PLACES)
async def test_no_parser_reads_another_model_than_the_one_that_was_allowed(store_url, place):
    what = dict(PLACES[place])
    async with scene(store_url, what.pop("path"), **what) as one:
        outcomes = {name: await one.send(body, "application/json") for name, body in BODIES.items()}
    passed = {name: arrived for name, (_, _, arrived) in outcomes.items() if arrived is not None}
    assert all(arrived is not None or status in (400, 403) for status, _, arrived in outcomes.values()), outcomes
    assert {"plain", "-0", "beyond 53 bits", "a pair", "a long text", "prototype"} <= passed.keys()
    for reader, models in readings(list(passed.values())).items():
        for name, model in zip(passed, models, strict=True):
            assert model in ("small", REFUSED), (place, reader, name, model, passed[name][:100])


@pytest.mark.parametrize("place", PLACES)
async def test_a_body_that_says_to_be_something_else_than_json_in_utf_8_is_refused(store_url, place):
    # as a form, the model is large; in UTF-7 it is named a second time
    form, utf_7 = b'{"model":"small","x":"&model=large&"}', b'{"model":"small","+AG0-odel":"large"}'
    what = dict(PLACES[place])
    async with scene(store_url, what.pop("path"), **what) as one:
        for kinds in (
            ["application/x-www-form-urlencoded"],
            ["multipart/form-data; boundary=x"],
            ["application/yaml"],
            ["application/json", "application/x-www-form-urlencoded"],
            ["application/json; charset=utf-7"],
            ["application/json;charset=UTF-16"],
            ["application/json", "application/json; charset=ibm500"],
            ["application/json; charset=utf-8; charset=utf-7"],
            ['application/json; charset="utf-7"'],
            ["application/json; charset*=utf-7''x"],
            ["application/json; charset = utf-7"],
        ):
            for body in (form, utf_7):
                assert await one.send(body, *kinds) == (415, "unsupported_media_type", None), kinds
        for kinds in (
            [],
            ["application/json"],
            ["application/json; charset=utf-8"],
            ['application/json; charset="UTF-8"; x=1'],
            ["application/vnd.api+json"],
            ["text/plain;charset=utf8"],
        ):
            assert await one.send(form, *kinds) == (200, "", form), kinds


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate, gzip", "identity, gzip", "x-unknown"])
@pytest.mark.parametrize("place", PLACES)
async def test_no_compressed_body_passes_unread(store_url, place, encoding):
    what = dict(PLACES[place])
    async with scene(store_url, what.pop("path"), **what) as one:
        status, code, arrived = await one.send(b'{"model":"small"}', "application/json", content_encoding=encoding)
        assert (status, arrived) == (415, None)
        assert code in ("unsupported_media_type", "unsupported_content_encoding")


async def test_a_body_that_nothing_is_decided_by_passes_as_it_came(store_url):
    async with scene(store_url, "/v1/of/our/own") as one:
        for body in BODIES.values():
            assert await one.send(body, "application/octet-stream", content_encoding="gzip") == (200, "", body)


async def test_limits_of_tokens_are_not_avoided_by_compression_or_a_form(store_url):
    limits = [{"unit": "tokens", "limit": 100, "window": "1h"}]
    async with scene(store_url, "/v1/chat/completions", key={"limits": limits}) as one:
        for head in ({"types": ["multipart/form-data"]}, {"types": ["application/json"], "content_encoding": "gzip"}):
            fields = dict(head)
            types = fields.pop("types")
            assert (await one.send(b'{"model":"m","max_tokens":100000}', *types, **fields))[0] == 415


async def test_a_form_passes_where_the_call_is_made_by_forms(store_url):
    limits = [{"unit": "tokens", "limit": 10**6, "window": "1h"}]
    async with scene(store_url, "/v1/audio/transcriptions", key={"limits": limits}) as one:
        assert (await one.send(b"--x--", "multipart/form-data; boundary=x"))[0] == 200
        assert (await one.send(b'{"x":"&model=large"}', "application/x-www-form-urlencoded"))[0] == 415

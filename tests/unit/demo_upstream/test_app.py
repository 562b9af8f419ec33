"""The demo provider on a real socket: keys, errors, models, echo."""

import hashlib
import io

import aiohttp
import anthropic
import openai
import pytest
import yarl

from gateway.demo_upstream import DemoSettings
from tests.demo import ASK, LONG, a_demo_upstream, anthropic_client, http_client, openai_client

GEMINI = "/v1beta/models/demo-small:generateContent"


async def test_models_are_listed_and_found_and_an_unknown_one_is_not():
    async with openai_client() as client:
        names = [model.id async for model in client.models.list()]
        found = await client.models.retrieve(names[0])
        with pytest.raises(openai.NotFoundError) as refusal:
            await client.models.retrieve("somebody/unknown")
    assert found.id == names[0] == "demo-small"
    assert refusal.value.code == "model_not_found"


async def test_with_an_api_key_all_but_health_wants_it():
    settings = DemoSettings(api_key="sk-right")
    async with openai_client(settings, api_key="sk-right") as client:
        await client.models.list()
    async with openai_client(settings, api_key="sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as refusal:
            await client.chat.completions.create(**ASK)
    assert (refusal.value.code, refusal.value.type) == ("invalid_api_key", "authentication_error")
    async with http_client(settings) as session:
        for path in ("/echo", "/v1/models", "/nowhere"):
            async with session.get(path, headers={"x-api-key": "sk-right"}) as reply:
                assert reply.status == 401
        async with session.get("/health") as reply:
            assert (reply.status, await reply.json()) == (200, {"status": "ok"})
    assert "sk-right" not in repr(settings)


async def test_the_anthropic_sdk_may_send_the_key_its_own_way():
    settings = DemoSettings(api_key="sk-right", chunk_delay_ms=0)
    async with anthropic_client(settings, api_key="sk-right") as client:
        await client.messages.create(**LONG)
    async with anthropic_client(settings, api_key="sk-wrong") as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(**LONG)


async def test_googles_sdks_may_send_the_key_their_own_way():
    body = {"contents": [{"parts": [{"text": "Hello"}]}]}
    async with http_client(DemoSettings(api_key="sk-right")) as session:
        for path, key, status in ((GEMINI, "sk-right", 200), (GEMINI, "sk-wrong", 401), ("/v1/models", "sk-right", 401)):
            async with session.request(
                "POST" if path == GEMINI else "GET", path, json=body, headers={"x-goog-api-key": key}
            ) as reply:
                assert reply.status == status


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '{"model": "m"}', "[" * 100_000, '{"messages": []}', b"\xff"])
async def test_a_malformed_body_is_a_400_in_openai_shape(body):
    async with http_client() as session:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"):
            async with session.post(path, data=body) as reply:
                error = (await reply.json())["error"]
                assert reply.status == 400
            assert error["type"] == "invalid_request_error"
            assert isinstance(error["message"], str)
            assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("chat/completions", {"messages": [1]}),
        ("chat/completions", {"messages": "hello"}),
        ("chat/completions", {"max_tokens": 0}),
        ("chat/completions", {"max_tokens": True}),
        ("chat/completions", {"n": 1.5}),
        ("chat/completions", {"model": 7}),
        ("completions", {"prompt": [{}]}),
        ("embeddings", {"input": []}),
        ("embeddings", {"input": "x", "dimensions": 100_000}),
        ("embeddings", {"input": "x", "encoding_format": "hex"}),
        ("messages", {"max_tokens": None}),
    ],
)
async def test_a_wrong_field_is_named(path, wrong):
    async with http_client() as session, session.post(f"/v1/{path}", json=ASK | wrong) as reply:
        assert reply.status == 400
        assert (await reply.json())["error"]["param"] in wrong


async def test_an_unknown_path_and_a_wrong_method_are_errors_in_openai_shape():
    async with http_client() as session:
        for path in ("/v1/nowhere", "/v1//models"):
            async with session.get(path) as reply:
                assert (reply.status, (await reply.json())["error"]["type"]) == (404, "invalid_request_error")
        async with session.get("/v1/chat/completions") as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (405, "method_not_allowed")
            assert "POST" in reply.headers["allow"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (403, "permission_error"), (429, "rate_limit_error"), (503, "server_error")],
)
async def test_a_status_can_be_ordered_on_any_endpoint(status, kind):
    async with http_client() as session:
        for path in ("/v1/chat/completions", "/v1/messages", "/echo/x"):
            async with session.post(path, json=LONG, headers={"x-demo-status": str(status)}) as reply:
                assert (reply.status, (await reply.json())["error"]["type"]) == (status, kind)
                assert reply.headers.get("retry-after") == ("1" if status == 429 else None)


@pytest.mark.parametrize(
    "switch",
    [
        *("status", "latency-ms", "chunk-delay-ms", "chunks", "cut-after", "fail-after", "cached-tokens", "cache-write-tokens"),
        *("reasoning-tokens", "usage", "framing", "comments", "id"),
    ],
)
async def test_a_switch_with_a_value_it_has_not_is_refused_by_name(switch):
    headers = {f"x-demo-{switch}": "soon or late"}
    async with http_client() as session, session.post("/v1/chat/completions", json=ASK, headers=headers) as reply:
        assert reply.status == 400
        assert (await reply.json())["error"]["param"] == f"x-demo-{switch}"


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "PATCH", "DELETE"])
async def test_echo_tells_what_arrived(method):
    path = "/echo//a%2Fb/../c%20d/?q=%41&q=2"
    body = b"\x00body" * 100_000
    headers = [("x-twice", "1"), ("x-twice", "2")]
    async with a_demo_upstream() as url, aiohttp.ClientSession() as session:
        target = yarl.URL(url + path, encoded=True)
        async with session.request(method, target, data=body, headers=headers) as reply:
            echo = await reply.json()
    assert (echo["method"], echo["path"], echo["query"]) == (method, "/echo//a%2Fb/../c%20d/", "q=%41&q=2")
    assert [value for name, value in echo["headers"] if name == "x-twice"] == ["1", "2"]
    assert "remote-addr" not in dict(echo["headers"])
    assert echo["body"] == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}


@pytest.mark.parametrize("chunked", [True, False])
async def test_echo_reads_a_body_larger_than_quart_would(chunked):
    whole = bytes(20 << 20)

    async def parts():
        for start in range(0, len(whole), 1 << 20):
            yield whole[start : start + (1 << 20)]

    async with http_client() as session, session.post("/echo", data=parts() if chunked else io.BytesIO(whole)) as reply:
        echo = await reply.json()
    assert echo["path"] == "/echo"
    assert echo["body"] == {"length": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}

"""The official SDKs, unchanged, through the served proxy to the demo upstream."""

import asyncio
import json
import time
from typing import Any

import anthropic
import openai
import pytest

from gateway.demo_upstream import DemoSettings
from gateway.limit_headers import retry_headers
from tests.demo import a_demo_upstream
from tests.unit.test_limit_headers import a_state
from tests.wire import an_upstream

ASKED: Any = {"model": "demo-small", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
async def served(gateway):
    """A gateway in front of the demo, which wants a key of its own."""
    async with a_demo_upstream(DemoSettings(api_key="sk-demo", chunk_delay_ms=5)) as demo:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, demo, headers={"Authorization": "Bearer sk-demo"})
        yield gateway, tenant, demo


def error_of(raised) -> Any:
    """What the SDK parsed."""
    return raised.value.body


def clients(gateway, tenant):
    """By the tenant's host, which Python does not resolve, and on the bare host."""
    common = {"base_url": f"{gateway.url}/v1", "api_key": tenant.secret}
    yield openai.AsyncOpenAI(**common, default_headers={"Host": tenant.host})
    yield openai.AsyncOpenAI(**common)


async def test_openai_chat_streams_lists_and_embeds(served):
    gateway, tenant, _ = served
    for client in clients(gateway, tenant):
        async with client:
            answer = await client.chat.completions.create(**ASKED)
            text = answer.choices[0].message.content
            assert text
            assert answer.usage.total_tokens > 0
            parts, times = [], []
            async for chunk in await client.chat.completions.create(
                **ASKED, stream=True, stream_options={"include_usage": True}
            ):
                times.append(time.monotonic())
                parts += [choice.delta.content or "" for choice in chunk.choices]
            assert "".join(parts) == text
            # not buffered: the demo writes a chunk each 5 ms
            assert times[-1] - times[0] > 0.03
            assert [model.id async for model in client.models.list()] == ["demo-small", "demo-large", "demo-embedding"]
            vectors = await client.embeddings.create(model="demo-embedding", input=["a", "b"])
            assert len(vectors.data) == 2


async def test_openai_parses_every_error(served):
    gateway, tenant, _ = served
    for client in clients(gateway, tenant):
        async with client:
            with pytest.raises(openai.AuthenticationError) as refused:
                await client.with_options(api_key="gw_wrong").models.list()
            assert (refused.value.code, refused.value.type) == ("invalid_api_key", "authentication_error")
            assert refused.value.request_id == error_of(refused)["request_id"]
            with pytest.raises(openai.NotFoundError) as missing:
                await client.with_options(base_url=f"{gateway.url}/v9").models.list()
            assert (missing.value.code, error_of(missing)["message"]) == (
                "no_route",
                "No rule of this tenant matches the path.",
            )
            # and those of the target as they are
            with pytest.raises(openai.NotFoundError) as unknown:
                await client.models.retrieve("none")
            assert unknown.value.code == "model_not_found"


async def test_openai_waits_as_long_as_a_429_says_and_then_passes(served):
    gateway, tenant, _ = served
    limited = await gateway.new_key(tenant, limits=[{"limit": 1, "window": "700ms"}])
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=limited, max_retries=2) as client:
        await client.models.retrieve("demo-small")
        started = time.monotonic()
        await client.models.retrieve("demo-small")
        waited = time.monotonic() - started
        # its own back-off would be half a second at least and Retry-After a whole one
        assert 0.4 < waited < 1.0
        with pytest.raises(openai.RateLimitError) as refused:
            await client.with_options(max_retries=0).models.retrieve("demo-small")
        assert refused.value.code == "rate_limited"
        (limit,) = error_of(refused)["limits"]
        assert limit["retry_after_ms"] == int(refused.value.response.headers["retry-after-ms"])


async def test_openai_does_not_repeat_what_waiting_cannot_help():
    """No limit of today can refuse for ever, so the headers for it are made by hand."""
    headers = dict(retry_headers([a_state(refuses=True, retry_after_ms=-1)]))
    asked = 0

    async def refusing(call):
        nonlocal asked
        asked += 1
        await call.read_body()
        await call.answer(
            429, headers, b'{"error": {"message": "m", "type": "rate_limit_error", "param": null, "code": "budget_exceeded"}}'
        )

    async with (
        an_upstream(refusing) as upstream,
        openai.AsyncOpenAI(base_url=upstream.url, api_key="x", max_retries=3) as client,
    ):
        with pytest.raises(openai.RateLimitError):
            await client.models.list()
    assert asked == 1


async def test_openai_notices_a_stream_that_was_cut(gateway):
    async def dying(call):
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        delta = {"index": 0, "delta": {"content": "Hel"}}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [delta]}
        await call.send_chunk(f"data: {json.dumps(chunk)}\n\n".encode())
        await asyncio.sleep(0.02)
        call.reset()

    async with an_upstream(dying) as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=tenant.secret) as client:
            text = []

            async def read():
                async for chunk in await client.chat.completions.create(**ASKED, stream=True):
                    text.append(chunk.choices[0].delta.content)  # noqa: PERF401 - kept when it raises

            with pytest.raises(openai.APIError, match="broke off"):
                await read()
            assert text == ["Hel"]


async def test_anthropic_messages_streams_and_errors(served):
    gateway, tenant, demo = served
    await gateway.new_rule(tenant, demo, "/anthropic", strip_path=True, headers={"x-api-key": "sk-demo"})
    asked: Any = {"model": "demo-small", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}
    by_host: Any = ({"default_headers": {"Host": tenant.host}}, {})
    for more in by_host:
        async with anthropic.AsyncAnthropic(base_url=f"{gateway.url}/anthropic", api_key=tenant.secret, **more) as client:
            answer = await client.messages.create(**asked)
            assert answer.content[0].text
            async with client.messages.stream(**asked) as stream:
                assert "".join([text async for text in stream.text_stream]) == answer.content[0].text
                assert (await stream.get_final_message()).stop_reason == "end_turn"
            with pytest.raises(anthropic.AuthenticationError) as refused:
                await client.with_options(api_key="gw_wrong").messages.create(**asked)
            assert error_of(refused)["error"]["code"] == "invalid_api_key"

"""What every stream has in common: its pace, its framing, and how it breaks."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from gateway.demo_upstream import DemoSettings, create_demo_upstream
from tests.demo import ASK, LONG, QUICK, anthropic_client, frames_of, http_client, openai_client, streamed

CHAT = "/v1/chat/completions"
MESSAGE = "The demo was asked to fail here."


@dataclass(frozen=True)
class Form:
    """A provider's stream: how to ask for it, what holds its text, what only its end has, its error events."""

    path: str
    body: dict[str, Any]
    text: Any
    end: str
    errors: list[tuple[str | None, Any]] = field(default_factory=list)


OPENAI_ERROR = {"error": {"message": MESSAGE, "type": "server_error", "param": None, "code": None}}
FORMS = {
    "chat": Form(
        CHAT,
        ASK | {"stream": True},
        lambda data: data["choices"][0]["delta"].get("content"),
        '"finish_reason":"stop"',
        [(None, OPENAI_ERROR), (None, "[DONE]")],
    ),
    "completions": Form(
        "/v1/completions",
        {"model": "m", "prompt": "Hello", "stream": True},
        lambda data: data["choices"][0]["text"],
        '"finish_reason":"stop"',
        [(None, OPENAI_ERROR), (None, "[DONE]")],
    ),
    "messages": Form(
        "/v1/messages",
        LONG | {"stream": True},
        lambda data: data.get("delta", {}).get("text"),
        "message_stop",
        [("error", {"type": "error", "error": {"type": "overloaded_error", "message": MESSAGE}})],
    ),
    "responses": Form(
        "/v1/responses",
        {"model": "m", "input": "Hello", "stream": True},
        lambda data: data.get("delta"),
        "response.completed",
    ),
    "gemini": Form(
        "/v1beta/models/demo-small:streamGenerateContent?alt=sse",
        {"contents": [{"parts": [{"text": "Hello"}]}]},
        lambda data: data["candidates"][0]["content"]["parts"][0]["text"],
        '"finishReason":"STOP"',
        [(None, {"error": {"code": 503, "message": MESSAGE, "status": "UNAVAILABLE"}})],
    ),
}
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


async def body_of(session, form, **switches):
    """The bytes, and whether they came to their end."""
    headers = {f"x-demo-{name.replace('_', '-')}": str(value) for name, value in switches.items()}
    received = bytearray()
    async with session.post(form.path, json=form.body, headers=headers) as reply:
        assert reply.status == 200
        try:
            async for part in reply.content.iter_any():
                received += part
        except aiohttp.ClientPayloadError:
            return bytes(received), False
    return bytes(received), True


def texts_of(form, body):
    """The chunks of text."""
    datas = [data for _, data in frames_of(body) if isinstance(data, dict) and "error" not in data]
    return [text for data in datas if (text := form.text(data))]


@EVERY_FORM
@pytest.mark.parametrize("chunks", [1, 7, 300])
async def test_the_number_of_chunks_can_be_ordered(form, chunks):
    async with http_client() as session:
        body, complete = await body_of(session, form, chunks=chunks)
    assert complete
    assert form.end in body.decode()
    assert len(texts_of(form, body)) == chunks


@EVERY_FORM
@pytest.mark.parametrize("cut_after", [0, 2, 5])
async def test_a_stream_can_be_cut_in_the_middle(form, cut_after, caplog):
    async with http_client() as session:
        body, complete = await body_of(session, form, cut_after=cut_after, chunks=5)
    assert not complete
    assert len(texts_of(form, body)) == cut_after
    assert form.end not in body.decode()
    assert not [record for record in caplog.records if record.levelname == "ERROR" and record.name != "asyncio"]


@EVERY_FORM
@pytest.mark.parametrize("fail_after", [0, 2, 5])
async def test_a_stream_can_fail_in_the_middle_in_its_providers_way(form, fail_after):
    async with http_client() as session:
        body, complete = await body_of(session, form, fail_after=fail_after, chunks=5)
    assert complete
    assert len(texts_of(form, body)) == fail_after
    assert form.end not in body.decode()
    assert frames_of(body)[-len(form.errors) :] == form.errors if form.errors else b"response.failed" in body


@EVERY_FORM
@pytest.mark.parametrize("switch", ["cut_after", "fail_after"])
async def test_a_break_that_lies_behind_the_end_changes_nothing(form, switch):
    async with http_client() as session:
        assert await body_of(session, form, chunks=5, id="1", **{switch: 6}) == await body_of(session, form, chunks=5, id="1")


@EVERY_FORM
async def test_a_cut_wins_over_a_failure(form):
    async with http_client() as session:
        body, complete = await body_of(session, form, cut_after=2, fail_after=2)
    assert not complete
    assert MESSAGE not in body.decode()


@EVERY_FORM
@pytest.mark.parametrize(("framing", "newline"), [("lf", b"\n"), ("crlf", b"\r\n"), ("cr", b"\r")])
async def test_lines_can_end_in_each_way_that_events_allow(form, framing, newline):
    async with http_client() as session:
        plain, _ = await body_of(session, form, id="1")
        framed, _ = await body_of(session, form, id="1", framing=framing)
    own = b"\r\n" if "/v1beta/" in form.path else b"\n"
    assert framed == plain.replace(own, newline)
    assert framed.endswith(newline * 2)


@EVERY_FORM
async def test_comments_come_before_each_event_and_change_nothing_else(form):
    async with http_client() as session:
        plain, _ = await body_of(session, form, id="1", framing="lf")
        commented, _ = await body_of(session, form, id="1", framing="lf", comments=2)
    assert frames_of(commented) == frames_of(plain)
    assert commented.startswith(b": keep-alive\n\n: keep-alive\n\n")
    assert commented.count(b": keep-alive\n\n") == 2 * plain.count(b"\n\n")
    assert commented.replace(b": keep-alive\n\n", b"") == plain


async def test_the_sdks_notice_the_cut():
    async with openai_client() as client:
        stream = await client.chat.completions.create(**ASK, stream=True, extra_headers={"x-demo-cut-after": "2"})
        with pytest.raises(openai.APIConnectionError):
            [chunk async for chunk in stream]


async def test_the_sdks_notice_the_failure():
    fails = {"x-demo-fail-after": "2"}
    async with openai_client() as client:
        stream = await client.chat.completions.create(**ASK, stream=True, extra_headers=fails)
        with pytest.raises(openai.APIError, match=MESSAGE):
            [chunk async for chunk in stream]
    async with anthropic_client() as client:
        messages = await client.messages.create(**LONG, stream=True, extra_headers=fails)
        with pytest.raises(anthropic.APIStatusError, match=MESSAGE) as failure:
            [event async for event in messages]
    assert "overloaded_error" in failure.value.message


async def test_latency_comes_before_the_head_and_the_delay_before_each_chunk():
    async with http_client(DemoSettings(latency_ms=60_000, chunk_delay_ms=60_000)) as session:
        headers = {"x-demo-latency-ms": "150", "x-demo-chunk-delay-ms": "50", "x-demo-chunks": "4"}
        started = time.monotonic()
        async with session.post("/v1/chat/completions", json=ASK | {"stream": True}, headers=headers) as reply:
            head_after = time.monotonic() - started
            await reply.read()
            body_after = time.monotonic() - started
    assert head_after >= 0.15
    assert body_after - head_after >= 0.15
    assert body_after < 30


async def test_the_settings_hold_where_no_switch_is():
    async with http_client(DemoSettings(latency_ms=100, chunk_delay_ms=40)) as session:
        started = time.monotonic()
        await streamed(session, CHAT, ASK | {"max_tokens": 5, "stream": True}, chunks=5)
        assert time.monotonic() - started >= 0.3


async def test_a_stream_without_delay_does_not_outlive_its_client():
    async with http_client() as session:
        headers = {"x-demo-chunks": "200000"}
        async with session.post("/v1/chat/completions", json=ASK | {"stream": True}, headers=headers) as reply:
            await reply.content.readany()
            reply.close()
        async with asyncio.timeout(20), session.get("/health") as reply:
            assert reply.status == 200


@pytest.mark.parametrize("key", ["RESPONSE_TIMEOUT", "BODY_TIMEOUT"])
def test_no_stream_is_cut_by_a_timeout_of_quart(key):
    assert create_demo_upstream(QUICK).config[key] is None

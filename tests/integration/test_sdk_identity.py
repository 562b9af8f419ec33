"""With the gateway in between, clients see what they see without it.

Every call is made twice: straight to the demo upstream and through a gateway in front of it. What the official SDKs make of
the replies (objects and which of their fields are set, number and order of events, exceptions) has to be equal, and so have
the status, the headers that the upstream sent, and every byte of the body. Ids and times come from ``x-demo-id``, so nothing
is normalised. The gateway's own headers come on top. One thing is its own: in a stream that was cut, an event that says so.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from gateway.demo_upstream import DemoSettings
from tests.demo import KEY, a_demo_upstream, switched

ASKED: Any = {"model": "demo-small", "messages": [{"role": "user", "content": "Hello"}]}
STREAMED: Any = ASKED | {"stream": True}
MESSAGE: Any = ASKED | {"max_tokens": 64}
PROMPT: Any = {"model": "demo-small", "prompt": ["one", "two"], "max_tokens": 9}
INPUT: Any = {"model": "demo-small", "input": "Hello"}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
CONTENTS: Any = {"contents": [{"parts": [{"text": "Hello"}]}]}
GEMINI = "/v1beta/models/demo-small"
# these say what a connection is like, or when and by whom a reply was made, and not what was replied
OF_THE_HOP = {"date", "server", "connection", "transfer-encoding", "x-request-id"}


def usage(asked: bool) -> dict[str, Any]:
    return {"stream_options": {"include_usage": asked}}


@dataclass(frozen=True)
class Call:
    """A request, and how many objects or events it must give at least: a test of nothing must not pass."""

    path: str
    body: Any = None
    switches: Mapping[str, Any] = field(default_factory=dict)
    at_least: int = 1
    raises: str | None = None


CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
COUNTED = {"cached_tokens": 5, "cache_write_tokens": 2, "reasoning_tokens": 7}
CALLS = {
    "chat": Call(CHAT, ASKED),
    "chat, counted in detail": Call(CHAT, ASKED, COUNTED),
    "chat without usage": Call(CHAT, ASKED, {"usage": "none"}),
    "chat, limited": Call(CHAT, ASKED | {"max_tokens": 3}),
    "chat, limited in the newer way": Call(CHAT, ASKED | {"max_completion_tokens": 3}),
    "chat with a tool": Call(CHAT, ASKED | {"tools": [TOOL]}),
    "chat with n": Call(CHAT, ASKED | {"n": 2}),
    "chat stream": Call(CHAT, STREAMED, at_least=15),
    "chat stream, usage asked for": Call(CHAT, STREAMED | usage(True), COUNTED, at_least=15),
    "chat stream, usage declined": Call(CHAT, STREAMED | usage(False), at_least=15),
    "chat stream, other options": Call(CHAT, STREAMED | {"stream_options": {"include_obfuscation": False}}, at_least=15),
    "chat stream, usage kept back": Call(CHAT, STREAMED | usage(True), {"usage": "none"}, at_least=15),
    "chat stream, usage in every chunk": Call(CHAT, STREAMED | usage(True), {"usage": "every-chunk"}, at_least=15),
    "chat stream with n": Call(CHAT, STREAMED | {"n": 2}, at_least=30),
    "chat stream with n, usage asked for": Call(CHAT, STREAMED | {"n": 2} | usage(True), at_least=30),
    "chat stream, limited": Call(CHAT, STREAMED | {"max_tokens": 3}, at_least=5),
    "chat stream with a tool": Call(CHAT, STREAMED | {"tools": [TOOL]}, at_least=15),
    "chat stream, lines end in CR LF": Call(CHAT, STREAMED, {"framing": "crlf"}, at_least=15),
    "chat stream, lines end in CR": Call(CHAT, STREAMED, {"framing": "cr"}, at_least=15),
    "chat stream with comments": Call(CHAT, STREAMED, {"comments": 2}, at_least=15),
    "chat stream, all at once": Call(CHAT, STREAMED, {"chunk_delay_ms": 0, "chunks": 300}, at_least=300),
    "chat stream fails": Call(CHAT, STREAMED, {"fail_after": 3}, at_least=4, raises="APIError"),
    "chat stream fails, usage asked for": Call(CHAT, STREAMED | usage(True), {"fail_after": 3}, at_least=4, raises="APIError"),
    "completions": Call(COMPLETIONS, PROMPT),
    "completions stream": Call(COMPLETIONS, PROMPT | {"stream": True}, at_least=20),
    "completions stream, usage asked for": Call(COMPLETIONS, PROMPT | {"stream": True} | usage(True), COUNTED, at_least=7),
    "embeddings": Call("/v1/embeddings", {"model": "demo-embedding", "input": ["one", "two"]}),
    "embeddings, as numbers": Call("/v1/embeddings", INPUT | {"encoding_format": "float", "dimensions": 8}),
    "responses": Call(RESPONSES, INPUT, COUNTED),
    "responses, limited": Call(RESPONSES, INPUT | {"max_output_tokens": 3}),
    "responses stream": Call(RESPONSES, INPUT | {"stream": True}, COUNTED, at_least=20),
    "responses stream, limited": Call(RESPONSES, INPUT | {"stream": True, "max_output_tokens": 3}, at_least=11),
    "responses stream fails": Call(RESPONSES, INPUT | {"stream": True}, {"fail_after": 3}, at_least=9),
    "messages": Call(MESSAGES, MESSAGE, COUNTED),
    "messages, limited": Call(MESSAGES, MESSAGE | {"max_tokens": 3}),
    "messages stream": Call(MESSAGES, MESSAGE | {"stream": True}, COUNTED, at_least=20),
    "messages stream, limited": Call(MESSAGES, MESSAGE | {"stream": True, "max_tokens": 3}, at_least=8),
    "messages stream, usage in every chunk": Call(MESSAGES, MESSAGE | {"stream": True}, {"usage": "every-chunk"}, at_least=30),
    "messages stream fails": Call(MESSAGES, MESSAGE | {"stream": True}, {"fail_after": 3}, at_least=5, raises="APIStatusError"),
    "a model": Call("/v1/models/demo-small"),
    "an unknown model": Call("/v1/models/none", raises="NotFoundError"),
    "a wrong field": Call(CHAT, ASKED | {"n": 0}, raises="BadRequestError"),
    "a wrong field of a stream": Call(CHAT, STREAMED | {"max_tokens": "many"}, raises="BadRequestError"),
    "a wrong field of messages": Call(MESSAGES, MESSAGE | {"max_tokens": -1}, raises="BadRequestError"),
    **{
        f"{status} of {path}": Call(path, body, {"status": status}, raises=name)
        for status, name in ((404, "NotFoundError"), (429, "RateLimitError"), (500, "InternalServerError"))
        for path, body in ((CHAT, ASKED), (CHAT + " streamed", STREAMED), (RESPONSES, INPUT), (MESSAGES, MESSAGE))
    },
}
WIRE_CALLS = {
    "gemini": Call(f"{GEMINI}:generateContent", CONTENTS, COUNTED),
    "gemini events": Call(f"{GEMINI}:streamGenerateContent?alt=sse", CONTENTS, COUNTED),
    "gemini events, no usage": Call(f"{GEMINI}:streamGenerateContent?alt=sse", CONTENTS, {"usage": "none"}),
    "gemini events fail": Call(f"{GEMINI}:streamGenerateContent?alt=sse", CONTENTS, {"fail_after": 3}),
    "gemini array": Call(f"{GEMINI}:streamGenerateContent", CONTENTS, COUNTED),
    "no JSON": Call(CHAT, b"{"),
    "JSON as nobody writes it": Call(
        CHAT, b' {"messages" :[ {"content":"\\u0048i","role":"user"}], "model":"m","stream":true}\n'
    ),
}
CUTS = {
    "chat": Call(CHAT, STREAMED),
    "chat, usage asked for": Call(CHAT, STREAMED | usage(True)),
    "completions": Call(COMPLETIONS, PROMPT | {"stream": True}),
    "responses": Call(RESPONSES, INPUT | {"stream": True}),
    "messages": Call(MESSAGES, MESSAGE | {"stream": True}),
}


def every(calls: Mapping[str, Call]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("call", calls.values(), ids=calls)


@dataclass(frozen=True)
class Side:
    """A way to the demo, and the clients on it."""

    url: str
    key: str
    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic


@contextlib.asynccontextmanager
async def a_side(url: str, key: str) -> AsyncIterator[Side]:
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as one,
        anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as other,
    ):
        yield Side(url, key, one, other)


@pytest.fixture
async def sides(gateway):
    """Straight to the demo, and through the gateway."""
    async with a_demo_upstream(DemoSettings(api_key=KEY, chunk_delay_ms=1)) as demo:
        tenant = await gateway.new_tenant()
        for path in ("/v1", "/v1beta"):
            await gateway.new_rule(tenant, demo, path, headers={"Authorization": f"Bearer {KEY}"})
        async with a_side(demo, KEY) as direct, a_side(gateway.url, tenant.secret) as through:
            yield direct, through


def asked(side: Side, call: Call) -> Any:
    """The SDK's own call."""
    headers = switched({"id": "same", **call.switches})
    match call.path.split(" ")[0]:
        case "/v1/chat/completions":
            return side.openai.chat.completions.create(**call.body, extra_headers=headers)
        case "/v1/completions":
            return side.openai.completions.create(**call.body, extra_headers=headers)
        case "/v1/responses":
            return side.openai.responses.create(**call.body, extra_headers=headers)
        case "/v1/embeddings":
            return side.openai.embeddings.create(**call.body, extra_headers=headers)
        case "/v1/messages":
            return side.anthropic.messages.create(**call.body, extra_headers=headers)
        case path:
            return side.openai.models.retrieve(path.rpartition("/")[2], extra_headers=headers)


async def parsed(answer: Any) -> list[Any]:
    """All that the SDK gave, in order. An exception is the last of it."""
    seen: list[Any] = []
    try:
        reply = await answer if hasattr(answer, "__await__") else answer
        if hasattr(reply, "__aiter__"):
            async for event in reply:
                seen.append(plain(event))  # noqa: PERF401  kept when it raises
        else:
            seen.append(plain(reply))
    except Exception as error:
        seen.append(failure(error))
    return seen


def plain(item: Any) -> tuple[str, Any]:
    return type(item).__name__, item.model_dump(exclude_unset=True, warnings=False)


def failure(error: Exception) -> tuple[str, Any]:
    facts = {name: getattr(error, name, None) for name in ("status_code", "body", "code", "param", "type")}
    return type(error).__name__, facts | {"raised": str(error)}


@dataclass(frozen=True)
class Bytes:
    """A reply as it came."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool


async def fetched(side: Side, call: Call) -> Bytes:
    headers = {"authorization": f"Bearer {side.key}", "content-type": "application/json"}
    headers |= switched({"id": "same", **call.switches})
    data = call.body if isinstance(call.body, bytes | None) else json.dumps(call.body).encode()
    body, complete = bytearray(), True
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        method, url = "GET" if data is None else "POST", side.url + call.path.split(" ")[0]
        async with session.request(method, url, data=data, headers=headers) as reply:
            try:
                async for part in reply.content.iter_any():
                    body += part
            except aiohttp.ClientPayloadError:
                complete = False
            fields = {name.lower(): value for name, value in reply.headers.items()}
            return Bytes(reply.status, fields, bytes(body), complete)


@every(CALLS)
async def test_an_sdk_sees_the_same(sides, call):
    direct, through = [await parsed(asked(side, call)) for side in sides]
    assert through == direct
    assert len(direct) >= call.at_least
    last, facts = direct[-1]
    assert last == call.raises if call.raises else "raised" not in facts
    await same_bytes(sides, call)


@every(WIRE_CALLS)
async def test_every_byte_is_the_same(sides, call):
    await same_bytes(sides, call)


async def same_bytes(sides, call):
    direct, through = [await fetched(side, call) for side in sides]
    if "comments" in call.switches:  # those before the event with the usage, which is asked for and hidden, are passed on
        direct, through = (replace(each, body=each.body.replace(b": keep-alive\n\n", b"")) for each in (direct, through))
    assert (through.status, through.body, through.complete) == (direct.status, direct.body, True)
    assert direct.body
    kept = direct.headers.keys() - OF_THE_HOP
    assert {name: through.headers.get(name) for name in kept} == {name: direct.headers[name] for name in kept}
    assert ("content-length" in through.headers) == ("content-length" in direct.headers)


async def test_the_helpers_for_streams_see_the_same(sides):
    def helped(side):
        headers = switched({"id": "same", **COUNTED})
        yield side.openai.chat.completions.stream(**ASKED, extra_headers=headers)
        yield side.openai.chat.completions.stream(**ASKED, **usage(True), extra_headers=headers)
        yield side.openai.responses.stream(**INPUT, extra_headers=headers)
        yield side.anthropic.messages.stream(**MESSAGE, extra_headers=headers)

    for pair in zip(*map(helped, sides), strict=True):
        seen = []
        for manager in pair:
            async with manager as stream:
                seen.append(await parsed(stream))
        assert seen[0] == seen[1]
        assert len(seen[0]) > 20


async def test_the_sdks_raw_bytes_are_the_same(sides):
    bodies = []
    for side in sides:
        create = side.openai.chat.completions.with_streaming_response.create
        async with create(**STREAMED, extra_headers=switched({"id": "same"})) as reply:
            bodies.append(b"".join([part async for part in reply.iter_bytes()]))
    assert bodies[0] == bodies[1]
    assert b"usage" not in bodies[0]


@every(CUTS)
@pytest.mark.parametrize("cut_after", [0, 3])
async def test_a_stream_that_was_cut_is_the_same_up_to_the_word_of_it(sides, call, cut_after):
    cut = Call(call.path, call.body, {"cut_after": cut_after})
    direct, through = [await fetched(side, cut) for side in sides]
    assert (direct.complete, through.complete) == (False, False)
    assert through.body.startswith(direct.body)
    word = through.body.removeprefix(direct.body).decode()
    assert word.startswith("event: error\ndata: {")
    assert word.count("\n\n") == 1
    assert json.loads(word.partition("data: ")[2])["error"]["code"] == "upstream_unreachable"
    *events, raised = await parsed(asked(sides[0], cut))
    *same, told = await parsed(asked(sides[1], cut))
    assert same == events
    assert "upstream_unreachable" in str(told[1])
    assert "raised" in raised[1]

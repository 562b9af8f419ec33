"""The demo provider on a real socket, as the official SDKs and a plain HTTP client see it."""

import asyncio
import base64
import hashlib
import io
import json
import math
import struct
import time
from contextlib import asynccontextmanager

import aiohttp
import anthropic
import openai
import pytest
import yarl

from gateway.config import ServerSettings
from gateway.demo_upstream import DemoSettings, create_demo_upstream
from gateway.serving import Listener, serve

QUICK = DemoSettings(chunk_delay_ms=0)
ASK = {"model": "demo-small", "messages": [{"role": "user", "content": "What is a gateway?"}]}
LONG = ASK | {"max_tokens": 500}


@asynccontextmanager
async def running(settings=QUICK):
    """Yield the URL of a served demo."""
    shutdown = asyncio.Event()
    bound = asyncio.get_running_loop().create_future()
    listener = Listener(create_demo_upstream(settings), "127.0.0.1", 0, "demo")
    task = asyncio.create_task(serve([listener], ServerSettings(), shutdown, ready=bound.set_result))
    await asyncio.wait([task, bound], return_when=asyncio.FIRST_COMPLETED)
    try:
        host, port = bound.result()["demo"]
        yield f"http://{host}:{port}"
    finally:
        shutdown.set()
        await task


@asynccontextmanager
async def openai_client(settings=QUICK, api_key="sk-demo"):
    async with running(settings) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0) as client:
        yield client


@asynccontextmanager
async def anthropic_client(settings=QUICK, api_key="sk-demo"):
    async with running(settings) as url, anthropic.AsyncAnthropic(base_url=url, api_key=api_key, max_retries=0) as client:
        yield client


@asynccontextmanager
async def http_client(settings=QUICK):
    async with running(settings) as url, aiohttp.ClientSession(url) as session:
        yield session


async def events_of(session, path="/v1/chat/completions", headers=None, **body):
    """The ``data:`` fields of a stream, each checked to stand in a frame of its own."""
    async with session.post(path, json=body | {"stream": True}, headers=headers) as reply:
        assert reply.status == 200
        assert reply.content_type == "text/event-stream"
        frames = (await reply.text()).split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [frame.removeprefix("data: ") for frame in frames]


async def test_the_same_prompt_gets_the_same_text_and_another_prompt_another():
    async with openai_client() as client:
        first, again = [await client.chat.completions.create(**ASK) for _ in range(2)]
        other = await client.chat.completions.create(model="demo-small", messages=[{"role": "user", "content": "And now?"}])
    text = first.choices[0].message.content
    assert text
    assert again.choices[0].message.content == text != other.choices[0].message.content
    assert (first.model, first.choices[0].finish_reason) == ("demo-small", "stop")
    assert first.usage.completion_tokens == len(text.split())
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    assert first.id != again.id
    assert first._request_id.startswith("req_")


async def test_a_stream_says_what_the_whole_reply_says_and_its_usage_is_the_same():
    async with openai_client() as client:
        whole = await client.chat.completions.create(**ASK)
        stream = await client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    assert (
        "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_carries_usage_only_when_asked_and_ends_with_done():
    async with http_client() as session:
        plain = await events_of(session, **ASK)
        counted = await events_of(session, **ASK, stream_options={"include_usage": True})
    assert plain[-1] == counted[-1] == "[DONE]"
    assert all("usage" not in json.loads(event) for event in plain[:-1])
    assert all(json.loads(event)["usage"] is None for event in counted[:-2])
    assert json.loads(counted[-2])["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_the_token_limit_cuts_the_text_and_is_the_reason_to_finish(limit):
    async with openai_client() as client:
        whole = await client.chat.completions.create(**ASK)
        short = await client.chat.completions.create(**ASK, **{limit: 3})
    assert short.choices[0].message.content == " ".join(whole.choices[0].message.content.split()[:3])
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)


async def test_n_answers_differ_and_all_are_charged():
    async with openai_client() as client:
        reply = await client.chat.completions.create(**ASK, n=3)
        stream = await client.chat.completions.create(**ASK, n=3, stream=True)
        streamed = ["", "", ""]
        finished = []
        async for chunk in stream:
            [choice] = chunk.choices
            streamed[choice.index] += choice.delta.content or ""
            finished += [choice.index] if choice.finish_reason else []
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == finished == [0, 1, 2]
    assert len(set(texts)) == 3
    assert streamed == texts
    assert reply.usage.completion_tokens == sum(len(text.split()) for text in texts)


async def test_parts_of_a_message_count_as_its_text():
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "a"},
    ]
    async with openai_client() as client:
        split = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": parts}])
        other = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": parts[:1]}])
    assert split.choices[0].message.content != other.choices[0].message.content


async def test_plain_completions_answer_each_prompt_whole_and_streamed():
    async with openai_client() as client:
        reply = await client.completions.create(model="m", prompt=["one", "two"], max_tokens=5)
        stream = await client.completions.create(model="m", prompt=["one", "two"], max_tokens=5, stream=True)
        streamed = ["", ""]
        async for chunk in stream:
            streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in reply.choices]
    assert [choice.finish_reason for choice in reply.choices] == ["length", "length"]
    assert streamed[0] != streamed[1]
    assert reply.object == "text_completion"


async def test_embeddings_have_length_one_and_follow_from_the_text():
    async with openai_client() as client:
        reply = await client.embeddings.create(model="demo-embedding", input=["one", "two", "one"])
        [small] = (await client.embeddings.create(model="demo-embedding", input="one", dimensions=8)).data
    one, two, again = [item.embedding for item in reply.data]
    assert [item.index for item in reply.data] == [0, 1, 2]
    assert (len(one), len(small.embedding)) == (1536, 8)
    assert one == again != two
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-5) for vector in (one, two, small.embedding))
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 0


async def test_embeddings_read_the_same_as_numbers_and_as_base64():
    async with http_client() as session:
        vectors = []
        for encoding in ("float", "base64"):
            body = {"model": "m", "input": "one", "dimensions": 16, "encoding_format": encoding}
            async with session.post("/v1/embeddings", json=body) as reply:
                vectors.append((await reply.json())["data"][0]["embedding"])
    assert list(struct.unpack("<16f", base64.b64decode(vectors[1]))) == vectors[0]


async def test_models_are_listed_and_found_and_an_unknown_one_is_not():
    async with openai_client() as client:
        names = [model.id async for model in client.models.list()]
        found = await client.models.retrieve(names[0])
        with pytest.raises(openai.NotFoundError) as refusal:
            await client.models.retrieve("somebody/unknown")
    assert found.id == names[0] == "demo-small"
    assert refusal.value.code == "model_not_found"


async def test_anthropic_messages_answer_whole_and_streamed():
    async with anthropic_client() as client:
        whole = await client.messages.create(**LONG)
        async with client.messages.stream(**LONG) as stream:
            text = "".join([part async for part in stream.text_stream])
            final = await stream.get_final_message()
        short = await client.messages.create(**ASK, max_tokens=2)
        with_system = await client.messages.create(**LONG, system="Be brief.")
    assert whole.content[0].text == text == final.content[0].text
    assert whole.usage.output_tokens == final.usage.output_tokens == len(text.split())
    assert whole.usage.input_tokens == final.usage.input_tokens
    assert (whole.stop_reason, final.stop_reason, short.stop_reason) == ("end_turn", "end_turn", "max_tokens")
    assert with_system.content[0].text != text


async def test_the_anthropic_stream_has_its_events_in_order():
    async with http_client() as session, session.post("/v1/messages", json=LONG | {"stream": True, "max_tokens": 2}) as reply:
        lines = (await reply.text()).splitlines()
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    types = [json.loads(line.removeprefix("data: "))["type"] for line in lines if line.startswith("data: ")]
    expected = ["message_start", "content_block_start", "content_block_delta", "content_block_delta"]
    assert names == types == [*expected, "content_block_stop", "message_delta", "message_stop"]


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


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '{"model": "m"}', "[" * 100_000, '{"messages": []}', b"\xff"])
async def test_a_malformed_body_is_a_400_in_openai_shape(body):
    async with http_client() as session:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages"):
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


@pytest.mark.parametrize("switch", ["status", "latency-ms", "chunk-delay-ms", "chunks", "cut-after"])
async def test_a_switch_that_is_no_number_is_refused_by_name(switch):
    headers = {f"x-demo-{switch}": "soon"}
    async with http_client() as session, session.post("/v1/chat/completions", json=ASK, headers=headers) as reply:
        assert reply.status == 400
        assert (await reply.json())["error"]["param"] == f"x-demo-{switch}"


@pytest.mark.parametrize("chunks", [1, 7, 300])
async def test_the_number_of_chunks_can_be_ordered(chunks):
    async with http_client() as session:
        events = await events_of(session, headers={"x-demo-chunks": str(chunks)}, **ASK)
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert sum(bool(delta.get("content")) for delta in deltas) == chunks


@pytest.mark.parametrize("cut_after", [0, 2, 5])
async def test_a_stream_can_be_cut_in_the_middle(cut_after, caplog):
    received = bytearray()

    async def read_all(content):
        while part := await content.readany():
            received.extend(part)

    headers = {"x-demo-cut-after": str(cut_after), "x-demo-chunks": "5"}
    body = ASK | {"stream": True}
    async with http_client() as session, session.post("/v1/chat/completions", json=body, headers=headers) as reply:
        with pytest.raises(aiohttp.ClientPayloadError):
            await read_all(reply.content)
    events = [json.loads(line.removeprefix(b"data: ")) for line in received.splitlines() if line]
    assert sum(bool(event["choices"][0]["delta"].get("content")) for event in events) == cut_after
    assert not any(event["choices"][0]["finish_reason"] for event in events)
    assert not [record for record in caplog.records if record.levelname == "ERROR" and record.name != "asyncio"]


async def test_a_cut_that_lies_behind_the_end_changes_nothing():
    async with http_client() as session:
        events = await events_of(session, headers={"x-demo-cut-after": "6", "x-demo-chunks": "5"}, **ASK)
    assert events[-1] == "[DONE]"


async def test_the_sdks_notice_the_cut():
    async with openai_client() as client:
        stream = await client.chat.completions.create(**ASK, stream=True, extra_headers={"x-demo-cut-after": "2"})
        with pytest.raises(openai.APIConnectionError):
            [chunk async for chunk in stream]


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
        await events_of(session, headers={"x-demo-chunks": "5"}, **ASK | {"max_tokens": 5})
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


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "PATCH", "DELETE"])
async def test_echo_tells_what_arrived(method):
    path = "/echo//a%2Fb/../c%20d/?q=%41&q=2"
    body = b"\x00body" * 100_000
    headers = [("x-twice", "1"), ("x-twice", "2")]
    async with running() as url, aiohttp.ClientSession() as session:
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

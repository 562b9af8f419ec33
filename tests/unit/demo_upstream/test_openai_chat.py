"""Chat completions, completions and embeddings, as the official SDK and a plain HTTP client see them."""

import base64
import math
import struct

import pytest

from tests.demo import ASK, http_client, openai_client, posted, streamed

CHAT = "/v1/chat/completions"
COUNTED = ASK | {"stream": True, "stream_options": {"include_usage": True}}
TEXT = {"model": "m", "prompt": ["one", "two"]}


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
        plain = await streamed(session, CHAT, ASK | {"stream": True})
        counted = await streamed(session, CHAT, COUNTED)
    assert plain.pop() == counted.pop() == (None, "[DONE]")
    *chunks, last = [data for _, data in counted]
    assert all("usage" not in data for _, data in plain)
    assert all(data["usage"] is None for data in chunks)
    assert last["usage"]["completion_tokens"] > 0


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


async def test_the_details_are_parts_of_what_was_sent_and_written():
    switches = {"cached_tokens": 5, "cache_write_tokens": 2, "reasoning_tokens": 7}
    async with http_client() as session:
        plain = (await posted(session, CHAT, ASK))["usage"]
        detailed = (await posted(session, CHAT, ASK, **switches))["usage"]
        *_, (_, last), _ = await streamed(session, CHAT, COUNTED, **switches)
    assert plain["prompt_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}
    assert plain["completion_tokens_details"] == {"reasoning_tokens": 0}
    assert last["usage"] == detailed
    assert detailed == {
        "prompt_tokens": plain["prompt_tokens"],
        "completion_tokens": plain["completion_tokens"] + 7,
        "total_tokens": plain["total_tokens"] + 7,
        "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 7},
    }


async def test_each_of_several_answers_reasons():
    async with http_client() as session:
        one = (await posted(session, CHAT, ASK, reasoning_tokens=7))["usage"]
        three = (await posted(session, CHAT, ASK | {"n": 3}, reasoning_tokens=7))["usage"]
    assert (one["completion_tokens_details"], three["completion_tokens_details"]) == (
        {"reasoning_tokens": 7},
        {"reasoning_tokens": 21},
    )


@pytest.mark.parametrize(("path", "body"), [(CHAT, ASK), ("/v1/completions", TEXT), ("/v1/embeddings", ASK | {"input": "x"})])
async def test_usage_can_be_kept_back(path, body):
    async with http_client() as session:
        assert "usage" in await posted(session, path, body)
        assert "usage" not in await posted(session, path, body, usage="none")


@pytest.mark.parametrize(("path", "body"), [(CHAT, ASK), ("/v1/completions", TEXT)])
async def test_a_stream_can_keep_back_the_usage_that_was_asked_for(path, body):
    body = body | {"stream": True}
    asked = body | {"stream_options": {"include_usage": True}}
    async with http_client() as session:
        kept_back = await streamed(session, path, asked, usage="none", id="1")
        assert kept_back == await streamed(session, path, body, id="1")


@pytest.mark.parametrize(("path", "body"), [(CHAT, ASK), ("/v1/completions", TEXT)])
async def test_a_stream_can_tell_the_usage_that_nobody_asked_for(path, body):
    body = body | {"stream": True}
    asked = body | {"stream_options": {"include_usage": True}}
    async with http_client() as session:
        unasked = await streamed(session, path, body, usage="unasked", id="1")
        assert unasked == await streamed(session, path, asked, id="1")


@pytest.mark.parametrize(("path", "body"), [(CHAT, ASK | {"n": 2}), ("/v1/completions", TEXT)])
async def test_a_stream_can_tell_its_usage_with_each_chunk(path, body):
    async with http_client() as session:
        asked = body | {"stream": True, "stream_options": {"include_usage": True}}
        events = await streamed(session, path, asked, usage="every-chunk", reasoning_tokens=3)
        unasked = await streamed(session, path, body | {"stream": True}, usage="every-chunk")
    words = 0
    *chunks, last = [data for _, data in events[:-1]]
    for data in chunks:
        [choice] = data["choices"]
        words += len((choice.get("text") or choice.get("delta", {}).get("content") or "").split())
        assert data["usage"]["completion_tokens"] == words + 2 * 3
    assert words > 30
    assert (last["choices"], last["usage"]) == ([], chunks[-1]["usage"])
    assert all("usage" not in data for _, data in unasked[:-1])


async def test_an_answer_that_only_reasons_has_no_text():
    async with http_client() as session:
        reply = await posted(session, CHAT, ASK | {"max_tokens": 4}, reasoning_tokens=9)
        events = await streamed(session, CHAT, COUNTED | {"max_tokens": 4}, reasoning_tokens=9)
    assert reply["choices"][0]["message"]["content"] == ""
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4
    assert [data["choices"][0]["finish_reason"] for _, data in events[:-2]] == [None, "length"]


async def test_an_id_of_the_requests_own_makes_the_bytes_the_same():
    async with http_client() as session:
        bodies = set()
        for switches in ({"x-demo-id": "a"}, {"x-demo-id": "a"}, {"x-demo-id": "b"}, {}):
            async with session.post(CHAT, json=COUNTED, headers=switches) as reply:
                bodies.add(await reply.read())
                assert reply.headers["x-request-id"].startswith(f"req_{switches.get('x-demo-id', '')}")
    assert len(bodies) == 3

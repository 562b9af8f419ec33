"""OpenAI's responses, as the official SDK and a plain HTTP client see them."""

import openai
import pytest

from tests.demo import ASK, http_client, openai_client, posted, streamed

PATH = "/v1/responses"
CALL = {"model": "demo-small", "input": "What is a gateway?"}
STREAMED = CALL | {"stream": True}
BEFORE = ["created", "in_progress", "output_item.added", "content_part.added"]
AFTER = ["output_text.done", "content_part.done", "output_item.done"]


async def test_the_answer_is_that_of_a_chat():
    async with openai_client() as client:
        chat = await client.chat.completions.create(**ASK)
        reply = await client.responses.create(model="demo-small", input="What is a gateway?")
        parts = await client.responses.create(
            model="demo-small",
            input=[{"role": "user", "content": [{"type": "input_text", "text": "What is a gateway?"}]}],
        )
        instructed = await client.responses.create(model="demo-small", input="What is a gateway?", instructions="Be brief.")
    assert reply.output_text == parts.output_text == chat.choices[0].message.content != instructed.output_text
    assert reply.status == "completed"
    assert reply.usage is not None
    assert chat.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.total_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
        chat.usage.total_tokens,
    )


async def test_a_stream_says_what_the_whole_reply_says():
    whose = {"x-demo-id": "1"}
    async with openai_client() as client:
        whole = await client.responses.create(model="demo-small", input="Hello", extra_headers=whose)
        stream = await client.responses.create(model="demo-small", input="Hello", stream=True, extra_headers=whose)
        events = [event async for event in stream]
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response == whole
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_the_sdks_own_accumulator_reads_the_stream():
    async with openai_client() as client:
        whole = await client.responses.create(model="demo-small", input="Hello")
        async with client.responses.stream(model="demo-small", input="Hello") as stream:
            final = await stream.get_final_response()
    assert (final.output_text, final.usage) == (whole.output_text, whole.usage)


async def test_the_stream_has_its_events_in_order():
    async with http_client() as session:
        events = await streamed(session, PATH, STREAMED, chunks=20)
    names = [name for name, _ in events]
    assert names == [data["type"] for _, data in events]
    deltas = ["output_text.delta"] * 20
    assert names == [f"response.{name}" for name in [*BEFORE, *deltas, *AFTER, "completed"]]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_token_limit_leaves_it_incomplete(stream):
    async with http_client() as session:
        if stream:
            events = await streamed(session, PATH, STREAMED | {"max_output_tokens": 3})
            assert events[-1][0] == "response.incomplete"
            reply = events[-1][1]["response"]
        else:
            reply = await posted(session, PATH, CALL | {"max_output_tokens": 3})
    assert (reply["status"], reply["output"][0]["status"]) == ("incomplete", "incomplete")
    assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply["usage"]["output_tokens"] == len(reply["output"][0]["content"][0]["text"].split()) == 3


async def test_the_details_are_parts_of_what_was_sent_and_written():
    async with http_client() as session:
        plain = (await posted(session, PATH, CALL))["usage"]
        detailed = (await posted(session, PATH, CALL, cached_tokens=4, cache_write_tokens=1, reasoning_tokens=6))["usage"]
    assert plain["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}
    assert plain["output_tokens_details"] == {"reasoning_tokens": 0}
    assert detailed == {
        "input_tokens": plain["input_tokens"],
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
        "output_tokens": plain["output_tokens"] + 6,
        "output_tokens_details": {"reasoning_tokens": 6},
        "total_tokens": plain["total_tokens"] + 6,
    }


async def test_only_the_last_event_tells_usage_and_it_can_be_kept_back():
    async with http_client() as session:
        told = await streamed(session, PATH, STREAMED)
        kept_back = await streamed(session, PATH, STREAMED, usage="none")
        whole = await posted(session, PATH, CALL, usage="none")
    usages = [data["response"]["usage"] for _, data in told if "response" in data]
    assert usages[:-1] == [None, None]
    assert usages[-1]["total_tokens"] > 0
    assert kept_back[-1][1]["response"]["usage"] is None
    assert whole["usage"] is None


async def test_a_failure_is_an_error_event_and_then_a_failed_response():
    async with http_client() as session:
        *_, error, failed = await streamed(session, PATH, STREAMED, fail_after=2)
    assert error[0] == error[1]["type"] == "error"
    assert error[1]["message"] == failed[1]["response"]["error"]["message"]
    assert (failed[0], failed[1]["response"]["status"]) == ("response.failed", "failed")
    assert failed[1]["sequence_number"] == error[1]["sequence_number"] + 1
    assert failed[1]["response"]["usage"] is None


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"input": ""}, "input"),
        ({"input": 7}, "input"),
        ({"input": [1]}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"model": None}, "model"),
    ],
)
async def test_a_wrong_field_is_named(wrong, named):
    async with openai_client() as client:
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.post(PATH.removeprefix("/v1"), body=CALL | wrong, cast_to=object)
    assert refusal.value.param == named

"""Google's Gemini, as a plain HTTP client sees it."""

import json

import pytest

from tests.demo import ASK, http_client, posted, streamed, switched

MODEL = "/v1beta/models/demo-small"
WHOLE, STREAM = f"{MODEL}:generateContent", f"{MODEL}:streamGenerateContent"
EVENTS = f"{STREAM}?alt=sse"
CALL = {"contents": [{"role": "user", "parts": [{"text": "What is a gateway?"}]}]}


def text_of(*replies, index=0):
    found = [candidate for reply in replies for candidate in reply["candidates"] if candidate["index"] == index]
    return "".join(part["text"] for candidate in found for part in candidate["content"]["parts"])


async def array_of(session, body=CALL, **switches):
    async with session.post(STREAM, json=body, headers=switched(switches)) as reply:
        assert (reply.status, reply.content_type) == (200, "application/json")
        return json.loads(await reply.read())


async def test_the_answer_is_that_of_a_chat():
    async with http_client() as session:
        chat = await posted(session, "/v1/chat/completions", ASK)
        reply = await posted(session, WHOLE, CALL)
        nobody = await posted(session, WHOLE, {"contents": [{"parts": CALL["contents"][0]["parts"]}]})
    assert text_of(reply) == text_of(nobody) == chat["choices"][0]["message"]["content"]
    assert reply["candidates"][0]["finishReason"] == "STOP"
    assert reply["candidates"][0]["content"]["role"] == "model"
    assert (reply["modelVersion"], bool(reply["responseId"])) == ("demo-small", True)
    assert reply["usageMetadata"] == {
        "promptTokenCount": chat["usage"]["prompt_tokens"],
        "candidatesTokenCount": chat["usage"]["completion_tokens"],
        "totalTokenCount": chat["usage"]["total_tokens"],
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": chat["usage"]["prompt_tokens"]}],
    }


@pytest.mark.parametrize("name", ["systemInstruction", "system_instruction"])
async def test_an_instruction_changes_the_answer(name):
    async with http_client() as session:
        reply = await posted(session, WHOLE, CALL)
        instructed = await posted(session, WHOLE, CALL | {name: {"parts": [{"text": "Be brief."}]}})
    assert text_of(reply) != text_of(instructed)
    assert instructed["usageMetadata"]["promptTokenCount"] > reply["usageMetadata"]["promptTokenCount"]


async def test_events_and_array_say_what_the_whole_reply_says():
    async with http_client() as session:
        whole = await posted(session, WHOLE, CALL)
        events = [data for _, data in await streamed(session, EVENTS, CALL, id="1")]
        elements = await array_of(session, id="1")
    assert events == elements
    assert text_of(*events) == text_of(whole)
    assert events[-1]["usageMetadata"] == whole["usageMetadata"]
    assert ["finishReason" in event["candidates"][0] for event in events] == [False] * (len(events) - 1) + [True]


async def test_each_chunk_tells_what_it_costs_so_far():
    async with http_client() as session:
        events = [data for _, data in await streamed(session, EVENTS, CALL, reasoning_tokens=4)]
    for count in range(1, len(events) + 1):
        usage = events[count - 1]["usageMetadata"]
        words = len(text_of(*events[:count]).split())
        assert usage["candidatesTokenCount"] == words
        assert usage["totalTokenCount"] == usage["promptTokenCount"] + words + 4


async def test_usage_can_come_at_the_end_alone_or_not_at_all():
    async with http_client() as session:
        last = [data for _, data in await streamed(session, EVENTS, CALL | TWO, usage="last")]
        none = await array_of(session, usage="none")
        whole = await posted(session, WHOLE, CALL, usage="none")
    assert ["usageMetadata" in data for data in last] == [False] * (len(last) - 1) + [True]
    assert not any("usageMetadata" in data for data in [*none, whole])


TWO = {"generationConfig": {"candidateCount": 2}}


async def test_several_candidates_differ_and_all_are_charged():
    async with http_client() as session:
        whole = await posted(session, WHOLE, CALL | TWO, reasoning_tokens=4)
        events = [data for _, data in await streamed(session, EVENTS, CALL | TWO)]
    texts = [text_of(whole, index=index) for index in (0, 1)]
    assert texts == [text_of(*events, index=index) for index in (0, 1)]
    assert texts[0] != texts[1]
    assert whole["usageMetadata"]["candidatesTokenCount"] == sum(len(text.split()) for text in texts)
    assert whole["usageMetadata"]["thoughtsTokenCount"] == 8


async def test_thoughts_are_no_part_of_the_candidates_and_the_cached_are_one_of_the_prompt():
    async with http_client() as session:
        plain = (await posted(session, WHOLE, CALL))["usageMetadata"]
        detailed = (await posted(session, WHOLE, CALL, cached_tokens=4, reasoning_tokens=6))["usageMetadata"]
    assert detailed == plain | {
        "cachedContentTokenCount": 4,
        "thoughtsTokenCount": 6,
        "totalTokenCount": plain["totalTokenCount"] + 6,
    }


async def test_the_token_limit_counts_thoughts_too():
    async with http_client() as session:
        limited = CALL | {"generationConfig": {"maxOutputTokens": 9}}
        reply = await posted(session, WHOLE, limited, reasoning_tokens=6)
    assert reply["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert len(text_of(reply).split()) == reply["usageMetadata"]["candidatesTokenCount"] == 3


async def test_a_failure_is_the_last_element_of_the_array():
    async with http_client() as session:
        *chunks, error = await array_of(session, fail_after=2)
    assert len(chunks) == 2
    assert (error["error"]["code"], error["error"]["status"]) == (503, "UNAVAILABLE")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"contents": []}, "contents"),
        ({"contents": [1]}, "contents"),
        ({"generationConfig": []}, "generationConfig"),
        ({"generationConfig": {"maxOutputTokens": 0}}, "maxOutputTokens"),
        ({"generationConfig": {"candidateCount": 9}}, "candidateCount"),
        ({"systemInstruction": "Be brief."}, "systemInstruction"),
    ],
)
async def test_a_wrong_field_is_named(wrong, named):
    async with http_client() as session, session.post(WHOLE, json=CALL | wrong) as reply:
        assert reply.status == 400
        assert (await reply.json())["error"]["param"] == named

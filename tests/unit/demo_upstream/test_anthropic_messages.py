"""Anthropic's messages, as the official SDK and a plain HTTP client see them."""

from tests.demo import ASK, LONG, anthropic_client, http_client, posted, streamed

PATH = "/v1/messages"
STREAMED = LONG | {"stream": True}


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


async def test_the_stream_has_its_events_in_order():
    async with http_client() as session:
        events = await streamed(session, PATH, STREAMED | {"max_tokens": 2})
    expected = ["message_start", "content_block_start", "content_block_delta", "content_block_delta"]
    expected += ["content_block_stop", "message_delta", "message_stop"]
    assert [name for name, _ in events] == [data["type"] for _, data in events] == expected


async def test_what_was_cached_is_not_in_the_input_and_reasoning_is_in_the_output():
    switches = {"cached_tokens": 5, "cache_write_tokens": 2, "reasoning_tokens": 7}
    async with http_client() as session:
        plain = (await posted(session, PATH, LONG))["usage"]
        detailed = (await posted(session, PATH, LONG, **switches))["usage"]
        events = await streamed(session, PATH, STREAMED, **switches)
    assert (plain["cache_read_input_tokens"], plain["cache_creation_input_tokens"]) == (0, 0)
    assert detailed == {
        "input_tokens": plain["input_tokens"] - 7,
        "cache_creation_input_tokens": 2,
        "cache_read_input_tokens": 5,
        "output_tokens": plain["output_tokens"] + 7,
    }
    assert events[0][1]["message"]["usage"] == detailed | {"output_tokens": 1}
    assert events[-2][1]["usage"] == {"output_tokens": detailed["output_tokens"]}


async def test_the_whole_prompt_is_the_most_that_a_cache_holds():
    async with http_client() as session:
        sent = (await posted(session, PATH, LONG))["usage"]["input_tokens"]
        usage = (await posted(session, PATH, LONG, cached_tokens=sent - 1, cache_write_tokens=1_000))["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (0, sent - 1)
    assert usage["cache_creation_input_tokens"] == 1


async def test_usage_can_be_kept_back():
    async with http_client() as session:
        assert "usage" not in await posted(session, PATH, LONG, usage="none")
        events = await streamed(session, PATH, STREAMED, usage="none")
    assert "usage" not in events[0][1]["message"]
    assert not any("usage" in data for _, data in events)


async def test_usage_can_come_at_the_end_alone():
    async with http_client() as session:
        whole = (await posted(session, PATH, LONG, cached_tokens=3))["usage"]
        events = await streamed(session, PATH, STREAMED, usage="last", cached_tokens=3)
    assert events[0][1]["message"]["usage"] == {"input_tokens": 0, "output_tokens": 0}
    assert events[-2][1]["usage"] == whole


async def test_usage_can_come_with_each_chunk():
    async with http_client() as session:
        whole = (await posted(session, PATH, LONG))["usage"]
        events = await streamed(session, PATH, STREAMED, usage="every-chunk", chunks=8)
    words = 0
    for (kind, delta), (after, told) in zip(events[2:-3:2], events[3:-3:2], strict=True):
        assert (kind, after) == ("content_block_delta", "message_delta")
        words += len(delta["delta"]["text"].split())
        assert told["usage"] == whole | {"output_tokens": words}
        assert told["delta"]["stop_reason"] is None
    assert events[-2][1]["usage"] == whole
    assert whole["output_tokens"] == words


async def test_the_sdk_reads_usage_with_each_chunk():
    async with anthropic_client() as client:
        whole = await client.messages.create(**LONG)
        async with client.messages.stream(**LONG, extra_headers={"x-demo-usage": "every-chunk"}) as stream:
            final = await stream.get_final_message()
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.content[0].text == whole.content[0].text

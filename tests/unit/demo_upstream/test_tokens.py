"""What a call costs, as a test can say it beforehand."""

import pytest

from gateway.demo_upstream.text import answer, count_tokens
from tests.demo import ASK, http_client, posted

CHAT = "/v1/chat/completions"


async def test_the_prompt_is_one_line_for_each_message():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    async with http_client() as session:
        reply = await posted(session, CHAT, {"model": "m", "messages": messages})
    assert reply["usage"]["prompt_tokens"] == count_tokens("system: Be brief.\nuser: Hello") == 3 + 8


@pytest.mark.parametrize(("text", "tokens"), [("", 3), ("abcd", 4), ("abcde", 5), ("äöüß", 4)])
def test_four_characters_are_a_token_and_the_frame_is_three(text, tokens):
    assert count_tokens(text) == tokens


@pytest.mark.parametrize("limit", [1, 3, 4, 10, 1_000])
@pytest.mark.parametrize("reasoning", [0, 4])
@pytest.mark.parametrize("chunks", [None, 1, 5, 200])
def test_no_answer_costs_more_than_its_limit(limit, reasoning, chunks):
    written = answer("Hello", limit=limit, chunks=chunks, reasoning=reasoning)
    assert written.reasoning + len(written.words) <= limit
    assert len(written.text.split()) == len(written.words)
    assert written.complete == (len(written.words) == len(answer("Hello", chunks=chunks).words))
    assert "".join(written.chunks) == written.text
    assert all(written.chunks)


async def test_a_cache_holds_no_more_than_the_prompt():
    async with http_client() as session:
        usage = (await posted(session, CHAT, ASK, cached_tokens=1_000, cache_write_tokens=1_000))["usage"]
    details = {"cached_tokens": usage["prompt_tokens"], "cache_write_tokens": 0}
    assert usage["prompt_tokens_details"] == details

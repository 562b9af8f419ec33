"""Events of chat completions that no recorded stream has."""

import json
from typing import Any

import pytest

from gateway.formats import Delivered, Usage
from gateway.formats.openai_chunks import ChunkReader

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def read(reader: ChunkReader, **members: Any) -> bool:
    return reader.read(json.dumps(members).encode())


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"choices": [], "usage": USAGE}, True),
        ({"choices": [], "usage": {}}, True),
        ({"choices": [], "usage": None}, False),
        ({"choices": [], "usage": 7}, False),
        ({"choices": []}, False),
        ({"usage": USAGE}, False),
        ({"choices": None, "usage": USAGE}, False),
        ({"choices": [{"index": 0, "delta": {}}], "usage": USAGE}, False),
        ({"choices": [], "usage": USAGE, "prompt_filter_results": [{"prompt_index": 0}]}, False),
        ({"choices": [], "usage": USAGE, "error": {"message": "x"}}, False),
        ({"id": 7, "choices": [], "usage": USAGE}, True),
        ({"choices": [], "usage": USAGE, "model": "caf\udce9"}, True),
    ],
)
def test_an_event_is_nothing_but_usage_if_there_is_nothing_else_in_it(members: dict[str, Any], expected: bool):
    assert read(ChunkReader(), **members) is expected


def test_the_last_word_about_usage_holds_unless_it_says_nothing():
    reader = ChunkReader()
    for usage in (USAGE, USAGE | {"completion_tokens": 9, "total_tokens": 14}, None, {}, {"prompt_tokens": -1}):
        read(reader, choices=[], usage=usage)
    assert reader.usage == Usage(5, 9)


def test_a_stream_has_ended_when_all_its_answers_have():
    reader = ChunkReader()
    seen = []
    for index, reason in ((0, None), (1, None), (0, "stop"), (1, None), (1, "length"), (2, None), (2, "stop")):
        read(reader, choices=[{"index": index, "delta": {}, "finish_reason": reason}])
        seen.append(reader.ended)
    assert seen == [False, False, False, False, True, False, True]


def test_the_same_reasoning_under_two_names_counts_once():
    reader = ChunkReader()
    read(reader, choices=[{"index": 0, "delta": {"reasoning": "hm", "reasoning_content": "hm"}}])
    assert reader.delivered() == Delivered(1, 2, 0)


def test_the_older_form_of_a_call_counts():
    reader = ChunkReader()
    read(reader, choices=[{"index": 0, "delta": {"function_call": {"name": "f", "arguments": "{}"}}}])
    assert reader.delivered() == Delivered(1, 3, 0)


@pytest.mark.parametrize(
    "data", [b"", b"7", b"null", b"[]", b"{", b'{"choices":7}', b'{"choices":[7,null]}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_event_changes_nothing(data: bytes):
    reader = ChunkReader()
    assert reader.read(data) is False
    assert (reader.usage, reader.delivered(), reader.ended, reader.failed) == (None, Delivered(), False, False)


def test_bytes_that_are_no_text_count_as_characters_that_cannot_be_shown():
    reader = ChunkReader()
    reader.read(b'{"choices":[{"index":0,"delta":{"content":"a\xff"}}]}')
    assert reader.delivered() == Delivered(1, 1, 1)

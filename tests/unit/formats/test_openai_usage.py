"""Usage in the words of OpenAI and its likes."""

from typing import Any

import pytest

from gateway.formats import Usage
from gateway.formats.openai_usage import openai_usage


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"type": "duration", "seconds": 9}, None),
        ({"prompt_tokens": None, "completion_tokens": "x"}, None),
        ({"prompt_tokens": True}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage()),
        ({"prompt_tokens": 5}, Usage(5)),
        ({"completion_tokens": 5}, Usage(0, 5)),
        ({"completion_tokens": 5, "total_tokens": 7}, Usage(2, 5)),
        ({"prompt_tokens": 5, "completion_tokens": 2**40}, Usage(5)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 3}, Usage(5, 2)),
        ({"prompt_tokens": 5.0, "completion_tokens": 2.5}, Usage(5)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 9}},
         Usage(5, 11, reasoning_tokens=9)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "reasoning_tokens": 1}, Usage(5, 2, reasoning_tokens=1)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}, Usage(5, cached_tokens=5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": None, "completion_tokens_details": 7}, Usage(5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4, "cache_creation_input_tokens": 9}},
         Usage(5, cached_tokens=4, cache_write_tokens=1)),
    ],
)  # fmt: skip
def test_usage(usage: Any, expected: Usage | None):
    assert openai_usage(usage) == expected

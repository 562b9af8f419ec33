"""Usage in the words of Gemini."""

from typing import Any

import pytest

from gateway.formats import Usage
from gateway.formats.gemini_stream import GeminiReader, gemini_usage


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ({}, None),
        ({"trafficType": "ON_DEMAND"}, None),
        ({"promptTokenCount": -1}, None),
        ({"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 3}, Usage(5, 5, reasoning_tokens=3)),
        ({"promptTokenCount": 5, "totalTokenCount": 9}, Usage(5, 4)),
        ({"candidatesTokenCount": 2, "totalTokenCount": 9}, Usage(7, 2)),
        ({"promptTokenCount": 5, "cachedContentTokenCount": 9}, Usage(5, cached_tokens=5)),
        ({"promptTokenCount": "5"}, Usage(5)),
    ],
)
def test_usage(usage: Any, expected: Usage | None):
    assert gemini_usage(usage) == expected


def test_a_part_that_says_nothing_of_usage_leaves_what_was_said():
    reader = GeminiReader()
    reader.read(b'{"usageMetadata":{"promptTokenCount":5}}')
    reader.read(b'{"usageMetadata":{"trafficType":"ON_DEMAND"}}')
    assert reader.usage == Usage(5)

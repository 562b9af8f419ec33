"""What Anthropic's messages are asked for."""

import json
from typing import Any

import pytest

from gateway.formats import Asked, Usage
from gateway.formats.anthropic_messages import AnthropicMessages

MESSAGES = AnthropicMessages()


def fields(**members: Any) -> dict[str, bytes]:
    return {name: json.dumps(value).encode() for name, value in members.items()}


def asked(**members: Any) -> Asked:
    return MESSAGES.asked(fields(**members), "/v1/messages")


def test_a_plain_request():
    got = asked(
        model="claude-sonnet-4-0", max_tokens=1024, stream=True, system="Be", messages=[{"role": "user", "content": "Hi"}]
    )
    assert got == Asked("claude-sonnet-4-0", streams=True, prompt=("Hi", "Be"), max_output_tokens=1024)


def test_blocks():
    base64 = {"type": "base64", "media_type": "image/png", "data": "A" * 1000}
    got = asked(
        system=[{"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [
                {"type": "text", "text": "two"},
                {"type": "image", "source": base64},
                {"type": "document", "source": base64, "title": "three", "context": "four"},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "five"}},
                {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "six"}]}},
            ]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "seven", "signature": "E" * 100},
                {"type": "tool_use", "id": "t", "name": "eight", "input": {"city": "nine"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "ten"},
                                                                       {"type": "image", "source": base64}]},
                {"type": "tool_result", "tool_use_id": "t", "content": "eleven"},
            ]},
        ],
        tools=[{"name": "eight", "input_schema": {"twelve": 1}}],
    )  # fmt: skip
    assert got.prompt[:10] == (
        "two", "three", "four", "five", "six", "seven", "eight", '{"city": "nine"}', "ten", "eleven",
    )  # fmt: skip
    assert got.prompt[10] == "one"
    assert "twelve" in got.prompt[11]
    assert got.media_parts == 3


def test_vertex_names_the_model_in_the_path():
    path = "/v1/projects/p/locations/l/publishers/anthropic/models/claude-sonnet-4@20250514:streamRawPredict"
    assert MESSAGES.asked({}, path).model == "claude-sonnet-4@20250514"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"max_tokens": 4096}, {"max_tokens": 2000}),
        ({"max_tokens": 2000}, {}),
        ({}, {"max_tokens": 2000}),
        ({"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 8000}},
         {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1999}}),
        ({"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 1500}}, {"max_tokens": 2000}),
        ({"max_tokens": 9000, "thinking": {"type": "adaptive"}}, {"max_tokens": 2000}),
    ],
)  # fmt: skip
def test_a_message_is_bounded_and_so_is_its_thinking(members: dict[str, Any], expected: dict[str, Any]):
    changed = MESSAGES.bounded(fields(**members), 2000)
    assert {name: json.loads(value) for name, value in changed.items()} == expected


def test_usage_needs_no_asking():
    assert MESSAGES.asks_for_usage(fields(stream=True)) == {}


def test_a_message_has_ended_when_it_has_a_reason_to():
    reader = MESSAGES.stream()
    reader.read(b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}')
    assert reader.ended
    assert reader.usage == Usage(0, 5)

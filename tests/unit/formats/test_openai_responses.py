"""What the Responses API is asked for."""

import json
from typing import Any

import pytest

from gateway.formats import Asked, Delivered
from gateway.formats.openai_responses import OpenAIResponses

RESPONSES = OpenAIResponses()


def fields(**members: Any) -> dict[str, bytes]:
    return {name: json.dumps(value).encode() for name, value in members.items()}


def asked(**members: Any) -> Asked:
    return RESPONSES.asked(fields(**members), "/v1/responses")


def test_a_text():
    got = asked(model="gpt-4.1", input="Hi", instructions="Be brief", max_output_tokens=64, stream=True)
    assert got == Asked("gpt-4.1", streams=True, prompt=("Hi", "Be brief"), max_output_tokens=64)


def test_items_of_a_conversation():
    image = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 1000}
    got = asked(
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "one"}, image]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "two", "annotations": []}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'},
            {"type": "function_call_output", "call_id": "c", "output": "three"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "four"}, image]},
            {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "five"}]},
            {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": "data:" + "B" * 1000}},
            {"type": "input_file", "file_data": "C" * 1000},
            {"type": "custom_tool_call", "name": "g", "input": "six"},
            {"type": "item_reference", "id": "msg_1"},
        ],
        tools=[{"type": "function", "name": "f", "parameters": {"p": 1}}],
        text={"format": {"type": "json_schema", "schema": {"s": 1}}},
    )
    assert got.prompt[:9] == ("one", "two", "f", '{"a":1}', "three", "four", "five", "g", '"six"')
    assert '"p": 1' in got.prompt[9]
    assert '"s": 1' in got.prompt[10]
    assert got.media_parts == 4


@pytest.mark.parametrize(
    ("bound", "expected"),
    [(None, {"max_output_tokens": b"50"}), (100, {"max_output_tokens": b"50"}), (50, {}), (0, {"max_output_tokens": b"50"})],
)
def test_a_response_is_bounded(bound: int | None, expected: dict[str, bytes]):
    assert RESPONSES.bounded(fields(max_output_tokens=bound), 50) == expected


def test_usage_needs_no_asking():
    assert RESPONSES.asks_for_usage(fields(stream=True)) == {}


def test_sound_counts_as_a_piece_and_not_by_its_base64():
    reader = RESPONSES.stream()
    reader.read(b'{"type":"response.audio.delta","delta":"AAAAAAAA"}')
    reader.read(b'{"type":"response.audio.transcript.delta","delta":"Hi"}')
    assert reader.delivered() == Delivered(2, 2, 0)

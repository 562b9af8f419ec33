"""What a chat completion asks for, and what is added to it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats import Asked, read_fields, write_fields
from gateway.formats.openai_chat import OpenAIChat

CHAT = OpenAIChat()
PATH = "/v1/chat/completions"


def fields(**members: Any) -> dict[str, bytes]:
    read = read_fields(json.dumps(members).encode())
    assert read is not None
    return read


def asked(**members: Any) -> Asked:
    return CHAT.asked(fields(**members), PATH)


def test_a_plain_request():
    assert asked(
        model="gpt-4o", stream=True, messages=[{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hé"}]
    ) == Asked("gpt-4o", streams=True, prompt=("Be brief", "Hé"))


def test_an_empty_request_asks_for_nothing():
    assert CHAT.asked({}, PATH) == Asked("")


def test_all_that_the_model_reads_is_prompt():
    call = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]
    tools = [{"type": "function", "function": {"name": "f", "description": "does"}}]
    got = asked(
        messages=[
            {"role": "user", "name": "bob", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": None, "refusal": "no", "tool_calls": call, "reasoning_content": "hm"},
            {"role": "tool", "tool_call_id": "c", "content": "result"},
        ],
        tools=tools,
        functions=[{"name": "g"}],
        response_format={"type": "json_schema", "json_schema": {"schema": {"x": 1}}},
        prediction={"type": "content", "content": "perhaps"},
    ).prompt
    for text in ("bob", "one", "two", "no", "hm", "result"):
        assert text in got
    together = " ".join(got)
    for text in ('"name": "f"', '{\\"a\\":1}', "does", '"name": "g"', '{"x": 1}', "perhaps"):
        assert text in together


def test_media_are_counted_and_not_read():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1000}}
    sound = {"type": "input_audio", "input_audio": {"data": "B" * 1000, "format": "wav"}}
    file = {"type": "file", "file": {"file_data": "C" * 1000, "filename": "a.pdf"}}
    got = asked(messages=[{"role": "user", "content": [{"type": "text", "text": "look"}, image, sound, file]}])
    assert got.media_parts == 3
    assert got.prompt == ("look",)


def test_one_message_of_another_form_is_read_as_it_stands_and_the_rest_as_ever():
    got = asked(messages=[{"role": "user", "content": "fine"}, {"role": "user", "content": 7}, "bare"]).prompt
    assert got[0] == "fine"
    assert '"content": 7' in got[1]
    assert got[2] == "bare"


@pytest.mark.parametrize("messages", [7, {"a": "hidden"}, [7], [[["hidden"]]], None, "text", [None]])
def test_messages_of_another_form_are_read_as_they_stand(messages: Any):
    got = asked(model="m", messages=messages, max_tokens=5)
    assert (got.model, got.max_output_tokens) == ("m", 5)
    assert ("hidden" in json.dumps(messages)) == ("hidden" in " ".join(got.prompt))


def test_messages_in_bytes_that_are_no_text_are_read_as_they_stand():
    got = CHAT.asked({"messages": b'[{"content":"a\xff"}]'}, PATH)
    assert "a\ufffd" in got.prompt[0]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, None),
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 10}, 10),
        ({"max_tokens": 10, "max_completion_tokens": 20}, 20),
        ({"max_tokens": 30, "max_completion_tokens": 20}, 30),
        ({"max_tokens": None}, None),
        ({"max_tokens": 0}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": "10"}, 10),
        ({"max_tokens": 10.0}, 10),
        ({"max_tokens": 10.5}, None),
        ({"max_tokens": 10**30}, None),
        ({"max_tokens": [10]}, None),
    ],
)
def test_the_bound_of_an_answer(bounds: dict[str, Any], expected: int | None):
    assert asked(**bounds).max_output_tokens == expected


@pytest.mark.parametrize(("n", "expected"), [(None, 1), (3, 3), (0, 1), (-2, 1), ("x", 1), ("2", 2)])
def test_the_number_of_answers(n: Any, expected: int):
    assert asked(n=n).answers == expected


def test_azure_names_the_model_in_the_path():
    path = "/openai/deployments/my-gpt/chat/completions"
    assert CHAT.asked({}, path).model == "my-gpt"
    assert CHAT.asked(fields(model="m"), path).model == "m"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, {}),
        ({"stream": False}, {}),
        ({"stream": "true"}, {}),
        ({"stream": True}, {"include_usage": True}),
        ({"stream": True, "stream_options": None}, {"include_usage": True}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {}),
        ({"stream": True, "stream_options": {"include_usage": False}}, {"include_usage": True}),
        ({"stream": True, "stream_options": {"include_obfuscation": False}},
         {"include_obfuscation": False, "include_usage": True}),
        ({"stream": True, "stream_options": 7}, {}),
        ({"stream": True, "model": "mistral-large-latest"}, {}),
        ({"stream": True, "model": "codestral-2501"}, {}),
        ({"stream": True, "model": "open-mistral-nemo"}, {}),
        ({"stream": True, "model": "labs-devstral-small-2512"}, {}),
        ({"stream": True, "model": "ft:mistral-small-2503:org:x"}, {}),
        ({"stream": True, "model": "mistralai/Mistral-7B-Instruct-v0.3"}, {"include_usage": True}),
        ({"stream": True, "model": "mistral"}, {"include_usage": True}),
        ({"stream": True, "model": "gpt-4o"}, {"include_usage": True}),
    ],
)  # fmt: skip
def test_usage_is_asked_for_once_of_those_who_can_be_asked(members: dict[str, Any], expected: dict[str, Any]):
    changed = CHAT.asks_for_usage(fields(**members))
    assert {name: json.loads(value) for name, value in changed.items()} == ({"stream_options": expected} if expected else {})


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"model": "gpt-4o"}, {"max_tokens": 50}),
        ({"model": "gpt-4"}, {"max_tokens": 50}),
        ({"model": "gpt-3.5-turbo"}, {"max_tokens": 50}),
        ({"model": "llama-3"}, {"max_tokens": 50}),
        ({"model": "openai/gpt-oss-120b"}, {"max_tokens": 50}),
        ({"model": "mistral-small-latest"}, {"max_tokens": 50}),
        ({"model": "ft:gpt-4o-mini:org::x"}, {"max_tokens": 50}),
        ({"model": "o1"}, {"max_completion_tokens": 50}),
        ({"model": "o3-mini-2025-01-31"}, {"max_completion_tokens": 50}),
        ({"model": "openai/o4-mini"}, {"max_completion_tokens": 50}),
        ({"model": "gpt-5-nano"}, {"max_completion_tokens": 50}),
        ({"model": "gpt-5.1"}, {"max_completion_tokens": 50}),
        ({"model": "gpt-40"}, {"max_completion_tokens": 50}),
        ({"model": "ft:o4-mini:org::x"}, {"max_completion_tokens": 50}),
        ({}, {"max_tokens": 50}),
        ({"model": "o1", "max_tokens": 100}, {"max_tokens": 50}),
        ({"model": "gpt-4o", "max_completion_tokens": 100}, {"max_completion_tokens": 50}),
        ({"max_tokens": 100, "max_completion_tokens": 20}, {"max_tokens": 50}),
        ({"max_tokens": 100, "max_completion_tokens": 200}, {"max_tokens": 50, "max_completion_tokens": 50}),
        ({"max_tokens": 50}, {}),
        ({"max_tokens": 20}, {}),
        ({"max_tokens": 0}, {"max_tokens": 50}),
        ({"max_tokens": -1}, {"max_tokens": 50}),
        ({"max_tokens": "x"}, {"max_tokens": 50}),
        ({"max_tokens": None, "model": "o1"}, {"max_completion_tokens": 50}),
    ],
)
def test_an_answer_is_bounded_under_the_name_that_works(members: dict[str, Any], expected: dict[str, int]):
    changed = CHAT.bounded(fields(**members), 50)
    assert {name: json.loads(value) for name, value in changed.items()} == expected


def test_azure_is_bounded_under_the_name_that_all_its_models_take():
    assert OpenAIChat(unnamed_bound="max_completion_tokens").bounded({}, 5) == {"max_completion_tokens": b"5"}


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["content", "type", "text", "a"]), inner),
    max_leaves=8,
)
names = st.sampled_from(["model", "messages", "stream", "stream_options", "n", "max_tokens", "tools"])


@given(st.dictionaries(names, json_values), st.integers(1, 1000))
def test_no_request_is_an_error_and_a_bounded_one_is_bounded(members: dict[str, Any], bound: int):
    read = fields(**members)
    CHAT.asked(read, PATH)
    after = {**read, **CHAT.asks_for_usage(read), **CHAT.bounded(read, bound)}
    assert read_fields(write_fields(after)) == after
    got = CHAT.asked(after, PATH).max_output_tokens
    assert got is not None
    assert got <= bound

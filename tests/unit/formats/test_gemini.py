"""What Gemini is asked for."""

import json
from typing import Any

import pytest

from gateway.formats import Asked
from gateway.formats.gemini import GeminiEmbed, GeminiGenerate

GENERATE, EMBED = GeminiGenerate(), GeminiEmbed()
PATH = "/v1beta/models/gemini-2.5-flash:generateContent"
STREAM = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"


def fields(**members: Any) -> dict[str, bytes]:
    return {name: json.dumps(value).encode() for name, value in members.items()}


def test_a_plain_request():
    config = {"maxOutputTokens": 800, "candidateCount": 2}
    got = GENERATE.asked(fields(contents=[{"parts": [{"text": "Hi"}]}], generationConfig=config), STREAM)
    assert got == Asked("gemini-2.5-flash", streams=True, prompt=("Hi",), max_output_tokens=800, answers=2)


def test_all_that_the_model_reads_is_prompt():
    got = GENERATE.asked(
        fields(
            contents=[
                {"role": "user", "parts": [{"text": "one"}, {"inlineData": {"mimeType": "image/png", "data": "A" * 1000}}]},
                {"role": "model", "parts": [{"functionCall": {"name": "two", "args": {"a": 1}}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "two", "response": {"r": "three"}}}]},
                {"parts": {"text": "four"}},
                {"parts": [{"file_data": {"file_uri": "https://x"}}, {"inline_data": {"data": "B" * 1000}}]},
            ],
            systemInstruction={"parts": [{"text": "five"}]},
            tools=[{"functionDeclarations": [{"name": "six"}]}],
            generationConfig={"responseSchema": {"type": "seven"}},
        ),
        PATH,
    )
    assert got.prompt[0] == "one"
    assert "two" in got.prompt[1]
    assert "three" in got.prompt[2]
    assert got.prompt[3:5] == ("four", "five")
    assert "six" in got.prompt[5]
    assert "seven" in got.prompt[6]
    assert got.media_parts == 3
    assert not got.streams


@pytest.mark.parametrize("contents", [7, "hidden", [{"parts": "hidden"}], [["hidden"]]])
def test_contents_of_another_form_are_read_as_they_stand(contents: Any):
    got = GENERATE.asked(fields(contents=contents, generationConfig={"maxOutputTokens": 5}), PATH)
    assert got.max_output_tokens == 5
    assert json.dumps(contents) in got.prompt


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, {"generationConfig": {"maxOutputTokens": 50}}),
        ({"generationConfig": None}, {"generationConfig": {"maxOutputTokens": 50}}),
        ({"generationConfig": {"temperature": 0.5, "thinkingConfig": {"thinkingBudget": 9}}},
         {"generationConfig": {"temperature": 0.5, "thinkingConfig": {"thinkingBudget": 9}, "maxOutputTokens": 50}}),
        ({"generationConfig": {"maxOutputTokens": 100, "topK": 1}}, {"generationConfig": {"maxOutputTokens": 50, "topK": 1}}),
        ({"generationConfig": {"maxOutputTokens": "100"}}, {"generationConfig": {"maxOutputTokens": 50}}),
        ({"generationConfig": {"maxOutputTokens": 50}}, {}),
        ({"generation_config": {"max_output_tokens": 100}}, {"generation_config": {"max_output_tokens": 50}}),
        ({"generation_config": {"maxOutputTokens": 100}}, {"generation_config": {"maxOutputTokens": 50}}),
        ({"generationConfig": {"maxOutputTokens": 10, "max_output_tokens": 100}},
         {"generationConfig": {"maxOutputTokens": 50, "max_output_tokens": 50}}),
        ({"generationConfig": {"maxOutputTokens": 10}, "generation_config": {"topK": 1}},
         {"generation_config": {"topK": 1, "maxOutputTokens": 50}}),
    ],
)  # fmt: skip
def test_the_bound_is_merged_into_the_config_under_either_spelling(members: dict[str, Any], expected: dict[str, Any]):
    changed = GENERATE.bounded(fields(**members), 50)
    assert {name: json.loads(value) for name, value in changed.items()} == expected


@pytest.mark.parametrize("config", ["generationConfig", "generation_config"])
@pytest.mark.parametrize(
    ("bound", "answers"), [("maxOutputTokens", "candidateCount"), ("max_output_tokens", "candidate_count")]
)
def test_the_bound_is_read_under_either_spelling(config: str, bound: str, answers: str):
    got = GENERATE.asked(fields(**{config: {bound: 70, answers: 3}}), PATH)
    assert (got.max_output_tokens, got.answers) == (70, 3)


def test_usage_needs_no_asking():
    assert GENERATE.asks_for_usage({}) == {}


def test_embeddings():
    one = EMBED.asked(fields(content={"parts": [{"text": "a"}]}), "/v1beta/models/gemini-embedding-001:embedContent")
    assert one == Asked("gemini-embedding-001", prompt=("a",), max_output_tokens=0)
    requests = [{"model": "m", "content": {"parts": [{"text": text}]}} for text in "ab"]
    assert EMBED.asked(fields(requests=requests), "/v1beta/models/m:batchEmbedContents").prompt == ("a", "b")
    assert EMBED.asked(fields(requests=[7]), "/v1beta/models/m:batchEmbedContents").prompt == ("[7]",)
    assert EMBED.bounded({}, 5) == {}
    assert EMBED.asks_for_usage({}) == {}

"""What completions and embeddings ask for."""

import json
from typing import Any

import pytest

from gateway.formats import Asked
from gateway.formats.openai_completions import OpenAICompletions, OpenAIEmbeddings

COMPLETIONS, EMBEDDINGS = OpenAICompletions(), OpenAIEmbeddings()


def fields(**members: Any) -> dict[str, bytes]:
    return {name: json.dumps(value).encode() for name, value in members.items()}


def completion(**members: Any) -> Asked:
    return COMPLETIONS.asked(fields(**members), "/v1/completions")


@pytest.mark.parametrize(
    ("prompt", "texts", "answers"),
    [
        ("a b", ["a b"], 1),
        (["a", "b"], ["a", "b"], 2),
        ([1, 2, 3], [" the the the"], 1),
        ([[1, 2], [3]], [" the the", " the"], 2),
        (["a", [1, 2]], ["a", " the the"], 2),
        ([], [], 1),
        (None, [], 1),
        ({"a": 1}, ['{"a": 1}'], 1),
        ([1.5], ["1.5"], 1),
    ],
)
def test_texts_and_tokens(prompt: Any, texts: list[str], answers: int):
    got = completion(prompt=prompt)
    assert list(got.prompt) == texts
    assert got.answers == answers


def test_tokens_are_never_estimated_for_fewer():
    (text,) = EMBEDDINGS.asked(fields(input=list(range(1000))), "/v1/embeddings").prompt
    assert len(text.split()) == 1000
    assert len(text) / 4 >= 1000


def test_a_completion_is_short_unless_asked_otherwise():
    assert completion().max_output_tokens == 16
    assert completion(max_tokens=0).max_output_tokens == 0
    assert completion(max_tokens=100).max_output_tokens == 100


@pytest.mark.parametrize(
    ("members", "answers"), [({"n": 2}, 2), ({"n": 2, "best_of": 5}, 5), ({"best_of": 3, "prompt": ["a", "b"]}, 6)]
)
def test_all_answers_that_are_written_count(members: dict[str, Any], answers: int):
    assert completion(**members).answers == answers


def test_the_suffix_and_the_model_and_the_stream():
    got = completion(prompt="a", suffix="z", model="m", stream=True)
    assert got == Asked("m", streams=True, prompt=("a", '"z"'), max_output_tokens=16)
    assert COMPLETIONS.asked({}, "/openai/deployments/d/completions").model == "d"


def test_a_completion_is_bounded_and_asked_for_usage():
    assert COMPLETIONS.bounded({}, 9) == {"max_tokens": b"9"}
    assert COMPLETIONS.bounded(fields(max_tokens=20), 9) == {"max_tokens": b"9"}
    assert COMPLETIONS.bounded(fields(max_tokens=9), 9) == {}
    assert COMPLETIONS.bounded(fields(max_tokens=-1), 9) == {"max_tokens": b"9"}
    assert COMPLETIONS.asks_for_usage(fields(stream=True)) == {"stream_options": b'{"include_usage":true}'}


def test_embeddings_write_nothing():
    got = EMBEDDINGS.asked(fields(model="e", input=["a", "b"]), "/v1/embeddings")
    assert got == Asked("e", prompt=("a", "b"), max_output_tokens=0)
    assert EMBEDDINGS.bounded({}, 5) == {}
    assert EMBEDDINGS.asks_for_usage(fields(stream=True)) == {}

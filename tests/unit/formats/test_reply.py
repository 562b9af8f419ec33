"""Usage at the ends of replies that are too long to keep."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats import WINDOW, Usage, endpoint_of, usage_at_end
from tests.unit.formats.case import Whole
from tests.unit.formats.cases import WHOLE

LONG = {"data": [{"embedding": [0.5] * 10_000, "b64_json": "A" * 100_000}]}


def ends(path: str, body: bytes) -> Usage | None:
    endpoint = endpoint_of("auto", "POST", path)
    assert endpoint is not None
    return usage_at_end(endpoint, body[-WINDOW:], body[:WINDOW])


@pytest.mark.parametrize("case", [case for case in WHOLE if "count" not in case.file], ids=lambda case: case.file)
def test_recorded_replies_tell_the_same_by_their_ends(case: Whole):
    assert ends(case.path, case.body) == case.usage


@pytest.mark.parametrize("indent", [None, 2])
def test_usage_is_found_at_the_end_and_at_the_beginning(indent: int | None):
    usage = {"usage": {"prompt_tokens": 8, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 2}}}
    for body in (LONG | usage, usage | LONG, LONG | usage | {"model": "m", "more": [{"a": "}"}]}):
        assert ends("/v1/embeddings", json.dumps(body, indent=indent).encode()) == Usage(8, cached_tokens=2)


def test_usage_of_gemini_is_found():
    body = json.dumps(LONG | {"usageMetadata": {"promptTokenCount": 3}}).encode()
    assert ends("/v1beta/models/e:embedContent", body) == Usage(3)


def test_usage_in_the_middle_is_not_looked_for():
    body = json.dumps(LONG | {"usage": {"prompt_tokens": 8}} | {"more": "A" * 10_000}).encode()
    assert ends("/v1/embeddings", body) is None


@pytest.mark.parametrize(
    "nested",
    [
        {"input": {"usage": {"input_tokens": 999}}},
        {"input": [{"usage": {"input_tokens": 999}}]},
        {"text": '"usage":{"input_tokens":999}'},
        {"text": '{"usage":{"input_tokens":999}}'},
        {'x"usage': {"input_tokens": 999}},
        {"text": "\\", "y": {"usage": {"input_tokens": 999}}},
    ],
)
def test_what_a_model_wrote_is_not_taken_for_its_usage(nested: dict[str, object]):
    usage = {"usage": {"input_tokens": 4, "output_tokens": 2}}
    for body in (LONG | usage | nested, nested | usage | LONG, nested | LONG | usage, usage | LONG | nested):
        assert ends("/v1/messages", json.dumps(body).encode()) == Usage(4, 2)
    assert ends("/v1/messages", json.dumps(LONG | nested).encode()) is None
    assert ends("/v1/messages", json.dumps(nested | LONG).encode()) is None


@given(st.lists(st.sampled_from([b'"usage":', b'"usage"', b"{", b"}", b'"', b"\\", b'"input_tokens":1', b",", b"[", b"]"])))
def test_nothing_at_an_end_is_an_error(parts: list[bytes]):
    ends("/v1/messages", b"".join(parts))


def test_a_hostile_end_takes_no_long_time():
    for body in (b'"usage":{' * 900, b'"usage":' + b"{" * 4000 + b"}" * 4000, b"}" * WINDOW):
        assert ends("/v1/messages", body) is None

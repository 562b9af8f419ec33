"""Whole replies, in the forms that providers document."""

import pytest

from gateway.formats import Usage
from tests.unit.formats.case import FIXTURES, Whole
from tests.unit.formats.cases import ALL, STREAMED, WHOLE


def test_every_recorded_reply_is_expected_to_come_to_something():
    files = sorted(str(path.relative_to(FIXTURES)) for path in FIXTURES.rglob("*") if path.is_file())
    assert files == sorted(case.file for case in ALL)
    assert all(case.documented.startswith("https://") for case in ALL)


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.file)
def test_a_whole_reply_tells_its_usage(case: Whole):
    assert case.endpoint.usage_of(case.body) == case.usage


@pytest.mark.parametrize("case", [case for case in STREAMED if case.file.endswith(".array.json")], ids=lambda case: case.file)
def test_a_stream_that_is_an_array_can_be_read_as_a_whole(case: Whole):
    assert case.endpoint.usage_of(case.body) == case.usage


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.file)
def test_usage_is_consistent(case: Whole):
    usage = case.usage or Usage()
    assert usage.cached_tokens + usage.cache_write_tokens <= usage.input_tokens
    assert usage.input_audio_tokens <= usage.input_tokens
    assert usage.cached_audio_tokens <= min(usage.cached_tokens, usage.input_audio_tokens)
    assert max(usage.reasoning_tokens, usage.output_audio_tokens) <= usage.output_tokens


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"7", b"{", b"\xff\xfe{", b'{"usage":7}', b'{"usage":"x"}', b"[" * 100_000]
)
@pytest.mark.parametrize("case", WHOLE[:1] + WHOLE[-1:] + [case for case in WHOLE if case.file == "anthropic/message.json"])
def test_what_is_no_reply_tells_nothing(case: Whole, body: bytes):
    assert case.endpoint.usage_of(body) in (None, Usage() if "count" in case.endpoint.name else None)

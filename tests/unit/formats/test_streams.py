"""Streamed replies, in the forms that providers document, cut anywhere."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats import StreamMeter, StreamReader
from tests.unit.formats.case import Streamed
from tests.unit.formats.cases import HIDING, STREAMED


def by_file(case: Streamed) -> str:
    return case.file


def metered(case: Streamed, chunks: list[bytes], *, hides_usage: bool) -> tuple[StreamReader, bytes]:
    reader = case.endpoint.stream()
    meter = StreamMeter(reader, hides_usage=hides_usage)
    shown = b"".join(meter.feed(chunk) for chunk in chunks)
    return reader, shown + meter.flush()


def told(reader: StreamReader) -> tuple[object, ...]:
    return reader.usage, reader.delivered(), reader.ended, reader.failed


def expected(case: Streamed) -> tuple[object, ...]:
    return case.usage, case.delivered, case.ended, case.failed


def as_if_not_asked(body: bytes, line_end: bytes) -> bytes:
    """What the provider would have sent: said without any of the code that is tested."""
    blank = line_end * 2
    *whole, last = body.split(blank)
    events = [*(event + blank for event in whole), last]
    shown = b"".join(event for event in events if not (b'"choices":[]' in event and b'"usage":{' in event))
    shown = shown.replace(b',"usage":null}' + line_end, b"}" + line_end)
    return shown.replace(b',"usage":null,"obfuscation"', b',"obfuscation"')


def cut(body: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[start:end] for start, end in pairwise(bounds)]


@pytest.mark.parametrize("case", STREAMED, ids=by_file)
def test_a_stream_tells_its_usage_and_what_it_delivered(case: Streamed):
    reader, shown = metered(case, [case.body], hides_usage=False)
    assert told(reader) == expected(case)
    assert shown == case.body


@pytest.mark.parametrize("case", STREAMED, ids=by_file)
def test_a_stream_tells_the_same_byte_by_byte(case: Streamed):
    reader, shown = metered(case, [case.body[at : at + 1] for at in range(len(case.body))], hides_usage=case.hides_usage)
    assert told(reader) == expected(case)
    assert shown == (as_if_not_asked(case.body, b"\n") if case.hides_usage else case.body)


@given(case=st.sampled_from(STREAMED), places=st.lists(st.integers(0, 1 << 16), max_size=40), crlf=st.booleans())
def test_a_stream_tells_the_same_however_it_is_cut(case: Streamed, places: list[int], crlf: bool):
    body = case.body
    if crlf and case.file.endswith(".sse"):
        body = body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    reader, shown = metered(case, cut(body, places), hides_usage=False)
    assert told(reader) == expected(case)
    assert shown == body


@given(case=st.sampled_from(HIDING), places=st.lists(st.integers(0, 1 << 16), max_size=40), crlf=st.booleans())
def test_a_client_that_did_not_ask_for_usage_sees_what_it_would_have_seen(case: Streamed, places: list[int], crlf: bool):
    line_end = b"\r\n" if crlf else b"\n"
    body = case.body.replace(b"\n", line_end)
    reader, shown = metered(case, cut(body, places), hides_usage=True)
    assert told(reader) == expected(case)
    assert shown == as_if_not_asked(body, line_end)
    if not case.file.startswith("openai/chat_nested"):
        assert b'"usage":null' not in shown


# their null usage is of their own accord, which cannot be told from what asking brings
NULL_UNASKED = ("deepseek/reasoner.sse", "openai/chat_half_surrogates.sse")
OTHERS = [case for case in STREAMED if not case.hides_usage and case.file not in NULL_UNASKED]


@pytest.mark.parametrize("case", OTHERS, ids=by_file)
def test_a_stream_without_the_event_asked_for_is_passed_on_as_it_is(case: Streamed):
    assert metered(case, [case.body], hides_usage=True)[1] == case.body


@given(chunks=st.lists(st.binary(max_size=60)), case=st.sampled_from(STREAMED[::5]), hides_usage=st.booleans())
def test_garbage_is_passed_on_as_it_is(chunks: list[bytes], case: Streamed, hides_usage: bool):
    assert metered(case, chunks, hides_usage=hides_usage)[1] == b"".join(chunks)


FRAGMENTS = [
    b"data: ",
    b"data:",
    b"data",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"event: x\n",
    b": c\n",
    b"{",
    b"}",
    b"[",
    b'"',
    b"\\",
]
FRAGMENTS += [
    b',"usage":null}',
    b'"usage":',
    b"null",
    b'{"a":1,"usage":null}',
    b'"choices":[]',
    b"\xf0\x9f",
    b"[DONE]",
    b"\xef\xbb\xbf",
]


@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=40), case=st.sampled_from(STREAMED[::5]))
def test_no_stream_is_an_error_or_changed_when_nothing_is_hidden(parts: list[bytes], case: Streamed):
    assert metered(case, parts, hides_usage=False)[1] == b"".join(parts)
    metered(case, parts, hides_usage=True)


@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=40), places=st.lists(st.integers(0, 400), max_size=10))
def test_where_a_stream_is_cut_changes_nothing(parts: list[bytes], places: list[int]):
    whole, pieces = (
        metered(STREAMED[0], chunks, hides_usage=True) for chunks in ([b"".join(parts)], cut(b"".join(parts), places))
    )
    assert (told(whole[0]), whole[1]) == (told(pieces[0]), pieces[1])

"""Server-sent events, as the standard wants them read (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats.sse import LARGEST_EVENT, SseSplitter


def events(*chunks: bytes) -> list[tuple[bytes, bytes]]:
    splitter = SseSplitter()
    return [event for chunk in chunks for event in splitter.feed(chunk)] + splitter.flush()


def data(*chunks: bytes) -> list[bytes]:
    return [each for _, each in events(*chunks) if each]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"]),
        (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
         [b"first event", b"second event", b" third event"]),
        (b"data\n\ndata\ndata\n\ndata:\n\n", [b"\n"]),
        (b"event: x\ndata: a\nretry: 10\n\n", [b"a"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
        (b"data: a\rdata: b\r\r", [b"a\nb"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\n\r\ndata: b\r\n\ndata: c\r\n\r\n", [b"a", b"b", b"c"]),
        (b"\xef\xbb\xbfdata: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\n\n\n\n\ndata: b\n\n", [b"a", b"b"]),
        (b"datax: a\n Data: b\n data: c\n\n", []),
        (b"data: a\n\n: only a comment\n\n", [b"a"]),
        (b"data: a\n\ndata: b", [b"a", b"b"]),
        (b"data: a\n\ndata: b\n", [b"a", b"b"]),
        (b"", []),
    ],
)  # fmt: skip
def test_the_data_of_events(stream: bytes, expected: list[bytes]):
    assert data(stream) == expected
    assert data(*(stream[at : at + 1] for at in range(len(stream)))) == expected


@given(
    st.lists(
        st.sampled_from([b"data: a", b"data:", b"data", b":", b"id: 1", b"\n", b"\r", b"\r\n", b"\n\n", b"\xc3\xa9"]),
        max_size=30,
    )
)
def test_no_byte_is_lost_however_a_stream_is_cut(parts: list[bytes]):
    whole = b"".join(parts)
    assert b"".join(raw for raw, _ in events(*parts)) == whole
    assert data(*parts) == data(whole)


def test_an_event_is_there_as_soon_as_its_blank_line_is():
    splitter = SseSplitter()
    assert splitter.feed(b"data: a\n") == []
    assert splitter.feed(b"\ndata: b\r") == [(b"data: a\n\n", b"a")]
    assert splitter.feed(b"\n\r") == []
    assert splitter.feed(b"\ndata: c\n\nda") == [(b"data: b\r\n\r\n", b"b"), (b"data: c\n\n", b"c")]
    assert splitter.flush() == [(b"da", b"")]
    assert splitter.flush() == []


def test_lines_may_end_in_different_ways_in_every_chunk():
    assert data(b"data: a\n\n", b"data: b\rdata: c\n\n", b"data: d\rdata: e\n\ndata: f\r\n\n") == [b"a", b"b\nc", b"d\ne", b"f"]


def test_an_event_that_two_cr_end_is_there_at_once():
    assert SseSplitter().feed(b"data: a\r\r") == [(b"data: a\r\r", b"a")]


def test_a_chunk_that_is_one_event_is_given_as_it_is():
    splitter = SseSplitter()
    splitter.feed(b"data: a\n\n")
    chunk = b"data: b\n\n"
    ((raw, each),) = splitter.feed(chunk)
    assert raw is chunk
    assert each == b"b"


def test_an_event_too_large_is_passed_on_unread_and_so_is_all_that_follows():
    splitter = SseSplitter()
    chunk = b"data: " + b"x" * (1024 * 1024)
    given = [splitter.feed(chunk) for _ in range(6)]
    assert [len(each) for each in given] == [0, 0, 0, 1, 1, 1]
    assert sum(len(raw) for each in given for raw, _ in each) == 6 * len(chunk)
    assert splitter.feed(b"data: a\n\n") == [(b"data: a\n\n", b"")]
    assert splitter.flush() == []
    assert LARGEST_EVENT == 4 * 1024 * 1024

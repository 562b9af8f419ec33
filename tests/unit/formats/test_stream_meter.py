"""A stream on its way to the client; see also test_streams.py, where whole streams are metered."""

import pytest

from gateway.formats import StreamMeter, endpoint_of
from gateway.formats.sse import LARGEST_EVENT

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'


def a_meter(*, hides_usage: bool = True) -> StreamMeter:
    endpoint = endpoint_of("auto", "POST", "/v1/chat/completions")
    assert endpoint is not None
    return StreamMeter(endpoint.stream(), hides_usage=hides_usage)


def test_chunks_are_passed_on_as_the_objects_they_are():
    for hides_usage in (True, False):
        meter = a_meter(hides_usage=hides_usage)
        for chunk in (TEXT, TEXT + TEXT, TEXT, b": comment\n\n"):
            assert meter.feed(chunk) is chunk


def test_nothing_is_held_back_when_nothing_is_hidden():
    meter = a_meter(hides_usage=False)
    chunk = b"data: {"
    assert meter.feed(chunk) is chunk
    assert meter.flush() == b""


def test_only_an_incomplete_event_is_held_back():
    meter = a_meter()
    assert meter.feed(TEXT + b"data: [DO") == TEXT
    assert meter.feed(b"NE]") == b""
    assert meter.flush() == b"data: [DONE]"


def test_the_event_that_tells_usage_is_left_out_wherever_it_stands():
    assert a_meter().feed(TEXT + USAGE + TEXT) == TEXT + TEXT
    assert a_meter().feed(USAGE) == b""


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b'{"choices":[{}],"usage":null}', b'{"choices":[{}]}'),
        (b'{"choices": [{}], "usage": null}', b'{"choices": [{}]}'),
        (b'{"choices":[{}],"usage":null,"x":1}', b'{"choices":[{}],"x":1}'),
        (b'{"usage":null,"choices":[{}]}', b'{"choices":[{}]}'),
        (b'{"usage": null, "choices": [{}]}', b'{"choices": [{}]}'),
        (b'{"usage":null}', b"{}"),
        (b'{"choices":[{"usage":null}],"usage":null}', b'{"choices":[{"usage":null}]}'),
        (b'{"choices":[{"usage":null}],"usage":null,"x":"}"}', b'{"choices":[{"usage":null}],"x":"}"}'),
        (b'{"choices":[{"a":"{[","usage":null}],"usage":null ,"x":1}', b'{"choices":[{"a":"{[","usage":null}],"x":1}'),
        (b'{"choices":[{"usage":null}]}', b'{"choices":[{"usage":null}]}'),
        (
            b'{"choices":[{"delta":{"content":",\\"usage\\":null"}}]}',
            b'{"choices":[{"delta":{"content":",\\"usage\\":null"}}]}',
        ),
        (b'{"choices":["usage"],"x":"usage","usage":null}', b'{"choices":["usage"],"x":"usage"}'),
        (b'{"choices":[{}],"usage":{"prompt_tokens":1}}', b'{"choices":[{}],"usage":{"prompt_tokens":1}}'),
        (b'{"choices":[{}],"usage":null', b'{"choices":[{}],"usage":null'),
        (b'x,"usage":null}', b'x,"usage":null}'),
    ],
)
def test_null_usage_is_taken_out_of_the_outermost_object_only(sent: bytes, shown: bytes):
    assert a_meter().feed(b"data: " + sent + b"\n\n") == b"data: " + shown + b"\n\n"
    assert a_meter().feed(b"event: x\r\ndata: " + sent + b"\r\n\r\n") == b"event: x\r\ndata: " + shown + b"\r\n\r\n"


def test_an_event_too_large_is_not_held_back_for_ever():
    meter = a_meter()
    chunk = b"data: " + b"x" * LARGEST_EVENT
    assert meter.feed(chunk) == chunk
    assert meter.feed(USAGE) == USAGE


def test_a_stream_without_a_byte_has_nothing_held_back():
    meter = a_meter()
    assert meter.feed(b"") == b""
    assert meter.flush() == b""

"""The elements of a JSON array."""

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.formats.json_array import ArraySplitter
from gateway.formats.sse import LARGEST_EVENT

texts = st.text(st.sampled_from('[]{}",\\:a\n'), max_size=8)
objects = st.dictionaries(texts, texts | st.lists(st.dictionaries(texts, texts, max_size=2), max_size=2), max_size=3)


@given(st.lists(objects, max_size=4), st.sampled_from([None, 2]), st.integers(1, 5))
def test_each_element_is_given_once_and_no_byte_is_lost(elements: list[dict[str, object]], indent: int | None, size: int):
    body = json.dumps(elements, indent=indent).encode() + b"\n"
    splitter = ArraySplitter()
    events = [event for at in range(0, len(body), size) for event in splitter.feed(body[at : at + size])] + splitter.flush()
    assert [json.loads(data) for _, data in events if data] == elements
    assert b"".join(raw for raw, _ in events) == body


def test_an_element_too_large_is_passed_on_unread_and_so_is_all_that_follows():
    splitter = ArraySplitter()
    assert splitter.feed(b'[{"a":"' + b"x" * (LARGEST_EVENT - 10)) == []
    assert len(splitter.feed(b"x" * 10)) == 1
    assert splitter.feed(b'"},{}') == [(b'"},{}', b"")]
    assert splitter.flush() == []

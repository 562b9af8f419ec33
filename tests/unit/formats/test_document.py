"""A JSON object by its top-level fields."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats import read_fields, write_fields

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def test_each_value_is_the_text_that_stood_there():
    assert read_fields(b' {"a" : 1.50, "b":[1, 2] ,"c":"\\u00e9"}\n') == {"a": b"1.50", "b": b"[1, 2]", "c": b'"\\u00e9"'}


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"1", b"null", b'"x"', b"{", b'{"a":1}x', b'{"a":nul}', b'{"a":NaN}', b'{"a":01}', b"{'a':1}", b'{"a":1,}'],
)
def test_what_is_no_object_has_no_fields(body: bytes):
    assert read_fields(body) is None


def test_an_object_in_another_encoding_has_no_fields():
    assert read_fields('{"a":1}'.encode("utf-16")) is None


def test_an_object_too_deep_to_read_has_no_fields():
    assert read_fields(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}") is None


def test_a_byte_order_mark_is_skipped():
    assert read_fields(b'\xef\xbb\xbf{"a":1}') == {"a": b"1"}


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_stays():
    assert read_fields(rb'{"a":"\ud83d", "b":"\ud83d\ude00", "c":"\\ud83d", "d":"\ude00\ud83d"}') == {
        "a": rb'"\ufffd"',
        "b": rb'"\ud83d\ude00"',
        "c": rb'"\\ud83d"',
        "d": rb'"\ufffd\ufffd"',
    }


@given(st.dictionaries(st.text(), values))
def test_what_is_written_reads_the_same(fields: dict[str, object]):
    raw = {name: json.dumps(value).encode() for name, value in fields.items()}
    written = write_fields(raw)
    assert json.loads(written) == fields
    assert read_fields(written) == raw


def escaped(name: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in name)


@given(
    st.lists(st.tuples(st.text(st.characters(max_codepoint=0xFFFF), max_size=3), st.booleans(), st.integers()), max_size=6),
    st.integers(0, 6),
)
def test_a_name_that_stands_twice_makes_what_is_written_shorter(members: list[tuple[str, bool, int]], repeated: int):
    members += members[:repeated]
    text = ",".join(f'"{escaped(name)}":{n}' if spelt else f"{json.dumps(name)}:{n}" for name, spelt, n in members)
    body = b"{" + text.encode() + b"}"
    fields = read_fields(body)
    assert fields is not None
    written = write_fields(fields)
    assert len(written) <= len(body)
    if len({name for name, _, _ in members}) < len(members):
        assert len(written) < len(body)

"""Header fields: names in any case, order kept, no way to break the framing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.plugin import Headers

names = st.sampled_from(["x-a", "X-A", "x-b", "X-b"])
values = st.text(alphabet=st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=8)


def some():
    return Headers.of([("Accept", "a"), ("x-a", "1"), ("ACCEPT", "b")])


def test_names_are_found_in_any_case_and_values_in_order():
    headers = some()
    assert headers.get("aCCept") == "a"
    assert headers.get_all("ACCEPT") == ["a", "b"]
    assert headers.get("x-none") is None
    assert headers.get_all("x-none") == []
    assert "X-A" in headers
    assert "x-none" not in headers


def test_setting_leaves_one_field_and_removing_none():
    headers = some()
    headers.set("Accept", "c")
    assert list(headers) == [("x-a", "1"), ("accept", "c")]
    headers.remove("ACCEPT")
    assert list(headers) == [("x-a", "1")]
    assert len(headers) == 1


@given(st.lists(st.tuples(names, values)), names, values)
def test_what_was_set_is_the_only_value_and_other_names_keep_theirs(fields, name, value):
    headers = Headers.of(fields)
    headers.set(name, value)
    assert headers.get_all(name) == [value]
    others = [(key.lower(), text) for key, text in fields if key.lower() != name.lower()]
    assert list(headers) == [*others, (name.lower(), value)]


@pytest.mark.parametrize("text", ["a\r\nb", "a\nb", "a\rb", "a\0b"])
def test_a_line_break_or_nul_is_refused_in_name_and_value(text):
    for name, value in (("x-a", text), (text, "1")):
        headers = some()
        with pytest.raises(ValueError, match="line break or NUL"):
            headers.set(name, value)
        assert list(headers) == list(some())


def test_a_copy_of_the_raw_list_is_taken():
    raw = [(b"x-a", b"1")]
    Headers(raw).remove("x-a")
    headers = Headers(raw)
    headers.raw.append((b"x-b", b"2"))
    assert raw == [(b"x-a", b"1")]


def test_values_are_not_in_the_repr_because_they_may_be_credentials():
    assert "sk-secret" not in repr(Headers.of([("authorization", "sk-secret")]))

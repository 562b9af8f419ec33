"""Every text of a JSON value, as a reader could see it."""

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.plugin import texts_of


def test_keys_and_strings_at_any_depth_are_texts_and_other_values_are_not():
    assert texts_of({"a": [1, None, True, {"b": "c"}], "d": 2.5}) == {"a", "b", "c", "d"}


def test_the_text_parts_of_a_message_are_also_one_text():
    parts = [{"type": "text", "text": "ab"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "cd"}]
    assert "abcd" in texts_of({"content": parts})


@given(st.text(), st.integers(1, 3))
def test_text_in_json_within_strings_is_seen_three_levels_down(text, levels):
    written = text
    for _ in range(levels):
        written = json.dumps(written)[1:-1]
    assert text in texts_of([written]) | {"" if text == "" else None}


def test_half_a_surrogate_pair_does_no_harm():
    for text in texts_of("\\ud800 and \\udc00"):
        text.encode()

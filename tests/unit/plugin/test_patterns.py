"""Patterns of tenants: linear, bounded, and refused when written."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from gateway.plugin import Pattern, PatternSet, Settings
from gateway.plugin.patterns import count_patterns


def test_the_first_pattern_in_order_is_named_whatever_matches_first_in_the_text():
    assert PatternSet(["b", "a"]).first_match("ab") == "b"
    assert PatternSet(["x", "a$"]).first_match("ba") == "a$"
    assert PatternSet(["x", "y"]).first_match("ab") is None


def test_an_empty_set_matches_nothing():
    assert not PatternSet([])
    assert PatternSet([]).first_match("") is None


def test_case_counts_unless_it_is_ignored():
    assert PatternSet(["bot"]).first_match("BOT") is None
    assert PatternSet(["bot"], ignore_case=True).first_match("BOT") == "bot"


@given(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=4), st.text(max_size=20))
def test_literal_text_is_found_where_python_finds_it(words, text):
    expected = next((word for word in words if word in text), None)
    found = PatternSet([re.escape(word) for word in words]).first_match(text)
    assert found == (None if expected is None else re.escape(expected))


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)", "(?<!a)b", "a{1001}", "", "a" * 513])
def test_what_re2_does_not_take_is_refused_when_written(pattern):
    with pytest.raises(ValidationError):
        TypeAdapter(Pattern).validate_python(pattern)


def test_patterns_that_are_too_large_together_are_refused_instead_of_matching_nothing():
    large = TypeAdapter(Pattern).validate_python(r"[\pL\pN]{1,5}x")
    with pytest.raises(ValueError, match=r"large|instructions"):
        PatternSet([f"{large}{number}" for number in range(50)])


def test_patterns_that_would_be_slow_together_are_refused():
    with pytest.raises(ValueError, match="more than 10000 instructions"):
        PatternSet([f"(a|b){{100}}{number}" for number in range(50)])


def test_a_pattern_that_alone_would_be_slow_to_compile_is_refused_before_it_is():
    with pytest.raises(ValidationError, match="too large"):
        TypeAdapter(Pattern).validate_python(r"(?i)(?:\pL{300})")


def test_patterns_are_counted_wherever_they_are_in_settings():
    class Inner(Settings):
        pattern: Pattern | None = None
        text: str = "a"

    class Outer(Settings):
        one: Pattern
        some: tuple[Pattern, ...]
        by_name: dict[str, Inner]

    inner = {"x": {"pattern": "c"}, "y": {}}
    settings = Outer.model_validate({"one": "a", "some": ["b", "b"], "by_name": inner})
    assert count_patterns(settings) == 4
    assert settings.model_dump() == {
        "one": "a",
        "some": ("b", "b"),
        "by_name": {"x": {"pattern": "c", "text": "a"}, "y": {"pattern": None, "text": "a"}},
    }
    assert count_patterns(["a", 1, None]) == 0


def test_a_wrong_pattern_is_a_value_error():
    with pytest.raises(ValueError, match="wrong"):
        PatternSet(["("])


def test_the_cost_grows_with_the_patterns():
    assert 0 == PatternSet([]).cost < PatternSet(["abc"]).cost < PatternSet(["abc", "x{100}"]).cost

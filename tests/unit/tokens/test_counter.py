"""Tokens of requests: exact where the vocabulary is at hand, estimated else."""

import sys

import pytest

from gateway.formats import Asked
from gateway.tokens import TokenCounter, estimated_tokens, most_tokens
from gateway.tokens import counter as module

TEXTS = ("hello world", "how many tokens?")


@pytest.fixture(scope="module")
def exact() -> TokenCounter:
    return TokenCounter(exact=True)


def test_a_known_model_is_counted_exactly(exact):
    assert exact.is_exact
    assert exact.count(TEXTS, "gpt-4o") == exact.most(TEXTS, "gpt-4o") == 6


def test_an_unknown_model_is_estimated(exact):
    assert exact.count(TEXTS, "claude-opus-4-1") == estimated_tokens(TEXTS)
    assert exact.most(TEXTS, "claude-opus-4-1") == most_tokens(TEXTS)


def test_a_long_text_is_estimated_even_for_a_known_model(exact):
    fits = "word " * (module.MAX_EXACT_CHARS // 5)
    assert exact.most([fits], "gpt-4o") < most_tokens([fits])
    assert exact.most([fits, "x"], "gpt-4o") == most_tokens([fits, "x"])


def test_what_cannot_be_counted_is_estimated(exact):
    assert exact.count(["\ud800"], "gpt-4o") == estimated_tokens(["\ud800"])


def test_without_exact_everything_is_estimated():
    plain = TokenCounter()
    assert not plain.is_exact
    assert plain.count(TEXTS, "gpt-4o") == estimated_tokens(TEXTS)


def test_a_missing_extra_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "toktok", None)
    assert not TokenCounter(exact=True).is_exact


def test_messages_and_media_are_added(exact):
    asked = Asked("gpt-4o", prompt=TEXTS, media_parts=2)
    assert exact.input_tokens(asked) == 6 + 3 + 2 * 4 + 2 * 1_100
    assert exact.most_input_tokens(asked) == 6 + 16 + 2 * 8 + 2 * 6_500


def test_the_upper_count_is_never_below_the_central_one():
    plain = TokenCounter()
    for prompt in ((), ("",), ("a",), TEXTS, ("é" * 50,)):
        asked = Asked("m", prompt=prompt)
        assert plain.input_tokens(asked) <= plain.most_input_tokens(asked)

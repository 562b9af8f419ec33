"""Exact counts, where the extra is installed."""

import sys

import pytest

from gateway.tokens.exact import exact_tokens, vocabulary_of


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        ("gpt-4o", "o200k_base"),
        ("openai/gpt-4o-mini-2024-07-18", "o200k_base"),
        ("GPT-4.1-nano", "o200k_base"),
        ("chatgpt-4o-latest", "o200k_base"),
        ("gpt-5.2-pro", "o200k_base"),
        ("gpt-oss-120b", "o200k_base"),
        ("o1", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("o4-mini", "o200k_base"),
        ("ft:gpt-4o-mini-2024-07-18:org::id", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("ft:gpt-4:org", "cl100k_base"),
        ("gpt-3.5-turbo-0125", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("claude-opus-4-1", None),
        ("gemini-2.5-pro", None),
        ("o2", None),
        ("gpt-2", None),
        ("", None),
    ],
)
def test_the_vocabulary_follows_from_the_name(model, vocabulary):
    assert vocabulary_of(model) == vocabulary


def test_counts_are_those_of_the_vocabulary():
    exact = exact_tokens()
    assert exact is not None
    assert exact.count(["hello world", "how many tokens?"], "cl100k_base") == 6
    # what only looks like a special token is text
    assert (exact.count(["<|endoftext|>"], "o200k_base") or 0) > 1
    assert exact.count([], "o200k_base") == 0


def test_what_is_no_text_cannot_be_counted():
    exact = exact_tokens()
    assert exact is not None
    assert exact.count(["\ud800"], "o200k_base") is None


def test_without_the_extra_there_is_no_exact_counter(monkeypatch):
    monkeypatch.setitem(sys.modules, "toktok", None)
    assert exact_tokens() is None

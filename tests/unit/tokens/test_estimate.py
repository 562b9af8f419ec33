"""How many tokens a text has, without a vocabulary."""

import inspect
import random
import statistics
import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tokens import delivered_tokens, estimate, estimated_tokens, most_tokens

toktok = pytest.importorskip("toktok")

SOURCES = [path.read_text(encoding="utf-8") for path in sorted(Path(inspect.getfile(statistics)).parent.glob("*.py"))[:60]]
NATURAL = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and"
    " should act towards one another in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und"
    " sollen einander im Geist der Brüderlichkeit begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience"
    " et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны"
    " поступать в отношении друг друга в духе братства.",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ar": "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميراً وعليهم أن يعامل بعضهم بعضاً بروح الإخاء.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
}


def real(text: str, vocabulary: str) -> int:
    return int(toktok.batch_count([text], vocabulary, 1)[0])


@pytest.mark.parametrize("vocabulary", ["cl100k_base", "o200k_base"])
@pytest.mark.parametrize("language", NATURAL)
def test_natural_text_is_estimated_within_a_factor_and_never_beyond_the_upper_estimate(language, vocabulary):
    text = NATURAL[language]
    found = real(text, vocabulary)
    assert 0.6 < estimated_tokens([text]) / found < 3
    assert found <= most_tokens([text])


def test_code_is_estimated_within_a_third():
    ratios = [estimated_tokens([text]) / real(text, "o200k_base") for text in SOURCES]
    assert 0.9 < statistics.median(ratios) < 1.2
    assert all(0.66 < ratio < 1.5 for ratio in ratios)


@given(st.lists(st.text(max_size=300), max_size=5))
def test_the_upper_estimate_lies_between_the_real_count_and_the_bytes(texts):
    encoded = sum(len(text.encode()) for text in texts)
    assert most_tokens(texts) <= encoded
    if encoded:
        assert estimated_tokens(texts) >= 1


@given(st.text(st.sampled_from("aB0 .\n\té漢😀е"), min_size=1, max_size=300))
def test_the_upper_estimate_holds_for_mixtures(text):
    assert most_tokens([text]) >= max(real(text, "cl100k_base"), real(text, "o200k_base"))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 5_000,
        "Zq7" * 2_000,
        " " * 5_000,
        "7" * 5_000,
        "\n" * 5_000,
        "😀" * 2_000,
        "漢字" * 2_000,
        "!?" * 2_000,
        "e\u0301" * 2_000,
        "\u200d" * 2_000,
    ],
)
def test_the_upper_estimate_holds_for_monotony(text):
    for vocabulary in ("cl100k_base", "o200k_base"):
        assert real(text, vocabulary) <= most_tokens([text]) <= len(text.encode())


@pytest.mark.parametrize("alphabet", [string.ascii_lowercase, string.ascii_letters, string.ascii_letters + string.digits])
def test_the_upper_estimate_holds_for_what_is_no_language(alphabet):
    text = "".join(random.Random(1).choices(alphabet, k=5_000))
    for vocabulary in ("cl100k_base", "o200k_base"):
        assert real(text, vocabulary) <= most_tokens([text]) * 0.9


def test_nothing_has_no_tokens():
    assert estimated_tokens([]) == most_tokens([]) == estimated_tokens([""]) == most_tokens(["", ""]) == 0


def test_a_lone_surrogate_is_counted():
    assert 1 <= estimated_tokens(["\ud800"]) <= most_tokens(["\ud800"]) <= 3


def test_any_iterable_will_do():
    assert most_tokens(iter(["one", "two"])) == most_tokens(["one", "two"]) > 0


def test_a_long_text_is_estimated_from_samples_of_it():
    text = "".join(SOURCES)
    long = text * (1 + estimate.MAX_READ * 8 // len(text))
    found = real(long, "o200k_base")
    assert 0.8 < estimated_tokens([long]) / found < 1.4
    assert found <= most_tokens([long]) <= len(long)


def test_a_long_text_never_has_more_tokens_than_bytes():
    for text in ("漢" * 100_000, "é" * 100_000, "a" * 100_000, "漢a" * 100_000):
        assert most_tokens([text]) <= len(text.encode())


@pytest.mark.parametrize("text", ["a", " ", "7", "😀", "word ", "漢", "aB"])
def test_four_megabytes_take_no_time_to_speak_of(text):
    long = text * (4_000_000 // len(text.encode()))
    began = time.thread_time()
    most_tokens([long])
    assert time.thread_time() - began < 0.1


def test_a_stream_has_delivered_a_token_for_each_piece_at_least():
    assert delivered_tokens(0, 0, 0) == 0
    assert delivered_tokens(7, 4, 0) == 7
    assert delivered_tokens(1, 400, 0) == 100
    assert delivered_tokens(1, 401, 0) == 101
    assert delivered_tokens(1, 0, 4) == 3

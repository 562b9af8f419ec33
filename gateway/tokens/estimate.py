"""How many tokens a text has, estimated from the classes of its characters, without any vocabulary.

Vocabularies split texts at the borders of words, numbers and punctuation, and what is rare further, down to bytes. So the
estimate counts characters by class and some pairs of neighbours (beginnings of words, changes of case, runs of letters), each
with a weight. The weights were fitted by linear programming to the counts of real tokenizers for texts of all kinds, see
docs/tokens.md: the central ones to the mean of ten vocabularies, the upper ones to the largest of them.

Only operations on whole strings are used. A long text is not read as a whole but in 64 places, spread evenly and shifted by
chance (once for each process, so that nobody can write between them); so the time is bounded, however long the text is.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import SystemRandom
from typing import Final

PLACES: Final = 64
PLACE_CHARS: Final = 512
MAX_READ: Final = PLACES * PLACE_CHARS
"""Characters; a longer text is sampled."""

_SAMPLING_MARGIN_PERCENT = 10


def _class_of(byte: int) -> str:
    """The class of an ASCII character, or of the characters whose UTF-8 begins with this byte."""
    if byte < 0x80:
        return _ascii_class(chr(byte))
    beginnings = (
        (0xF0, "E"),  # emoji and rare scripts
        (0xEE, "F"),  # private use, presentation forms, full width
        (0xEA, "H"),  # hangul
        (0xE4, "C"),  # ideographs
        (0xE3, "K"),  # kana, ideographs
        (0xE2, "T"),  # signs, typographic punctuation
        (0xE1, "J"),  # Georgian, Ethiopic, Khmer, Latin with marks of Vietnamese
        (0xE0, "I"),  # India, Thailand, Laos, Tibet
        (0xDC, "X"),  # Syriac, Thaana, N'Ko
        (0xD8, "R"),  # Arabic
        (0xD4, "B"),  # Armenian, Hebrew
        (0xCD, "G"),  # Greek, Cyrillic
        (0xCB, "M"),  # modifiers and marks
        (0xC3, "L"),  # Latin with accents
    )
    return next((name for first, name in beginnings if byte >= first), "S")  # signs of Latin-1


def _ascii_class(char: str) -> str:
    if char.isalpha():
        return "a" if char.islower() else "U"
    if char.isdigit():
        return "0"
    if char == " ":
        return " "
    return "\n" if char in "\t\n\v\f\r" else "."


_CLASSES = bytes(ord(_class_of(byte)) for byte in range(256))
_CONTINUATIONS = bytes(range(0x80, 0xC0))

# thousandths of a token: the central weight and the upper one
_Weights = tuple[tuple[bytes, int, int], ...]
_PUNCTUATION: Final = (551, 1_144)
_ASCII: _Weights = (
    (b"a", 90, 580),
    (b"U", 304, 1_199),
    (b"0", 577, 1_200),
    (b" ", 0, 75),
    (b"\n", 165, 920),
)
_PAIRS: _Weights = (
    (b" a", 660, 0),
    (b".a", 469, 0),
    (b"\na", 1_466, 3_209),
    (b"\nU", 1_466, 3_209),
    (b"\n ", 1_101, 0),
    (b" .", 712, 1_307),
    (b"aU", 0, 2_007),
    (b"Ua", 715, 322),
    (b"0a", 928, 238),
    (b"a0", 928, 238),
    (b"0U", 928, 238),
    (b"U0", 928, 238),
    (b"aaaaaaaa", 413, 3_600),
)
_OTHERS: _Weights = (
    (b"S", 1_233, 2_000),
    (b"M", 1_000, 2_000),
    (b"L", 1_896, 2_000),
    (b"G", 502, 1_250),
    (b"B", 893, 2_000),
    (b"R", 581, 1_430),
    (b"X", 1_000, 2_000),
    (b"I", 909, 3_000),
    (b"J", 1_182, 3_000),
    (b"T", 1_890, 3_000),
    (b"K", 755, 2_000),
    (b"C", 884, 3_000),
    (b"H", 956, 3_000),
    (b"F", 1_000, 3_000),
    (b"E", 2_439, 4_000),
)
_PAIRS_OF_OTHERS: _Weights = (
    # where a vocabulary has no words of a script, the space before one is a token too
    (b" B", 0, 925),
    (b" I", 0, 925),
    (b" J", 0, 925),
)
_LEAST = 3_600
"""What is added to an upper estimate, in thousandths."""

_CHANCE = SystemRandom()
_SHIFTS = tuple(_CHANCE.random() for _ in range(PLACES))


def estimated_tokens(texts: Iterable[str]) -> int:
    """About as many tokens as these texts have together."""
    text = "\n".join(texts)
    if not text:
        return 0
    read = _read(text)
    estimate, _ = _weighed(read)
    return max(1, -(-estimate * len(text) // (len(read) * 1_000)))


def most_tokens(texts: Iterable[str]) -> int:
    """Hardly ever fewer tokens than these texts have, and never more than they have bytes in UTF-8."""
    texts = tuple(texts)
    text = "\n".join(texts)
    chars = len(text) - max(len(texts) - 1, 0)
    if not chars:
        return 0
    read = _read(text)
    _, most = _weighed(read)
    if read is not text:
        most += most * _SAMPLING_MARGIN_PERCENT // 100
    found = -(-(most * len(text) // len(read) + _LEAST) // 1_000)
    if found <= chars:
        # each character is at least one byte
        return found
    return min(found, chars if text.isascii() else sum(len(part.encode("utf-8", "surrogatepass")) for part in texts))


def delivered_tokens(pieces: int, ascii_chars: int, other_chars: int) -> int:
    """About as many tokens as a stream has delivered that ended without telling: at least one for each piece.

    Four ASCII characters are taken for a token, and four others for three.
    """
    return max(pieces, -(-(ascii_chars + 3 * other_chars) // 4))


def _read(text: str) -> str:
    """The text itself, or for a long one, pieces of it from all over."""
    if len(text) <= MAX_READ:
        return text
    step = len(text) / PLACES
    free = step - PLACE_CHARS
    starts = [int(place * step + shift * free) for place, shift in enumerate(_SHIFTS)]
    return "".join([text[start : start + PLACE_CHARS] for start in starts])


def _weighed(text: str) -> tuple[int, int]:
    """The central and the upper estimate, in thousandths of a token."""
    classes = text.encode("utf-8", "surrogatepass").translate(_CLASSES, _CONTINUATIONS)
    count = classes.count
    central = most = named = 0
    singles, pairs = (_ASCII, _PAIRS) if text.isascii() else (_ASCII + _OTHERS, _PAIRS + _PAIRS_OF_OTHERS)
    for pattern, weight, upper in singles:
        found = count(pattern)
        named += found
        central += found * weight
        most += found * upper
    for pattern, weight, upper in pairs:
        found = count(pattern)
        central += found * weight
        most += found * upper
    punctuation = len(classes) - named
    return central + punctuation * _PUNCTUATION[0], most + punctuation * _PUNCTUATION[1]

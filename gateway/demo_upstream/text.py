"""What the demo writes: text and vectors that follow from the prompt alone."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

PROSE = (
    "the a gateway route tenant token stream answer question model prompt window limit budget key rule plugin upstream reply"
    " chunk of and or with without before after every each one many small large fast slow quiet bright clear open closed"
    " counts keeps sends reads writes holds passes waits finds shows grows turns river harbour bridge lantern garden compass"
    " letter signal"
)
VOCABULARY = tuple(PROSE.split())


@dataclass(frozen=True, slots=True)
class Answer:
    """A text: its words, one token each, grouped into the chunks of a stream, after so many tokens of unseen ``reasoning``.

    ``complete`` is false when it hit the limit.
    """

    words: tuple[str, ...]
    chunks: tuple[str, ...]
    complete: bool
    reasoning: int = 0

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.chunks)


def answer(prompt: str, variant: int = 0, limit: int | None = None, chunks: int | None = None, reasoning: int = 0) -> Answer:
    """Write the answer number ``variant`` to a prompt: 16 to 47 words, or ``chunks`` if that is more.

    ``reasoning`` comes before and at most ``limit`` tokens come of both together, so there may be no word.
    """
    seed = hashlib.shake_256(f"{variant}:{prompt}".encode(errors="surrogatepass"))
    wanted = max(16 + seed.digest(1)[0] % 32, chunks or 0)
    if limit is not None:
        reasoning = min(reasoning, limit)
    count = wanted if limit is None else min(wanted, limit - reasoning)
    words = tuple(VOCABULARY[value % len(VOCABULARY)] for value in seed.digest(count))
    parts = min(chunks or count, count)
    bounds = [part * count // parts for part in range(parts + 1)] if parts else []
    spaced = [word if position == 0 else f" {word}" for position, word in enumerate(words)]
    grouped = tuple("".join(spaced[start:end]) for start, end in pairwise(bounds))
    return Answer(words, grouped, count == wanted, reasoning)


def embed(text: str, dimensions: int) -> list[float]:
    """Make a vector of length 1, in single precision, so that it reads the same as JSON and as base64."""
    raw = hashlib.shake_256(text.encode(errors="surrogatepass")).digest(2 * dimensions)
    values = [value or 1 for value in struct.unpack(f"<{dimensions}h", raw)]
    norm = math.sqrt(sum(value * value for value in values))
    return list(struct.unpack(f"<{dimensions}f", struct.pack(f"<{dimensions}f", *(value / norm for value in values))))


def encode_vector(vector: list[float]) -> str:
    """``encoding_format: base64``: little-endian single precision."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def text_of(content: Any) -> str:
    """Collect the text of a message's content: plain, or a list of parts of which only those with ``text`` count."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


def count_tokens(text: str) -> int:
    """Estimate as four characters a token and a few for the frame of a message."""
    return 3 + math.ceil(len(text) / 4)

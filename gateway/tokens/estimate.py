"""How many tokens a text has, estimated from the classes of its characters, without any vocabulary."""

from __future__ import annotations

from collections.abc import Iterable


def estimated_tokens(texts: Iterable[str]) -> int:
    """About as many tokens as these texts have."""
    return sum(-(-len(text.encode("utf-8", "surrogatepass")) // 4) for text in texts)


def most_tokens(texts: Iterable[str]) -> int:
    """More tokens than these texts have, for all but very few texts; never more than they have bytes in UTF-8."""
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def delivered_tokens(pieces: int, ascii_chars: int, other_chars: int) -> int:
    """About as many tokens as a stream has delivered that ended without telling: at least one for each piece."""
    return max(pieces, -(-ascii_chars // 4) + other_chars)

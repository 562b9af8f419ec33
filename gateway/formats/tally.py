"""Counting of what a stream delivers."""

from __future__ import annotations

from typing import Any

from gateway.formats.endpoint import Delivered

NOT_WRITTEN = frozenset({"id", "call_id", "object", "type", "role", "status", "index", "signature", "finish_reason"})
"""Members whose texts name or frame what was written and are no part of it."""


class Tally:
    """Pieces and characters so far."""

    __slots__ = ("ascii_chars", "other_chars", "pieces")

    def __init__(self) -> None:
        self.pieces = 0
        self.ascii_chars = 0
        self.other_chars = 0

    def add(self, text: str) -> None:
        """Count the characters of a text."""
        if text.isascii():
            self.ascii_chars += len(text)
        else:
            narrow = len(text.encode("ascii", "ignore"))
            self.ascii_chars += narrow
            self.other_chars += len(text) - narrow

    def piece(self, text: str | None) -> None:
        """Count an event that carried this text, unless it is empty."""
        if text:
            self.pieces += 1
            self.add(text)

    def piece_of(self, *values: Any) -> None:
        """Count an event of unknown form: all texts in it, at any depth."""
        found = False
        pending = list(values)
        while pending:
            node = pending.pop()
            if isinstance(node, str) and node:
                found = True
                self.add(node)
            elif isinstance(node, dict):
                pending.extend(value for name, value in node.items() if name not in NOT_WRITTEN)
            elif isinstance(node, list):
                pending.extend(node)
        self.pieces += found

    def delivered(self) -> Delivered:
        """What came until now."""
        return Delivered(self.pieces, self.ascii_chars, self.other_chars)

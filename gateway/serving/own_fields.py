"""What the server itself has to say in the head of a reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from email.utils import formatdate

Field = tuple[bytes, bytes]

CLOSE: Field = (b"connection", b"close")


class OwnFields:
    """The date, made once a second, and ``connection: close`` once a sign is set."""

    def __init__(self, signs: Sequence[asyncio.Event]) -> None:
        self._signs = signs
        self._second = 0
        self._date: Field = (b"date", b"")

    def now(self) -> list[Field]:
        """The fields of a reply that begins now."""
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, (b"date", formatdate(second, usegmt=True).encode())
        for sign in self._signs:
            if sign.is_set():
                return [self._date, CLOSE]
        return [self._date]

"""Nothing that is written down for others may hold a whole virtual key, whichever test had it written."""

from __future__ import annotations

import logging
import re

_KEY = re.compile(r"gw_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}")


def assert_no_key(where: str, text: str) -> None:
    """Raises AssertionError with what stands around the key."""
    found = _KEY.search(text)
    assert found is None, f"a whole virtual key in {where}: {text[max(0, found.start() - 200) : found.end() + 50]}"


class KeyFinder(logging.Handler):
    """Looks at every record that comes as it would be written, with its traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        text = self.format(record)
        if _KEY.search(text):
            self.found.append(f"{record.name} {record.levelname}: {text}")

"""How much of something a test does: little in an ordinary run, as much as an environment variable says in a long one."""

from __future__ import annotations

import os
from pathlib import Path


def amount(name: str, ordinary: int) -> int:
    """The number in the environment variable, which ``scripts/torture.sh`` sets, else the ordinary one."""
    return int(os.environ.get(name, ordinary))


def figure(text: str) -> None:
    """Say what was reached, for the table that ``scripts/torture.sh`` writes."""
    print(text)
    if path := os.environ.get("GATEWAY_FIGURES"):
        with Path(path).open("a") as file:
            file.write(text + "\n")

"""Programs whose wall clock a test sets while they run; their monotonic clocks go on, as they do on a real machine."""

from __future__ import annotations

import functools
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

FAKETIME = shutil.which("faketime")

needs_faketime = pytest.mark.skipif(FAKETIME is None, reason="Debian's faketime is not installed")


@dataclass(frozen=True)
class Clock:
    """The clock of whatever runs in its `environment`; right until it is set."""

    file: Path

    def set(self, ahead_s: int) -> None:
        """So many seconds ahead of the true time, or behind it."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{ahead_s:+d}s\n")
        new.rename(self.file)

    def environment(self) -> dict[str, str]:
        """What a program needs to live by this clock."""
        return {
            "LD_PRELOAD": _library(),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def program(self, binary: Path) -> Path:
        """A program that is the same as that one, and lives by this clock."""
        script = self.file.with_suffix(".sh")
        words = " ".join(f"{name}='{value}'" for name, value in self.environment().items())
        script.write_text(f'#!/bin/sh\nexec env {words} {binary} "$@"\n')
        script.chmod(0o755)
        return script


def a_clock(folder: Path) -> Clock:
    """A clock that is right."""
    clock = Clock(folder / "clock")
    clock.set(0)
    return clock


@functools.cache
def _library() -> str:
    assert FAKETIME is not None
    words = [FAKETIME, "-m", "-f", "+0s", "/bin/sh", "-c", "echo $LD_PRELOAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

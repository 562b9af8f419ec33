"""Processes held to a share of a core each, so that what surrounds them is light beside them. Needs root and control groups."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PERIOD_US = 10_000
ROOT = Path("/sys/fs/cgroup")
LEAVE_S = 5.0


@contextlib.contextmanager
def held(pids: Sequence[int], share: float) -> Iterator[None]:
    """Each process with this share of a core. Raises OSError where the machine does not allow it."""
    quota_us = round(share * PERIOD_US)
    is_v2 = (ROOT / "cgroup.controllers").exists()
    parent = ROOT if is_v2 else ROOT / "cpu"
    folders: list[Path] = []
    try:
        for pid in pids:
            folder = parent / f"gateway-bench-{os.getpid()}-{pid}"
            folder.mkdir()
            folders.append(folder)
            if is_v2:
                (folder / "cpu.max").write_text(f"{quota_us} {PERIOD_US}", encoding="ascii")
            else:
                (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US), encoding="ascii")
                (folder / "cpu.cfs_quota_us").write_text(str(quota_us), encoding="ascii")
            (folder / "cgroup.procs").write_text(str(pid), encoding="ascii")
        yield
    finally:
        for folder in folders:
            _remove(parent, folder)


def _remove(parent: Path, folder: Path) -> None:
    """Its processes go back to where all others are."""
    end = time.monotonic() + LEAVE_S
    while time.monotonic() < end:
        for pid in (folder / "cgroup.procs").read_text(encoding="ascii").split():
            with contextlib.suppress(OSError):
                (parent / "cgroup.procs").write_text(pid, encoding="ascii")
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)

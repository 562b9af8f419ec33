"""Where the processes of a replica share their series, and how what a killed replica left behind is found.

A lock in the folder is held by all processes that may write there, so it is free exactly when none of them lives.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "gateway-metrics-"
_LOCK = "lock"


@contextmanager
def metrics_folder() -> Iterator[tuple[Path, int]]:
    """A new folder for `SHARED_METRICS`, and the descriptor of its lock, which processes that write there must inherit.

    Removes those that replicas of this user have left here when they were killed.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody else's, or gone by now
            _remove_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = -1
    try:
        lock = _locked(folder)
        yield folder, lock
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def _locked(folder: Path) -> int:
    # under its name only once it is held: whoever finds it free may remove the folder
    new = folder / f"{_LOCK}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / _LOCK)
    return lock


def _remove_if_left(folder: Path) -> None:
    if folder.is_symlink() or folder.lstat().st_uid != os.geteuid():
        return
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)

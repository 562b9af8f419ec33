"""Files of lines that are on the disk when they are said to be.

``receipts-<day>-<begun>.jsonl``: lines of one UTC day, in a file that was begun at so many milliseconds since 1970. A file is
continued until it is full, also by the next run, or until somebody has taken it away; its name never comes back. What ends
with a newline is never changed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from gateway.errors import ConfigurationError

LOCK = ".export.lock"
CHUNK_BYTES = 1 << 20
"""So much is written before it is made safe."""

_BLOCK = 1 << 16


class ReceiptFiles:
    """Appends lines to the files of a folder, which it has for itself while it is `opened`.

    ``written`` are the files that have got lines. A file is no longer than ``max_file_bytes``, but for a single line.
    """

    def __init__(self, folder: Path, max_file_bytes: int) -> None:
        self.folder = folder
        self.written: set[Path] = set()
        self._max = max_file_bytes
        self._current: dict[date, Path | None] = {}
        self._last_begun_ms = 0

    @contextmanager
    def opened(self) -> Iterator[ReceiptFiles]:
        """Make the folder, take it, and cut off what an earlier run has left incomplete. Raises ConfigurationError."""
        try:
            lock = self._take()
            try:
                self._repair()
            except OSError:
                os.close(lock)
                raise
        except BlockingIOError:
            raise ConfigurationError(f"{self.folder} is in use by another running export") from None
        except OSError as error:
            raise ConfigurationError(f"{error.filename or self.folder}: {error.strerror}") from None
        try:
            yield self
        finally:
            os.close(lock)

    def _take(self) -> int:
        if not self.folder.is_dir():
            self.folder.mkdir()
            _sync(self.folder.parent)
        lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise
        return lock

    def append(self, day: date, lines: Sequence[bytes]) -> None:
        """Append whole lines to the files of a day; they are on the disk when this returns. Raises OSError.

        Where it raises some of them may be there all the same.
        """
        waiting = list(reversed(lines))
        while waiting:
            path = self._current[day] if day in self._current else self._newest(day)
            # whatever goes wrong now, what comes next is written elsewhere: only the next run may repair this one
            self._current[day] = None
            piece, kept = self._append_some(path or self._begun(day), waiting)
            if kept is not None:
                del waiting[len(waiting) - piece :]
            self._current[day] = kept

    def _append_some(self, path: Path, waiting: Sequence[bytes]) -> tuple[int, Path | None]:
        """Append the last of these in reverse, as many as have room: how many, and where; nowhere if there is no room."""
        try:
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:  # taken away
            return 0, None
        try:
            size = os.fstat(file).st_size
            room = min(self._max - size, CHUNK_BYTES)
            piece: list[bytes] = []
            for line in reversed(waiting):
                room -= len(line)
                if room < 0 and (piece or size):
                    break
                piece.append(line)
            if not piece:
                return 0, None
            try:
                _write_all(file, b"".join(piece))
                os.fsync(file)
            except OSError:
                os.ftruncate(file, size)
                raise
            if not _is_there(path, file):  # taken away by somebody who may not have seen these lines
                return 0, None
        finally:
            os.close(file)
        self.written.add(path)
        return len(piece), path

    def _newest(self, day: date) -> Path | None:
        return max(self.folder.glob(f"receipts-{day.isoformat()}-*.jsonl"), default=None)

    def _begun(self, day: date) -> Path:
        """A new file, which stays if the power fails."""
        while True:
            # never the name of a file that was begun within this millisecond, or before the clock was set back, and taken away
            self._last_begun_ms = max(time.time_ns() // 1_000_000, self._last_begun_ms + 1)
            path = self.folder / f"receipts-{day.isoformat()}-{self._last_begun_ms}.jsonl"
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))
            except FileExistsError:
                continue
            _sync(self.folder)
            return path

    def _repair(self) -> None:
        """Cut off lines that are not complete, and what a power failure has left of a write that was not made safe."""
        sizes = {path: path.stat() for path in self.folder.glob("receipts-*.jsonl")}
        latest = max(sizes, key=lambda path: sizes[path].st_mtime_ns, default=None)
        for path, found in sizes.items():
            with path.open("rb", buffering=0) as file:
                end = found.st_size
                if path == latest:
                    start = max(0, end - 2 * CHUNK_BYTES)
                    hole = os.pread(file.fileno(), end - start, start).find(b"\0")
                    end = end if hole < 0 else start + hole
                end = _end_of_lines(file.fileno(), end)
            if end < found.st_size:
                with path.open("r+b", buffering=0) as file:
                    file.truncate(end)
                    os.fsync(file.fileno())


def _end_of_lines(file: int, end: int) -> int:
    """Where the last line that is complete before ``end`` ends."""
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _is_there(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

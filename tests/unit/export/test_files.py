"""Files of exported lines: safe when `append` returns, whole lines only, whatever happened before."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigurationError
from gateway.export import ReceiptFiles
from gateway.export.files import CHUNK_BYTES

DAY, NEXT = date(2026, 3, 10), date(2026, 3, 11)
LARGE = 1 << 30


def lines(*numbers: int) -> list[bytes]:
    return [b"%d\n" % number for number in numbers]


def found(folder: Path) -> dict[str, list[bytes]]:
    """What is in the files of each day, in their order."""
    contents: dict[str, list[bytes]] = {}
    for path in sorted(folder.glob("receipts-*.jsonl")):
        contents.setdefault(path.name[9:19], []).append(path.read_bytes())
    return contents


def the_file(folder: Path) -> Path:
    (path,) = folder.glob("receipts-*.jsonl")
    return path


def append(folder: Path, day: date, *batches: list[bytes], most: int = LARGE) -> None:
    """A run of its own."""
    with ReceiptFiles(folder, most).opened() as files:
        for batch in batches:
            files.append(day, batch)


def test_a_day_has_a_file_that_the_next_run_continues(tmp_path: Path):
    folder = tmp_path / "new"
    append(folder, DAY, lines(1, 2), lines(3))
    append(folder, NEXT, lines(4))
    append(folder, DAY, lines(5))
    assert found(folder) == {"2026-03-10": [b"1\n2\n3\n5\n"], "2026-03-11": [b"4\n"]}


def test_a_file_that_is_full_is_followed_by_another_and_a_line_is_never_split(tmp_path: Path):
    long = b"x" * 30 + b"\n"
    append(tmp_path, DAY, lines(*range(10)), [*lines(10), long, *lines(11)], most=8)
    parts = found(tmp_path)["2026-03-10"]
    assert b"".join(parts) == b"".join([*lines(*range(11)), long, *lines(11)])
    assert all(part.endswith(b"\n") and (len(part) <= 8 or part == long) for part in parts)


def test_more_lines_than_are_written_at_once_arrive_in_order(tmp_path: Path):
    many = [b"%d" % number + b"." * 900 + b"\n" for number in range(3 * CHUNK_BYTES // 900)]
    append(tmp_path, DAY, many)
    assert found(tmp_path) == {"2026-03-10": [b"".join(many)]}


@pytest.mark.parametrize("torn", [b'{"id":"a', b"x" * 200_000, b"\0" * 5_000, b"\0\0{}\n{}\n"])
def test_what_a_crash_has_left_incomplete_is_cut_off_at_the_next_start(tmp_path: Path, torn: bytes):
    append(tmp_path, DAY, lines(1, 2))
    path = the_file(tmp_path)
    with path.open("ab") as file:
        file.write(torn)
    append(tmp_path, DAY, lines(3))
    assert found(tmp_path) == {"2026-03-10": [b"1\n2\n3\n"]}


def test_a_file_with_nothing_but_a_torn_line_is_emptied_and_every_day_is_looked_at(tmp_path: Path):
    for day in ("2026-03-08", "2026-03-09"):
        (tmp_path / f"receipts-{day}-1.jsonl").write_bytes(b"torn")
    append(tmp_path, DAY, lines(1))
    assert found(tmp_path) == {"2026-03-08": [b""], "2026-03-09": [b""], "2026-03-10": [b"1\n"]}


def test_whole_files_are_left_alone_also_if_they_cannot_be_written(tmp_path: Path):
    old = tmp_path / "receipts-2026-03-09-1.jsonl"
    old.write_bytes(b"1\n")
    old.chmod(0o400)
    os.utime(old, (1, 1))
    append(tmp_path, DAY, lines(2))
    assert (old.read_bytes(), old.stat().st_mtime) == (b"1\n", 1)


@pytest.mark.parametrize("gone", [Path.unlink, lambda path: path.rename(path.with_suffix(".taken"))])
def test_a_file_that_was_taken_away_does_not_come_back_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: Callable[[Path], Any]
):
    monkeypatch.setattr(time, "time_ns", lambda: 1_795_491_183_189_000_000)  # all of it within a millisecond
    with ReceiptFiles(tmp_path, LARGE).opened() as files:
        files.append(DAY, lines(1))
        taken = the_file(tmp_path)
        gone(taken)
        files.append(DAY, lines(2))
        assert the_file(tmp_path) != taken
        assert found(tmp_path) == {"2026-03-10": [b"2\n"]}


def test_lines_of_a_file_that_is_taken_away_meanwhile_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fsync = os.fsync

    def fsync_and_lose(file: int) -> None:
        fsync(file)
        monkeypatch.setattr(os, "fsync", fsync)
        the_file(tmp_path).unlink()

    with ReceiptFiles(tmp_path, LARGE).opened() as files:
        files.append(DAY, lines(1))
        monkeypatch.setattr(os, "fsync", fsync_and_lose)
        files.append(DAY, lines(2))
    assert found(tmp_path) == {"2026-03-10": [b"2\n"]}


def test_a_folder_is_one_exports_at_a_time(tmp_path: Path):
    with (
        ReceiptFiles(tmp_path, LARGE).opened(),
        pytest.raises(ConfigurationError, match="in use by another"),
        ReceiptFiles(tmp_path, LARGE).opened(),
    ):
        raise AssertionError("two have it")
    append(tmp_path, DAY, lines(1))


@pytest.mark.parametrize(
    ("where", "message"), [("file/below", "Not a directory"), ("no/parent", "No such file"), ("file", "File exists")]
)
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, where: str, message: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=f"{tmp_path}/{where}.*: {message}"):
        append(tmp_path / where, DAY, [])


def test_lines_and_new_names_are_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[bytes | None] = []
    fsync = os.fsync

    def note(file: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(file).st_mode)
        synced.append(None if is_folder else the_file(folder).read_bytes())
        fsync(file)

    folder = tmp_path / "new"
    with ReceiptFiles(folder, LARGE).opened() as files:
        monkeypatch.setattr(os, "fsync", note)
        files.append(DAY, lines(1))
        assert synced == [None, b"1\n"]
        files.append(DAY, lines(2))
        assert synced[2:] == [b"1\n2\n"]


@pytest.mark.parametrize("fails", ["write", "fsync"])
def test_what_could_not_be_made_safe_is_not_there_and_later_lines_are_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
):
    """A disk that is full in the middle of a line, or cannot take what it has taken."""
    write = os.write

    def half(file: int, data: Any) -> int:
        if len(data) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: len(data) // 2])

    def broken(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with ReceiptFiles(tmp_path, LARGE).opened() as files:
        files.append(DAY, lines(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, fails, half if fails == "write" else broken)
            with pytest.raises(OSError, match=r"No space|Input/output"):
                files.append(DAY, lines(222222, 333333))
        assert found(tmp_path) == {"2026-03-10": [b"1\n"]}
        files.append(DAY, lines(2))
        assert found(tmp_path) == {"2026-03-10": [b"1\n", b"2\n"]}

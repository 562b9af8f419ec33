"""Each fault does what it says and nothing else; the server is real and counts what it is asked."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_proxy import HOST, Fault, FaultProxy, fault_proxy
from tests.single_server import wait_until

ROOT = Path(__file__).resolve().parents[2]
DELAY_MS = 150


class Echo(socketserver.ThreadingTCPServer):
    """Answers each line with "<line>!"; keeps the lines it has got."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Lines)
        self.got: list[str] = []
        self.port = int(self.server_address[1])

    def has_got(self, *lines: str) -> None:
        """Wait for exactly these."""
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: len(self.got) >= len(lines), "asked")
        assert self.got == list(lines)


class _Lines(socketserver.StreamRequestHandler):
    server: Echo

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            for line in self.rfile:
                self.server.got.append(line.decode().strip())
                self.wfile.write(line.strip() + b"!\n")


class Client:
    """A connection to the proxy."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=5)
        self._file = self._socket.makefile("rb")

    def ask(self, line: str) -> None:
        self._socket.sendall(f"{line}\n".encode())

    def reply(self) -> str:
        """Empty if the connection has ended."""
        try:
            return self._file.readline().decode().strip()
        except ConnectionError:
            return ""

    def is_silent(self, seconds: float = 0.3) -> bool:
        """Whether nothing comes and the connection stays."""
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(1)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with fault_proxy(echo.port, delay_ms=(DELAY_MS, DELAY_MS)) as running:
        yield running


@contextlib.contextmanager
def a_client(proxy: FaultProxy) -> Iterator[Client]:
    with contextlib.closing(Client(proxy.port)) as client:
        yield client


def test_without_faults_everything_passes_in_its_order(proxy: FaultProxy, echo: Echo):
    lines = [f"line {number} " + "x" * 5_000 for number in range(100)]
    with a_client(proxy) as client:
        client.ask("\n".join(lines))
        assert [client.reply() for _ in lines] == [f"{line}!" for line in lines]
    echo.has_got(*lines)
    assert not proxy.seen


def test_a_delayed_reply_comes_later_whole_and_before_the_next_one(proxy: FaultProxy, echo: Echo):
    proxy.next(Fault.DELAY_REPLY)
    with a_client(proxy) as client:
        start = time.monotonic()
        client.ask("late")
        echo.has_got("late")
        client.ask("next")
        assert client.reply() == "late!"
        assert time.monotonic() - start >= DELAY_MS / 1_000
        assert client.reply() == "next!"
        assert (proxy.seen, proxy.requests) == ({Fault.DELAY_REPLY: 1}, 2)


def test_a_dropped_reply_leaves_a_connection_on_which_nothing_comes_any_more(proxy: FaultProxy, echo: Echo):
    proxy.next(Fault.DROP_REPLY)
    with a_client(proxy) as client, a_client(proxy) as other:
        client.ask("a")
        echo.has_got("a")
        assert client.is_silent()
        client.ask("b")  # nobody could tell its reply from that of the first
        echo.has_got("a", "b")
        assert client.is_silent()
        other.ask("c")
        assert other.reply() == "c!"


def test_a_reply_is_dropped_and_the_connection_cut_only_when_the_server_has_answered(proxy: FaultProxy, echo: Echo):
    proxy.next(Fault.DROP_REPLY_AND_CUT)
    with a_client(proxy) as client:
        client.ask("a")
        assert client.reply() == ""
        assert echo.got == ["a"]


def test_a_connection_cut_before_the_request_leaves_the_server_unasked(proxy: FaultProxy, echo: Echo):
    proxy.next(Fault.CUT_BEFORE_REQUEST)
    with a_client(proxy) as client, a_client(proxy) as other:
        client.ask("a")
        assert client.reply() == ""
        other.ask("b")
        assert other.reply() == "b!"
    echo.has_got("b")


def test_a_connection_cut_after_the_request_leaves_the_server_asked(proxy: FaultProxy, echo: Echo):
    proxy.next(Fault.CUT_AFTER_REQUEST)
    with a_client(proxy) as client:
        client.ask("a")
        assert client.reply() == ""
    echo.has_got("a")


def test_garbage_comes_instead_of_a_reply_that_was_served_and_nothing_after_it(proxy: FaultProxy, echo: Echo):
    proxy.next(Fault.GARBAGE)
    with a_client(proxy) as client:
        client.ask("a")
        echo.has_got("a")
        garbage = client._socket.recv(1_000)
        assert garbage
        assert b"a!" not in garbage
        client.ask("b")
        echo.has_got("a", "b")
        assert client.is_silent()


def test_a_half_closed_connection_says_nothing_and_still_listens(
    proxy: FaultProxy, echo: Echo, caplog: pytest.LogCaptureFixture
):
    proxy.next(Fault.HALF_CLOSE, Fault.CUT_IN_REPLY)
    with a_client(proxy) as client:
        client.ask("a")
        assert client.reply() == ""
        client.ask("b")
        echo.has_got("a", "b")
    with a_client(proxy) as client:  # by now the first one's end has been noticed
        client.ask("c")
        assert client.reply() == "c!"
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_refusing_cuts_what_there_is_and_keeps_others_out_until_it_ends(proxy: FaultProxy, echo: Echo):
    with a_client(proxy) as client:
        client.ask("a")
        assert client.reply() == "a!"
        proxy.refuse()
        assert client.reply() == ""
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            Client(proxy.port)
    proxy.accept()
    with a_client(proxy) as client:
        client.ask("b")
        assert client.reply() == "b!"
    assert echo.got == ["a", "b"]


def test_a_server_that_refuses_looks_like_a_connection_that_ends(proxy: FaultProxy, echo: Echo):
    echo.shutdown()
    echo.server_close()
    with a_client(proxy) as client:
        client.ask("a")
        assert client.reply() == ""


def test_cutting_all_takes_new_connections(proxy: FaultProxy):
    with a_client(proxy) as client:
        client.ask("a")
        assert client.reply() == "a!"
        proxy.cut_all()
        assert client.reply() == ""
    with a_client(proxy) as client:
        client.ask("b")
        assert client.reply() == "b!"


def test_a_seed_repeats_what_happens_at_random(echo: Echo):
    shares = {Fault.CUT_BEFORE_REQUEST: 0.25, Fault.DROP_REPLY_AND_CUT: 0.25}

    def run(seed: int) -> list[str]:
        replies = []
        with fault_proxy(echo.port, seed=seed) as proxy:
            proxy.at_random(shares)
            for number in range(60):
                with a_client(proxy) as client:
                    client.ask(f"{number}")
                    replies.append(client.reply())
            assert set(proxy.seen) == set(shares)
            proxy.at_random({})
            with a_client(proxy) as client:
                client.ask("calm")
                assert client.reply() == "calm!"
        return replies

    first = run(1)
    assert 10 <= first.count("") <= 50
    assert run(1) == first
    assert run(2) != first


def test_it_runs_as_a_program_of_its_own_that_ends_with_its_input(echo: Echo):
    command = [sys.executable, "-m", "tests.fault_proxy", "--to", str(echo.port)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        port = int(program.stdout.readline())

        def tell(line: str) -> str:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(f"{line}\n")
            program.stdin.flush()
            return program.stdout.readline().strip()

        assert tell("next cut_before_request") == "nothing"
        with contextlib.closing(Client(port)) as client:
            client.ask("a")
            assert client.reply() == ""
        assert tell("seen") == "cut_before_request=1"
        assert tell("share drop_reply_and_cut 1") == "cut_before_request=1"
        with contextlib.closing(Client(port)) as client:
            client.ask("b")
            assert client.reply() == ""
        tell("refuse")
        with pytest.raises(ConnectionRefusedError):
            Client(port)
        tell("accept")
        program.stdin.close()
        assert program.wait(10) == 0
    assert echo.got == ["b"]

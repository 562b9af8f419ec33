"""A TCP proxy in front of a server that answers each request with one reply, and the faults a network has between the two.

In a test, in a thread of its own::

    with fault_proxy(server.port, seed=7) as proxy:
        proxy.next(Fault.DROP_REPLY_AND_CUT)              # what happens to the next request
        proxy.at_random({Fault.DELAY_REPLY: 0.01})        # or to some of them
        proxy.refuse()                                    # nobody listens any more

As a program it takes the same from its standard input and ends with it: ``python -m tests.fault_proxy --to 6379``.

It never changes the order of bytes and leaves none out in the middle: where something is swallowed, nothing follows. Bytes of
the client that come after some of the server begin a new request. Messages are taken to be small: nothing is held back
for a reader that is slow.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any

HOST = "127.0.0.1"
DELAY_MS = (20, 400)


class Fault(StrEnum):
    """What can happen to a request and its reply."""

    DELAY_REPLY = "delay_reply"
    """The reply comes, later."""
    SPLIT_REPLY = "split_reply"
    """The reply comes in two parts, the second a little later."""
    CUT_IN_REPLY = "cut_in_reply"
    """Half of the reply comes, then the end of the connection."""
    DROP_REPLY = "drop_reply"
    """The request is served; its reply never comes, nor anything else on this connection, which stays open."""
    DROP_REPLY_AND_CUT = "drop_reply_and_cut"
    """The request is served; instead of its reply comes the end of the connection."""
    CUT_BEFORE_REQUEST = "cut_before_request"
    """The connection ends, and the server never sees the request."""
    CUT_AFTER_REQUEST = "cut_after_request"
    """The connection ends as soon as the request is passed on, before there can be a reply."""
    GARBAGE = "garbage"
    """The request is served; instead of its reply comes what no server says, and then nothing more."""
    HALF_CLOSE = "half_close"
    """The request is served; instead of its reply comes the end of what the server says, which goes on reading."""


class FaultProxy:
    """A running proxy on ``port``. Its methods may be called from any thread but its own."""

    def __init__(self, to_port: int, seed: int, delay_ms: tuple[int, int], loop: asyncio.AbstractEventLoop) -> None:
        self.seen: Counter[Fault] = Counter()
        self.requests = 0
        self._to_port = to_port
        self._random = random.Random(seed)
        self._delay_ms = delay_ms
        self._loop = loop
        self._next: deque[Fault] = deque()
        self._shares: dict[Fault, float] = {}
        self._links: set[_Link] = set()
        self._listening: socket.socket | None = None
        self._taken: set[asyncio.Task[Any]] = set()
        # bound and never listening: keeps the port while nobody serves it
        self._placeholder = _reusable_socket(0)
        self.port = int(self._placeholder.getsockname()[1])

    def next(self, *faults: Fault) -> None:
        """The next requests suffer these, one each, before chance decides again."""
        self._next.extend(faults)

    def at_random(self, shares: Mapping[Fault, float]) -> None:
        """From now on so large a share of the requests suffers each fault."""
        assert sum(shares.values()) <= 1
        self._shares = dict(shares)

    def refuse(self) -> None:
        """Cut every connection and refuse new ones, until ``accept()``."""
        self._do(self._refuse)

    def accept(self) -> None:
        """Take connections again."""
        self._do(self._accept)

    def cut_all(self) -> None:
        """Cut every connection; new ones are taken."""
        self._do(self._cut_all)

    def _do(self, work: Callable[[], None]) -> None:
        async def run() -> None:
            work()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _accept(self) -> None:
        # not asyncio's own server: it loses connections that come while it is closed
        if self._listening is None:
            self._listening = _reusable_socket(self.port)
            self._listening.setblocking(False)
            self._listening.listen(1024)
            self._loop.add_reader(self._listening, self._take, self._listening)

    def _take(self, listening: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            client, _ = listening.accept()
            task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: _FromClient(self), client))
            self._taken.add(task)
            task.add_done_callback(self._taken.discard)

    def _refuse(self) -> None:
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        self._cut_all()

    def _cut_all(self) -> None:
        for link in list(self._links):
            link.cut()

    async def _stop(self) -> None:
        self._refuse()
        self._placeholder.close()
        # connections that are being taken or made; then the transports close in the next turn of the loop
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
        await asyncio.sleep(0)

    def _draw(self) -> Fault | None:
        self.requests += 1
        fault = self._next.popleft() if self._next else self._drawn()
        if fault is not None:
            self.seen[fault] += 1
        return fault

    def _drawn(self) -> Fault | None:
        left = self._random.random()
        for fault, share in self._shares.items():
            left -= share
            if left < 0:
                return fault
        return None


class _Link:
    """A client's connection and the one to the server that was made for it."""

    def __init__(self, proxy: FaultProxy, client: asyncio.Transport) -> None:
        self._proxy = proxy
        self._client = client
        self._server: asyncio.Transport | None = None
        self._fault: Fault | None = None
        self._is_asked = False
        self._is_silent = False
        self._has_ended = False  # the server has, as far as the client can see
        self._held: list[bytes] = []
        self._early: list[bytes] = []  # came before there was a connection to the server
        if proxy._listening is None:  # it stopped listening while this connection came
            client.abort()
            return
        proxy._links.add(self)
        self._connecting = proxy._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            transport, _ = await self._proxy._loop.create_connection(lambda: _FromServer(self), HOST, self._proxy._to_port)
        except OSError:
            self.cut()
            return
        self._server = transport
        if self._client.is_closing():
            self.cut()
            return
        early, self._early = self._early, []
        for data in early:
            self.asked(data)

    def asked(self, data: bytes) -> None:
        if self._server is None:  # not by a pause: Python up to 3.11.2 reads all the same if that is asked for at the beginning
            self._early.append(data)
            return
        if self._server.is_closing():
            return
        if not self._is_asked:
            self._is_asked = True
            self._fault = self._proxy._draw()
        if self._fault is Fault.CUT_BEFORE_REQUEST:
            self.cut()
            return
        self._server.write(data)
        if self._fault is Fault.CUT_AFTER_REQUEST:
            self._client.abort()
            self.end()

    def answered(self, data: bytes) -> None:
        self._is_asked = False
        match self._fault:
            case Fault.DROP_REPLY_AND_CUT:
                self.cut()
                return
            case Fault.CUT_IN_REPLY:
                if not self._is_silent:
                    self._held.append(data[: len(data) // 2])
                self.end()
                return
            case Fault.SPLIT_REPLY if not (self._held or self._is_silent):
                self._fault = None
                part = self._proxy._random.randrange(len(data))
                self._client.write(data[:part])
                self._held.append(data[part:])
                self._proxy._loop.call_later(0.002, self._release)
                return
            case Fault.DROP_REPLY:
                self._is_silent = True
            case Fault.GARBAGE if not self._is_silent:
                self._client.write(b"\x00\xffgarbage\r\n" * 3)
                self._is_silent = True
            case Fault.HALF_CLOSE if not self._is_silent:
                self._release()
                self._client.write_eof()
                self._is_silent = self._has_ended = True
            case Fault.DELAY_REPLY:
                self._fault = None
                self._hold()
        if self._is_silent:
            return
        if self._held:
            self._held.append(data)
        else:
            self._client.write(data)

    def _hold(self) -> None:
        self._held.append(b"")
        delay_ms = self._proxy._random.randint(*self._proxy._delay_ms)
        self._proxy._loop.call_later(delay_ms / 1_000, self._release)

    def _release(self) -> None:
        data, self._held = b"".join(self._held), []
        if not (self._client.is_closing() or self._has_ended):
            self._client.write(data)

    def end(self) -> None:
        """Either side has ended: the other one gets what was sent before that, and its end."""
        self._proxy._links.discard(self)
        self._release()
        for transport in (self._client, self._server):
            if transport is not None:
                transport.close()

    def cut(self) -> None:
        self._proxy._links.discard(self)
        self._held = []
        for transport in (self._client, self._server):
            if transport is not None:
                transport.abort()


class _FromClient(asyncio.Protocol):
    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy

    def connection_made(self, transport: Any) -> None:
        self._link = _Link(self._proxy, transport)

    def data_received(self, data: bytes) -> None:
        self._link.asked(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.end()


class _FromServer(asyncio.Protocol):
    def __init__(self, link: _Link) -> None:
        self._link = link

    def data_received(self, data: bytes) -> None:
        self._link.answered(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.end()


def _reusable_socket(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((HOST, port))
    return made


@contextlib.contextmanager
def fault_proxy(to_port: int, *, seed: int = 0, delay_ms: tuple[int, int] = DELAY_MS) -> Iterator[FaultProxy]:
    """A proxy to a port of loopback, in a thread. ``delay_ms``: how long a delayed reply takes, at least and at most.

    The seed decides which fault comes after which; which request it meets depends on their order.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fault proxy", daemon=True)
    thread.start()
    proxy = FaultProxy(to_port, seed, delay_ms, loop)
    try:
        proxy.accept()
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy._stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def main() -> None:
    """Lines on standard input: ``next <fault>``, ``share <fault> <share>``, ``refuse``, ``accept``, ``cut``, ``seen``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--to", type=int, required=True, help="port of the server")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shares: dict[Fault, float] = {}
    with fault_proxy(options.to, seed=options.seed) as proxy:
        print(proxy.port, flush=True)
        for line in sys.stdin:
            match line.split():
                case ["next", fault]:
                    proxy.next(Fault(fault))
                case ["share", fault, share]:
                    shares[Fault(fault)] = float(share)
                    proxy.at_random(shares)
                case ["refuse"]:
                    proxy.refuse()
                case ["accept"]:
                    proxy.accept()
                case ["cut"]:
                    proxy.cut_all()
                case ["seen"]:
                    pass
                case _:
                    print(f"not understood: {line.strip()}", file=sys.stderr)
                    sys.exit(2)
            print(" ".join(f"{fault}={count}" for fault, count in sorted(proxy.seen.items())) or "nothing", flush=True)


if __name__ == "__main__":
    main()

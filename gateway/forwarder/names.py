"""What names of targets resolve to. Whether a connection may go there is decided elsewhere, on the address."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

FRESH_S = 10.0
MOST_NAMES = 1_000
MOST_ADDRESSES = 16
"""Of one name: whoever owns a name may give it thousands, each of which would be connected to."""

MOST_LOOKUPS = 64
MOST_LOOKUPS_OF_ONE = 4
"""Under way for one owner: a lookup takes as long as the name's own servers want, and cannot be called back."""


class _Places:
    """Of one owner's lookups; ``users`` have one or wait for one."""

    __slots__ = ("free", "users")

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(MOST_LOOKUPS_OF_ONE)
        self.users = 0


class Names(AbstractResolver):
    """Looks names up by the system's means, each in a thread of its own, and remembers them for a moment.

    The event loop has few threads for lookups, four with uvloop: as many names whose servers do not answer would keep every
    other name from being found.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._known: OrderedDict[str, tuple[float, list[str]]] = OrderedDict()
        self._under_way: dict[str, asyncio.Future[None]] = {}
        self._places = asyncio.Semaphore(MOST_LOOKUPS)
        self._places_of: dict[str, _Places] = {}

    async def look_up(self, host: str, owner: str) -> None:
        """Have the addresses of a name ready. Raises OSError."""
        if self._is_fresh(host):
            return
        if host not in self._under_way:
            await self._take_place(owner)
            # others may have asked while this one waited
            if self._is_fresh(host) or host in self._under_way:
                self._leave_place(owner)
            else:
                self._begin(host, owner)
        if host in self._under_way:
            await asyncio.shield(self._under_way[host])

    def _is_fresh(self, host: str) -> bool:
        known = self._known.get(host)
        return known is not None and self._loop.time() < known[0]

    async def _take_place(self, owner: str) -> None:
        places = self._places_of.setdefault(owner, _Places())
        places.users += 1
        try:
            await places.free.acquire()
            try:
                await self._places.acquire()
            except BaseException:
                places.free.release()
                raise
        except BaseException:
            self._forget(owner, places)
            raise

    def _leave_place(self, owner: str) -> None:
        places = self._places_of[owner]
        places.free.release()
        self._places.release()
        self._forget(owner, places)

    def _forget(self, owner: str, places: _Places) -> None:
        places.users -= 1
        if not places.users:
            del self._places_of[owner]

    def _begin(self, host: str, owner: str) -> None:
        answer: asyncio.Future[None] = self._loop.create_future()
        # those who wait for it may have left
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._under_way[host] = answer
        # no executor: the process would wait for its threads when it ends
        threading.Thread(target=self._run, args=(host, owner), name="names", daemon=True).start()

    def _run(self, host: str, owner: str) -> None:
        """In the thread."""
        found: Sequence[Any] | OSError
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except OSError as error:
            found = error
        except ValueError:
            found = socket.gaierror(socket.EAI_NONAME, "not a name")
        try:
            self._loop.call_soon_threadsafe(self._found, host, owner, found)
        except RuntimeError:  # the loop is closed
            return

    def _found(self, host: str, owner: str, found: Sequence[Any] | OSError) -> None:
        self._leave_place(owner)
        answer = self._under_way.pop(host)
        if isinstance(found, OSError):
            answer.set_exception(found)
            return
        # an address with a zone is none for a target
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found if "%" not in str(info[4][0])))[:MOST_ADDRESSES]
        if not addresses:
            answer.set_exception(socket.gaierror(socket.EAI_NONAME, "no addresses"))
            return
        self._known[host] = self._loop.time() + FRESH_S, addresses
        self._known.move_to_end(host)
        if len(self._known) > MOST_NAMES:
            self._known.popitem(last=False)
        answer.set_result(None)

    # What aiohttp calls

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:  # noqa: ARG002
        """What `look_up` has found, each time another address first. Raises OSError."""
        if host not in self._known:
            await self.look_up(host, "")
        addresses = self._known[host][1]
        addresses.append(addresses.pop(0))
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nobody is waited for."""

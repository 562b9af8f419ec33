"""The gateway's own program, watched where it asks the system for names and connections: watched_gateway.py LOG [arguments]

Each line of the log is one question for a name, or one address that a socket was told to connect to. The socket is one that
refuses to, so nothing leaves the program; what connects past it is seen by Python's audit events. Names resolve as whoever owns
a domain may wish.
"""

from __future__ import annotations

import itertools
import json
import runpy
import socket
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PUBLIC, PUBLIC6 = "93.184.216.34", "2606:2800:220:1::1"
ANSWERS: list[list[str]] = [
    [PUBLIC],
    ["127.0.0.1"],
    [PUBLIC, "10.0.0.1", "::1", PUBLIC6],
    ["::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"],
    ["169.254.169.254"],
    [PUBLIC],
    ["169.254.169.254", PUBLIC],
    [f"10.{number >> 8}.{number & 255}.1" for number in range(3_000)] + [PUBLIC],
    ["::1", "0.0.0.0", "::", "fd00:ec2::254"],
    [PUBLIC6, "127.0.0.1"],
]
OWN = (".example", ".internal", ".internal.", "instance-data", ".example.")


class Refusing(socket.socket):
    """Connects to no network, and tells where it was to."""

    tell: Callable[[str], None]

    def connect(self, address: Any) -> None:
        """Raises ConnectionRefusedError."""
        if self.family in (socket.AF_INET, socket.AF_INET6):
            self.tell(address[0])
            raise ConnectionRefusedError(111, "watched")
        super().connect(address)


def watch(log: Any) -> None:
    """From now on."""
    real = socket.getaddrinfo
    turns: defaultdict[str, Iterator[list[str]]] = defaultdict(lambda: itertools.cycle(ANSWERS))

    def tell(what: str, value: Any) -> None:
        log.write(json.dumps({what: value}) + "\n")
        log.flush()

    def resolve(host: Any, port: Any, *given: Any, **more: Any) -> list[Any]:
        text = host.decode() if isinstance(host, bytes) else host
        if not isinstance(text, str) or not text.endswith(OWN):
            return list(real(host, port, *given, **more))
        tell("name", text)
        sys.modules["gateway.forwarder.names"].FRESH_S = 0.0  # type: ignore[attr-defined]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, text, (address, port or 0, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, text, (address, port or 0))
            for address in next(turns[text])
        ]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            tell("connect", arguments[1][0])
            raise ConnectionRefusedError("watched")

    Refusing.tell = staticmethod(lambda address: tell("connect", address))
    socket.socket = Refusing  # type: ignore[misc]
    socket.getaddrinfo = resolve
    sys.addaudithook(audit)


if __name__ == "__main__":
    path = Path(sys.argv.pop(1))
    with path.open("a", encoding="utf-8") as opened:
        watch(opened)
        runpy.run_module("gateway", run_name="__main__", alter_sys=True)

"""One listener: an app, its address, and the socket that takes it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from gateway.config import ServerSettings
from gateway.errors import ConfigurationError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

BACKLOG = 1024
"""Connections the kernel queues for each listener."""


@dataclass(frozen=True, slots=True)
class Listener:
    """An ASGI app and where it is served. ``name`` is ``admin`` or ``proxy`` for the two that have configuration keys.

    Port 0 takes a free port; ``ready`` of ``serve`` tells which.
    """

    app: ASGIApp
    host: str
    port: int
    name: str


def bind(name: str, host: str, port: int, write_stall_ms: int) -> socket.socket:
    """Take the address of the listener ``name``. Raises ConfigurationError that names the key."""
    host = host.strip("[]")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # accepted connections inherit both; not every engine sets the first itself
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, write_stall_ms)
        sock.bind((host, port))
        sock.listen(BACKLOG)  # only this settles who owns the port
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        is_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        key = f"{name}_{'host' if is_host else 'port'}"
        where = f"server.{key}" if key in ServerSettings.model_fields else name
        shown = f"[{host}]" if ":" in host else host
        raise ConfigurationError(f"{where}: cannot listen on {shown}:{port}: {error.strerror}") from None
    return sock

"""What an HTTP engine is, and which one the configuration names."""

from __future__ import annotations

import asyncio
import importlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from gateway.config import ServerSettings
from gateway.errors import ConfigurationError
from gateway.serving.bounds import Bounds
from gateway.serving.certificate import Certificate, Pair
from gateway.serving.listener import ASGIApp


@dataclass(frozen=True, slots=True)
class Assignment:
    """What an engine serves: an app on a bound socket, which the engine closes. Once a sign is set, replies say ``close``.

    With a certificate, clients speak TLS.
    """

    name: str
    app: ASGIApp
    socket: socket.socket
    settings: ServerSettings
    signs: Sequence[asyncio.Event]
    cleanup_ms: int
    bounds: Bounds
    certificate: Certificate | None = None

    @property
    def http2(self) -> bool:
        """Whether clients may choose HTTP/2."""
        return self.settings.http2 and self.certificate is not None


class Server(Protocol):
    """Serves one listener. ``accepting`` is set once it does."""

    name: str
    address: tuple[str, int]
    accepting: asyncio.Event

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set and every connection has ended."""

    def cut(self) -> int:
        """Cancel the requests that run; returns how many."""


class Engine(Protocol):
    """A module of an engine."""

    def create_server(self, assignment: Assignment) -> Server:
        """Prepare to serve; nothing is accepted before ``run``."""

    def check_pair(self, pair: Pair) -> None:
        """Raise ConfigurationError for a certificate that only this engine cannot use."""


def load_engine(name: str) -> Engine:
    """The engine of that name. Raises ConfigurationError that says what to install where it is missing."""
    try:
        return cast("Engine", importlib.import_module(f"gateway.serving.{name}_engine"))
    except ImportError as error:
        raise ConfigurationError(
            f"server.engine: {name} is missing, or not as this version wants it ({error}); pip install 'ai-gateway[{name}]'"
        ) from None

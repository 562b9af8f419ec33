"""What names resolve to in a test, decided where the gateway asks the system: as whoever owns a domain decides it."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from unittest import mock

Answer = Sequence[str] | OSError

_REAL = socket.getaddrinfo


class Resolver:
    """Answers each question with the next list of addresses, or error; the last one for ever. Called in threads."""

    def __init__(self, answers: Iterable[Answer], before: Callable[[str], object]) -> None:
        first, *rest = answers
        self._answers = itertools.chain([first], rest, itertools.repeat(rest[-1] if rest else first))
        self._before = before
        self.asked: list[str] = []

    def __call__(self, host: Any, port: Any, *given: Any, **more: Any) -> list[Any]:
        if not isinstance(host, str) or not host.endswith(".example"):
            return _REAL(host, port, *given, **more)
        self.asked.append(host)
        self._before(host)
        answer = next(self._answers)
        if isinstance(answer, OSError):
            raise answer
        return [_info(address) for address in answer]


def _info(address: str) -> tuple[Any, ...]:
    if ":" in address:
        plain, _, zone = address.partition("%")
        return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address if zone else plain, 0, 0, 1 if zone else 0)
    return socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)


@contextlib.contextmanager
def names_resolve_to(
    *answers: Answer, fresh_s: float = 0.0, before: Callable[[str], object] = lambda _: None
) -> Iterator[Resolver]:
    """Every name under ``.example`` resolves to these, one answer a question, each kept for so long.

    ``before`` is called with the name before each answer, in the thread of the question.
    """
    resolver = Resolver(answers, before)
    with mock.patch("socket.getaddrinfo", resolver), mock.patch("gateway.forwarder.names.FRESH_S", fresh_s):
        yield resolver

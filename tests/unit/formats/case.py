"""A recorded form of a reply, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.formats import Delivered, Endpoint, Usage, endpoint_of

FIXTURES = Path(__file__).with_name("fixtures")


@dataclass(frozen=True)
class Case:
    """A file, the path of the request that it replies to, the page that documents it, and the usage it tells."""

    file: str
    path: str
    documented: str
    usage: Usage | None

    @property
    def body(self) -> bytes:
        return (FIXTURES / self.file).read_bytes()

    @property
    def endpoint(self) -> Endpoint:
        endpoint = endpoint_of("auto", "POST", self.path)
        assert endpoint is not None
        return endpoint


@dataclass(frozen=True)
class Whole(Case):
    """A reply in one piece."""


@dataclass(frozen=True)
class Streamed(Case):
    """A stream. ``hides_usage`` marks those of requests to which usage was added on the client's behalf."""

    delivered: Delivered
    ended: bool = True
    failed: bool = False
    hides_usage: bool = False

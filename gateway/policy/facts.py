"""What must be known of a request to decide it."""

from __future__ import annotations

from typing import Protocol

from gateway.headers import RawHeaders


class RequestFacts(Protocol):
    """A request without its body, or the description of one. ``path`` is percent-encoded, header names are lower case."""

    method: str
    path: str
    headers: RawHeaders
    client_ip: str
    has_body: bool

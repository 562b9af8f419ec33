"""HTTP calls to loopback that send exactly what they are told to: no default headers, no clean-up of paths, no redirects."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Answer:
    """A whole answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def refusal(self) -> tuple[int, str, str | None]:
        """Status, code and param of an error; fails if it lacks what SDKs rely on."""
        error = self.json["error"]
        assert error["message"]
        assert error["type"]
        assert error["request_id"] == self.headers["x-request-id"]
        return self.status, error["code"], error["param"]


def call(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    *,
    key: str | None = None,
    host: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    data: bytes | None = None,
    timeout: float = TIMEOUT_S,
) -> Answer:
    """One request. ``body`` is sent as JSON, ``data`` as it is; ``key`` as a bearer token."""
    fields = [("Host", host or f"localhost:{port}"), *headers]
    if key is not None:
        fields.append(("Authorization", f"Bearer {key}"))
    if body is not None:
        data = json.dumps(body).encode()
    if data is not None:
        names = {name.lower() for name, _ in fields}
        fields += [("Content-Type", "application/json")] if "content-type" not in names else []
        fields += [("Content-Length", str(len(data)))]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return raw(port, f"{method} {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode() + (data or b""), timeout=timeout)


def raw(port: int, request: bytes, *, timeout: float = TIMEOUT_S) -> Answer:
    """These bytes, and the answer to them. Raises OSError, http.client.HTTPException."""
    with socket.create_connection((HOST, port), timeout=timeout) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)  # it may be refused before all of it was read; the answer is what counts
        reply = http.client.HTTPResponse(connection, method=request.split(b" ", 1)[0].decode())
        try:
            reply.begin()
            return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
        finally:
            reply.close()

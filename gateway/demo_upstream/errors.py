"""The errors that answer a wrong request, and those that a request asked for."""

from __future__ import annotations

from typing import Any, NoReturn

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
FAILED = "The demo was asked to fail here."


class DemoError(Exception):
    """An answer with an error status, in OpenAI's shape."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}


class StreamCutError(Exception):
    """The stream ends here, without its end."""


class StreamFailedError(Exception):
    """The stream goes on with an error event of its provider's form (``FAILED``), and ends."""


def refuse(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> NoReturn:
    """Raise a DemoError."""
    raise DemoError(status, message, param=param, code=code)

"""What every answer with an error has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class ConfigurationError(Exception):
    """The process cannot start as configured. The message names the key; the CLI prints it without a traceback."""


class GatewayError(Exception):
    """An answer with an error status.

    ``param`` names the field or header at fault. ``headers`` are added to the answer. ``details`` are further members
    of the ``error`` object. ``noted_code`` is what the log and the metrics say where that is more than the code.
    """

    status: int = 500
    code: str = "internal_error"
    type: str = "api_error"
    noted_code: str | None = None
    default_message: ClassVar[str] = "The gateway failed to handle the request."

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message or self.default_message)
        self.param = param
        self.headers = tuple(headers)
        self.details = dict(details or {})

    @property
    def message(self) -> str:
        """What the client reads."""
        return str(self.args[0])

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON document of the answer."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
            "request_id": request_id,
        }
        return {"error": error | self.details}


class InternalError(GatewayError):
    """A bug. The client learns nothing but the request id; the log has the traceback."""

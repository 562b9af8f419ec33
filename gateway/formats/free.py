"""Calls that cost nothing, such as counting the tokens of a prompt, though their replies look as if they did."""

from __future__ import annotations

from gateway.formats.endpoint import Asked, Delivered, Fields
from gateway.formats.reading import string_in
from gateway.formats.usage import Usage


class FreeReader:
    """Reads nothing: the usage is known to be none."""

    __slots__ = ("ended", "failed", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = Usage()
        self.ended = False
        self.failed = False

    def read(self, data: bytes) -> bool:  # noqa: ARG002  nothing in it costs
        """Ignore an event."""
        return False

    def delivered(self) -> Delivered:
        """Nothing."""
        return Delivered()


class Free:
    """A call whose usage is zero, whatever it is about."""

    streams_json = False
    takes_forms = False

    def __init__(self, name: str) -> None:
        self.name = name

    def asked(self, fields: Fields, path: str) -> Asked:  # noqa: ARG002  of the fields only the model matters
        """The model alone: no model reads or writes anything."""
        return Asked(string_in(fields, "model"), max_output_tokens=0)

    def asks_for_usage(self, fields: Fields) -> dict[str, bytes]:  # noqa: ARG002
        """Nothing to ask for."""
        return {}

    def bounded(self, fields: Fields, max_output_tokens: int) -> dict[str, bytes]:  # noqa: ARG002
        """Nothing to bound."""
        return {}

    def usage_of(self, body: bytes) -> Usage | None:  # noqa: ARG002
        """Zero."""
        return Usage()

    def stream(self) -> FreeReader:
        """A reader that reads nothing."""
        return FreeReader()

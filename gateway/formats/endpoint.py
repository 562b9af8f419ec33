"""What every format tells of a request and of its reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from gateway.formats.usage import Usage

Fields = Mapping[str, bytes]
"""The top-level fields of a JSON object, each value as the JSON text that stood there."""


class Asked(NamedTuple):
    """What a request asks for, as far as it decides what the answer can cost.

    ``prompt`` are the texts that the model reads: messages, instructions, definitions of tools. ``media_parts`` counts images,
    audio and files, whose tokens no text tells. ``max_output_tokens`` bounds one answer; None if the client set no bound, 0
    where the endpoint writes no tokens (embeddings). ``answers`` is how many are asked for.
    """

    model: str
    streams: bool = False
    prompt: tuple[str, ...] = ()
    media_parts: int = 0
    max_output_tokens: int | None = None
    answers: int = 1


class Delivered(NamedTuple):
    """What a stream has delivered so far, for one that ends without telling its usage.

    ``pieces`` counts events that carried output, each at least one token; ``ascii_chars`` and ``other_chars`` are the
    characters of text, reasoning, refusals and arguments of tool calls in them.
    """

    pieces: int = 0
    ascii_chars: int = 0
    other_chars: int = 0


class StreamReader(Protocol):
    """Reads the events of one streamed reply, in their order."""

    usage: Usage | None
    """As the stream has told it by now; None while it has not.

    Until the stream has ended, its output may be too low (Anthropic tells input at the beginning): weigh what was delivered.
    """
    ended: bool
    """True once the stream has said that it is complete."""
    failed: bool
    """True once the stream has reported an error."""

    def read(self, data: bytes) -> bool:
        """Take the data of one event.

        True if the event carries nothing but the usage that was asked for on the client's behalf.
        """

    def delivered(self) -> Delivered:
        """What came until now."""


class Endpoint(Protocol):
    """One kind of call of one provider's API."""

    name: str
    """Such as ``openai.chat``."""
    streams_json: bool
    """True if a stream may come as the elements of a JSON array instead of as events."""
    takes_forms: bool
    """True if it may be asked for by a form (``multipart/form-data``) instead of by JSON."""

    def asked(self, fields: Fields, path: str) -> Asked:
        """What a JSON request asks for; ``path`` is the upstream's.

        Fields of a form that the provider would refuse are ignored.
        """

    def asks_for_usage(self, fields: Fields) -> dict[str, bytes]:
        """The fields to replace so that a stream tells its usage at its end; empty if it does so by itself or is asked to."""

    def bounded(self, fields: Fields, max_output_tokens: int) -> dict[str, bytes]:
        """The fields to replace so that one answer is at most so long."""

    def usage_of(self, body: bytes) -> Usage | None:
        """What a whole reply tells of its usage; None if it tells nothing, which is not the same as zero."""

    def stream(self) -> StreamReader:
        """A reader for one streamed reply."""

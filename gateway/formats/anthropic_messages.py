"""Anthropic's messages, also as Vertex serves them."""

from __future__ import annotations

import msgspec

from gateway.formats.anthropic_usage import AnthropicCounts
from gateway.formats.document import write_fields
from gateway.formats.endpoint import Asked, Delivered, Fields
from gateway.formats.prompt import prompt_of
from gateway.formats.reading import (
    UNREADABLE,
    flag_in,
    members_of,
    number_in,
    raw_texts,
    repaired,
    string_in,
    value_of,
)
from gateway.formats.tally import Tally
from gateway.formats.usage import Usage

LEAST_THINKING = 1024
"""Tokens; the API refuses a smaller budget."""


class _Message(msgspec.Struct, gc=False):
    usage: msgspec.Raw = msgspec.Raw()


class _Block(msgspec.Struct, gc=False):
    type: str | None = None
    name: str | None = None
    text: str | None = None


class _Delta(msgspec.Struct, gc=False):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    content: str | None = None
    stop_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: msgspec.Raw = msgspec.Raw()


class _Reply(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Event).decode
_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_kind = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class MessagesReader:
    """Reads the events of a message.

    ``usage`` is told at the beginning for the input, with an output of a token or so, and at the end for the output: of a
    stream that is cut in between, what was delivered says more about the output than its usage does.

    https://docs.anthropic.com/en/api/messages-streaming
    """

    __slots__ = ("_counts", "_tally", "ended", "failed", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.ended = False
        self.failed = False
        self._counts = AnthropicCounts()
        self._tally = Tally()

    def delivered(self) -> Delivered:
        """What came until now."""
        return self._tally.delivered()

    def read(self, data: bytes) -> bool:
        """Take the data of one event. Never True: no usage is asked for on a client's behalf."""
        try:
            event = _decode(data)
        except UNREADABLE:
            try:
                event = _decode(repaired(data))
            except UNREADABLE:
                self._read_odd(data)
                return False
        delta = event.delta
        if delta is not None:
            self._tally.piece(delta.text or delta.thinking or delta.partial_json or delta.content)
            if delta.stop_reason is not None:
                self.ended = True  # all that follows is message_stop
        if event.content_block is not None:
            self._read_block(event.content_block)
        if event.message is not None:
            self.usage = self._counts.take(value_of(event.message.usage))
        if event.usage:
            self.usage = self._counts.take(value_of(event.usage))
        if event.type == "message_stop":
            self.ended = True
        elif event.type == "error":
            self.failed = True
        return False

    def _read_block(self, block: _Block) -> None:
        if block.type in {
            "text",
            "tool_use",
            "server_tool_use",
            "mcp_tool_use",
        }:  # others are results, which tools have written
            self._tally.piece(block.text or block.name)

    def _read_odd(self, data: bytes) -> None:
        try:
            members = _decode_kind(repaired(data))
        except UNREADABLE:
            return
        self._tally.piece_of(value_of(members.get("delta")))
        self.usage = self._counts.take(value_of(members.get("usage")))
        self.failed = self.failed or value_of(members.get("type")) == "error"


class AnthropicMessages:
    """``POST …/v1/messages``, and ``…/publishers/anthropic/models/MODEL:rawPredict`` of Vertex.

    https://docs.anthropic.com/en/api/messages
    """

    name = "anthropic.messages"
    streams_json = False
    takes_forms = False

    def asked(self, fields: Fields, path: str) -> Asked:
        """What a JSON request asks for."""
        prompt = prompt_of(fields.get("messages"))
        prompt.read(fields.get("system"))
        prompt.texts += raw_texts(fields, "tools", "output_format", "output_config")
        model, _, method = path.rpartition("/")[2].partition(":")
        return Asked(
            model=string_in(fields, "model") or (model if method else ""),
            streams=flag_in(fields, "stream"),
            prompt=tuple(prompt.texts),
            media_parts=prompt.media_parts,
            max_output_tokens=number_in(fields, "max_tokens") or None,
        )

    def asks_for_usage(self, fields: Fields) -> dict[str, bytes]:  # noqa: ARG002
        """Nothing: streams tell it by themselves."""
        return {}

    def bounded(self, fields: Fields, max_output_tokens: int) -> dict[str, bytes]:
        """``max_tokens``, unless it is as low, and a budget for thinking below it: the API refuses one that is not."""
        if 0 < (number_in(fields, "max_tokens") or 0) <= max_output_tokens:
            return {}
        changed = {"max_tokens": b"%d" % max_output_tokens}
        thinking = members_of(fields.get("thinking")) or {}
        budget = number_in(thinking, "budget_tokens")
        if budget is not None and budget >= max_output_tokens > LEAST_THINKING:
            changed["thinking"] = write_fields({**thinking, "budget_tokens": b"%d" % (max_output_tokens - 1)})
        return changed

    def usage_of(self, body: bytes) -> Usage | None:
        """What a whole reply tells of its usage."""
        try:
            reply = _decode_reply(body)
        except UNREADABLE:
            try:
                reply = _decode_reply(repaired(body))
            except UNREADABLE:
                return None
        return AnthropicCounts().take(value_of(reply.usage))

    def stream(self) -> MessagesReader:
        """A reader for one streamed reply."""
        return MessagesReader()

"""OpenAI's Responses API."""

from __future__ import annotations

import msgspec

from gateway.formats.endpoint import Asked, Delivered, Fields
from gateway.formats.openai_usage import openai_usage, usage_in_reply
from gateway.formats.prompt import prompt_of
from gateway.formats.reading import UNREADABLE, flag_in, number_in, raw_texts, repaired, string_in, value_of
from gateway.formats.tally import Tally
from gateway.formats.usage import Usage

_ENDS = frozenset({"response.completed", "response.incomplete", "response.cancelled"})
_FAILS = frozenset({"response.failed", "error"})


class _Response(msgspec.Struct, gc=False):
    usage: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: str | None = None
    response: _Response | None = None


class _OddEvent(msgspec.Struct):
    type: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Event).decode
_decode_odd = msgspec.json.Decoder(_OddEvent).decode


class ResponsesReader:
    """Reads the events of a response, whose last one has it as a whole.

    https://platform.openai.com/docs/api-reference/responses-streaming
    """

    __slots__ = ("_tally", "ended", "failed", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.ended = False
        self.failed = False
        self._tally = Tally()

    def delivered(self) -> Delivered:
        """What came until now."""
        return self._tally.delivered()

    def read(self, data: bytes) -> bool:
        """Take the data of one event. Never True: no usage is asked for on a client's behalf."""
        try:
            event = _decode(data)
        except UNREADABLE:
            self._read_odd(data)
            return False
        kind = event.type
        if event.delta:
            self._take_delta(kind, event.delta)
        elif event.response is not None:
            usage = openai_usage(value_of(event.response.usage))
            if usage is not None:
                self.usage = usage
        if kind in _ENDS:
            self.ended = True
        elif kind in _FAILS:
            self.failed = True
        elif not kind:
            self._read_odd(data)
        return False

    def _take_delta(self, kind: str, delta: str) -> None:
        if kind.endswith("audio.delta"):  # base64
            self._tally.pieces += 1
        else:
            self._tally.piece(delta)

    def _read_odd(self, data: bytes) -> None:
        if data.strip() == b"[DONE]":  # some compatible servers
            self.ended = True
            return
        try:
            event = _decode(repaired(data))
        except UNREADABLE:
            self._read_kind(data)
            return
        if event.delta:
            self._take_delta(event.type, event.delta)
        elif not event.type:
            self._read_kind(data)

    def _read_kind(self, data: bytes) -> None:
        """An event of another form, such as outputs of a shell, which the model has not written."""
        try:
            event = _decode_odd(data)
        except UNREADABLE:
            return
        if value_of(event.error) or value_of(event.type) in _FAILS:
            self.failed = True


class OpenAIResponses:
    """``POST …/responses``.

    https://platform.openai.com/docs/api-reference/responses/create
    """

    name = "openai.responses"
    streams_json = False
    takes_forms = False

    def asked(self, fields: Fields, path: str) -> Asked:  # noqa: ARG002  the model is in the request, with Azure too
        """What a JSON request asks for. What ``previous_response_id`` or ``conversation`` add to the prompt nobody can see."""
        prompt = prompt_of(fields.get("input"))
        prompt.read(fields.get("instructions"))
        prompt.texts += raw_texts(fields, "tools", "text", "prompt")
        return Asked(
            model=string_in(fields, "model"),
            streams=flag_in(fields, "stream"),
            prompt=tuple(prompt.texts),
            media_parts=prompt.media_parts,
            max_output_tokens=number_in(fields, "max_output_tokens") or None,
        )

    def asks_for_usage(self, fields: Fields) -> dict[str, bytes]:  # noqa: ARG002
        """Nothing: the last event has it."""
        return {}

    def bounded(self, fields: Fields, max_output_tokens: int) -> dict[str, bytes]:
        """``max_output_tokens``, unless it is as low. OpenAI refuses less than 16."""
        if 0 < (number_in(fields, "max_output_tokens") or 0) <= max_output_tokens:
            return {}
        return {"max_output_tokens": b"%d" % max_output_tokens}

    def usage_of(self, body: bytes) -> Usage | None:
        """What a whole reply tells of its usage; nothing as long as it is in progress in the background."""
        return usage_in_reply(body)

    def stream(self) -> ResponsesReader:
        """A reader for one streamed reply."""
        return ResponsesReader()

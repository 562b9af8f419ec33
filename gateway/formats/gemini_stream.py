"""What Gemini replies: whole, or in parts of the same form."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.formats.endpoint import Delivered
from gateway.formats.reading import MOST, UNREADABLE, repaired, value_of, whole_number
from gateway.formats.tally import Tally
from gateway.formats.usage import Usage


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    function_call: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="functionCall")
    executable_code: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="executableCode")
    inline_data: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="inlineData")


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, gc=False):
    content: _Content | None = None
    index: int = 0
    finish_reason: str | None = msgspec.field(default=None, name="finishReason")


class _Reply(msgspec.Struct, gc=False):
    candidates: list[_Candidate] | None = None
    usage: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="usageMetadata")
    feedback: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="promptFeedback")
    error: msgspec.Raw = msgspec.Raw()


class _Told(msgspec.Struct):
    usage: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="usageMetadata")


_decode = msgspec.json.Decoder(_Reply).decode
_decode_told = msgspec.json.Decoder(_Told | list[_Told]).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def gemini_usage(usage: Any) -> Usage | None:
    """Normalise a decoded ``usageMetadata``; None if there is no count in it.

    ``promptTokenCount`` holds cached tokens, but not those that tools have added; ``candidatesTokenCount`` does not hold
    thoughts. All four make the total. What the total has beyond them has been written.

    https://ai.google.dev/api/generate-content#UsageMetadata
    """
    if not isinstance(usage, dict):
        return None
    told = {name: number for name, value in usage.items() if (number := whole_number(value)) is not None}
    if not told:
        return None
    read = told.get("promptTokenCount", 0) + told.get("toolUsePromptTokenCount", 0)
    thoughts = told.get("thoughtsTokenCount", 0)
    written = told.get("candidatesTokenCount", told.get("responseTokenCount", 0)) + thoughts
    if "promptTokenCount" in told:
        written = max(written, told.get("totalTokenCount", 0) - read)
    else:
        read = max(read, told.get("totalTokenCount", 0) - written)
    cached = min(told.get("cachedContentTokenCount", 0), read)
    read_audio = _audio(usage, "promptTokensDetails") + _audio(usage, "toolUsePromptTokensDetails")
    return Usage(
        input_tokens=read,
        output_tokens=written,
        cached_tokens=cached,
        reasoning_tokens=thoughts,
        input_audio_tokens=min(read_audio, read),
        output_audio_tokens=min(_audio(usage, "candidatesTokensDetails") + _audio(usage, "responseTokensDetails"), written),
        cached_audio_tokens=min(_audio(usage, "cacheTokensDetails"), cached, read_audio),
    )


def gemini_usage_in_reply(body: bytes) -> Usage | None:
    """The usage of a whole reply, or of a whole stream that is a JSON array: the last one told."""
    try:
        told = _decode_told(body)
    except UNREADABLE:
        try:
            told = _decode_told(repaired(body))
        except UNREADABLE:
            return None
    usages = [gemini_usage(value_of(each.usage)) for each in (told if isinstance(told, list) else [told])]
    return next((usage for usage in reversed(usages) if usage is not None), None)


class GeminiReader:
    """Reads the parts of a streamed reply, whether they are events or elements of an array.

    Each may tell usage, counted from the beginning: the last word holds. There is no event that ends a stream; it is
    complete once every candidate has a reason to be, or the prompt was blocked.

    https://ai.google.dev/api/generate-content#method:-models.streamgeneratecontent
    """

    __slots__ = ("_tally", "_unfinished", "ended", "failed", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.ended = False
        self.failed = False
        self._tally = Tally()
        self._unfinished: set[int] = set()

    def delivered(self) -> Delivered:
        """What came until now."""
        return self._tally.delivered()

    def read(self, data: bytes) -> bool:
        """Take the data of one event. Never True: no usage is asked for on a client's behalf."""
        try:
            reply = _decode(data)
        except UNREADABLE:
            try:
                reply = _decode(repaired(data))
            except UNREADABLE:
                self._read_odd(data)
                return False
        for candidate in reply.candidates or ():
            if candidate.content is not None:
                for part in candidate.content.parts or ():
                    self._read_part(part)
            self._see(candidate.index, candidate.finish_reason)
        self._read_rest(reply.usage, reply.feedback, reply.error)
        return False

    def _read_part(self, part: _Part) -> None:
        if part.text:
            self._tally.piece(part.text)
        elif part.function_call or part.executable_code:
            self._tally.piece_of(value_of(part.function_call), value_of(part.executable_code))
        elif part.inline_data:
            self._tally.pieces += 1

    def _see(self, index: int, finish_reason: Any) -> None:
        if finish_reason:
            self._unfinished.discard(index)
        else:
            self._unfinished.add(index)
        self.ended = not self._unfinished

    def _read_rest(self, usage: Any, feedback: Any, error: Any) -> None:
        if usage:
            self.usage = gemini_usage(value_of(usage)) or self.usage
        if feedback:
            told = value_of(feedback)
            self.ended = self.ended or (isinstance(told, dict) and bool(told.get("blockReason")))
        if error and value_of(error):
            self.failed = True

    def _read_odd(self, data: bytes) -> None:
        """A part of another form than is documented: read what can be read."""
        try:
            members = _decode_members(repaired(data))
        except UNREADABLE:
            return
        candidates = value_of(members.get("candidates"))
        for candidate in candidates if isinstance(candidates, list) else ():
            if isinstance(candidate, dict):
                self._tally.piece_of(candidate.get("content"))
                index = candidate.get("index")
                self._see(index if isinstance(index, int) else 0, candidate.get("finishReason"))
        self._read_rest(members.get("usageMetadata"), members.get("promptFeedback"), members.get("error"))


def _audio(usage: dict[str, Any], name: str) -> int:
    details = usage.get(name)
    counts = [
        whole_number(each.get("tokenCount")) or 0
        for each in (details if isinstance(details, list) else ())
        if isinstance(each, dict) and each.get("modality") == "AUDIO"
    ]
    return min(sum(counts), MOST)

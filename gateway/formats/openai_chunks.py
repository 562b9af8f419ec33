"""The chunks in which OpenAI's chat completions and completions are streamed, and those of compatible servers."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.formats.endpoint import Delivered
from gateway.formats.openai_usage import openai_usage
from gateway.formats.reading import UNREADABLE, repaired, value_of
from gateway.formats.tally import Tally
from gateway.formats.usage import Usage


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None
    custom: msgspec.Raw = msgspec.Raw()


class _Audio(msgspec.Struct, gc=False):
    transcript: str | None = None
    data: msgspec.Raw = msgspec.Raw()


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    audio: _Audio | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: str | None = None
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    x_groq: msgspec.Raw = msgspec.Raw()
    prompt_filter_results: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Chunk).decode


class ChunkReader:
    """Reads ``chat.completion.chunk`` and ``text_completion`` events.

    Usage may stand in an event of its own (OpenAI, on request), on the last one with content (Mistral, DeepSeek, Groq under
    ``x_groq``), or on each (xAI, Perplexity, vLLM on request), where it counts from the beginning: the last word holds.

    https://platform.openai.com/docs/api-reference/chat-streaming
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
        """Take the data of one event. True for one that has no choices and tells usage.

        Azure begins a stream with an event that has no choices either, but results of its filters: that one is to be seen.
        """
        try:
            chunk = _decode(data)
        except UNREADABLE:
            return self._read_odd(data)
        choices = chunk.choices
        if choices is None:
            return self._read_odd(data)
        for choice in choices:
            self._read_choice(choice)
        if chunk.error or chunk.x_groq:
            self._read_extras(value_of(chunk.error), value_of(chunk.x_groq))
        usage = bytes(chunk.usage)
        if not usage or usage == b"null" or not self._take_usage(value_of(chunk.usage)):
            return False
        return not (choices or chunk.prompt_filter_results or chunk.error)

    def _read_choice(self, choice: _Choice) -> None:
        delta = choice.delta
        tally = self._tally
        if delta is not None:
            text = delta.content
            if text:
                tally.pieces += 1
                if text.isascii():  # as in Tally.add, one call less for what nearly every event is
                    tally.ascii_chars += len(text)
                else:
                    tally.add(text)
            if delta.reasoning_content or delta.reasoning:
                tally.piece(delta.reasoning_content or delta.reasoning)  # some servers send the same under both names
            if delta.refusal:
                tally.piece(delta.refusal)
            if delta.tool_calls or delta.function_call is not None or delta.audio is not None:
                self._read_calls(delta)
        elif choice.text:
            tally.piece(choice.text)
        if choice.finish_reason is None:
            self._unfinished.add(choice.index)
            self.ended = False
        else:
            self._finish(choice.index, choice.finish_reason)

    def _finish(self, index: int, reason: str) -> None:
        self._unfinished.discard(index)
        if reason == "error":  # OpenRouter
            self.failed = True
        else:
            self.ended = not self._unfinished

    def _read_calls(self, delta: _Delta) -> None:
        functions = [call.function for call in delta.tool_calls or ()]
        for function in (*functions, delta.function_call):
            if function is not None:
                self._tally.piece((function.name or "") + (function.arguments or ""))
        for call in delta.tool_calls or ():
            if call.custom:
                self._tally.piece_of(value_of(call.custom))
        audio = delta.audio
        if audio is not None and (audio.transcript or audio.data):
            self._tally.pieces += 1
            self._tally.add(audio.transcript or "")

    def _take_usage(self, usage: Any) -> bool:
        told = openai_usage(usage)
        if told is not None:
            self.usage = told
        return isinstance(usage, dict)

    def _read_extras(self, error: Any, groq: Any) -> None:
        if error:
            self.failed = True
        if isinstance(groq, dict):
            self._take_usage(groq.get("usage"))
            self.failed = self.failed or bool(groq.get("error"))

    def _read_odd(self, data: bytes) -> bool:
        """An event without choices, or of another form than OpenAI's, such as Mistral's ``content`` in parts."""
        if data.strip() == b"[DONE]":
            self.ended = True
            return False
        chunk = value_of(repaired(data))
        if not isinstance(chunk, dict):
            return False
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._tally.piece_of(choice.get("delta"), choice.get("text"))
                index = choice.get("index")
                index = index if isinstance(index, int) else 0
                if isinstance(reason := choice.get("finish_reason"), str):
                    self._finish(index, reason)
                else:
                    self._unfinished.add(index)
        told = self._take_usage(chunk.get("usage"))
        error = chunk.get("error") or chunk.get("object") == "error"  # older versions of vLLM
        self._read_extras(error, chunk.get("x_groq"))
        return told and choices == [] and not chunk.get("prompt_filter_results") and not chunk.get("error")

"""What a model reads of messages, in the formats of OpenAI and Anthropic, whose parts have the same few members."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.formats.reading import UNREADABLE

MEDIA = frozenset(
    {
        "image_url", "input_audio", "file", "video_url", "audio_url",  # chat
        "input_image", "input_file", "input_video", "computer_screenshot",  # responses
        "image", "document", "container_upload",  # Anthropic
    }
)  # fmt: skip
"""Types of parts whose tokens no text tells."""


class Source(msgspec.Struct, gc=False):
    """Where Anthropic's documents come from: base64, an address, plain text, or parts of their own."""

    type: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    content: str | list[Part] | None = None


class Part(msgspec.Struct):
    """A message, a part of one, or an item of a conversation.

    Only what can hold text is named: everything else, base64 above all, is skipped without being copied.
    """

    type: str | None = None
    name: str | None = None
    text: str | None = None
    content: str | list[Part | str] | Part | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None
    title: str | None = None
    context: str | None = None
    arguments: str | None = None
    output: str | list[Part] | Part | None = None
    summary: list[Part] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()
    function_call: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    action: msgspec.Raw = msgspec.Raw()
    source: Source | None = None


_decode_parts = msgspec.json.Decoder(str | list[Part | str] | None).decode
_decode_each = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_part = msgspec.json.Decoder(Part | str).decode


class Prompt:
    """Collects texts and counts media."""

    __slots__ = ("media_parts", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.media_parts = 0

    def read(self, raw: bytes | None) -> None:
        """Add a text, or a list of messages or parts. What has an unexpected form is added as the JSON that it is."""
        if raw is None:
            return
        try:
            self._add(_decode_parts(raw))
        except UNREADABLE:
            self._read_each(raw)

    def _read_each(self, raw: bytes) -> None:
        try:
            items = _decode_each(raw)
        except UNREADABLE:
            self._add_raw(raw)
            return
        for item in items:
            try:
                part = _decode_part(item)
            except UNREADABLE:
                self._add_raw(bytes(item))
            else:
                self._add(part)

    def _add_raw(self, raw: bytes) -> None:
        self.texts.append(raw.decode("utf-8", "replace"))

    def _add(self, value: Any) -> None:
        if isinstance(value, Part):
            self._add_part(value)
        elif isinstance(value, list):
            for each in value:
                self._add(each)
        elif value:
            self.texts.append(value)

    def _add_part(self, part: Part) -> None:
        if part.type in MEDIA:
            source = part.source
            if source is not None and source.type in {"text", "content"}:
                self.read(bytes(source.data) or None)
                self._add(source.content)
            else:
                self.media_parts += 1
        for text in (part.name, part.text, part.refusal, part.reasoning_content, part.thinking, part.title, part.context):
            if text:
                self.texts.append(text)
        if part.content is not None:
            self._add(part.content)
        self._add(part.arguments)
        self._add(part.output)
        self._add(part.summary)
        for raw in (part.tool_calls, part.function_call, part.input, part.action):
            if raw and (json := bytes(raw)) != b"null":
                self._add_raw(json)


def prompt_of(raw: bytes | None) -> Prompt:
    """The prompt that a list of messages holds."""
    prompt = Prompt()
    prompt.read(raw)
    return prompt

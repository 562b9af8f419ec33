"""OpenAI's speech, transcription and image APIs, of which the newer models tell tokens."""

from __future__ import annotations

import msgspec

from gateway.formats.endpoint import Asked, Delivered, Fields
from gateway.formats.openai_chat import deployment_in
from gateway.formats.openai_usage import openai_usage, usage_in_reply
from gateway.formats.prompt import prompt_of
from gateway.formats.reading import UNREADABLE, flag_in, number_in, repaired, string_in, value_of
from gateway.formats.tally import Tally
from gateway.formats.usage import Usage

_ENDS = frozenset({"speech.audio.done", "transcript.text.done", "image_generation.completed", "image_edit.completed"})
_PIECES = frozenset({"speech.audio.delta", "image_generation.partial_image", "image_edit.partial_image"})


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: str | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Event).decode


class MediaReader:
    """Reads streamed speech, transcripts and images. Each kind has one event that ends it and tells usage.

    https://platform.openai.com/docs/api-reference/audio/speech-audio-done-event,
    https://platform.openai.com/docs/api-reference/audio/transcript-text-done-event,
    https://platform.openai.com/docs/api-reference/images-streaming
    """

    __slots__ = ("_tally", "ended", "failed", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.ended = False
        self.failed = False
        self._tally = Tally()

    def delivered(self) -> Delivered:
        """What came until now: of sound and images that there was some."""
        return self._tally.delivered()

    def read(self, data: bytes) -> bool:
        """Take the data of one event. Never True: no usage is asked for on a client's behalf."""
        try:
            event = _decode(data)
        except UNREADABLE:
            try:
                event = _decode(repaired(data))
            except UNREADABLE:
                self.ended = self.ended or data.strip() == b"[DONE]"
                return False
        if event.type in _PIECES:
            self._tally.pieces += 1
        else:
            self._tally.piece(event.delta)
        usage = openai_usage(value_of(event.usage))
        if usage is not None:
            self.usage = usage
        if event.type in _ENDS:
            self.ended = True
        elif event.type == "error" or value_of(event.error):
            self.failed = True
        return False


class OpenAIMedia:
    """``POST …/audio/`` ``speech``, ``transcriptions`` and ``translations``; ``…/images/`` ``generations`` and ``edits``.

    A reply in sound tells no usage; that of whisper-1 tells a duration, which is no number of tokens. Transcriptions and edits
    are asked for by forms, not by JSON: then nothing is known of the request.
    """

    streams_json = False

    def __init__(self, name: str, *, takes_forms: bool = False) -> None:
        self.name = name
        self.takes_forms = takes_forms

    def asked(self, fields: Fields, path: str) -> Asked:
        """What a JSON request asks for. The tokens of sound and images to be written have no bound that a client sets."""
        prompt = prompt_of(fields.get("input"))
        prompt.read(fields.get("prompt"))
        prompt.read(fields.get("instructions"))
        return Asked(
            model=string_in(fields, "model") or deployment_in(path),
            streams=flag_in(fields, "stream") or string_in(fields, "stream_format") == "sse",
            prompt=tuple(prompt.texts),
            media_parts=prompt.media_parts,
            answers=number_in(fields, "n") or 1,
        )

    def asks_for_usage(self, fields: Fields) -> dict[str, bytes]:  # noqa: ARG002
        """Nothing: the last event has it."""
        return {}

    def bounded(self, fields: Fields, max_output_tokens: int) -> dict[str, bytes]:  # noqa: ARG002
        """Nothing: there is no field for it."""
        return {}

    def usage_of(self, body: bytes) -> Usage | None:
        """What a whole reply tells of its usage."""
        return usage_in_reply(body)

    def stream(self) -> MediaReader:
        """A reader for one streamed reply."""
        return MediaReader()

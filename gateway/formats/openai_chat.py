"""OpenAI's chat completions, and everyone's who offers the same."""

from __future__ import annotations

import re

from gateway.formats.document import write_fields
from gateway.formats.endpoint import Asked, Fields
from gateway.formats.openai_chunks import ChunkReader
from gateway.formats.openai_usage import usage_in_reply
from gateway.formats.prompt import prompt_of
from gateway.formats.reading import flag_in, members_of, number_in, raw_texts, string_in
from gateway.formats.usage import Usage

_BOUNDS = ("max_completion_tokens", "max_tokens")

# o1, o3, o4-mini, gpt-5 and everything that OpenAI has named since; not gpt-4o, not the open models that others serve
_REFUSES_MAX_TOKENS = re.compile(r"(?:ft:)?(?:o\d|codex|computer-use|gpt-(?!oss|[234](?:[^0-9]|$)))")

# the names under which Mistral itself serves its models: with a version, where others have it in the middle or not at all
_MISTRAL = re.compile(
    r"(?:ft:)?(?:labs-|open-)?(?:mistral|mixtral|ministral|magistral|codestral|devstral|pixtral|voxtral)"
    r"(?:-[a-z0-9]+)*-(?:latest|\d{4})(?::|$)|(?:ft:)?open-mi[sx]tral-"
)


class OpenAIChat:
    """``POST …/chat/completions``.

    https://platform.openai.com/docs/api-reference/chat/create
    """

    name = "openai.chat"
    streams_json = False
    takes_forms = False

    def __init__(self, *, unnamed_bound: str = "max_tokens") -> None:
        self._unnamed_bound = unnamed_bound

    def asked(self, fields: Fields, path: str) -> Asked:
        """What a JSON request asks for.

        The bound is the greater of both names: a server that knows only one of them goes by that one. 0 is none: servers that
        do not refuse it write on.
        """
        prompt = prompt_of(fields.get("messages"))
        prompt.texts += raw_texts(fields, "tools", "functions", "response_format", "prediction")
        return Asked(
            model=string_in(fields, "model") or deployment_in(path),
            streams=flag_in(fields, "stream"),
            prompt=tuple(prompt.texts),
            media_parts=prompt.media_parts,
            max_output_tokens=max((number_in(fields, name) or 0 for name in _BOUNDS), default=0) or None,
            answers=number_in(fields, "n") or 1,
        )

    def asks_for_usage(self, fields: Fields) -> dict[str, bytes]:
        """``stream_options`` with ``include_usage``. Mistral tells usage unasked, and refuses to be asked."""
        if _MISTRAL.match(string_in(fields, "model")):
            return {}
        return with_usage_included(fields)

    def bounded(self, fields: Fields, max_output_tokens: int) -> dict[str, bytes]:
        """Bound an answer under the name that the client uses, who knows whom it talks to; else under one that works.

        OpenAI's reasoning models refuse ``max_tokens``, everyone refuses or ignores one of two, Mistral and many servers
        know nothing but ``max_tokens`` and would refuse ``max_completion_tokens`` (Mistral) or write on regardless of it
        (Ollama, DeepSeek); OpenAI's models before those take both names. So the model decides: ``max_completion_tokens``
        for those of OpenAI that need it, ``max_tokens`` for all others. Where the model is not named, in an Azure
        deployment, the former, which all of Azure's models take.
        """
        bound = b"%d" % max_output_tokens
        named = [name for name in _BOUNDS if fields.get(name, b"null") != b"null"]
        if named:
            return {name: bound for name in named if not 0 < (number_in(fields, name) or 0) <= max_output_tokens}
        model = string_in(fields, "model").rpartition("/")[2]
        if not model:
            return {self._unnamed_bound: bound}
        return {"max_completion_tokens" if _REFUSES_MAX_TOKENS.match(model) else "max_tokens": bound}

    def usage_of(self, body: bytes) -> Usage | None:
        """What a whole reply tells of its usage."""
        return usage_in_reply(body)

    def stream(self) -> ChunkReader:
        """A reader for one streamed reply."""
        return ChunkReader()


def deployment_in(path: str) -> str:
    """The model in the path of an Azure deployment, ``/openai/deployments/NAME/chat/completions``; else empty."""
    _, found, rest = path.partition("/deployments/")
    return rest.partition("/")[0] if found else ""


def with_usage_included(fields: Fields) -> dict[str, bytes]:
    """``stream_options`` as they are, and with ``include_usage``; nothing if that is so or nothing is streamed."""
    if not flag_in(fields, "stream"):
        return {}
    options = fields.get("stream_options", b"null")
    members = {} if options == b"null" else members_of(options)
    if members is None or members.get("include_usage") == b"true":
        return {}
    return {"stream_options": write_fields({**members, "include_usage": b"true"})}

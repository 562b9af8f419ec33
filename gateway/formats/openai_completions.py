"""OpenAI's completions, the older API, and embeddings: both take texts or tokens."""

from __future__ import annotations

import msgspec

from gateway.formats.endpoint import Asked, Fields
from gateway.formats.openai_chat import deployment_in, with_usage_included
from gateway.formats.openai_chunks import ChunkReader
from gateway.formats.openai_usage import usage_in_reply
from gateway.formats.prompt import Prompt, prompt_of
from gateway.formats.reading import UNREADABLE, flag_in, number_in, raw_texts, string_in
from gateway.formats.usage import Usage

DEFAULT_MAX_TOKENS = 16
"""Of a completion, by OpenAI's reference."""

# One token in every vocabulary, one word, and four characters: whatever rule estimates it, it comes to one token or more.
_FILLER = " the"

_decode_inputs = msgspec.json.Decoder(list[str | int | list[int]]).decode


class OpenAICompletions:
    """``POST …/completions``.

    https://platform.openai.com/docs/api-reference/completions/create
    """

    name = "openai.completions"
    streams_json = False
    takes_forms = False

    def asked(self, fields: Fields, path: str) -> Asked:
        """What a JSON request asks for: ``best_of`` answers to each prompt are written, of which ``n`` are returned."""
        prompt, prompts = inputs_of(fields.get("prompt"))
        prompt.texts += raw_texts(fields, "suffix")
        bound = number_in(fields, "max_tokens")
        return Asked(
            model=string_in(fields, "model") or deployment_in(path),
            streams=flag_in(fields, "stream"),
            prompt=tuple(prompt.texts),
            media_parts=prompt.media_parts,
            max_output_tokens=DEFAULT_MAX_TOKENS if bound is None else bound,
            answers=max(number_in(fields, "n") or 1, number_in(fields, "best_of") or 1) * prompts,
        )

    def asks_for_usage(self, fields: Fields) -> dict[str, bytes]:
        """``stream_options`` with ``include_usage``."""
        return with_usage_included(fields)

    def bounded(self, fields: Fields, max_output_tokens: int) -> dict[str, bytes]:
        """``max_tokens``, unless it is as low. It is set where it is absent, since not all servers' default is 16."""
        asked = number_in(fields, "max_tokens")
        return {} if asked is not None and asked <= max_output_tokens else {"max_tokens": b"%d" % max_output_tokens}

    def usage_of(self, body: bytes) -> Usage | None:
        """What a whole reply tells of its usage."""
        return usage_in_reply(body)

    def stream(self) -> ChunkReader:
        """A reader for one streamed reply."""
        return ChunkReader()


class OpenAIEmbeddings:
    """``POST …/embeddings``.

    https://platform.openai.com/docs/api-reference/embeddings/create
    """

    name = "openai.embeddings"
    streams_json = False
    takes_forms = False

    def asked(self, fields: Fields, path: str) -> Asked:
        """What a JSON request asks for: no token is written."""
        prompt, _ = inputs_of(fields.get("input"))
        return Asked(
            model=string_in(fields, "model") or deployment_in(path),
            prompt=tuple(prompt.texts),
            media_parts=prompt.media_parts,
            max_output_tokens=0,
        )

    def asks_for_usage(self, fields: Fields) -> dict[str, bytes]:  # noqa: ARG002  never streamed
        """Nothing to ask for."""
        return {}

    def bounded(self, fields: Fields, max_output_tokens: int) -> dict[str, bytes]:  # noqa: ARG002
        """Nothing to bound."""
        return {}

    def usage_of(self, body: bytes) -> Usage | None:
        """What a whole reply tells of its usage."""
        return usage_in_reply(body)

    def stream(self) -> ChunkReader:
        """A reader, though embeddings are not streamed."""
        return ChunkReader()


def inputs_of(raw: bytes | None) -> tuple[Prompt, int]:
    """The prompt in a text, a list of texts, a list of tokens, or a list of such lists; and how many there are (at least 1).

    Tokens become a text of as many words as there are tokens, of a length that no estimate could take for fewer.
    """
    if raw is not None and raw.lstrip()[:1] == b"[":
        try:
            return _lists(raw)
        except UNREADABLE:
            pass
    return prompt_of(raw), 1


def _lists(raw: bytes) -> tuple[Prompt, int]:
    items = _decode_inputs(raw)
    prompt, prompts = Prompt(), 0
    tokens = 0
    for item in items:
        if isinstance(item, int):
            tokens += 1
        else:
            prompts += 1
            prompt.texts.append(item if isinstance(item, str) else _FILLER * len(item))
    if tokens:
        prompts += 1
        prompt.texts.append(_FILLER * tokens)
    return prompt, max(1, prompts)

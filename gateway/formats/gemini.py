"""Google's Gemini API, also as Vertex serves it."""

from __future__ import annotations

import msgspec

from gateway.formats.document import write_fields
from gateway.formats.endpoint import Asked, Fields
from gateway.formats.gemini_stream import GeminiReader, gemini_usage_in_reply
from gateway.formats.prompt import Prompt
from gateway.formats.reading import UNREADABLE, members_of, number_in, raw_texts
from gateway.formats.usage import Usage

# Both spellings of every name are valid: JSON of Protocol Buffers takes the camel case and the original
# (https://protobuf.dev/programming-guides/json/). Who spells a bound the other way is bounded all the same.
_CONFIG = ("generationConfig", "generation_config")
_BOUND = ("maxOutputTokens", "max_output_tokens")
_ANSWERS = ("candidateCount", "candidate_count")
_SCHEMAS = ("responseSchema", "response_schema", "responseJsonSchema", "response_json_schema")
_TOOLS = ("tools", "toolConfig", "tool_config")


def _other(name: str) -> msgspec.Raw:
    return msgspec.field(default=msgspec.Raw(), name=name)


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    inline_data: msgspec.Raw = _other("inlineData")
    inline_data_: msgspec.Raw = _other("inline_data")
    file_data: msgspec.Raw = _other("fileData")
    file_data_: msgspec.Raw = _other("file_data")
    function_call: msgspec.Raw = _other("functionCall")
    function_call_: msgspec.Raw = _other("function_call")
    function_response: msgspec.Raw = _other("functionResponse")
    function_response_: msgspec.Raw = _other("function_response")
    executable_code: msgspec.Raw = _other("executableCode")
    executable_code_: msgspec.Raw = _other("executable_code")
    result: msgspec.Raw = _other("codeExecutionResult")
    result_: msgspec.Raw = _other("code_execution_result")


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] | _Part | None = None


class _Request(msgspec.Struct, gc=False):
    content: _Content | None = None


_decode_contents = msgspec.json.Decoder(list[_Content] | _Content | None).decode
_decode_requests = msgspec.json.Decoder(list[_Request]).decode


class GeminiGenerate:
    """``POST …/models/MODEL:generateContent`` and ``…:streamGenerateContent``.

    https://ai.google.dev/api/generate-content
    """

    name = "gemini.generate"
    streams_json = True
    takes_forms = False

    def asked(self, fields: Fields, path: str) -> Asked:
        """What a JSON request asks for; the path has the model and whether the reply is streamed."""
        model, method = model_and_method(path)
        prompt = Prompt()
        for name in ("contents", "systemInstruction", "system_instruction"):
            _read_contents(prompt, fields.get(name))
        prompt.texts += raw_texts(fields, *_TOOLS)
        configs = [members_of(fields.get(name)) or {} for name in _CONFIG]
        for config in configs:
            prompt.texts += raw_texts(config, *_SCHEMAS)
        return Asked(
            model=model,
            streams=method.startswith("stream"),
            prompt=tuple(prompt.texts),
            media_parts=prompt.media_parts,
            max_output_tokens=max(number_in(config, *_BOUND) or 0 for config in configs) or None,
            answers=max(number_in(config, *_ANSWERS) or 1 for config in configs),
        )

    def asks_for_usage(self, fields: Fields) -> dict[str, bytes]:  # noqa: ARG002
        """Nothing: each part of a stream tells it."""
        return {}

    def bounded(self, fields: Fields, max_output_tokens: int) -> dict[str, bytes]:
        """The generation config with the bound in it, and all else that was, unless it has one as low."""
        bound = b"%d" % max_output_tokens
        changed = {}
        for config in [name for name in _CONFIG if name in fields] or _CONFIG[:1]:
            members = members_of(fields.get(config)) or {}
            named = [name for name in _BOUND if name in members] or _BOUND[:1]
            if not all(0 < (number_in(members, name) or 0) <= max_output_tokens for name in named):
                changed[config] = write_fields({**members, **dict.fromkeys(named, bound)})
        return changed

    def usage_of(self, body: bytes) -> Usage | None:
        """What a whole reply tells of its usage."""
        return gemini_usage_in_reply(body)

    def stream(self) -> GeminiReader:
        """A reader for one streamed reply."""
        return GeminiReader()


class GeminiEmbed:
    """``POST …/models/MODEL:embedContent`` and ``…:batchEmbedContents``. Not all models tell usage.

    https://ai.google.dev/api/embeddings
    """

    name = "gemini.embed"
    streams_json = False
    takes_forms = False

    def asked(self, fields: Fields, path: str) -> Asked:
        """What a JSON request asks for: no token is written."""
        prompt = Prompt()
        _read_contents(prompt, fields.get("content"))
        requests = fields.get("requests")
        if requests is not None:
            try:
                for request in _decode_requests(requests):
                    _add_content(prompt, request.content)
            except UNREADABLE:
                prompt.texts.append(requests.decode("utf-8", "replace"))
        model, _ = model_and_method(path)
        return Asked(model, prompt=tuple(prompt.texts), media_parts=prompt.media_parts, max_output_tokens=0)

    def asks_for_usage(self, fields: Fields) -> dict[str, bytes]:  # noqa: ARG002
        """Nothing to ask for."""
        return {}

    def bounded(self, fields: Fields, max_output_tokens: int) -> dict[str, bytes]:  # noqa: ARG002
        """Nothing to bound."""
        return {}

    def usage_of(self, body: bytes) -> Usage | None:
        """What a whole reply tells of its usage."""
        return gemini_usage_in_reply(body)

    def stream(self) -> GeminiReader:
        """A reader, though embeddings are not streamed."""
        return GeminiReader()


def model_and_method(path: str) -> tuple[str, str]:
    """``("gemini-2.5-flash", "generateContent")`` of ``/v1beta/models/gemini-2.5-flash:generateContent``."""
    model, _, method = path.replace("%3A", ":").replace("%3a", ":").rpartition("/")[2].rpartition(":")
    return model, method


def _read_contents(prompt: Prompt, raw: bytes | None) -> None:
    if raw is None:
        return
    try:
        contents = _decode_contents(raw)
    except UNREADABLE:
        prompt.texts.append(raw.decode("utf-8", "replace"))
        return
    for content in contents if isinstance(contents, list) else [contents]:
        _add_content(prompt, content)


def _add_content(prompt: Prompt, content: _Content | None) -> None:
    parts = content.parts if content is not None else None
    for part in parts if isinstance(parts, list) else [parts]:
        if part is None:
            continue
        if part.text:
            prompt.texts.append(part.text)
        prompt.media_parts += bool(part.inline_data or part.inline_data_ or part.file_data or part.file_data_)
        for raw in (
            part.function_call or part.function_call_,
            part.function_response or part.function_response_,
            part.executable_code or part.executable_code_,
            part.result or part.result_,
        ):
            if raw:
                prompt.texts.append(bytes(raw).decode("utf-8", "replace"))

"""Which endpoint of which provider a request calls."""

from __future__ import annotations

from typing import Literal
from urllib.parse import unquote

from gateway.formats.anthropic_messages import AnthropicMessages
from gateway.formats.endpoint import Endpoint
from gateway.formats.free import Free
from gateway.formats.gemini import GeminiEmbed, GeminiGenerate
from gateway.formats.openai_chat import OpenAIChat
from gateway.formats.openai_completions import OpenAICompletions, OpenAIEmbeddings
from gateway.formats.openai_media import OpenAIMedia
from gateway.formats.openai_responses import OpenAIResponses

Format = Literal["auto", "openai", "anthropic", "gemini", "none"]
"""What an upstream speaks; ``auto`` leaves it to the path of each request, ``none`` reads nothing."""

_CHAT = OpenAIChat()
_AZURE_CHAT = OpenAIChat(unnamed_bound="max_completion_tokens")
_COMPLETIONS = OpenAICompletions()
_MESSAGES = AnthropicMessages()
_GENERATE = GeminiGenerate()
_EMBED = GeminiEmbed()

_BY_LAST_TWO: dict[str, Endpoint] = {
    "chat/completions": _CHAT,
    "responses/input_tokens": Free("openai.input_tokens"),
    "responses/compact": OpenAIResponses(),
    "audio/speech": OpenAIMedia("openai.speech"),
    "audio/transcriptions": OpenAIMedia("openai.transcriptions", takes_forms=True),
    "audio/translations": OpenAIMedia("openai.translations", takes_forms=True),
    "images/generations": OpenAIMedia("openai.images"),
    "images/edits": OpenAIMedia("openai.image_edits", takes_forms=True),
    "v1/messages": _MESSAGES,
    "messages/count_tokens": Free("anthropic.count_tokens"),
}
_BY_LAST: dict[str, Endpoint] = {
    "completions": _COMPLETIONS,
    "embeddings": OpenAIEmbeddings(),
    "responses": OpenAIResponses(),
}
_BY_METHOD: dict[str, Endpoint] = {
    "generateContent": _GENERATE,
    "streamGenerateContent": _GENERATE,
    "embedContent": _EMBED,
    "batchEmbedContents": _EMBED,
    "countTokens": Free("gemini.count_tokens"),
    "rawPredict": _MESSAGES,
    "streamRawPredict": _MESSAGES,
}
_MAIN: dict[str, Endpoint] = {"openai": _CHAT, "anthropic": _MESSAGES, "gemini": _GENERATE}


def endpoint_of(format: Format, method: str, path: str) -> Endpoint | None:  # noqa: A002  the name of the setting
    """The endpoint that the upstream's ``path`` (without query) names; None if it is none whose usage is known.

    Azure's ``/openai/deployments/NAME/…`` and Vertex's ``/publishers/…/models/NAME:…`` end as the others do. Escapes and a
    slash at the end, which servers overlook, are overlooked. A path that says what it is holds whatever the format, since one
    upstream may speak several; with a format that is named, any other path counts as that of its main endpoint.
    """
    if method != "POST" or format == "none":
        return None
    if "%" in path:
        path = unquote(path)
    if path[-1:] == "/":
        path = path.rstrip("/")
    before, _, last = path.rpartition("/")
    if ":" in last:
        found = _BY_METHOD.get(last.rpartition(":")[2]) if "/models/" in path or "/endpoints/" in path else None
        if found is not None and last.endswith("awPredict") and "/publishers/anthropic/" not in path:
            found = None
    else:
        found = _BY_LAST_TWO.get(before.rpartition("/")[2] + "/" + last) or _BY_LAST.get(last)
    if found is None:
        return _MAIN.get(format)
    return _AZURE_CHAT if found is _CHAT and "/deployments/" in path else found

"""Which endpoint of which provider a request calls."""

from __future__ import annotations

from typing import Literal

from gateway.formats.endpoint import Endpoint
from gateway.formats.openai_chat import OpenAIChat

Format = Literal["auto", "openai", "anthropic", "gemini", "none"]
"""What an upstream speaks; ``auto`` leaves it to the path of each request, ``none`` reads nothing."""

_CHAT = OpenAIChat()
_AZURE_CHAT = OpenAIChat(unnamed_bound="max_completion_tokens")


def endpoint_of(format: Format, method: str, path: str) -> Endpoint | None:  # noqa: A002  the name of the setting
    """The endpoint that the upstream's ``path`` (without query) names; None if it is none whose usage is known."""
    if format == "none" or method != "POST":
        return None
    if path.endswith("/chat/completions"):
        return _AZURE_CHAT if "/deployments/" in path else _CHAT
    return _CHAT if format == "openai" else None

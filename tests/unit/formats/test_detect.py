"""Endpoints by their paths."""

import pytest

from gateway.formats import Asked, Delivered, Format, Usage, endpoint_of

KNOWN = {
    "/v1/chat/completions": "openai.chat",
    "/chat/completions": "openai.chat",
    "/api/v1/chat/completions/": "openai.chat",
    "/v1/chat/complet%69ons": "openai.chat",
    "/openai/deployments/my-gpt/chat/completions": "openai.chat",
    "/v1beta/openai/chat/completions": "openai.chat",
    "/v1/completions": "openai.completions",
    "/openai/deployments/d/completions": "openai.completions",
    "/v1/embeddings": "openai.embeddings",
    "/v1/responses": "openai.responses",
    "/openai/v1/responses": "openai.responses",
    "/v1/responses/compact": "openai.responses",
    "/v1/responses/input_tokens": "openai.input_tokens",
    "/v1/audio/speech": "openai.speech",
    "/v1/audio/transcriptions": "openai.transcriptions",
    "/v1/audio/translations": "openai.translations",
    "/v1/images/generations": "openai.images",
    "/v1/images/edits": "openai.image_edits",
    "/v1/messages": "anthropic.messages",
    "/anthropic/v1/messages": "anthropic.messages",
    "/v1/messages/count_tokens": "anthropic.count_tokens",
    "/v1beta/models/gemini-2.5-flash:generateContent": "gemini.generate",
    "/v1beta/models/gemini-2.5-flash:streamGenerateContent": "gemini.generate",
    "/v1beta/models/gemini-2.5-flash%3AgenerateContent": "gemini.generate",
    "/v1beta/tunedModels/models/x:generateContent": "gemini.generate",
    "/v1/projects/p/locations/l/publishers/google/models/gemini-2.5-pro:streamGenerateContent": "gemini.generate",
    "/v1/projects/p/locations/l/endpoints/123:generateContent": "gemini.generate",
    "/v1beta/models/e:embedContent": "gemini.embed",
    "/v1beta/models/e:batchEmbedContents": "gemini.embed",
    "/v1beta/models/g:countTokens": "gemini.count_tokens",
    "/v1/projects/p/locations/l/publishers/anthropic/models/claude:rawPredict": "anthropic.messages",
}
UNKNOWN = ["", "/", "/v1/models", "/v1/threads/t/messages", "/v1/files", "/v1/messages/batches", "/x:y", "/models/x:predict"]
UNKNOWN += ["/v1/projects/p/locations/l/publishers/mistralai/models/m:rawPredict", "chat", "/v1/chat/completions/chatcmpl-1"]


def name_of(format: Format, path: str, method: str = "POST") -> str | None:  # noqa: A002
    endpoint = endpoint_of(format, method, path)
    return endpoint.name if endpoint is not None else None


@pytest.mark.parametrize(("path", "name"), KNOWN.items())
def test_a_path_tells_its_endpoint(path: str, name: str):
    assert name_of("auto", path) == name
    assert name_of("gemini", path) == name
    assert name_of("none", path) is None
    assert endpoint_of("auto", "GET", path) is None
    assert endpoint_of("auto", "POST", path) is endpoint_of("auto", "POST", path)


@pytest.mark.parametrize("path", UNKNOWN)
def test_any_other_path_is_the_main_endpoint_of_a_named_format(path: str):
    assert name_of("auto", path) is None
    assert name_of("openai", path) == "openai.chat"
    assert name_of("anthropic", path) == "anthropic.messages"
    assert name_of("gemini", path) == "gemini.generate"
    assert name_of("openai", path, "GET") is None


def test_an_azure_deployment_is_bounded_as_azure_wants_it():
    endpoint = endpoint_of("auto", "POST", "/openai/deployments/x/chat/completions")
    assert endpoint is not None
    assert endpoint.bounded({}, 5) == {"max_completion_tokens": b"5"}


def test_a_call_that_is_free_costs_nothing_whatever_it_replies():
    endpoint = endpoint_of("auto", "POST", "/v1/messages/count_tokens")
    assert endpoint is not None
    assert endpoint.asked({"model": b'"m"', "messages": b'"long"'}, "") == Asked("m", max_output_tokens=0)
    assert endpoint.bounded({}, 5) == endpoint.asks_for_usage({"stream": b"true"}) == {}
    reader = endpoint.stream()
    assert reader.read(b"{}") is False
    assert (reader.usage, reader.delivered()) == (Usage(), Delivered())

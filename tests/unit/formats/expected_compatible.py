"""What the replies of those who speak OpenAI's language, each in an accent come to."""

from gateway.formats import Delivered, Usage
from tests.unit.formats.case import Case, Streamed, Whole

CASES: list[Case] = [
    Streamed(
        "deepseek/reasoner.sse",
        "/chat/completions",
        "https://api-docs.deepseek.com/api/create-chat-completion",
        Usage(input_tokens=210, output_tokens=45, cached_tokens=192, reasoning_tokens=38),
        Delivered(2, 13, 0),
    ),
    Whole(
        "deepseek/cache.json",
        "/chat/completions",
        "https://api-docs.deepseek.com/guides/kv_cache",
        Usage(input_tokens=1300, output_tokens=20, cached_tokens=1280),
    ),
    Streamed(
        "mistral/chat.sse", "/v1/chat/completions", "https://docs.mistral.ai/api/#tag/chat", Usage(10, 5), Delivered(1, 7, 0)
    ),
    Streamed(
        "mistral/thinking_parts.sse",
        "/v1/chat/completions",
        "https://docs.mistral.ai/capabilities/reasoning/",
        Usage(13, 32),
        Delivered(2, 10, 0),
    ),
    Whole("mistral/chat.json", "/v1/chat/completions", "https://docs.mistral.ai/api/#tag/chat", Usage(16, 34)),
    Streamed(
        "groq/chat.sse",
        "/openai/v1/chat/completions",
        "https://console.groq.com/docs/text-chat#streaming-a-chat-completion",
        Usage(18, 6),
        Delivered(1, 4, 0),
    ),
    Streamed(
        "groq/reasoning.sse",
        "/openai/v1/chat/completions",
        "https://console.groq.com/docs/reasoning",
        Usage(input_tokens=70, output_tokens=31, reasoning_tokens=21),
        Delivered(2, 5, 0),
    ),
    Streamed(
        "groq/error_in_stream.sse",
        "/openai/v1/chat/completions",
        "https://console.groq.com/docs/errors",
        None,
        Delivered(0, 0, 0),
        ended=False,
        failed=True,
    ),
    Whole(
        "groq/chat.json", "/openai/v1/chat/completions", "https://console.groq.com/docs/api-reference#chat-create", Usage(18, 6)
    ),
    Streamed(
        "openrouter/comments.sse",
        "/api/v1/chat/completions",
        "https://openrouter.ai/docs/api-reference/streaming",
        Usage(input_tokens=194, output_tokens=2, cached_tokens=100, cache_write_tokens=50),
        Delivered(1, 2, 0),
    ),
    Streamed(
        "openrouter/error.sse",
        "/api/v1/chat/completions",
        "https://openrouter.ai/docs/api-reference/errors",
        None,
        Delivered(1, 4, 0),
        ended=False,
        failed=True,
    ),
    Streamed(
        "xai/usage_in_each.sse",
        "/v1/chat/completions",
        "https://docs.x.ai/docs/guides/streaming-response",
        Usage(input_tokens=20, output_tokens=319, cached_tokens=4, reasoning_tokens=317),
        Delivered(2, 9, 0),
    ),
    Whole(
        "xai/chat.json",
        "/v1/chat/completions",
        "https://docs.x.ai/docs/guides/reasoning",
        Usage(input_tokens=12, output_tokens=387, reasoning_tokens=386),
    ),
    Streamed(
        "vllm/continuous_usage.sse",
        "/v1/chat/completions",
        "https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html",
        Usage(7, 2),
        Delivered(2, 2, 0),
        hides_usage=True,
    ),
    Streamed(
        "vllm/error.sse",
        "/v1/chat/completions",
        "https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html",
        None,
        Delivered(0, 0, 0),
        failed=True,
    ),
    Streamed(
        "perplexity/crlf.sse",
        "/chat/completions",
        "https://docs.perplexity.ai/guides/streaming-responses",
        Usage(6, 2),
        Delivered(2, 5, 0),
    ),
    Streamed(
        "ollama/chat.sse",
        "/v1/chat/completions",
        "https://github.com/ollama/ollama/blob/main/docs/openai.md",
        Usage(26, 2),
        Delivered(1, 3, 0),
        hides_usage=True,
    ),
    Whole(
        "moonshot/cached.json",
        "/v1/chat/completions",
        "https://platform.moonshot.ai/docs/api/chat",
        Usage(input_tokens=19, output_tokens=21, cached_tokens=10),
    ),
]

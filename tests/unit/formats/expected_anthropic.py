"""What the replies of Anthropic, and others who speak its language come to."""

from gateway.formats import Delivered, Usage
from tests.unit.formats.case import Case, Streamed, Whole

CASES: list[Case] = [
    Whole("anthropic/message.json", "/v1/messages", "https://docs.anthropic.com/en/api/messages", Usage(2095, 503)),
    Whole(
        "anthropic/cache.json",
        "/v1/messages",
        "https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching",
        Usage(input_tokens=189107, output_tokens=393, cached_tokens=1000, cache_write_tokens=188086),
    ),
    Whole("anthropic/tool_named_usage.json", "/v1/messages", "https://docs.anthropic.com/en/api/messages", Usage(472, 89)),
    Whole("anthropic/error.json", "/v1/messages", "https://docs.anthropic.com/en/api/errors", None),
    Whole(
        "anthropic/count_tokens.json",
        "/v1/messages/count_tokens",
        "https://docs.anthropic.com/en/api/messages-count-tokens",
        Usage(0, 0),
    ),
    Streamed(
        "anthropic/text.sse",
        "/v1/messages",
        "https://docs.anthropic.com/en/docs/build-with-claude/streaming",
        Usage(25, 15),
        Delivered(2, 6, 0),
    ),
    Streamed(
        "anthropic/tool_use.sse",
        "/v1/messages",
        "https://docs.anthropic.com/en/docs/build-with-claude/streaming",
        Usage(472, 89),
        Delivered(4, 48, 0),
    ),
    Streamed(
        "anthropic/thinking.sse",
        "/v1/messages",
        "https://docs.anthropic.com/en/docs/build-with-claude/streaming",
        Usage(input_tokens=60, output_tokens=310, reasoning_tokens=280),
        Delivered(2, 22, 0),
    ),
    Streamed(
        "anthropic/cache.sse",
        "/v1/messages",
        "https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching",
        Usage(input_tokens=9421, output_tokens=7, cached_tokens=9000, cache_write_tokens=418),
        Delivered(1, 2, 0),
    ),
    Streamed(
        "anthropic/overloaded.sse",
        "/v1/messages",
        "https://docs.anthropic.com/en/docs/build-with-claude/streaming#error-events",
        Usage(25, 1),
        Delivered(1, 3, 0),
        ended=False,
        failed=True,
    ),
    Streamed(
        "anthropic/web_search.sse",
        "/v1/messages",
        "https://docs.anthropic.com/en/docs/build-with-claude/streaming#streaming-request-with-web-search-tool-use",
        Usage(10682, 510),
        Delivered(3, 39, 0),
    ),
    Streamed(
        "anthropic/cut.sse",
        "/v1/messages",
        "https://docs.anthropic.com/en/docs/build-with-claude/streaming",
        Usage(25, 1),
        Delivered(2, 10, 1),
        ended=False,
    ),
    Streamed(
        "anthropic/compaction.sse",
        "/v1/messages",
        "https://docs.anthropic.com/en/docs/build-with-claude/compaction",
        Usage(203000, 4500),
        Delivered(2, 11, 0),
    ),
    Streamed(
        "anthropic/vertex.sse",
        "/v1/projects/p/locations/us-east5/publishers/anthropic/models/claude-sonnet-4@20250514:streamRawPredict",
        "https://cloud.google.com/vertex-ai/generative-ai/docs/partner-models/claude/use-claude",
        Usage(8, 2),
        Delivered(1, 2, 0),
    ),
    Streamed(
        "anthropic/deepseek.sse",
        "/anthropic/v1/messages",
        "https://api-docs.deepseek.com/guides/anthropic_api",
        Usage(input_tokens=95, output_tokens=12, cached_tokens=64),
        Delivered(1, 2, 0),
    ),
]

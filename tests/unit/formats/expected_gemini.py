"""What the replies of Gemini come to."""

from gateway.formats import Delivered, Usage
from tests.unit.formats.case import Case, Streamed, Whole

CASES: list[Case] = [
    Streamed(
        "gemini/compatible.sse",
        "/v1beta/openai/chat/completions",
        "https://ai.google.dev/gemini-api/docs/openai",
        Usage(9, 191),
        Delivered(1, 2, 0),
    ),
    Whole(
        "gemini/generate.json",
        "/v1beta/models/gemini-2.5-flash:generateContent",
        "https://ai.google.dev/api/generate-content#v1beta.GenerateContentResponse",
        Usage(8, 6),
    ),
    Whole(
        "gemini/thoughts.json",
        "/v1beta/models/gemini-2.5-flash:generateContent",
        "https://ai.google.dev/gemini-api/docs/thinking",
        Usage(input_tokens=11, output_tokens=245, reasoning_tokens=240),
    ),
    Whole(
        "gemini/cached_audio.json",
        "/v1beta/models/gemini-2.5-flash:generateContent",
        "https://ai.google.dev/gemini-api/docs/caching",
        Usage(input_tokens=3010, output_tokens=24, cached_tokens=2048, input_audio_tokens=3000, cached_audio_tokens=2048),
    ),
    Whole(
        "gemini/speech.json",
        "/v1beta/models/gemini-2.5-flash:generateContent",
        "https://ai.google.dev/gemini-api/docs/speech-generation",
        Usage(input_tokens=12, output_tokens=150, output_audio_tokens=150),
    ),
    Whole(
        "gemini/tool_use_prompt.json",
        "/v1beta/models/gemini-2.5-flash:generateContent",
        "https://ai.google.dev/gemini-api/docs/url-context",
        Usage(input_tokens=10302, output_tokens=75, reasoning_tokens=30),
    ),
    Whole(
        "gemini/prompt_blocked.json",
        "/v1beta/models/gemini-2.5-flash:generateContent",
        "https://ai.google.dev/gemini-api/docs/safety-settings",
        Usage(7, 0),
    ),
    Whole(
        "gemini/error.json",
        "/v1beta/models/gemini-2.5-flash:generateContent",
        "https://ai.google.dev/gemini-api/docs/troubleshooting",
        None,
    ),
    Whole(
        "gemini/embed.json", "/v1beta/models/gemini-embedding-001:embedContent", "https://ai.google.dev/api/embeddings", None
    ),
    Whole(
        "gemini/embed_batch.json",
        "/v1beta/models/gemini-embedding-001:batchEmbedContents",
        "https://ai.google.dev/api/embeddings",
        Usage(14, 0),
    ),
    Whole(
        "gemini/count_tokens.json",
        "/v1beta/models/gemini-2.5-flash:countTokens",
        "https://ai.google.dev/api/tokens",
        Usage(0, 0),
    ),
    Streamed(
        "gemini/stream.sse",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        "https://ai.google.dev/api/generate-content#method:-models.streamgeneratecontent",
        Usage(input_tokens=5, output_tokens=97, reasoning_tokens=88),
        Delivered(3, 16, 1),
    ),
    Streamed(
        "gemini/stream.array.json",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        "https://ai.google.dev/api/generate-content#method:-models.streamgeneratecontent",
        Usage(input_tokens=5, output_tokens=97, reasoning_tokens=88),
        Delivered(3, 16, 1),
    ),
    Streamed(
        "gemini/brackets.array.json",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        "https://ai.google.dev/api/generate-content#method:-models.streamgeneratecontent",
        Usage(5, 5),
        Delivered(2, 28, 0),
    ),
    Streamed(
        "gemini/function_call.sse",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        "https://ai.google.dev/gemini-api/docs/function-calling",
        Usage(input_tokens=61, output_tokens=59, reasoning_tokens=44),
        Delivered(1, 16, 0),
    ),
    Streamed(
        "gemini/safety.sse",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        "https://ai.google.dev/gemini-api/docs/safety-settings",
        Usage(9, 1),
        Delivered(1, 5, 0),
    ),
    Streamed(
        "gemini/prompt_blocked.sse",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        "https://ai.google.dev/gemini-api/docs/safety-settings",
        Usage(7, 0),
        Delivered(0, 0, 0),
    ),
    Streamed(
        "gemini/two_candidates.sse",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        "https://ai.google.dev/api/generate-content#v1beta.GenerateContentResponse",
        Usage(4, 4),
        Delivered(4, 4, 0),
    ),
    Streamed(
        "gemini/vertex.sse",
        "/v1/projects/p/locations/us-central1/publishers/google/models/gemini-2.5-pro:streamGenerateContent",
        "https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference",
        Usage(3, 2),
        Delivered(2, 3, 0),
    ),
    Streamed(
        "gemini/error.array.json",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        "https://ai.google.dev/gemini-api/docs/troubleshooting",
        None,
        Delivered(0, 0, 0),
        ended=False,
        failed=True,
    ),
    Streamed(
        "gemini/code_execution.sse",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        "https://ai.google.dev/gemini-api/docs/code-execution",
        Usage(8, 9),
        Delivered(2, 17, 0),
    ),
]

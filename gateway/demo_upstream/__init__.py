"""The interfaces of several AI providers, without a network: for first steps, for tests, and for provoking faults.

=========  ===============================================================================================================
OpenAI     ``/v1/chat/completions``, ``/v1/completions``, ``/v1/responses``, ``/v1/embeddings``, ``/v1/models``
Anthropic  ``/v1/messages``
Google     ``/v1beta/models/{model}:generateContent``, ``:streamGenerateContent`` (with ``alt=sse`` events, else an array)
=========  ===============================================================================================================

The text depends on nothing but the prompt, so the same question always has the same answer; `gateway.demo_upstream.tokens`
tells how it is counted. ``/echo`` and everything below it tells what arrived. ``/health`` always answers. Every error has
OpenAI's shape, but one in the middle of a stream, which has its provider's.

Request headers provoke what a real provider does on a bad day:

=============================  ======================================================================================
``x-demo-latency-ms: N``      wait that long before the reply, instead of ``latency_ms`` of the settings
``x-demo-status: 503``        answer with that error status (400 to 599); 429 carries ``retry-after: 1``
``x-demo-chunks: N``          write at least N words, and stream the text in N chunks instead of one for each word
``x-demo-chunk-delay-ms: N``  wait that long before each chunk, instead of ``chunk_delay_ms`` of the settings
``x-demo-cut-after: N``       in a stream, close the connection after N chunks of text
``x-demo-fail-after: N``      in a stream, after N chunks of text send the provider's error event and end
``x-demo-framing: crlf``      end the lines of events so: ``lf``, ``crlf`` or ``cr``; without it as the provider does
``x-demo-comments: N``        write N keep-alive comments before each event
``x-demo-id: NAME``           use this in ids, and always the same time, so that the same request has the same bytes
=============================  ======================================================================================

and what it counts, the same in every reply that tells it:

==================================  =================================================================================
``x-demo-cached-tokens: N``        so many tokens of the prompt were read from a cache, at most all of it
``x-demo-cache-write-tokens: N``   so many of the others were written to it; Gemini does not tell that
``x-demo-reasoning-tokens: N``     each answer begins with so many tokens that nobody sees; they count against its limit
``x-demo-usage: none``             tell no usage, asked or not
``x-demo-usage: unasked``          OpenAI's chat and completions: tell it in a stream as if the client had asked
``x-demo-usage: every-chunk``      tell what it is so far with each chunk: OpenAI's chat and completions, where asked, in
                                   place of null; Anthropic in a ``message_delta`` after each chunk; Gemini always does
``x-demo-usage: last``             tell it only at the end: Gemini in the last chunk; Anthropic in the last
                                   ``message_delta``, after zeros in ``message_start``
==================================  =================================================================================

The limit on tokens wins over ``x-demo-chunks``: a text of three words has at most three chunks. With several answers, N
chunks are N of each.
"""

from gateway.demo_upstream.app import create_demo_upstream
from gateway.demo_upstream.switches import DemoSettings

__all__ = ["DemoSettings", "create_demo_upstream"]

"""An OpenAI-compatible provider that needs no network: for first steps, for tests, and for provoking faults.

Chat completions, completions, embeddings, models and Anthropic messages answer with text that depends on nothing but the
prompt (one word is one token), so the same question always has the same answer. ``/echo`` and everything below it tells
what arrived. ``/health`` always answers. Every error has OpenAI's shape.

Request headers provoke what a real provider does on a bad day:

=========================  ==========================================================================================
``x-demo-latency-ms: N``   wait that long before the reply, instead of ``latency_ms`` of the settings
``x-demo-status: 503``     answer with that error status (400 to 599); 429 carries ``retry-after: 1``
``x-demo-chunks: N``       write at least N words, and stream the text in N chunks instead of one for each word
``x-demo-chunk-delay-ms``  wait that long before each chunk, instead of ``chunk_delay_ms`` of the settings
``x-demo-cut-after: N``    in a stream, close the connection after N chunks of text
=========================  ==========================================================================================

``max_tokens`` wins over ``x-demo-chunks``: a text of three words has at most three chunks.
"""

from gateway.demo_upstream.app import create_demo_upstream
from gateway.demo_upstream.asked import DemoSettings

__all__ = ["DemoSettings", "create_demo_upstream"]

"""How many tokens a text has."""

from gateway.tokens.counter import TokenCounter
from gateway.tokens.estimate import delivered_tokens, estimated_tokens, most_tokens

__all__ = ["TokenCounter", "delivered_tokens", "estimated_tokens", "most_tokens"]

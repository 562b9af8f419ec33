"""A multi-tenant AI gateway whose shared decisions are atomic Lua scripts in Redis."""

__version__ = "0.1.0"

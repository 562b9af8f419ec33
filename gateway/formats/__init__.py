"""The formats of AI providers: what a request asks for, and what its reply has used. Pure: bytes in, values out."""

from gateway.formats.endpoint import Asked, Delivered, Endpoint, Fields, StreamReader
from gateway.formats.usage import Usage

__all__ = ["Asked", "Delivered", "Endpoint", "Fields", "StreamReader", "Usage"]

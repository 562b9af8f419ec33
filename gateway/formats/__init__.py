"""The formats of AI providers: what a request asks for, and what its reply has used. Pure: bytes in, values out."""

from gateway.formats.detect import Format, endpoint_of
from gateway.formats.document import is_plainly_written, read_fields, write_fields
from gateway.formats.endpoint import Asked, Delivered, Endpoint, Fields, StreamReader
from gateway.formats.named_model import named_model
from gateway.formats.reply import WINDOW, usage_at_end
from gateway.formats.stream_meter import StreamMeter
from gateway.formats.usage import Usage

__all__ = [
    "WINDOW",
    "Asked",
    "Delivered",
    "Endpoint",
    "Fields",
    "Format",
    "StreamMeter",
    "StreamReader",
    "Usage",
    "endpoint_of",
    "is_plainly_written",
    "named_model",
    "read_fields",
    "usage_at_end",
    "write_fields",
]

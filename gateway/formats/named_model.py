"""The model that a request names which calls no known endpoint, for the record."""

from __future__ import annotations

import msgspec

MAX_MODEL_LENGTH = 200


class _Named(msgspec.Struct):
    model: str = ""


_DECODER = msgspec.json.Decoder(_Named)


def named_model(body: bytes | None) -> str:
    """The ``model`` of a JSON object, shortened to 200 characters; empty where there is none."""
    if not body or not body.lstrip().startswith(b"{"):
        return ""
    try:
        return _DECODER.decode(body).model[:MAX_MODEL_LENGTH]
    except msgspec.DecodeError:
        return ""

"""A JSON object by its top-level fields, each value left as the text that stood there."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.formats.reading import UNREADABLE, repaired

_SPACE = b" \t\n\r"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def read_fields(body: bytes) -> dict[str, bytes] | None:
    r"""The members of a JSON object; None for anything that is none.

    Of a name that stands there twice, the last value counts here, and may not to the provider, whose parser may take the
    first or see both. So never judge a request by these fields and then pass on the original if a name could be repeated in
    it: pass on ``write_fields`` of them if it differs in length from the original. A repeated name always makes it shorter,
    however it is spelt, and nothing makes it longer: names are written in their shortest form, values as they stood. The same
    holds for a byte order mark, which is skipped here.

    Half a surrogate pair (``"\ud83d"``, which JavaScript writes for a text cut in the middle of an emoji) is read as U+FFFD.
    A body in UTF-16 is no JSON object here (RFC 8259 §8.1), but is one to some servers: refuse what cannot be read.
    """
    try:
        return _members(body)
    except UNREADABLE:
        pass
    try:
        return _members(repaired(body.removeprefix(_BYTE_ORDER_MARK)))
    except UNREADABLE:
        return None


def is_plainly_written(body: bytes, fields: Mapping[str, bytes]) -> bool:
    """Whether the body has these members once each, in this order, with nothing but white space between.

    Then no parser finds anything else in it, and it need not be written anew.
    """
    # the usual case, found by its length alone: nothing but these members has room in it
    if sum(map(len, fields)) + sum(map(len, fields.values())) + 4 * len(fields) + (1 if fields else 2) == len(body):
        return True
    position, before = 0, b"{"
    for name, value in fields.items():
        for text, separator in ((_encode(name), before), (value, b":")):
            start = body.find(text, position)
            if start < 0 or body[position:start].strip(_SPACE) != separator:
                return False
            position = start + len(text)
        before = b","
    rest = body[position:].strip(_SPACE)
    return rest == b"}" if fields else b"".join(rest.split()) == b"{}"


def write_fields(fields: Mapping[str, bytes]) -> bytes:
    """The JSON object of these members, with nothing between them."""
    return b"{" + b",".join(_encode(name) + b":" + value for name, value in fields.items()) + b"}"


def _members(body: bytes) -> dict[str, bytes]:
    return {name: bytes(value) for name, value in _decode(body).items()}

"""JSON read so that no other reader can understand the same bytes differently."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable
from itertools import chain
from typing import Any

from gateway.errors import InvalidJson, UnsupportedMediaType

MAX_DEPTH = 64
MAX_KEYS = 10_000
LARGEST = 10**308
"""Larger whole numbers are infinite to whoever reads numbers as doubles."""

_JSON_TYPE = re.compile(r"application/(?:[a-z0-9!#$&^_.+-]+\+)?json|text/(?:json|plain)|application/octet-stream")
_CHARSET = re.compile(r";[ \t]*charset=(?:\"(?:utf-?8|us-ascii)\"|(?:utf-?8|us-ascii)(?![^ \t;]))")


def parse_json(body: bytes) -> Any:
    """The value of a strict UTF-8 JSON text.

    Refused with InvalidJson: duplicate keys, keys with a NUL (where C ends a text), NaN and infinities (``1e999`` is one), a
    byte order mark, unpaired surrogates, more than 64 levels, more than 10 000 keys. What passes means the same to every parser
    (https://www.rfc-editor.org/rfc/rfc8259), but for digits of a number that a double cannot hold.
    """
    if body.startswith(b"\xef\xbb\xbf"):
        raise InvalidJson("The body begins with a byte order mark.")
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidJson(f"The body is nested more than {MAX_DEPTH} levels deep.") from None
    except ValueError as error:
        raise InvalidJson(f"The body is not valid JSON: {error}") from None
    _check_shape(value)
    return value


def check_json_type(content_types: Iterable[str]) -> None:
    """Raises UnsupportedMediaType for a body that, by its content-type, a server may read as anything but JSON in UTF-8.

    One that is valid JSON may also be a form, and in UTF-7 it has other texts: ``{"a": "&model=large"}``, ``"+AGI-ad"``.
    Without a content-type it passes.
    """
    for content_type in content_types:
        given = content_type.strip().lower()
        if given in ("", "application/json"):
            continue
        kind, _, _ = given.partition(";")
        if not _JSON_TYPE.fullmatch(kind.rstrip()) or len(_CHARSET.findall(given)) != given.count("charset"):
            raise UnsupportedMediaType("The body is read here; its content-type must be JSON in UTF-8.", param="content-type")


def check_alike(names: Collection[str], *read: str) -> None:
    """Raises InvalidJson if some parser takes two of these names for the same, or one of them for a name that is ``read``.

    Go overlooks case (https://pkg.go.dev/encoding/json#Unmarshal), and C ends a text at a NUL.
    """
    told_apart = {name.partition("\0")[0].casefold(): name for name in names}
    if len(told_apart) < len(names) or any(told_apart.get(name, name) != name for name in read):
        raise InvalidJson("The body has a key that some parsers take for another: they overlook case, and what follows a NUL.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"key {name[:64]!r} is given twice")
            seen.add(name)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _check_shape(value: Any) -> None:
    # level by level, with loops in C: a body may have a million values, and meanwhile nobody else is served
    keys, depth, level = 0, 0, [value] if isinstance(value, dict | list) else []
    _check_scalars([value], {type(value)})
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidJson(f"The body is nested more than {MAX_DEPTH} levels deep.")
        objects = [node for node in level if type(node) is dict]
        keys += sum(map(len, objects))
        if keys > MAX_KEYS:
            raise InvalidJson(f"The body has more than {MAX_KEYS} keys.")
        names = "".join(chain.from_iterable(objects))
        if "\0" in names:
            raise InvalidJson("The body has a key with a NUL in it.")
        _check_text(names)
        children = list(chain.from_iterable(node.values() if type(node) is dict else node for node in level))
        kinds = set(map(type, children))
        _check_scalars(children, kinds)
        level = [] if kinds.isdisjoint((dict, list)) else [child for child in children if type(child) in (dict, list)]


def _check_scalars(values: list[Any], kinds: set[type]) -> None:
    if str in kinds:
        _check_text("".join([value for value in values if type(value) is str]))
    infinite = float in kinds and any(map(math.isinf, [value for value in values if type(value) is float]))
    if not infinite and int in kinds:
        numbers = [value for value in values if type(value) is int]
        infinite = max(numbers) > LARGEST or min(numbers) < -LARGEST
    if infinite:
        raise InvalidJson("The body contains a number that is too large.")


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidJson("The body contains an unpaired surrogate.") from None

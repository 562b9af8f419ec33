"""JSON Schemas from tenants: compiled once, bounded in what they cost, and closed to everything outside of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import unquote

import jsonschema_rs
from pydantic import AfterValidator

from gateway.errors import BodyTooLarge

MAX_NODES = 5_000
MAX_WORK = 20_000_000
MAX_LOCATED_WORK = 200_000


def _schema_nodes(schema: dict[str, Any]) -> int:
    """How many nodes the schema has with every ``$ref`` replaced by what it points to.

    Raises ValueError on what could make validation endless or expensive, or read something from elsewhere: references
    that leave the schema, recursive ones, and a size beyond `MAX_NODES`.
    """
    sizes: dict[str, int] = {}
    open_references: set[str] = set()

    def size_of(node: Any, *, root: bool = False) -> int:
        if isinstance(node, list):
            return bounded(1 + sum(size_of(item) for item in node))
        if not isinstance(node, dict):
            return 1
        for word in ("$dynamicRef", "$recursiveRef"):
            if isinstance(node.get(word), str):
                raise ValueError(f"{word} is not supported")
        if isinstance(node.get("$id"), str) and not root:
            raise ValueError("$id is supported at the top of the schema only")
        total = 1 + sum(size_of(item) for item in node.values())
        reference = node.get("$ref")
        return bounded(total + (size_at(reference) if isinstance(reference, str) else 0))

    def size_at(reference: str) -> int:
        if reference in open_references or reference == "#":
            raise ValueError(f"$ref {reference[:200]!r} is recursive, which is not supported")
        if reference not in sizes:
            open_references.add(reference)
            sizes[reference] = size_of(_resolved(schema, reference))
            open_references.remove(reference)
        return sizes[reference]

    def bounded(size: int) -> int:
        if size > MAX_NODES:
            raise ValueError(f"the schema has more than {MAX_NODES} nodes once its references are followed")
        return size

    return size_of(schema, root=True)


def _resolved(schema: Any, reference: str) -> Any:
    if not reference.startswith("#/"):
        raise ValueError(f"$ref {reference[:200]!r} must point inside the schema, such as #/$defs/name")
    node = schema
    for part in unquote(reference[2:]).split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            raise ValueError(f"$ref {reference[:200]!r} points to nothing")
    return node


def _compiled_schema(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    def never(uri: str) -> Any:
        raise ValueError(f"{uri} is outside of the schema")

    # the default engine for `pattern` backtracks
    return jsonschema_rs.validator_for(schema, retriever=never, pattern_options=jsonschema_rs.RegexOptions())


def _usable_schema(schema: dict[str, Any]) -> dict[str, Any]:
    if "draft-04" in str(schema.get("$schema")):
        raise ValueError("is not supported in draft 4; draft 6 and later are")
    try:
        _schema_nodes(schema)
        _compiled_schema(schema)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except jsonschema_rs.ValidationError as error:
        raise ValueError(f"is not a valid JSON Schema: {error.message[:300]}") from None
    return schema


JsonSchema = Annotated[dict[str, Any], AfterValidator(_usable_schema)]
"""A JSON Schema, checked when it is written: draft 6 or later, no recursion, no reference to anything outside of it."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Where a value departs from a schema, as a JSON Pointer (RFC 6901), and how; None if finding out costs too much."""

    message: str
    pointer: str | None = None


class SchemaCheck:
    """A compiled schema."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._nodes = _schema_nodes(schema)
        self._validator = _compiled_schema(schema)

    def mismatch(self, value: Any, source: bytes) -> Mismatch | None:
        """The first mismatch of the value parsed from ``source``; its message names the schema's words, never the value.

        Raises BodyTooLarge if the check could take more than some tenths of a second, during which nothing else runs.
        """
        # every value but the first follows one of these marks; text may hold some more of them
        work = self._nodes * (1 + sum(source.count(mark) for mark in (b",", b"[", b"{")))
        if work > MAX_WORK:
            raise BodyTooLarge("The body has too many values to be checked against the schema of this route.")
        if self._validator.is_valid(value):
            return None
        # collecting what every branch of an anyOf had against the value costs far more than the verdict
        error = next(self._validator.iter_errors(value), None) if work <= MAX_LOCATED_WORK else None
        if error is None:
            return Mismatch("The body does not match the schema of this route.")
        pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in error.instance_path)[:256]
        if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Required):
            return Mismatch(f"The field {error.kind.property} is missing.", pointer)
        return Mismatch(f"The body does not match the schema of this route: {error.kind.name}.", pointer)

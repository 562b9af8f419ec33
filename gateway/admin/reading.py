"""Requests: strict JSON bodies and query parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from quart import request

from gateway.errors import InvalidField, InvalidJson, UnsupportedMediaType
from gateway.plugin import parse_json
from gateway.web import invalid_field

MAX_BODY_BYTES = 1 << 20
PAGE_SIZE = 100
MAX_PAGE_SIZE = 500

_CURSOR = re.compile(r"[a-z0-9-]{1,76}")  # the id of a tenant: a label, a hyphen, twelve digits

M = TypeVar("M", bound=BaseModel)


async def read_object(*, optional: bool = False) -> dict[str, Any]:
    """The JSON object in the body; ``optional`` takes no body for an empty one.

    Raises UnsupportedMediaType, InvalidJson; a body over 1 MiB is answered 413.
    """
    body = await raw_body()
    if optional and not body:
        return {}
    if request.mimetype != "application/json":
        raise UnsupportedMediaType(param="Content-Type")
    document = parse_json(body)
    if not isinstance(document, dict):
        raise InvalidJson("The body must be a JSON object.")
    return document


async def raw_body() -> bytes:
    """The body as it came."""
    return bytes(await request.get_data(as_text=False))  # type: ignore[arg-type]  # text only if that is asked for


@contextmanager
def field_errors(model: type[BaseModel]) -> Iterator[None]:
    """Inside, what the model refuses is raised as InvalidField."""
    try:
        yield
    except ValidationError as error:
        raise invalid_field(error, model) from None


def parsed(model: type[M], document: Mapping[str, Any]) -> M:
    """The document as the model has it. Raises InvalidField."""
    with field_errors(model):
        return model.model_validate(document)


def stored(model: type[M], new: BaseModel, **facts: Any) -> M:
    """What was asked for, with the facts that make it a stored document."""
    # by way of JSON, where a duration keeps its unit
    return model.model_validate(new.model_dump(mode="json") | facts)


def check_query(known: tuple[str, ...]) -> None:
    """Raises InvalidField for a query parameter that is unknown or given twice."""
    for name, values in request.args.lists():
        if name not in known:
            raise InvalidField(f"{name[:64]}: unknown query parameter", param=name[:64])
        if len(values) > 1:
            raise InvalidField(f"{name}: is given twice", param=name)


def page_of_query() -> tuple[str | None, int]:
    """Where the page begins and how long it is. Raises InvalidField."""
    cursor, limit = request.args.get("cursor"), request.args.get("limit", str(PAGE_SIZE))
    if cursor is not None and not _CURSOR.fullmatch(cursor):
        raise InvalidField("cursor: is not one that `next` named", param="cursor")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_PAGE_SIZE):
        raise InvalidField(f"limit: must be a number from 1 to {MAX_PAGE_SIZE}", param="limit")
    return cursor, int(limit)


def if_match() -> str | None:
    """The entity tags that the client has seen, or None."""
    return request.headers.get("if-match")

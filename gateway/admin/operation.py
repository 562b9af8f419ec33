"""What a route declares about itself: who may call it, and what its documentation says.

A route without a declaration is refused, so that a forgotten one is closed and not open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from pydantic import BaseModel

from gateway.errors import GatewayError

V = TypeVar("V", bound=Callable[..., Any])


class Access(Enum):
    """Who may call a route. Those marked (*) are open to everyone where no operator token is configured."""

    PUBLIC = "everyone, under any host name"
    BROWSER = "(*) as ADMIN, and a browser may send the credential as the password of a Basic login"
    ADMIN = "(*) the operator, and keys of any tenant with scope admin"
    OPERATOR = "(*) the operator"
    TENANT = "the operator, and keys with scope admin of the tenant that the path names"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter, with the JSON Schema of its value."""

    name: str
    schema: dict[str, Any]
    description: str


@dataclass(frozen=True, slots=True)
class Body:
    """A JSON body. As an ``edit`` of the stored model, every field may be left out and read-only ones may be sent back."""

    model: type[BaseModel]
    edit: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """A route's declaration. ``answer`` is a model, a media type, or None for an answer without a body.

    ``also_as`` are other media types in which the answer may be asked for. ``writes`` is what the route does, as the audit log
    calls it; None for one that changes nothing.
    """

    access: Access
    summary: str
    tag: str
    description: str = ""
    status: int = 200
    answer: type[BaseModel] | str | None = None
    also_as: tuple[str, ...] = ()
    body: Body | None = None
    query: tuple[Parameter, ...] = ()
    errors: tuple[type[GatewayError], ...] = ()
    has_etag: bool = False
    takes_if_match: bool = False
    takes_idempotency_key: bool = False
    writes: str | None = None


def operation(declared: Operation) -> Callable[[V], V]:
    """Declare a view."""

    def decorate(view: V) -> V:
        view.operation = declared  # type: ignore[attr-defined]
        return view

    return decorate


def operation_of(view: Callable[..., Any]) -> Operation | None:
    """What the view declares."""
    return getattr(view, "operation", None)

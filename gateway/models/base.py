"""What every stored document shares."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gateway.errors import InvalidField

MAX_METADATA_ENTRIES = 32


class Document(BaseModel):
    """Frozen, and closed to unknown fields. ``read_only`` names the fields that an edit may not change."""

    read_only: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def utc_now() -> str:
    """Now as RFC 3339 with milliseconds, such as ``2026-01-31T12:00:00.000Z``."""
    return format_time(datetime.now(UTC))


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must not contain control characters")
    return value


def _small(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_METADATA_ENTRIES:
        raise ValueError(f"has more than {MAX_METADATA_ENTRIES} entries")
    return value


D = TypeVar("D", bound=Document)


def edited(stored: D, changes: Mapping[str, Any]) -> D:
    """The stored document with the fields in ``changes`` replaced, validated as a whole.

    Fields in ``read_only`` may be sent back as they are, so that what was read can be put; any other value raises
    InvalidField. Raises pydantic's ValidationError for the rest.
    """
    current = stored.model_dump(mode="json")
    for name in stored.read_only & changes.keys():
        if changes[name] != current[name]:
            raise InvalidField(f"{name} cannot be changed", param=name)
    return type(stored).model_validate(current | dict(changes))


DisplayName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]], AfterValidator(_small)
]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]

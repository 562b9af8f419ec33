"""What the sections of the configuration have in common: their base, and kinds of values."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, IPvAnyNetwork
from pydantic_settings import NoDecode

from gateway.units import DurationMs, SizeBytes


def comma_separated(value: Any) -> Any:
    """What a list may be written as: with commas, or as JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def _no_number(value: Any) -> Any:
    # a number or a boolean would be the integer value of an address
    if isinstance(value, int | bytes):
        raise ValueError("a network is a text such as 10.0.0.0/8")
    return value


Port = Annotated[int, Field(ge=1, le=65535)]
PositiveMs = Annotated[DurationMs, Field(gt=0)]
PositiveBytes = Annotated[SizeBytes, Field(gt=0)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(comma_separated)]
Network = Annotated[IPvAnyNetwork, BeforeValidator(_no_number)]
"""An IP network as text, or one that was read before."""
Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(comma_separated)]


class Section(BaseModel):
    """A part of the configuration; frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

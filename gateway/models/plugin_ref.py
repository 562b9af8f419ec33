"""How a chain refers to a plugin."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.models.base import Document, Slug

OnError = Literal["deny", "skip"]


class Stage(StrEnum):
    """When a plugin runs; the value is the name of its method."""

    PRE_REQUEST = "pre_request"
    POST_REQUEST = "post_request"
    PRE_RESPONSE = "pre_response"
    POST_RESPONSE = "post_response"


class PluginEntry(Document):
    """A plugin's place in a chain, without its name (the form used in ``required_plugins``)."""

    enabled: bool = Field(True, description="False leaves the entry out of the chain.")
    priority: Annotated[int, Field(ge=1, le=10_000)] = Field(100, description="1 runs first; ties run in order of position.")
    stage: Stage | None = Field(None, description="Run in this stage only; unset means every stage the plugin has.")
    settings: dict[str, Any] = Field(default_factory=dict, description="The plugin's own settings.")
    on_error: OnError = Field("deny", description="What follows when the plugin itself fails: refuse, or go on without it.")


class PluginRef(PluginEntry):
    """A plugin's place in a rule's chain."""

    name: Slug = Field(description="Name of an installed plugin.")

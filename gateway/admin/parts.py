"""What the blueprints of the admin API are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from quart import Blueprint, g

from gateway.admin.auth import Caller
from gateway.config import Config
from gateway.policy import Accounting
from gateway.registry import Registry
from gateway.secrets import Vault
from gateway.store import Stores


@dataclass(frozen=True, slots=True)
class Parts:
    """The stores and what writes are checked against."""

    stores: Stores
    registry: Registry
    vault: Vault
    config: Config
    accounting: Accounting


def caller() -> Caller:
    """Who calls, as decided before the view was entered."""
    found: Caller = g.caller
    return found


def route(blueprint: Blueprint, path: str, methods: Iterable[str], view: Callable[..., Any]) -> None:
    """Serve a declared view; OPTIONS and other methods are answered 405."""
    blueprint.add_url_rule(path, view_func=view, methods=list(methods), provide_automatic_options=False)

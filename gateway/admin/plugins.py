"""``/plugins``: what is installed, with the JSON Schema of each plugin's settings."""

from __future__ import annotations

from quart import Blueprint, Response

from gateway.admin.answering import Answer, PluginList, ShownPlugin
from gateway.admin.operation import Access, Operation, operation
from gateway.admin.parts import route
from gateway.registry import Registry

TAG = "plugins"


def plugins_blueprint(registry: Registry) -> Blueprint:
    """The routes of installed plugins."""
    blueprint = Blueprint("plugins", __name__)

    @operation(Operation(Access.ADMIN, "List installed plugins", TAG, answer=PluginList))
    async def list_plugins() -> Response:
        found = registry.public()
        return Answer({"plugins": found, "count": len(found)}).response()

    @operation(Operation(Access.ADMIN, "Read one plugin", TAG, answer=ShownPlugin))
    async def get_plugin(name: str) -> Response:
        return Answer(registry.describe(name)).response()

    route(blueprint, "/plugins", ["GET"], list_plugins)
    route(blueprint, "/plugins/<name>", ["GET"], get_plugin)
    return blueprint

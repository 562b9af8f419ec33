"""Finds plugins, describes them, and turns a chain entry's settings into a plugin that is ready to run.

Plugins come from the built-in folder, from configured folders (one file each) and from installed packages (entry points of
the group ``gateway.plugins``). They are found once, at start; whatever is wrong with one stops the start.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError

from gateway import resources
from gateway.errors import ConfigurationError, InvalidField, NotFound
from gateway.models import PluginRef
from gateway.plugin import Plugin, Settings, Stage

ENTRY_POINTS = "gateway.plugins"

AnyPlugin: TypeAlias = Plugin[Any]


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """An installed plugin. ``source`` says where it came from, for operators; tenants do not see it."""

    name: str
    description: str
    stages: tuple[Stage, ...]
    settings_schema: Mapping[str, Any]
    source: str
    cls: type[AnyPlugin]

    def public(self) -> dict[str, Any]:
        """The JSON object the admin API answers."""
        return {
            "name": self.name,
            "description": self.description,
            "stages": [stage.value for stage in self.stages],
            "settings_schema": dict(self.settings_schema),
        }


class Registry:
    """The installed plugins by name."""

    def __init__(self, plugins: Sequence[PluginInfo]) -> None:
        self._plugins: dict[str, PluginInfo] = {}
        for plugin in sorted(plugins, key=lambda info: info.name):
            other = self._plugins.setdefault(plugin.name, plugin)
            if other is not plugin:
                raise ConfigurationError(f"two plugins are named {plugin.name}: {other.source} and {plugin.source}")

    @classmethod
    def load(cls, paths: Sequence[Path] = (), *, entry_points: bool = True) -> Registry:
        """Everything that is installed. Raises ConfigurationError, which names the file or package at fault."""
        found = [info for folder in (resources.plugin_folder(), *paths) for info in _in_folder(folder)]
        if entry_points:
            found.extend(_in_packages())
        return cls(found)

    def names(self) -> list[str]:
        """All names, sorted."""
        return list(self._plugins)

    def get(self, name: str) -> PluginInfo | None:
        """The plugin of this name."""
        return self._plugins.get(name)

    def describe(self, name: str) -> dict[str, Any]:
        """What the admin API answers for one plugin. Raises NotFound."""
        plugin = self.get(name)
        if plugin is None:
            raise NotFound(self._unknown(name), param="name")
        return plugin.public()

    def public(self) -> list[dict[str, Any]]:
        """What the admin API answers for all."""
        return [plugin.public() for plugin in self._plugins.values()]

    def validate(self, name: str, settings: Mapping[str, Any], stage: Stage | None = None, *, where: str) -> Settings:
        """The settings, checked as completely as when they come into force.

        Raises InvalidField; its ``param`` begins with ``where``, the entry's place, such as ``plugin_chain.0``.
        """
        checked: Settings = self.create(name, settings, stage, where=where).settings
        return checked

    def create(self, name: str, settings: Mapping[str, Any], stage: Stage | None = None, *, where: str = "plugin") -> AnyPlugin:
        """An instance for one chain entry. Raises InvalidField like `validate`."""
        plugin = self.get(name)
        if plugin is None:
            raise InvalidField(self._unknown(name), param=f"{where}.name")
        if stage is not None and stage not in plugin.stages:
            known = ", ".join(plugin.stages)
            raise InvalidField(f"{name} does not run in {stage}; its stages are {known}", param=f"{where}.stage")
        at = f"{where}.settings"
        try:
            checked = plugin.cls.settings_type.model_validate(settings)
        except ValidationError as error:
            raise _first_problem(error, settings, plugin.settings_schema, at) from None
        try:
            return plugin.cls(checked, stage)
        except Exception as error:
            # a ValueError is written for whoever wrote the settings; anything else could tell what it should not
            reason = str(error) if isinstance(error, ValueError) else type(error).__name__
            raise InvalidField(f"{name} cannot work with these settings: {reason}", param=at) from error

    def _unknown(self, name: str) -> str:
        return f"there is no plugin {name[:64]!r}" + _nearest(name, self._plugins)


def _in_folder(folder: Path) -> Iterator[PluginInfo]:
    if not folder.is_dir():
        raise ConfigurationError(f"plugins.paths: {folder} is not a folder")
    for path in sorted(folder.glob("*.py")):
        if path.name.startswith("_"):
            continue
        module = _imported(path)
        classes = [value for value in vars(module).values() if _is_plugin(value) and value.__module__ == module.__name__]
        if not classes:
            raise ConfigurationError(f"{path}: defines no Plugin with a name")
        for cls in dict.fromkeys(classes):
            yield _info(cls, str(path))


def _in_packages() -> Iterator[PluginInfo]:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        package = entry.dist.name if entry.dist is not None else "unknown"
        source = f"entry point {entry.name} ({entry.value}) of package {package}"
        try:
            cls = entry.load()
        except (Exception, SystemExit) as error:
            raise ConfigurationError(f"{source}: {type(error).__name__}: {error}") from error
        if not _is_plugin(cls):
            raise ConfigurationError(f"{source}: is not a Plugin with a name")
        yield _info(cls, source)


def _imported(path: Path) -> ModuleType:
    # a name of its own for each file: folders may hold equal names, and none may shadow an installed package
    unique = f"_gateway_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{path}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # annotations of dataclasses and models are looked up there
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[unique]
        raise ConfigurationError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def _is_plugin(value: object) -> bool:
    """A base class that plugins of one file share has no name and is none."""
    return isinstance(value, type) and issubclass(value, Plugin) and value is not Plugin and bool(value.name)


def _info(cls: type[AnyPlugin], source: str) -> PluginInfo:
    try:
        # the name must be one that a chain can refer to
        PluginRef(name=cls.name)
    except ValidationError:
        raise ConfigurationError(f"{source}: {cls.name!r} is not a plugin name: a-z, 0-9, _ and -, at most 63") from None
    if not cls.stages():
        raise ConfigurationError(f"{source}: {cls.name} defines no stage: {', '.join(Stage)}")
    try:
        schema = TypeAdapter(cls.settings_type).json_schema()
    except Exception as error:
        raise ConfigurationError(f"{source}: the settings of {cls.name} have no JSON Schema: {error}") from error
    description = (cls.__doc__ or "").strip().partition("\n")[0]
    return PluginInfo(cls.name, description, cls.stages(), schema, source, cls)


def _first_problem(error: ValidationError, settings: Mapping[str, Any], schema: Mapping[str, Any], at: str) -> InvalidField:
    problem = error.errors(include_url=False, include_input=False)[0]
    path = _path(problem["loc"], settings, missing=problem["type"] == "missing")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown field" + _nearest(str(problem["loc"][-1]), _field_names(schema))
    elif problem["type"] == "missing" and message == "Field required":
        message = "is required"
    return InvalidField(f"{'.'.join(path) or 'settings'}: {message}", param=".".join([at, *path]))


def _path(loc: tuple[int | str, ...], settings: object, *, missing: bool) -> list[str]:
    """The steps of a location that lead through the settings; pydantic's names for branches of a union do not."""
    path = []
    node = settings
    for step in loc[:-1] if missing else loc:
        if (isinstance(node, Mapping) and step in node) or (isinstance(node, list | tuple) and isinstance(step, int)):
            node = node[step]  # type: ignore[index]
            path.append(str(step))
    return [*path, str(loc[-1])] if missing and loc else path


def _field_names(schema: Mapping[str, Any]) -> list[str]:
    models = [schema, *schema.get("$defs", {}).values()]
    return [name for model in models for name in model.get("properties", {})]


def _nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""

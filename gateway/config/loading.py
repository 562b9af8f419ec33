"""Reads the configuration: the file, then the environment over it, checked once and frozen afterwards."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from gateway.config.alerts import AlertsSettings
from gateway.config.fields import Section
from gateway.config.sections import (
    LimitsSettings,
    LogSettings,
    PluginsSettings,
    RedisSettings,
    SecretsSettings,
    UpstreamSettings,
)
from gateway.config.server import ServerSettings
from gateway.config.usage import PricesSettings, UsageSettings
from gateway.errors import ConfigurationError

ENVIRONMENT_PREFIX = "GATEWAY_"


class Config(BaseSettings):
    """The whole configuration of a process."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", hide_input_in_errors=True
    )

    server: ServerSettings = Field(default_factory=ServerSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    upstream: UpstreamSettings = Field(default_factory=UpstreamSettings)
    limits: LimitsSettings = Field(default_factory=LimitsSettings)
    usage: UsageSettings = Field(default_factory=UsageSettings)
    alerts: AlertsSettings = Field(default_factory=AlertsSettings)
    prices: PricesSettings = Field(default_factory=PricesSettings)
    secrets: SecretsSettings = Field(default_factory=SecretsSettings)
    plugins: PluginsSettings = Field(default_factory=PluginsSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over what the file said."""
        return env_settings, init_settings


def load_config(path: Path | None = None) -> Config:
    """The configuration from ``path``, else ``$GATEWAY_CONFIG``, else ``./config.yaml`` if it exists, else the defaults.

    Raises ConfigurationError, whose message names each key at fault.
    """
    source = path or configured_file()
    where = str(source) if source is not None else "environment"
    _check_environment()
    try:
        return Config(**_read(source)) if source is not None else Config()
    except ValidationError as error:
        raise ConfigurationError("\n".join(f"{where}: {_explain(item)}" for item in error.errors())) from None
    except SettingsError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def sections() -> dict[str, type[Section]]:
    """Each section's name and class, for the documentation and for suggestions."""
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def configured_file() -> Path | None:
    """What is read where no path is given; None for nothing."""
    named = os.environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    if named:
        return Path(named)
    default = Path("config.yaml")
    return default if default.is_file() else None


def _read(source: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{source}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # its own text shows the lines around the fault, and one of them may be a password
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigurationError(f"{source}: not valid YAML{where}") from None
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
        raise ConfigurationError(f"{source}: must hold sections such as `server:` and `redis:`")
    return {name: {} if section is None else section for name, section in document.items()}


def _check_environment() -> None:
    """Refuse keys of sections that do not exist, which pydantic-settings would pass over."""
    prefix, delimiter = ENVIRONMENT_PREFIX.lower(), str(Config.model_config["env_nested_delimiter"])
    for name in map(str.lower, os.environ):
        section, is_nested, key = name.removeprefix(prefix).partition(delimiter)
        if name.startswith(prefix) and is_nested and section not in sections():
            raise ConfigurationError(f"environment: {_unknown(f'{section}.{key}')}")


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        return f"{key}: {item['msg'].removeprefix('Value error, ')}" if key else str(item["msg"])
    return _unknown(key)


def _unknown(key: str) -> str:
    known = [f"{name}.{field}" for name, section in sections().items() for field in section.model_fields]
    known = known if "." in key else [*sections()]
    nearest = difflib.get_close_matches(key, known, n=1)
    return f"{key}: unknown key" + (f"; did you mean {nearest[0]}?" if nearest else "")

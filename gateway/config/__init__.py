"""The process configuration: ``config.yaml`` and the environment, checked once, frozen afterwards.

Every key has a default that is safe. An unknown key is an error that names the nearest known one. The environment wins
over the file: ``GATEWAY_SERVER__PROXY_PORT=9081`` sets ``server.proxy_port``. Durations are milliseconds and sizes bytes
once loaded, however they were written.
"""

from gateway.config.alerts import AlertsSettings
from gateway.config.fields import Network, Section
from gateway.config.loading import ENVIRONMENT_PREFIX, Config, configured_file, load_config, sections
from gateway.config.sections import (
    LimitsSettings,
    LogSettings,
    PluginsSettings,
    RateLimitDialect,
    RedisSettings,
    SecretsSettings,
    UpstreamSettings,
)
from gateway.config.server import ServerSettings, is_loopback
from gateway.config.usage import PricesSettings, UsageSettings

__all__ = [
    "ENVIRONMENT_PREFIX",
    "AlertsSettings",
    "Config",
    "LimitsSettings",
    "LogSettings",
    "Network",
    "PluginsSettings",
    "PricesSettings",
    "RateLimitDialect",
    "RedisSettings",
    "SecretsSettings",
    "Section",
    "ServerSettings",
    "UpstreamSettings",
    "UsageSettings",
    "configured_file",
    "is_loopback",
    "load_config",
    "sections",
]

"""The data plane: what happens to a tenant's request."""

from gateway.proxy.app import ProxyParts, create_proxy_app
from gateway.proxy.webhook import webhook_target

__all__ = ["ProxyParts", "create_proxy_app", "webhook_target"]

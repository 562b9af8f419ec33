"""The data plane: what happens to a tenant's request."""

from gateway.proxy.app import ProxyParts, create_proxy_app

__all__ = ["ProxyParts", "create_proxy_app"]

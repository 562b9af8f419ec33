"""The admin API: tenants, their API keys and rules, and the installed plugins, as JSON under ``/api/v1``."""

from gateway.admin.app import create_admin_app

__all__ = ["create_admin_app"]

"""The admin API as a Quart app."""

from __future__ import annotations

import logging
from collections.abc import Callable

from quart import Quart, Response, g, request

from gateway.admin import audit
from gateway.admin.answering import PREFIX, Health
from gateway.admin.api_keys import api_keys_blueprint
from gateway.admin.auth import Authenticator, check_bounds, check_host
from gateway.admin.docs import docs_blueprint
from gateway.admin.explain import explain_blueprint
from gateway.admin.openapi import openapi_document
from gateway.admin.operation import Access, Operation, operation, operation_of
from gateway.admin.parts import Parts
from gateway.admin.plugins import plugins_blueprint
from gateway.admin.reading import MAX_BODY_BYTES, check_query
from gateway.admin.rules import rules_blueprint
from gateway.admin.tenants import tenants_blueprint
from gateway.admin.usage import usage_blueprint
from gateway.config import Config, is_loopback
from gateway.errors import NotAllowed
from gateway.failed_logins import FailedLogins
from gateway.policy import Accounting
from gateway.registry import Registry
from gateway.secrets import Vault
from gateway.store import Stores
from gateway.web import health_blueprint, install_error_handlers

FAILED_LOGINS_PER_MINUTE = 300

logger = logging.getLogger("gateway.admin")


def _never() -> bool:
    return False


def create_admin_app(
    stores: Stores,
    registry: Registry,
    vault: Vault,
    config: Config,
    accounting: Accounting,
    *,
    draining: Callable[[], bool] = _never,
    failed_logins_per_minute: int = FAILED_LOGINS_PER_MINUTE,
) -> Quart:
    """Build the app. ``draining()`` turns ``/health/ready`` to 503; wrong credentials are limited for each client address."""
    app = Quart("gateway.admin", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY_BYTES, PROVIDE_AUTOMATIC_OPTIONS=False)
    app.url_map.merge_slashes = False
    parts = Parts(stores, registry, vault, config, accounting)
    authenticator = Authenticator(stores, config.server, FailedLogins(failed_logins_per_minute))
    install_error_handlers(app)
    _install_gate(app, authenticator, config)
    health = health_blueprint(stores.connection.ping, draining)
    app.register_blueprint(health)
    app.register_blueprint(health, name="api_health", url_prefix=PREFIX)
    for endpoint, view in app.view_functions.items():
        what = "process" if endpoint.endswith("live") else "process and its store"
        operation(Operation(Access.PUBLIC, f"Health of the {what}", "health", answer=Health))(view)
    of_tenants = (tenants_blueprint, api_keys_blueprint, rules_blueprint, usage_blueprint, explain_blueprint)
    for blueprint in (*(make(parts) for make in of_tenants), plugins_blueprint(registry)):
        app.register_blueprint(blueprint, url_prefix=PREFIX)
    app.register_blueprint(docs_blueprint(lambda: openapi_document(app, is_open=authenticator.is_open)))
    return app


def _install_gate(app: Quart, authenticator: Authenticator, config: Config) -> None:
    """Whatever reaches a view has passed here; a route that does not declare who may call it never does."""

    @app.before_request
    async def _gate() -> None:
        rule = request.url_rule
        declared = None if rule is None else operation_of(app.view_functions[rule.endpoint])
        address = authenticator.address_of(request)
        if declared is not None:
            audit.expect(declared.writes, address)
        check_bounds(request, config.server.max_header_bytes)
        if declared is None or declared.access is not Access.PUBLIC:
            check_host(request.headers.get("host"), config.server, is_loopback)
        if rule is None:
            return  # Quart goes on to answer 404 or 405
        if declared is None:
            logger.error("route %s does not declare who may call it", rule.rule)
            raise NotAllowed
        tenant_id = (request.view_args or {}).get("tenant_id")
        g.claimed = await authenticator.identify(request, declared.access, address)
        authenticator.authorise(g.claimed, declared.access, tenant_id)
        g.caller = g.claimed
        if declared.access is not Access.PUBLIC:
            check_query(tuple(parameter.name for parameter in declared.query))

    @app.after_request
    async def _record(response: Response) -> Response:
        audit.record_answer(response.status_code)
        return response

    @app.teardown_request
    async def _record_loss(_: BaseException | None) -> None:
        audit.record_loss()

    @app.after_request
    async def _harden(response: Response) -> Response:
        response.headers["cache-control"] = "no-store"
        response.headers.setdefault("content-security-policy", "default-src 'none'; frame-ancestors 'none'")
        return response

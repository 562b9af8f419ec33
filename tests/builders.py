"""Builders with good defaults: a test names only what it is about."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.composition import accounting_of
from gateway.config import Config
from gateway.models import NewRule, NewTenant, Rule, Tenant
from gateway.plugin import ApiKeyInfo, Exchange, Headers, LimitState, Plugin, Reply, Request, RuleInfo, Stage, TenantInfo
from gateway.policy import Accounting
from gateway.prices import Catalogue
from gateway.registry import Registry

WHEN = "2026-01-31T12:00:00.000Z"

Fields = Mapping[str, str] | Iterable[tuple[str, str]]


def _headers(given: Fields) -> Headers:
    return Headers.of(given.items() if isinstance(given, Mapping) else given)


def _bytes(body: Any) -> bytes | None:
    return body if body is None or isinstance(body, bytes) else json.dumps(body).encode()


_catalogue = functools.cache(Catalogue.bundled)  # takes a moment to read, and never changes


def an_accounting(config: Config | None = None) -> Accounting:
    """As configured, with the prices that are public."""
    return accounting_of(config or Config(), _catalogue())


def a_request(
    body: Any = None,
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    query: str = "",
    headers: Fields = (),
    content_type: str | None = "application/json",
    client_ip: str = "203.0.113.7",
    has_body: bool | None = None,
) -> Request:
    """A request; ``body`` is bytes as they are, None, or a value sent as JSON. ``has_body`` where it is there but not read."""
    given = _headers(headers)
    if content_type is not None and body is not None and "content-type" not in given:
        given.set("content-type", content_type)
    return Request(method, path, query, given, client_ip, _bytes(body), body is not None if has_body is None else has_body)


def a_reply(
    body: Any = None, *, status: int = 200, headers: Fields = (), content_type: str | None = "application/json"
) -> Reply:
    """A reply of the target; ``body`` as in `a_request`."""
    given = _headers(headers)
    if content_type is not None and "content-type" not in given:
        given.set("content-type", content_type)
    return Reply(status, given, _bytes(body))


def an_exchange(
    request: Request | None = None,
    *,
    reply: Reply | None = None,
    tier: str = "basic",
    limits: Iterable[LimitState] = (),
    **request_facts: Any,
) -> Exchange:
    """An exchange; what is not known here is passed to `a_request`."""
    return Exchange(
        request_id="req-1",
        request=request or a_request(**request_facts),
        tenant=TenantInfo("ten_1", "Test Company", "testcompany", tier),
        api_key=ApiKeyInfo("key_1", "default"),
        rule=RuleInfo("rule_1", "/v1/chat/completions", "https://api.example.com"),
        limits=tuple(limits),
        reply=reply,
    )


def a_tenant(**fields: Any) -> Tenant:
    """A stored tenant."""
    new = NewTenant.model_validate({"name": "Test Company", "subdomain": "testcompany"} | _only(NewTenant, fields))
    stored = {"id": "ten_1", "status": "active", "created_at": WHEN, "updated_at": WHEN}
    return Tenant.model_validate(new.model_dump(mode="json") | stored | fields)


def a_rule(**fields: Any) -> Rule:
    """A stored rule."""
    new = NewRule.model_validate({"path": "/v1/chat/completions", "target": "https://api.example.com"} | _only(NewRule, fields))
    stored = {"id": "rule_1", "created_at": WHEN, "updated_at": WHEN}
    return Rule.model_validate(new.model_dump(mode="json") | stored | fields)


def _only(model: type[NewTenant | NewRule], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in model.model_fields}


@functools.cache
def built_in_plugins() -> Registry:
    """The registry of the built-in plugins alone."""
    return Registry.load((), entry_points=False)


def a_plugin(name: str, settings: Mapping[str, Any] | None = None, stage: str | None = None, **more: Any) -> Plugin[Any]:
    """A built-in plugin, made from settings as a chain entry has them."""
    return built_in_plugins().create(name, {**(settings or {}), **more}, None if stage is None else Stage(stage))

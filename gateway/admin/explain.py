"""``/tenants/{tenant_id}/explain``: what would become of a request."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from quart import Blueprint, Response

from gateway.admin.answering import Answer
from gateway.admin.auth import Caller
from gateway.admin.explaining import ExplainedExchange, ExplainRequest
from gateway.admin.operation import Access, Body, Operation, operation
from gateway.admin.parts import Parts, caller, route
from gateway.admin.reading import parsed, read_object
from gateway.errors import GatewayError, InvalidApiKey, InvalidField, NotFound
from gateway.models import Stage, format_time, shown_amount
from gateway.plugin import Headers
from gateway.policy import BEFORE_CHAIN, Description, Explainer, Explanation, SeenLimit, Verdict, spent_by_ledger
from gateway.store import Standing, read_standing
from gateway.web import current_request_id, error_reply, is_address

TAG = "explain"

_OF_ONE_ANSWER = frozenset({"content-length", "x-request-id"})


def explain_blueprint(parts: Parts) -> Blueprint:
    """The route of dry runs."""
    blueprint = Blueprint("explain", __name__)
    explainer = Explainer(
        parts.registry,
        parts.config,
        parts.accounting,
        parts.stores.admissions.peek,
        partial(spent_by_ledger, parts.stores.usage),
    )

    @operation(
        Operation(
            Access.TENANT,
            "Explain what would become of a request",
            TAG,
            "A dry run by the code that serves requests: which rule matches, which plugins run in which order, the state of"
            " each limit, and the answer. Nothing is counted, written or forwarded.",
            answer=ExplainedExchange,
            body=Body(ExplainRequest),
        )
    )
    async def explain_request(tenant_id: str) -> Response:
        given = parsed(ExplainRequest, await read_object())
        standing = await _standing(parts, tenant_id, given, caller())
        asked = given.description(caller().address if is_address(caller().address) else "127.0.0.1")
        found = await explainer.explain(asked, standing.outcome, current_request_id())
        return Answer(_shown(given, asked, standing, found)).response()

    route(blueprint, "/tenants/<tenant_id>/explain", ["POST"], explain_request)
    return blueprint


async def _standing(parts: Parts, tenant_id: str, given: ExplainRequest, who: Caller) -> Standing:
    key_id = given.api_key_id
    if key_id is None:
        if who.key is None:
            raise InvalidField("api_key_id: is required; only a tenant's own key stands for itself", param="api_key_id")
        key_id = who.key.id
    await parts.stores.tenants.get(tenant_id)  # its absence is another matter than that of the key
    try:
        return await read_standing(parts.stores, tenant_id, key_id)
    except NotFound:
        raise InvalidField("api_key_id: the tenant has no such key", param="api_key_id") from None


def _shown(given: ExplainRequest, asked: Description, standing: Standing, found: Explanation) -> dict[str, Any]:
    tenant, key, rule = standing.tenant.tenant, standing.key.key, found.rule
    return {
        "request": {
            "method": asked.method,
            "path": given.path,
            "client_ip": asked.client_ip,
            "has_body": asked.has_body,
            "model": asked.model,
            "tokens": None if given.tokens is None else given.tokens.model_dump(),
        },
        "tenant": {name: getattr(tenant, name) for name in ("id", "name", "subdomain", "tier", "status")},
        "api_key": {"id": key.id, "name": key.name, "status": _key_status(standing)},
        "rule": None
        if rule is None
        else {"id": rule.info.id, "name": found.rule_name, "path": rule.info.path, "target": rule.info.target},
        "plugins": [_plugin(position, verdict) for position, verdict in enumerate(found.verdicts)],
        "limits": [_limit(standing, found, seen) for seen in found.limits],
        "answer": _answer(found),
        "certain": not found.uncalled,
        "why": _why(standing, found),
    }


def _key_status(standing: Standing) -> Literal["active", "revoked", "expired"]:
    if standing.key.key.status == "revoked":
        return "revoked"
    # of a key that is not revoked, the store refuses nothing but the time
    return "expired" if isinstance(standing.outcome, InvalidApiKey) else "active"


def _plugin(position: int, verdict: Verdict) -> dict[str, Any]:
    entry = verdict.entry
    return {
        "name": entry.name,
        "position": position,
        "priority": entry.priority,
        "required": entry.required,
        "stages": [stage for stage in Stage if entry.plugin.runs_in(stage)],
        "on_error": entry.on_error,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
    }


def _limit(standing: Standing, found: Explanation, seen: SeenLimit) -> dict[str, Any]:
    state, spec, position = seen.state, seen.bound.placed.spec, seen.bound.placed.entry
    owners = {"api_key": standing.key.key.id, "tenant": standing.tenant.tenant.id}
    plugin = found.verdicts[position].entry.name if position != BEFORE_CHAIN else None
    rule_id = "" if found.rule is None else found.rule.info.id
    return {
        "name": state.name,
        "kind": spec.kind,
        "level": list(state.level),
        "unit": state.unit,
        "declared_by": {"kind": seen.owner, "id": owners.get(seen.owner, rule_id), "plugin": plugin},
        "position": None if position == BEFORE_CHAIN else position,
        "cost": shown_amount(spec.unit, seen.bound.cost),
        "limit": shown_amount(spec.unit, state.limit),
        "window_ms": spec.window_ms or None,
        "period": spec.period,
        "time_zone": spec.time_zone if spec.period else None,
        "used": shown_amount(spec.unit, state.used),
        "remaining": shown_amount(spec.unit, state.remaining),
        "retry_after_ms": state.retry_after_ms if state.retry_after_ms >= 0 else None,
        "reset_ms": state.reset_ms,
        "shadow": state.shadow,
        "refuses": state.refuses,
    }


def _answer(found: Explanation) -> dict[str, Any]:
    refusal, answer = found.refusal, found.answer
    shown: dict[str, Any] = dict.fromkeys(("outcome", "status", "code", "message", "headers", "body", "forwarded_to"))
    fields: list[tuple[bytes, bytes]] = []
    if refusal is not None:
        status, fields, _ = error_reply(refusal, "")
        error = {name: value for name, value in refusal.body("")["error"].items() if name != "request_id"}
        shown |= {"outcome": "refused", "status": status, "code": refusal.code, "message": refusal.message}
        shown["body"] = {"error": error}
    elif answer is not None:
        fields = Headers.of(answer.headers).raw
        shown |= {"outcome": "answered", "status": answer.status, "body": answer.body.decode("utf-8", "replace")}
    else:
        shown |= {"outcome": "forwarded", "forwarded_to": found.url}
    taken = {name for name, _ in fields}
    headers: dict[str, str] = {}
    for name, value in Headers([*fields, *(field for field in found.headers if field[0] not in taken)]):
        if name not in _OF_ONE_ANSWER:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return shown | {"headers": headers}


def _why(standing: Standing, found: Explanation) -> str:
    names = list(dict.fromkeys(found.uncalled))
    doubt = f", unless a plugin that was not run ends the request before: {', '.join(names)}" if names else ""
    if found.refusal is not None:
        return _reason(standing, found, found.refusal) + doubt + "."
    if found.rule is None:
        raise AssertionError("neither refused nor matched")
    place = f"Rule {found.rule.info.id} ({found.rule.info.path}) matches"
    if found.answer is not None and found.stopped_at is not None:
        return f"{place}, and plugin {found.verdicts[found.stopped_at].entry.name} answers in place of the target{doubt}."
    return f"{place}, and nothing refuses the request{doubt}."


def _reason(standing: Standing, found: Explanation, refusal: GatewayError) -> str:
    key = standing.key.key
    if refusal is standing.outcome and isinstance(refusal, InvalidApiKey):
        if key.status == "revoked":
            return f"The key {key.id} is revoked"
        return f"The key {key.id} has expired" + ("" if key.expires_at is None else f" at {format_time(key.expires_at)}")
    message = refusal.message.removesuffix(".")
    notes = getattr(refusal, "__notes__", [])
    if found.stopped_at is None:
        return "; ".join([message, *notes])
    if found.stopped_at == BEFORE_CHAIN:
        owner = next(seen.owner for seen in found.limits if seen.bound.placed.entry == BEFORE_CHAIN and _refuses(seen))
        return f"A limit of the {'key' if owner == 'api_key' else 'tenant'} refuses: {message}"
    return f"Plugin {found.verdicts[found.stopped_at].entry.name} refuses: {message}"


def _refuses(seen: SeenLimit) -> bool:
    return seen.state.refuses and not seen.state.shadow

"""The OpenAPI 3.1 document, made from the routes of the app, their declarations and the models.

https://spec.openapis.org/oas/v3.1.1.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from quart import Quart

from gateway import __version__
from gateway.admin.operation import Access, Body, Operation, operation_of
from gateway.errors import (
    AmbiguousCredentials,
    BadRequest,
    BodyTooLarge,
    EditConflict,
    GatewayError,
    InternalError,
    InvalidApiKey,
    InvalidField,
    InvalidJson,
    MissingHost,
    NotAllowed,
    NotFound,
    Overloaded,
    RateLimited,
    RequestTimeout,
    StoreUnavailable,
    TenantSuspended,
    UnsupportedMediaType,
    public_errors,
)

JSON = "application/json"
REF = "#/components/schemas/{model}"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")

_DESCRIPTION = """\
Errors have one shape, `{"error": {"message", "type", "param", "code", "request_id"}}`; `param` names the field or header at
fault. Every answer carries `x-request-id`. Secrets are shown once, when they are made; a masked value (`•••`) that is
sent back keeps what is stored."""

_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "schema": {"type": "string"},
    "description": "`ETag` of what was read; answered 412 if the object has changed since.",
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "description": "Random text, such as a UUID. A repeated request with the same key and body is answered as the first one"
    " was, with `Idempotent-Replayed: true`, and changes nothing. Kept for 24 hours.",
}


def openapi_document(app: Quart, *, is_open: bool) -> dict[str, Any]:
    """The document of all declared routes. ``is_open``: no operator token is set."""
    paths: dict[str, dict[str, Any]] = {}
    operations = declared(app)
    for path, method, name, operation in operations:
        paths.setdefault(path, _path_item(path))[method.lower()] = _operation(name, path, operation, is_open=is_open)
    return {
        "openapi": "3.1.0",
        "info": {"title": "AI gateway: admin API", "version": __version__, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(operation for *_, operation in operations),
            "securitySchemes": {
                "operator": {"type": "http", "scheme": "bearer", "description": "The token of `server.admin_token`."},
                "tenant_key": {"type": "http", "scheme": "bearer", "description": "An API key with scope `admin`."},
            },
        },
    }


def declared(app: Quart) -> list[tuple[str, str, str, Operation]]:
    """Path as OpenAPI writes it, method, unique name and declaration of every route, in the order of registration."""
    found: list[tuple[str, str, str, Operation]] = []
    taken: set[str] = set()
    for rule in app.url_map.iter_rules():
        operation = operation_of(app.view_functions[rule.endpoint])
        if operation is None:
            continue
        name = rule.endpoint.rpartition(".")[2]
        if name in taken:  # the same view at a second address
            name = "_".join(part for part in re.split(r"\W+", rule.rule) if part)
        taken.add(name)
        methods = [method for method in METHODS if method in (rule.methods or ())]
        found.extend(
            (_VARIABLE.sub(r"{\1}", rule.rule), method, name if len(methods) == 1 else f"{name}_{method.lower()}", operation)
            for method in methods
        )
    return found


def _path_item(path: str) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    return {"parameters": parameters} if parameters else {}


def _operation(name: str, path: str, operation: Operation, *, is_open: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": _responses(path, operation),
        "security": _security(operation.access, is_open=is_open),
    }
    if operation.description:
        document["description"] = operation.description
    parameters: list[dict[str, Any]] = [
        {"name": each.name, "in": "query", "schema": each.schema, "description": each.description} for each in operation.query
    ]
    parameters += [_IF_MATCH] if operation.takes_if_match else []
    parameters += [_IDEMPOTENCY_KEY] if operation.takes_idempotency_key else []
    if parameters:
        document["parameters"] = parameters
    if operation.body is not None:
        content = {JSON: {"schema": {"$ref": REF.format(model=_body_name(operation.body))}}}
        document["requestBody"] = {"required": not operation.body.optional, "content": content}
    return document


def _security(access: Access, *, is_open: bool) -> list[dict[str, list[str]]]:
    operator: dict[str, list[str]] = {"operator": []}
    tenant_key: dict[str, list[str]] = {"tenant_key": []}
    match access:
        case Access.PUBLIC:
            return []
        case Access.TENANT:
            return [operator, tenant_key]
        case Access.OPERATOR:
            return [operator, {}] if is_open else [operator]
        case _:
            return [operator, tenant_key, {}] if is_open else [operator, tenant_key]


def _responses(path: str, operation: Operation) -> dict[str, Any]:
    description = operation.summary
    headers = {"x-request-id": {"schema": {"type": "string"}}}
    if operation.has_etag:
        headers["ETag"] = {"schema": {"type": "string"}}
    if operation.status == 201:
        headers["Location"] = {"schema": {"type": "string"}}
    success: dict[str, Any] = {"description": description, "headers": headers}
    if isinstance(operation.answer, str):
        success["content"] = {operation.answer: {}}
    elif operation.answer is not None:
        success["content"] = {JSON: {"schema": {"$ref": REF.format(model=operation.answer.__name__)}}}
    if operation.also_as:
        success["content"] |= {media_type: {"schema": {"type": "string"}} for media_type in operation.also_as}
    responses: dict[str, Any] = {str(operation.status): success}
    by_status: dict[int, list[str]] = {}
    for error in _errors(path, operation):
        codes = by_status.setdefault(error.status, [])
        if error.code not in codes:
            codes.append(error.code)
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = {
            "description": ", ".join(f"`{code}`" for code in codes),
            "headers": {"x-request-id": {"schema": {"type": "string"}}},
            "content": {JSON: {"schema": {"$ref": REF.format(model="Error")}}},
        }
    return responses


def _errors(path: str, operation: Operation) -> Iterable[type[GatewayError]]:
    yield from operation.errors
    yield InternalError
    if operation.access is Access.PUBLIC:
        if not path.endswith("/live"):
            yield from (error for error in public_errors() if error.status == 503)
        return
    yield from (BadRequest, MissingHost, InvalidField, AmbiguousCredentials)
    yield from (InvalidApiKey, NotAllowed, TenantSuspended, RateLimited, StoreUnavailable, Overloaded)
    if "{" in path:
        yield NotFound
    if operation.body is not None:
        yield from (InvalidJson, RequestTimeout, BodyTooLarge, UnsupportedMediaType)
    if operation.takes_if_match:
        yield EditConflict


# Schemas


def _schemas(operations: Iterable[Operation]) -> dict[str, Any]:
    asked: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {}
    edits: list[Body] = []
    for operation in operations:
        if isinstance(operation.answer, type):
            asked[operation.answer, "serialization"] = None
        if operation.body is not None and operation.body.edit:
            edits.append(operation.body)
        elif operation.body is not None:
            asked[operation.body.model, "validation"] = None
    found = _of_models(list(asked))
    for body in edits:
        written = _of_models([(body.model, "validation")])
        edit = written.pop(body.model.__name__)
        found = written | found
        found[_body_name(body)] = _as_edit(edit, body.model)
    return dict(sorted((found | {"Error": _error_schema()}).items()))


def _of_models(models: list[tuple[type[BaseModel], JsonSchemaMode]]) -> dict[str, Any]:
    _, document = models_json_schema(models, ref_template=REF)
    found: dict[str, Any] = document.get("$defs", {})
    return found


def _body_name(body: Body) -> str:
    return f"{body.model.__name__.removeprefix('Shown')}Edit" if body.edit else body.model.__name__


def _as_edit(schema: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Every field may be left out; a default would be misleading, as leaving out means leaving as it is."""
    read_only: frozenset[str] = getattr(model, "read_only", frozenset()) | {"warnings"}
    fields = {
        name: {key: value for key, value in field.items() if key != "default"}
        | ({"readOnly": True} if name in read_only else {})
        for name, field in schema["properties"].items()
    }
    rest = {key: value for key, value in schema.items() if key not in ("required", "properties", "description", "title")}
    return rest | {"properties": fields}


def _error_schema() -> dict[str, Any]:
    text_or_null = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    problem = {
        "type": "object",
        "required": ["param", "message"],
        "properties": {"param": text_or_null, "message": {"type": "string"}},
    }
    members = {
        "message": {"type": "string", "description": "For people; may change."},
        "type": {"type": "string", "enum": sorted({error.type for error in public_errors()})},
        "param": text_or_null | {"description": "The field or header at fault."},
        "code": {"type": "string", "enum": [error.code for error in public_errors()], "description": "For programs."},
        "request_id": {"type": "string"},
        "errors": {"type": "array", "items": problem, "description": "With `invalid_field`: every field at fault."},
    }
    required = ["message", "type", "param", "code", "request_id"]
    error = {"type": "object", "required": required, "properties": members}
    return {"title": "Error", "type": "object", "required": ["error"], "properties": {"error": error}}

"""``/tenants/{tenant_id}/api-keys``: issue, list, read, edit, rotate and revoke."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field
from quart import Blueprint, Response

from gateway import virtual_key
from gateway.admin import audit
from gateway.admin.answering import Answer, IssuedKey, KeyList, ShownKey, no_content
from gateway.admin.granting import check_granted
from gateway.admin.idempotency import Idempotency
from gateway.admin.operation import Access, Body, Operation, operation
from gateway.admin.parts import Parts, caller, route
from gateway.admin.reading import field_errors, if_match, parsed, read_object, stored
from gateway.errors import IdempotencyConflict, InvalidField, NotAllowed
from gateway.models import ApiKey, Document, NewKey, edited, utc_now
from gateway.store import Once, Repeated, Stores, new_id
from gateway.store.writing import etag
from gateway.units import DurationMs

TAG = "api-keys"
DEFAULT_GRACE_MS = 86_400_000
MAX_GRACE_MS = 30 * 86_400_000


class Rotation(Document):
    """What ``POST …/rotate`` takes."""

    grace: Annotated[DurationMs, Field(ge=0, le=MAX_GRACE_MS)] = Field(
        DEFAULT_GRACE_MS,
        description="How long the replaced secret still works; at most 30d. 0 ends it at once.",
        json_schema_extra={"default": "24h"},
    )


def api_keys_blueprint(parts: Parts) -> Blueprint:
    """The routes of a tenant's keys."""
    blueprint = Blueprint("api_keys", __name__)
    keys = parts.stores.api_keys

    @operation(
        Operation(
            Access.TENANT,
            "Issue an API key",
            TAG,
            "The secret is in this answer only. A key may not be given more than the key that asks for it has.",
            status=201,
            answer=IssuedKey,
            body=Body(NewKey),
            errors=(NotAllowed, IdempotencyConflict),
            has_etag=True,
            takes_idempotency_key=True,
            writes="api_key.create",
        )
    )
    async def create_api_key(tenant_id: str) -> Response:
        new = parsed(NewKey, await read_object())
        _check_expiry(new)
        check_granted(caller(), new)
        await _check_rules(parts.stores, tenant_id, new)
        idempotency = await Idempotency.of_request(caller())
        secret, now = virtual_key.new_secret(), utc_now()
        facts = {"id": new_id("key"), "hint": virtual_key.hint(secret), "status": "active"}
        key = stored(ApiKey, new, **facts, created_at=now, updated_at=now)
        answer = _issued(tenant_id, key, secret)
        outcome = await keys.create(tenant_id, key, virtual_key.digest(secret), idempotency.once(answer))
        if isinstance(outcome, Repeated):
            return idempotency.response(outcome)
        audit.record(tenant_id, key.id, after=key.public())
        return answer.response()

    @operation(Operation(Access.TENANT, "List a tenant's API keys", TAG, answer=KeyList))
    async def list_api_keys(tenant_id: str) -> Response:
        found = await keys.all(tenant_id)
        return Answer({"api_keys": [each.key.public(each.last_used_at) for each in found], "count": len(found)}).response()

    @operation(Operation(Access.TENANT, "Read an API key", TAG, answer=ShownKey, has_etag=True))
    async def get_api_key(tenant_id: str, key_id: str) -> Response:
        found = await keys.get(tenant_id, key_id)
        return Answer(found.key.public(found.last_used_at), etag=found.etag).response()

    @operation(
        Operation(
            Access.TENANT,
            "Edit an API key",
            TAG,
            "Fields that are not given stay as they are. Nothing can be widened beyond what the key that asks has.",
            answer=ShownKey,
            body=Body(ShownKey, edit=True),
            errors=(NotAllowed,),
            has_etag=True,
            takes_if_match=True,
            writes="api_key.edit",
        )
    )
    async def edit_api_key(tenant_id: str, key_id: str) -> Response:
        changes = await read_object()
        changes.pop("last_used_at", None)  # moves by itself, so it cannot be compared
        known_rules = {rule.id for rule in await parts.stores.rules.all(tenant_id)}
        before: list[ApiKey] = []

        def change(key: ApiKey) -> ApiKey:
            with field_errors(ApiKey):
                changed = edited(key, changes)
            if changed.expires_at != key.expires_at:
                _check_expiry(changed)
            check_granted(caller(), changed, before=key)
            _check_known(changed, known_rules | set(key.allowed_rules or ()))
            before[:] = [key]
            return changed if changed == key else changed.model_copy(update={"updated_at": utc_now()})

        after = await keys.update(tenant_id, key_id, change, if_match())
        audit.record(tenant_id, key_id, before[0].public(), after.key.public())
        return Answer(after.key.public(after.last_used_at), etag=after.etag).response()

    @operation(
        Operation(
            Access.TENANT,
            "Revoke an API key",
            TAG,
            "It stays in the list with status `revoked`. Revoking it again is answered 204 as well.",
            status=204,
            takes_if_match=True,
            writes="api_key.revoke",
        )
    )
    async def revoke_api_key(tenant_id: str, key_id: str) -> Response:
        before: list[ApiKey] = []

        def change(key: ApiKey) -> ApiKey:
            before[:] = [key]
            return key if key.status == "revoked" else key.model_copy(update={"status": "revoked", "updated_at": utc_now()})

        after = await keys.update(tenant_id, key_id, change, if_match())
        audit.record(tenant_id, key_id, before[0].public(), after.key.public())
        return no_content()

    route(blueprint, "/tenants/<tenant_id>/api-keys", ["POST"], create_api_key)
    route(blueprint, "/tenants/<tenant_id>/api-keys", ["GET"], list_api_keys)
    route(blueprint, "/tenants/<tenant_id>/api-keys/<key_id>", ["GET"], get_api_key)
    route(blueprint, "/tenants/<tenant_id>/api-keys/<key_id>", ["PATCH"], edit_api_key)
    route(blueprint, "/tenants/<tenant_id>/api-keys/<key_id>", ["DELETE"], revoke_api_key)
    route(blueprint, "/tenants/<tenant_id>/api-keys/<key_id>/rotate", ["POST"], _rotation(parts))
    return blueprint


def _rotation(parts: Parts) -> Callable[[str, str], Awaitable[Response]]:
    keys = parts.stores.api_keys

    @operation(
        Operation(
            Access.TENANT,
            "Give an API key a new secret",
            TAG,
            "The secret it replaces works until the grace has ended. The new one is in this answer only.",
            status=201,
            answer=IssuedKey,
            body=Body(Rotation, optional=True),
            errors=(NotAllowed, IdempotencyConflict),
            has_etag=True,
            takes_idempotency_key=True,
            writes="api_key.rotate",
        )
    )
    async def rotate_api_key(tenant_id: str, key_id: str) -> Response:
        rotation = parsed(Rotation, await read_object(optional=True))
        idempotency = await Idempotency.of_request(caller())
        secret = virtual_key.new_secret()

        before: list[ApiKey] = []

        def change(key: ApiKey) -> ApiKey:
            before[:] = [key]
            if key.status == "revoked":
                raise InvalidField("status: a revoked key cannot be rotated", param="status")
            # whoever gets the secret can do all that the key can
            check_granted(caller(), key)
            return key.model_copy(update={"hint": virtual_key.hint(secret), "updated_at": utc_now()})

        def once(key: ApiKey) -> Once | None:
            return idempotency.once(_issued(tenant_id, key, secret))

        outcome = await keys.rotate(tenant_id, key_id, change, virtual_key.digest(secret), rotation.grace, once)
        if isinstance(outcome, Repeated):
            return idempotency.response(outcome)
        audit.record(tenant_id, key_id, before[0].public(), outcome.key.public())
        return _issued(tenant_id, outcome.key, secret).response()

    return rotate_api_key


def _issued(tenant_id: str, key: ApiKey, secret: str) -> Answer:
    shown = key.public() | {"api_key": secret}
    return Answer(shown, 201, etag(key.model_dump_json().encode()), f"/tenants/{tenant_id}/api-keys/{key.id}")


def _check_expiry(key: NewKey) -> None:
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        raise InvalidField("expires_at: must be in the future", param="expires_at")


async def _check_rules(stores: Stores, tenant_id: str, key: NewKey) -> None:
    if key.allowed_rules:
        _check_known(key, {rule.id for rule in await stores.rules.all(tenant_id)})


def _check_known(key: NewKey, rules: set[str]) -> None:
    for index, rule_id in enumerate(key.allowed_rules or ()):
        if rule_id not in rules:
            raise InvalidField(f"allowed_rules.{index}: the tenant has no such rule", param=f"allowed_rules.{index}")

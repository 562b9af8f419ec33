"""``/tenants``: create, list, read, edit and delete."""

from __future__ import annotations

from quart import Blueprint, Response

from gateway import virtual_key
from gateway.admin import audit
from gateway.admin.answering import Answer, CreatedTenant, TenantPage, no_content
from gateway.admin.granting import check_governed
from gateway.admin.idempotency import Idempotency
from gateway.admin.operation import Access, Body, Operation, Parameter, operation
from gateway.admin.parts import Parts, caller, route
from gateway.admin.reading import MAX_PAGE_SIZE, PAGE_SIZE, field_errors, if_match, page_of_query, parsed, read_object, stored
from gateway.errors import IdempotencyConflict, InternalError, InvalidField, NotAllowed, SubdomainTaken
from gateway.models import ApiKey, NewTenant, Rule, Tenant, edited, utc_now
from gateway.models.tenant import ALL_PLUGINS
from gateway.registry import Registry
from gateway.store import Repeated, new_id, new_tenant_id
from gateway.store.writing import etag

TAG = "tenants"
MAX_NAMED = 5

_PAGE = (
    Parameter("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": PAGE_SIZE}, "Most to list."),
    Parameter("cursor", {"type": "string"}, "`next` of the page before."),
)


def tenants_blueprint(parts: Parts) -> Blueprint:
    """The routes below ``/tenants`` that are about tenants themselves."""
    blueprint = Blueprint("tenants", __name__)
    tenants = parts.stores.tenants

    @operation(
        Operation(
            Access.OPERATOR,
            "Create a tenant and its first API key",
            TAG,
            "The key has the scopes `admin` and `proxy`. Its secret is in this answer only.",
            status=201,
            answer=CreatedTenant,
            body=Body(NewTenant),
            errors=(SubdomainTaken, IdempotencyConflict),
            has_etag=True,
            takes_idempotency_key=True,
            writes="tenant.create",
        )
    )
    async def create_tenant() -> Response:
        new = parsed(NewTenant, await read_object())
        check_plugins(new, parts.registry)
        idempotency = await Idempotency.of_request(caller())
        now = utc_now()
        facts = {"id": new_tenant_id(new.subdomain), "status": "active", "created_at": now, "updated_at": now}
        tenant = stored(Tenant, new, **facts)
        secret = virtual_key.new_secret()
        key = ApiKey(
            id=new_id("key"),
            scopes=("admin", "proxy"),
            hint=virtual_key.hint(secret),
            status="active",
            created_at=now,
            updated_at=now,
        )
        answer = Answer(
            tenant.public() | {"api_key": secret, "api_key_id": key.id},
            201,
            etag(tenant.model_dump_json().encode()),
            f"/tenants/{tenant.id}",
        )
        outcome = await tenants.create(tenant, key, virtual_key.digest(secret), idempotency.once(answer))
        if isinstance(outcome, Repeated):
            return idempotency.response(outcome)
        audit.record(tenant.id, tenant.id, after=tenant.public())
        return answer.response()

    @operation(Operation(Access.OPERATOR, "List tenants by subdomain", TAG, answer=TenantPage, query=_PAGE))
    async def list_tenants() -> Response:
        cursor, limit = page_of_query()
        page, following = await tenants.page(cursor, limit)
        return Answer({"tenants": [each.tenant.public() for each in page], "count": len(page), "next": following}).response()

    @operation(Operation(Access.TENANT, "Read a tenant", TAG, answer=Tenant, has_etag=True))
    async def get_tenant(tenant_id: str) -> Response:
        found = await tenants.get(tenant_id)
        return Answer(found.tenant.public(), etag=found.etag).response()

    @operation(
        Operation(
            Access.TENANT,
            "Edit a tenant",
            TAG,
            "Fields that are not given stay as they are. Where an operator token is configured, tier, status, enabled_plugins,"
            " required_plugins, limits and prices are the operator's to change.",
            answer=Tenant,
            body=Body(Tenant, edit=True),
            errors=(NotAllowed,),
            has_etag=True,
            takes_if_match=True,
            writes="tenant.edit",
        )
    )
    async def edit_tenant(tenant_id: str) -> Response:
        changes = await read_object()
        rules = await parts.stores.rules.all(tenant_id)
        before: list[Tenant] = []

        def change(tenant: Tenant) -> Tenant:
            with field_errors(Tenant):
                changed = edited(tenant, changes)
            check_governed(caller(), tenant, changed)
            check_plugins(changed, parts.registry, before=tenant)
            _check_rules_may_keep_their_plugins(tenant, changed, rules)
            before[:] = [tenant]
            return changed if changed == tenant else changed.model_copy(update={"updated_at": utc_now()})

        after = await tenants.update(tenant_id, change, if_match())
        audit.record(tenant_id, tenant_id, before[0].public(), after.tenant.public())
        return Answer(after.tenant.public(), etag=after.etag).response()

    @operation(
        Operation(
            Access.TENANT,
            "Delete a tenant with its keys and rules",
            TAG,
            "Where an operator token is configured, only the operator may.",
            status=204,
            errors=(NotAllowed,),
            takes_if_match=True,
            writes="tenant.delete",
        )
    )
    async def delete_tenant(tenant_id: str) -> Response:
        if not caller().governs:
            raise NotAllowed("Only the operator may delete a tenant.")
        try:
            before = (await tenants.get(tenant_id)).tenant.public()
        except InternalError:  # what is damaged must be possible to delete
            before = None
        await tenants.delete(tenant_id, if_match())
        audit.record(tenant_id, tenant_id, before)
        return no_content()

    route(blueprint, "/tenants", ["POST"], create_tenant)
    route(blueprint, "/tenants", ["GET"], list_tenants)
    route(blueprint, "/tenants/<tenant_id>", ["GET"], get_tenant)
    route(blueprint, "/tenants/<tenant_id>", ["PUT", "PATCH"], edit_tenant)
    route(blueprint, "/tenants/<tenant_id>", ["DELETE"], delete_tenant)
    return blueprint


def check_plugins(tenant: NewTenant, registry: Registry, before: Tenant | None = None) -> None:
    """Raises InvalidField unless its plugins exist and their settings are valid; what it had ``before`` is left alone."""
    for index, name in enumerate(tenant.enabled_plugins):
        known = name == ALL_PLUGINS or registry.get(name) is not None
        if not known and (before is None or name not in before.enabled_plugins):
            raise InvalidField(f"enabled_plugins.{index}: there is no such plugin", param=f"enabled_plugins.{index}")
    for name, entry in tenant.required_plugins.items():
        if before is not None and before.required_plugins.get(name) == entry:
            continue
        where = f"required_plugins.{name}"
        if registry.get(name) is None:
            raise InvalidField(f"{where}: there is no such plugin", param=where)
        registry.validate(name, entry.settings, entry.stage, where=where)


def _check_rules_may_keep_their_plugins(before: Tenant, after: Tenant, rules: list[Rule]) -> None:
    for name in sorted({ref.name for rule in rules for ref in rule.plugin_chain}):
        if before.allows_plugin(name) and not after.allows_plugin(name):
            users = [rule.id for rule in rules if any(ref.name == name for ref in rule.plugin_chain)]
            named = ", ".join(users[:MAX_NAMED]) + (", …" if len(users) > MAX_NAMED else "")
            raise InvalidField(f"enabled_plugins: {name} is still used by {named}", param="enabled_plugins")

"""``/tenants/{tenant_id}/rules``: create, list, read, edit and delete."""

from __future__ import annotations

from collections.abc import Sequence

from quart import Blueprint, Response

from gateway.admin import audit
from gateway.admin.answering import Answer, RuleList, ShownRule, no_content
from gateway.admin.granting import check_governed_rule
from gateway.admin.idempotency import Idempotency
from gateway.admin.operation import Access, Body, Operation, operation
from gateway.admin.parts import Parts, caller, route
from gateway.admin.reading import if_match, parsed, read_object
from gateway.admin.rule_checks import built, changed, check_patterns, shown
from gateway.errors import IdempotencyConflict, InternalError, NotAllowed
from gateway.models import NewRule, Rule, Tenant
from gateway.store import CheckAmong, Once, Repeated, new_id
from gateway.store.writing import etag

TAG = "rules"


def rules_blueprint(parts: Parts) -> Blueprint:
    """The routes of a tenant's rules."""
    blueprint = Blueprint("rules", __name__)
    rules = parts.stores.rules

    @operation(
        Operation(
            Access.TENANT,
            "Create a rule",
            TAG,
            "Holds for the next request of every replica. `warnings` tell what is allowed and probably not meant. Where there"
            " is an operator, format and prices are the operator's to set.",
            status=201,
            answer=ShownRule,
            body=Body(NewRule),
            errors=(NotAllowed, IdempotencyConflict),
            has_etag=True,
            takes_idempotency_key=True,
            writes="rule.create",
        )
    )
    async def create_rule(tenant_id: str) -> Response:
        new = parsed(NewRule, await read_object())
        idempotency = await Idempotency.of_request(caller())
        rule_id = new_id("rule")
        others: list[Rule] = []

        def build(tenant: Tenant) -> Rule:
            rule = built(parts, tenant, rule_id, new)
            check_governed_rule(caller(), None, rule)
            return rule

        def answer(rule: Rule) -> Answer:
            tag = etag(rule.model_dump_json().encode())
            return Answer(shown(parts, rule, others), 201, tag, f"/tenants/{tenant_id}/rules/{rule.id}")

        def once(rule: Rule) -> Once | None:
            return idempotency.once(answer(rule))

        outcome = await rules.create(tenant_id, build, once, _among(parts, others))
        if isinstance(outcome, Repeated):
            return idempotency.response(outcome)
        audit.record(tenant_id, rule_id, after=outcome.rule.public())
        return answer(outcome.rule).response()

    @operation(Operation(Access.TENANT, "List a tenant's rules", TAG, answer=RuleList))
    async def list_rules(tenant_id: str) -> Response:
        found = await rules.all(tenant_id)
        alike: dict[str, list[Rule]] = {}
        for rule in found:  # only those with the same path are compared, of hundreds
            alike.setdefault(rule.path, []).append(rule)
        return Answer({"rules": [shown(parts, rule, alike[rule.path]) for rule in found], "count": len(found)}).response()

    @operation(Operation(Access.TENANT, "Read a rule", TAG, answer=ShownRule, has_etag=True))
    async def get_rule(tenant_id: str, rule_id: str) -> Response:
        found = await rules.get(tenant_id, rule_id)
        others = await rules.all(tenant_id)
        return Answer(shown(parts, found.rule, others), etag=found.etag).response()

    @operation(
        Operation(
            Access.TENANT,
            "Edit a rule",
            TAG,
            "Fields that are not given stay as they are; one that is given is replaced as a whole. A masked header keeps its"
            " stored value.",
            answer=ShownRule,
            body=Body(ShownRule, edit=True),
            errors=(NotAllowed,),
            has_etag=True,
            takes_if_match=True,
            writes="rule.edit",
        )
    )
    async def edit_rule(tenant_id: str, rule_id: str) -> Response:
        changes = await read_object()
        changes.pop("warnings", None)  # part of what was read, and no part of the rule
        before: list[Rule] = []
        others: list[Rule] = []

        def change(tenant: Tenant, rule: Rule) -> Rule:
            before[:] = [rule]
            after = changed(parts, tenant, rule, changes)
            check_governed_rule(caller(), rule, after)
            return after

        after = await rules.update(tenant_id, rule_id, change, if_match(), _among(parts, others, before))
        audit.record(tenant_id, rule_id, before[0].public(), after.rule.public())
        return Answer(shown(parts, after.rule, others), etag=after.etag).response()

    @operation(Operation(Access.TENANT, "Delete a rule", TAG, status=204, takes_if_match=True, writes="rule.delete"))
    async def delete_rule(tenant_id: str, rule_id: str) -> Response:
        try:
            before = (await rules.get(tenant_id, rule_id)).rule.public()
        except InternalError:  # what is damaged must be possible to delete
            before = None
        await rules.delete(tenant_id, rule_id, if_match())
        audit.record(tenant_id, rule_id, before)
        return no_content()

    route(blueprint, "/tenants/<tenant_id>/rules", ["POST"], create_rule)
    route(blueprint, "/tenants/<tenant_id>/rules", ["GET"], list_rules)
    route(blueprint, "/tenants/<tenant_id>/rules/<rule_id>", ["GET"], get_rule)
    route(blueprint, "/tenants/<tenant_id>/rules/<rule_id>", ["PUT", "PATCH"], edit_rule)
    route(blueprint, "/tenants/<tenant_id>/rules/<rule_id>", ["DELETE"], delete_rule)
    return blueprint


def _among(parts: Parts, others: list[Rule], before: Sequence[Rule] = ()) -> CheckAmong:
    """Checks a rule, which was ``before`` if it is edited, beside the tenant's other rules, and puts these into ``others``."""

    def check(rule: Rule, found: Sequence[Rule]) -> None:
        others[:] = found
        if not before or not before[0].active or rule.plugin_chain != before[0].plugin_chain:
            check_patterns(parts, rule, found)

    return check

"""What holds for a tenant's requests: its configuration compiled, the plan of one request, the answer of a refusal."""

from gateway.policy.accounting import NOTHING, Accounting, Demand, Spent
from gateway.policy.alerting import Reached, reached_thresholds
from gateway.policy.binding import units_of
from gateway.policy.call import Call, endpoint_for, is_decided_by_body, is_readable, renamed_path, sent_body
from gateway.policy.compiled import CompiledKey, CompiledRule, CompiledTenant
from gateway.policy.compiler import BEFORE_CHAIN, Compiler
from gateway.policy.entrance import (
    CLOSE,
    MAX_URL_BYTES,
    check_fields,
    check_inspected_length,
    check_length,
    check_target,
)
from gateway.policy.explain import Description, Explainer, Explanation, SeenLimit, Verdict
from gateway.policy.facts import RequestFacts
from gateway.policy.forecast import seeded_state
from gateway.policy.plan import BODILESS, Plan, plan_request
from gateway.policy.recent import Recent
from gateway.policy.refusals import refusal_of
from gateway.policy.spending import spent_by_ledger
from gateway.policy.terms import Terms, terms_of, tighter_terms

__all__ = [
    "BEFORE_CHAIN",
    "BODILESS",
    "CLOSE",
    "MAX_URL_BYTES",
    "NOTHING",
    "Accounting",
    "Call",
    "CompiledKey",
    "CompiledRule",
    "CompiledTenant",
    "Compiler",
    "Demand",
    "Description",
    "Explainer",
    "Explanation",
    "Plan",
    "Reached",
    "Recent",
    "RequestFacts",
    "SeenLimit",
    "Spent",
    "Terms",
    "Verdict",
    "check_fields",
    "check_inspected_length",
    "check_length",
    "check_target",
    "endpoint_for",
    "is_decided_by_body",
    "is_readable",
    "plan_request",
    "reached_thresholds",
    "refusal_of",
    "renamed_path",
    "seeded_state",
    "sent_body",
    "spent_by_ledger",
    "terms_of",
    "tighter_terms",
    "units_of",
]

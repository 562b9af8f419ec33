"""What holds for a tenant's requests: its configuration compiled, the plan of one request, the answer of a refusal."""

from gateway.policy.binding import bind_limits, limits_of_request, units_of
from gateway.policy.compiled import CompiledKey, CompiledRule, CompiledTenant
from gateway.policy.compiler import BEFORE_CHAIN, Compiler
from gateway.policy.entrance import check_inspected_length, check_length, check_target
from gateway.policy.explain import Description, Explainer, Explanation, SeenLimit, Verdict
from gateway.policy.facts import RequestFacts
from gateway.policy.forecast import seeded_state
from gateway.policy.named_model import named_model
from gateway.policy.plan import BODILESS, Plan, check_model, model_of, plan_request
from gateway.policy.recent import Recent
from gateway.policy.refusals import refusal_of
from gateway.policy.spending import spent_by_ledger

__all__ = [
    "BEFORE_CHAIN",
    "BODILESS",
    "CompiledKey",
    "CompiledRule",
    "CompiledTenant",
    "Compiler",
    "Description",
    "Explainer",
    "Explanation",
    "Plan",
    "Recent",
    "RequestFacts",
    "SeenLimit",
    "Verdict",
    "bind_limits",
    "check_inspected_length",
    "check_length",
    "check_model",
    "check_target",
    "limits_of_request",
    "model_of",
    "named_model",
    "plan_request",
    "refusal_of",
    "seeded_state",
    "spent_by_ledger",
    "units_of",
]

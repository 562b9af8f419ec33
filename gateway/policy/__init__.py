"""What holds for a tenant's requests: its configuration compiled, the plan of one request, the answer of a refusal."""

from gateway.policy.binding import bind_limits, units_of
from gateway.policy.compiled import CompiledKey, CompiledRule, CompiledTenant
from gateway.policy.compiler import BEFORE_CHAIN, Compiler
from gateway.policy.facts import RequestFacts
from gateway.policy.named_model import named_model
from gateway.policy.plan import Plan, check_model, model_of, plan_request
from gateway.policy.refusals import refusal_of

__all__ = [
    "BEFORE_CHAIN",
    "CompiledKey",
    "CompiledRule",
    "CompiledTenant",
    "Compiler",
    "Plan",
    "RequestFacts",
    "bind_limits",
    "check_model",
    "model_of",
    "named_model",
    "plan_request",
    "refusal_of",
    "units_of",
]

"""How much of each limit of a tenant is used now. Counts nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice, product
from typing import Literal

from pydantic import BaseModel, Field

from gateway.admin.parts import Parts
from gateway.models import ApiKey, Rule, Stage, Tenant, shown_amount
from gateway.plugin import LimitState, TenantInfo
from gateway.policy import BEFORE_CHAIN, CompiledRule, Compiler, seeded_state, spent_by_ledger
from gateway.store import BoundLimit, Keyspace, PlacedLimit, StoredKey, limit_of

MAX_USES = 1_000
MOST_PEEKED = 50


class DeclaredBy(BaseModel):
    """Where a limit stands."""

    kind: Literal["tenant", "rule", "api_key"] = Field(description="`tenant`: its own, or one of its `required_plugins`.")
    id: str
    plugin: str | None = Field(description="The plugin whose settings declare it; null for a tenant's and a key's own.")


class LimitUse(BaseModel):
    """A limit with what is used of it. `used`, `remaining` and `reset_ms` are null where only a request tells which count."""

    name: str
    kind: str = Field(description="`log`, `ring`, `bucket`, `budget` or `concurrency`.")
    level: list[str] = Field(description="What the count is kept for, as in `per`.")
    unit: str
    declared_by: DeclaredBy
    rule: str | None = Field(description="The rule whose requests are counted; null for those of several.")
    api_key: str | None = Field(description="The key whose requests are counted; null for those of several.")
    limit: int | float = Field(description="Most units; of a bucket, its size. Dollars of `usd`, as everywhere here.")
    window_ms: int | None
    period: str | None = Field(description="`day`, `week` or `month` of a quota.")
    time_zone: str | None = Field(description="In whose midnights the periods of a quota begin.")
    used: int | float | None
    remaining: int | float | None
    reset_ms: int | None = Field(description="Until all is there again, without further requests.")
    shadow: bool


@dataclass(frozen=True, slots=True)
class _Count:
    """One count of a limit; ``bound`` is None where only a request tells which."""

    placed: PlacedLimit
    declared_by: DeclaredBy
    rule: str | None
    api_key: str | None
    bound: BoundLimit | None


async def limit_uses(
    parts: Parts, tenant: Tenant, rules: Sequence[Rule], keys: Sequence[StoredKey]
) -> tuple[list[LimitUse], bool]:
    """The counts of these rules and keys as far as they can pass requests, and whether there are more than `MAX_USES`."""
    counts = list(islice(_counts(parts, tenant, rules, keys), MAX_USES + 1))
    shown = counts[:MAX_USES]
    bound = [count.bound for count in shown if count.bound is not None]
    keyspace = Keyspace(tenant.subdomain)
    states: list[LimitState] = []
    for start in range(0, len(bound), MOST_PEEKED):
        states += await _peeked(parts, keyspace, tenant.id, bound[start : start + MOST_PEEKED])
    following = iter(states)
    uses = [_use(count, None if count.bound is None else next(following)) for count in shown]
    return uses, len(counts) > MAX_USES


async def _peeked(parts: Parts, keyspace: Keyspace, tenant_id: str, bound: Sequence[BoundLimit]) -> list[LimitState]:
    seen = await parts.stores.admissions.peek(keyspace, bound)
    states = list(seen.states)
    for index in seen.unseeded:
        spent = await spent_by_ledger(parts.stores.usage, tenant_id, bound[index], seen.now_ms)
        states[index] = seeded_state(states[index], bound[index].placed.spec, bound[index].cost, spent, seen.now_ms)
    return states


def _counts(parts: Parts, tenant: Tenant, rules: Sequence[Rule], keys: Sequence[StoredKey]) -> Iterator[_Count]:
    compiler = Compiler(parts.registry, None, parts.config, _nothing_runs)
    rules = [rule for rule in rules if rule.active]
    now = datetime.now(UTC)
    callers = [stored for stored in keys if _may_call(stored.key, now)]
    seen: set[str] = set()
    for rule in rules:
        yield from _of_rule(compiler.rule(tenant, rule), tenant, [stored.key for stored in callers], seen)
    info = TenantInfo(tenant.id, tenant.name, tenant.subdomain, tenant.tier)
    for stored in callers:
        if not stored.key.limits:
            continue
        passing = [rule.id for rule in rules if _may_use(stored.key, rule.id)]
        key = compiler.key(info, stored.key.model_dump_json().encode(), stored.revision)
        for placed in key.limits:
            declared = DeclaredBy(kind="api_key", id=stored.key.id, plugin=None)
            yield from _spread(placed, declared, {"api_key": [stored.key.id], "rule": passing}, None, stored.key.id)


def _of_rule(rule: CompiledRule, tenant: Tenant, callers: Sequence[ApiKey], seen: set[str]) -> Iterator[_Count]:
    for placed in rule.limits:
        if placed.key in seen:  # rules share what their tenant requires, and what is lifted to it
            continue
        seen.add(placed.key)
        entry = None if placed.entry == BEFORE_CHAIN else rule.chain.entries[placed.entry]
        if entry is None or entry.required:
            declared = DeclaredBy(kind="tenant", id=tenant.id, plugin=None if entry is None else entry.name)
        else:
            declared = DeclaredBy(kind="rule", id=rule.info.id, plugin=entry.name)
        is_shared = placed.rule_id is None
        passing = [key.id for key in callers if is_shared or _may_use(key, rule.info.id)]
        yield from _spread(placed, declared, {"api_key": passing}, None if is_shared else rule.info.id, None)


def _spread(
    placed: PlacedLimit, declared: DeclaredBy, known: Mapping[str, Sequence[str]], rule: str | None, api_key: str | None
) -> Iterator[_Count]:
    if not placed.levels:
        yield _Count(placed, declared, rule, api_key, BoundLimit(placed, placed.key, placed.spec.cost.units))
        return
    if any(level not in known for level in placed.levels):
        yield _Count(placed, declared, rule, api_key, None)
        return
    for values in product(*(known[level] for level in placed.levels)):
        at = dict(zip(placed.levels, values, strict=True))
        bound = BoundLimit(placed, limit_of(placed.key, values), placed.spec.cost.units, values)
        yield _Count(placed, declared, at.get("rule", rule), at.get("api_key", api_key), bound)


def _use(count: _Count, state: LimitState | None) -> LimitUse:
    spec = count.placed.spec
    return LimitUse(
        name=spec.name,
        kind=spec.kind.value,
        level=list(spec.per),
        unit=spec.unit,
        declared_by=count.declared_by,
        rule=count.rule,
        api_key=count.api_key,
        limit=shown_amount(spec.unit, spec.capacity),
        window_ms=spec.window_ms or None,
        period=spec.period,
        time_zone=spec.time_zone if spec.period else None,
        used=None if state is None else shown_amount(spec.unit, state.used),
        remaining=None if state is None else shown_amount(spec.unit, state.remaining),
        reset_ms=None if state is None else state.reset_ms,
        shadow=spec.shadow,
    )


def _may_call(key: ApiKey, now: datetime) -> bool:
    return key.status == "active" and "proxy" in key.scopes and (key.expires_at is None or key.expires_at > now)


def _may_use(key: ApiKey, rule_id: str) -> bool:
    return key.allowed_rules is None or rule_id in key.allowed_rules


def _nothing_runs(_: str, __: Stage) -> None:
    """No plugin runs here, so none fails."""

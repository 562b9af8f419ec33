"""``/tenants/{tenant_id}/usage``: what was used, by day, key, rule or model, and how much of each limit is used now."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from pydantic import BaseModel, Field
from quart import Blueprint, Response, request

from gateway.admin.answering import Answer
from gateway.admin.limit_uses import LimitUse, limit_uses
from gateway.admin.operation import Access, Operation, Parameter, operation
from gateway.admin.parts import Parts, route
from gateway.errors import InvalidField
from gateway.store import MAX_DAYS, UsageRow

TAG = "usage"
CSV = "text/csv"
MAX_ROWS = 20_000

SUMS = ("requests", "input_tokens", "output_tokens", "cached_tokens", "cost_nano_usd")
GROUPS: Mapping[str, Callable[[UsageRow], str]] = {
    "day": lambda row: row.day.isoformat(),
    "key": lambda row: row.key_id,
    "rule": lambda row: row.rule_id,
    "model": lambda row: row.model,
}

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# what a spreadsheet may take for a formula, https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

_DAY = {"type": "string", "format": "date"}
_QUERY = (
    Parameter("from", _DAY, "First day, UTC. Unset means the first of the month of `to`."),
    Parameter("to", _DAY, f"Last day, UTC, inclusive; at most {MAX_DAYS} days in all. Unset means today."),
    Parameter(
        "group_by", {"type": "string", "default": "day", "example": "day,key"}, "Any of day, key, rule, model, with commas."
    ),
    Parameter("key", {"type": "string"}, "Only requests of the key with this id; also narrows `limits`."),
    Parameter("rule", {"type": "string"}, "Only requests of the rule with this id; also narrows `limits`."),
    Parameter("model", {"type": "string"}, "Only requests for this model; empty for those that named none."),
    Parameter("format", {"type": "string", "enum": ["json", "csv"], "default": "json"}, "`csv` has the rows only."),
)


class UsageSums(BaseModel):
    """Requests that were admitted, with what they turned out to use. Exact integers."""

    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_nano_usd: int


class UsageGroup(UsageSums):
    """The sums of a group. It has the fields that `group_by` names."""

    # factories, so that the schema neither requires the fields nor shows a default
    day: str = Field(default_factory=str, description="UTC day of admission.")
    key: str = Field(default_factory=str, description="Id of the API key.")
    rule: str = Field(default_factory=str, description="Id of the rule.")
    model: str = Field(
        default_factory=str,
        description="Empty for requests that named none; `(other)` for what is beyond the most rows a day.",
    )


class UsageReport(BaseModel):
    """What was used, and how much of each limit is used now."""

    rows: list[UsageGroup] = Field(description="Sorted by group.")
    total: UsageSums
    limits: list[LimitUse] = Field(description="Limits of active rules and keys, as they are now, whatever the days.")
    limits_truncated: bool = Field(description="There are more limits than are listed.")


@dataclass(frozen=True, slots=True)
class _Question:
    first: date
    last: date
    groups: tuple[str, ...]
    key: str | None
    rule: str | None
    model: str | None
    is_csv: bool

    def asks_for(self, row: UsageRow) -> bool:
        return self.key in (None, row.key_id) and self.rule in (None, row.rule_id) and self.model in (None, row.model)


def usage_blueprint(parts: Parts) -> Blueprint:
    """The route of a tenant's usage."""
    blueprint = Blueprint("usage", __name__)
    stores = parts.stores

    @operation(
        Operation(
            Access.TENANT,
            "Read what was used",
            TAG,
            "Requests count for the UTC day on which they were admitted, once they have ended. Changes nothing.",
            answer=UsageReport,
            also_as=(CSV,),
            query=_QUERY,
        )
    )
    async def get_usage(tenant_id: str) -> Response:
        question = _question(request.args)
        stored = await stores.tenants.get(tenant_id)
        sums: dict[tuple[str, ...], list[int]] = {}
        async for rows in stores.usage.days(tenant_id, question.first, question.last):
            _add(sums, [row for row in rows if question.asks_for(row)], question.groups)
        if question.is_csv:
            return _csv(sums, question, f"usage-{tenant_id}-{question.first}-{question.last}.csv")
        keys, rules = await stores.api_keys.all(tenant_id), await stores.rules.all(tenant_id)
        uses, truncated = await limit_uses(
            parts,
            stored.tenant,
            [rule for rule in rules if question.rule in (None, rule.id)],
            [each for each in keys if question.key in (None, each.key.id)],
        )
        total = [sum(column) for column in zip(*sums.values(), strict=True)] or [0] * len(SUMS)
        report = {
            "rows": [
                dict(zip((*question.groups, *SUMS), (*group, *numbers), strict=True)) for group, numbers in sorted(sums.items())
            ],
            "total": dict(zip(SUMS, total, strict=True)),
            "limits": [use.model_dump() for use in uses],
            "limits_truncated": truncated,
        }
        return Answer(report).response()

    route(blueprint, "/tenants/<tenant_id>/usage", ["GET"], get_usage)
    return blueprint


def _add(sums: dict[tuple[str, ...], list[int]], rows: Sequence[UsageRow], groups: Sequence[str]) -> None:
    named = [GROUPS[group] for group in groups]
    for row in rows:
        numbers = sums.setdefault(tuple(name(row) for name in named), [0] * len(SUMS))
        for index, metric in enumerate(SUMS):
            numbers[index] += getattr(row, metric)
        if len(sums) > MAX_ROWS:
            raise InvalidField(
                f"group_by: these would be more than {MAX_ROWS} rows; ask for fewer days, groups or keys", param="group_by"
            )


def _csv(sums: Mapping[tuple[str, ...], Sequence[int]], question: _Question, name: str) -> Response:
    """RFC 4180."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow((*question.groups, *SUMS))
    for group, numbers in sorted(sums.items()):
        writer.writerow((*(f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in group), *numbers))
    headers = {"content-type": f"{CSV}; charset=utf-8", "content-disposition": f'attachment; filename="{name}"'}
    return Response(text.getvalue(), 200, headers)


def _question(query: Mapping[str, str]) -> _Question:
    """Raises InvalidField that names the parameter."""
    last = _day(query, "to") or datetime.now(UTC).date()
    first = _day(query, "from") or last.replace(day=1)
    if last < first:
        name = "to" if "to" in query else "from"
        raise InvalidField(f"{name}: the last day, {last}, is before the first, {first}", param=name)
    if (last - first).days >= MAX_DAYS:
        raise InvalidField(f"from: at most {MAX_DAYS} days at once", param="from")
    groups = tuple(query.get("group_by", "day").split(","))
    if not set(groups) <= GROUPS.keys() or len(set(groups)) < len(groups):
        raise InvalidField(f"group_by: must be one or more of {', '.join(GROUPS)}, with commas", param="group_by")
    form = query.get("format", "json")
    if form not in ("json", "csv"):
        raise InvalidField("format: must be json or csv", param="format")
    return _Question(first, last, groups, query.get("key"), query.get("rule"), query.get("model"), form == "csv")


def _day(query: Mapping[str, str], name: str) -> date | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise InvalidField(f"{name}: must be a day such as 2026-01-31", param=name)

"""``GET /tenants/{id}/usage``: what was used, and how much of each limit is used now."""

import csv
import io
from datetime import UTC, date, datetime

import pytest

from gateway.store import MAX_DAYS
from tests.ledger import ledger, used
from tests.unit.admin.helpers import an_admin

NONE = {"requests": 0, "input_tokens": 0, "output_tokens": 0, "cached_tokens": 0, "cost_nano_usd": 0}
JANUARY = "from=2026-01-01&to=2026-01-31"


class Scene:
    """A tenant with two keys and two rules."""

    async def prepare(self, **tenant):
        self.admin = await an_admin()
        self.tenant = await self.admin.tenant(**tenant)
        self.first = self.tenant["api_key_id"]
        self.path = f"/tenants/{self.tenant['id']}/usage"
        return self

    async def used(self, day, **facts):
        await used(self.admin.redis, day, **({"key": self.first, "tenant_id": self.tenant["id"]} | facts))

    async def get(self, query="", **options):
        return await self.admin.call("GET", f"{self.path}?{query}", **options)

    async def rows(self, query):
        got = await self.get(query)
        assert got.status == 200, got.raw
        return got.json["rows"]


async def a_scene(**tenant):
    return await Scene().prepare(**tenant)


# Rows


async def test_a_new_tenant_has_used_nothing():
    scene = await a_scene()
    assert (await scene.get()).json == {"rows": [], "total": NONE, "limits": [], "limits_truncated": False}


async def test_rows_are_by_day_unless_asked_otherwise_and_the_total_is_their_sum():
    scene = await a_scene()
    await scene.used("2026-01-03", requests=2, input_tokens=10, output_tokens=5, cached_tokens=1, cost_nano_usd=7)
    await scene.used("2026-01-03", model="other", requests=1, cost_nano_usd=2)
    await scene.used("2026-01-01")
    await scene.used("2025-12-31")
    report = (await scene.get(JANUARY)).json
    assert report["rows"] == [
        {"day": "2026-01-01"} | NONE | {"requests": 1},
        {"day": "2026-01-03", "requests": 3, "input_tokens": 10, "output_tokens": 5, "cached_tokens": 1, "cost_nano_usd": 9},
    ]
    assert report["total"] == NONE | {
        "requests": 4,
        "input_tokens": 10,
        "output_tokens": 5,
        "cached_tokens": 1,
        "cost_nano_usd": 9,
    }


async def test_groups_are_fields_in_the_order_asked_and_rows_are_sorted_by_them():
    scene = await a_scene()
    second = (await scene.admin.key(scene.tenant))["id"]
    for key in (scene.first, second):
        for day, rule, model in (("2026-01-02", "rule_b", "m2"), ("2026-01-01", "rule_a", "m1"), ("2026-01-02", "rule_a", "")):
            await scene.used(day, key=key, rule=rule, model=model)
    assert [
        [*list(row)[:2], row["model"], row["day"], row["requests"]] for row in await scene.rows("group_by=model,day&" + JANUARY)
    ] == [
        ["model", "day", "", "2026-01-02", 2],
        ["model", "day", "m1", "2026-01-01", 2],
        ["model", "day", "m2", "2026-01-02", 2],
    ]
    assert [(row["rule"], row["requests"]) for row in await scene.rows("group_by=rule&" + JANUARY)] == [
        ("rule_a", 4),
        ("rule_b", 2),
    ]
    assert [row["key"] for row in await scene.rows("group_by=key&" + JANUARY)] == sorted([scene.first, second])
    assert len(await scene.rows("group_by=day,key,rule,model&" + JANUARY)) == 6


async def test_filters_choose_what_is_summed():
    scene = await a_scene()
    second = (await scene.admin.key(scene.tenant))["id"]
    await scene.used("2026-01-01", requests=1)
    await scene.used("2026-01-01", requests=2, key=second)
    await scene.used("2026-01-01", requests=4, rule="rule_2")
    await scene.used("2026-01-01", requests=8, model="a:b")
    await scene.used("2026-01-01", requests=16, model="")

    async def total(query):
        return (await scene.get(f"{JANUARY}&{query}")).json["total"]["requests"]

    assert await total(f"key={second}") == 2
    assert await total("rule=rule_2") == 4
    assert await total("model=a:b") == 8
    assert await total("model=") == 16
    assert await total(f"key={scene.first}&rule=rule_1&model=m") == 1
    assert await total("key=nobody") == 0


async def test_integers_are_exact():
    scene = await a_scene()
    await scene.used("2026-01-01", cost_nano_usd=2**63 - 1)
    assert f'"cost_nano_usd": {2**63 - 1}'.encode() in (await scene.get(JANUARY)).raw


async def test_unset_days_mean_the_month_until_today():
    scene = await a_scene()
    today = datetime.now(UTC).date()
    await scene.used(today.isoformat(), requests=1)
    await scene.used(today.replace(day=1).isoformat(), requests=2)
    await scene.used("2026-01-01", requests=4)
    await scene.used("2026-01-31", requests=8)
    if datetime.now(UTC).date() == today:
        assert (await scene.get()).json["total"]["requests"] & 3 == 3
    assert (await scene.get("to=2026-01-30")).json["total"]["requests"] == 4
    assert (await scene.get("to=2026-01-01")).json["total"]["requests"] == 4


async def test_the_usage_of_a_tenant_that_had_the_subdomain_before_is_not_shown():
    scene = await a_scene()
    await used(scene.admin.redis, "2026-01-01", tenant_id="acme-000000000000")
    assert await scene.rows(JANUARY) == []


async def test_a_revoked_key_keeps_its_usage():
    scene = await a_scene()
    key = (await scene.admin.key(scene.tenant))["id"]
    await scene.used("2026-01-01", key=key)
    await scene.admin.call("DELETE", f"/tenants/{scene.tenant['id']}/api-keys/{key}")
    assert [row["key"] for row in await scene.rows("group_by=key&" + JANUARY)] == [key]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("from=2026-02-01&to=2026-01-31", "to"),
        ("from=2999-01-01", "from"),
        ("from=2026-2-1", "from"),
        ("from=20260201", "from"),
        ("from=2026-02-30&to=2026-03-01", "from"),
        ("from=&to=2026-03-01", "from"),
        ("to=yesterday", "to"),
        ("to=2026-01-01T00:00:00Z", "to"),
        ("to=%D9%A2026-01-01", "to"),
        ("to=0000-01-01", "to"),
        ("from=2024-01-01&to=2026-01-01", "from"),
        ("group_by=", "group_by"),
        ("group_by=day,hour", "group_by"),
        ("group_by=day,day", "group_by"),
        ("group_by=day,", "group_by"),
        ("group_by=Day", "group_by"),
        ("format=xml", "format"),
        ("format=", "format"),
        ("form=csv", "form"),
        ("key=a&key=b", "key"),
    ],
)
async def test_what_is_asked_wrongly_is_named(query, param):
    scene = await a_scene()
    assert (await scene.get(query)).refusal == (400, "invalid_field", param)


async def test_as_many_days_as_are_promised_can_be_asked_for():
    scene = await a_scene()
    assert MAX_DAYS == 400
    assert (await scene.get("from=2025-01-01&to=2026-02-04")).status == 200
    assert (await scene.get("from=2025-01-01&to=2026-02-05")).refusal == (400, "invalid_field", "from")
    assert (await scene.get("from=9999-12-01&to=9999-12-31")).status == 200
    assert (await scene.get("from=0001-01-01&to=0001-01-31")).status == 200


async def test_an_answer_that_would_be_too_large_is_refused():
    scene = await a_scene()
    day = {f"r:{scene.first}:rule_1:m{number}": 1 for number in range(20_000)}
    await scene.admin.redis.hset(ledger(scene.tenant["id"], date(2026, 1, 1)), mapping=day)
    assert len(await scene.rows(f"group_by=model&{JANUARY}")) == 20_000
    await scene.used("2026-01-02", model="one more")
    assert (await scene.get(f"group_by=model&{JANUARY}")).refusal == (400, "invalid_field", "group_by")
    assert len(await scene.rows(JANUARY)) == 2


# CSV


async def test_csv_has_a_header_line_and_a_line_for_each_row():
    scene = await a_scene()
    await scene.used("2026-01-01", requests=2, input_tokens=3, cost_nano_usd=10**15)
    await scene.used("2026-01-01", model="a")
    got = await scene.get(f"{JANUARY}&format=csv&group_by=model,day")
    assert got.raw == (
        b"model,day,requests,input_tokens,output_tokens,cached_tokens,cost_nano_usd\r\n"
        b"a,2026-01-01,1,0,0,0,0\r\n"
        b"m,2026-01-01,2,3,0,0,1000000000000000\r\n"
    )
    assert got.headers["content-type"] == "text/csv; charset=utf-8"
    name = f"usage-{scene.tenant['id']}-2026-01-01-2026-01-31.csv"
    assert got.headers["content-disposition"] == f'attachment; filename="{name}"'


async def test_csv_of_nothing_is_a_header_line():
    scene = await a_scene()
    got = await scene.get("format=csv")
    assert got.raw == b"day,requests,input_tokens,output_tokens,cached_tokens,cost_nano_usd\r\n"


async def test_no_models_name_becomes_a_formula_or_another_cell():
    scene = await a_scene()
    harmless = ["", "gpt-4o", "a,b", 'say "x"', "two\r\nlines", "modèle", "a=1"]
    formulas = ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"]
    for model in harmless + formulas:
        await scene.used("2026-01-01", model=model)
    got = await scene.get(f"{JANUARY}&format=csv&group_by=model")
    lines = list(csv.reader(io.StringIO(got.raw.decode(), newline=""), strict=True))
    assert {len(line) for line in lines} == {6}
    assert {line[0] for line in lines[1:]} == {*harmless, *(f"'{model}" for model in formulas)}

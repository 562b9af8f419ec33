"""Which declarations of limits are possible, and what evaluates them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.models import Limit, LimitKind, limit_specs


def spec_of(**fields: object):
    (spec,) = limit_specs([Limit.model_validate(fields)], ("rule",))
    return spec


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"limit": 10_000, "window": "1m"}, LimitKind.LOG),
        ({"limit": 10_001, "window": "1m"}, LimitKind.RING),
        ({"limit": 10**12, "window": "31d"}, LimitKind.RING),
        ({"limit": 10_001, "window": "1m", "burst": 5}, LimitKind.BUCKET),
        ({"quota": {"daily": 10**12}}, LimitKind.BUDGET),
        ({"limit": 1, "unit": "concurrency"}, LimitKind.CONCURRENCY),
        ({"limit": 1, "window": "1m", "unit": "tokens"}, LimitKind.RING),
        ({"limit": 0.000000001, "window": "1m", "unit": "usd"}, LimitKind.RING),
        ({"limit": 10, "window": "1m", "unit": "usd", "burst": 2}, LimitKind.BUCKET),
        ({"quota": {"daily": 0.5}, "unit": "usd"}, LimitKind.BUDGET),
    ],
)
def test_the_kind_follows_from_what_is_declared(fields: dict[str, object], kind: LimitKind):
    assert spec_of(**fields).kind is kind


def test_dollars_are_counted_in_billionths_and_stay_the_number_they_were():
    limit = Limit.model_validate({"limit": "0.123456789", "window": "1m", "unit": "usd", "quota": {"daily": 999_999}})
    assert [spec.limit for spec in limit_specs([limit], ("rule",))] == [123_456_789, 999_999 * 10**9]
    assert limit.model_dump(mode="json", exclude_unset=True) == {
        "limit": 0.123456789,
        "window": "1m",
        "unit": "usd",
        "quota": {"daily": 999_999},
    }
    assert Limit.model_validate_json(limit.model_dump_json()) == limit


def test_whole_amounts_stay_integers():
    limit = Limit.model_validate({"limit": "100", "window": "1m", "burst": 5.0})
    assert (limit.model_dump_json(include={"limit", "burst"}), type(limit.limit)) == ('{"limit":100,"burst":5}', int)


def test_what_measured_quotas_hold_is_charged_if_it_is_lost():
    quota = {"quota": {"daily": 5}, "unit": "tokens"}
    assert spec_of(**quota).on_lost == "charge"
    assert spec_of(**quota, on_lost="release").on_lost == "release"
    assert spec_of(quota={"daily": 5}).on_lost is None


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"quota": {"daily": 5}, "unit": "tokens"}, True),
        ({"quota": {"daily": 5}, "unit": "output_tokens"}, True),
        ({"quota": {"daily": 5}, "unit": "usd"}, True),
        ({"quota": {"daily": 5}, "unit": "input_tokens"}, False),
        ({"quota": {"daily": 5}, "unit": "usd", "shadow": True}, False),
        ({"quota": {"daily": 5}}, False),
        ({"limit": 5, "window": "1m", "unit": "tokens"}, False),
    ],
)
def test_only_budgets_of_output_need_a_request_to_be_bounded(fields: dict[str, object], needs: bool):
    assert spec_of(**fields).needs_bound is needs


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"limit": 10**12 + 1, "window": "1m"}, "at most 1000000000000"),
        ({"limit": 0, "window": "1m"}, "must be above 0"),
        ({"limit": True, "window": "1m"}, "must be a number"),
        ({"limit": "many", "window": "1m"}, "must be a number"),
        ({"limit": "NaN", "window": "1m"}, "must be above 0"),
        ({"limit": 1.5, "window": "1m"}, "amounts of requests must be whole numbers"),
        ({"limit": 1.5, "window": "1m", "unit": "tokens"}, "amounts of tokens must be whole numbers"),
        ({"quota": {"daily": 0.5}}, "amounts of requests must be whole numbers"),
        ({"limit": "0.0000000001", "window": "1m", "unit": "usd"}, "more than 9 decimals"),
        ({"limit": 1_000_000, "window": "1m", "unit": "usd"}, "below 1000000"),
        ({"quota": {"monthly": 1_000_000}, "unit": "usd"}, "below 1000000"),
        ({"limit": 1, "window": "1m", "unit": "tokens", "cost": 2}, "takes no cost"),
        ({"limit": 1, "window": "1m", "unit": "usd", "cost": {"header": "x-cost"}}, "takes no cost"),
        ({"limit": 1, "window": "31d", "burst": 10_000_000}, "too large to count exactly"),
        ({"limit": 1, "window": "1h", "burst": 100_000, "unit": "usd"}, "too large to count exactly"),
        ({"limit": 10**12, "window": "31d", "burst": 1_000_000, "unit": "concurrency"}, "no window, burst or quota"),
        ({"unit": "concurrency"}, "needs limit"),
        ({"quota": {"weekly": 0}}, "must be above 0"),
        ({"quota": {"weekly": 2}, "cost": 3}, "no request would ever pass"),
        ({"quota": {"daily": 2, "time_zone": "europe/berlin"}}, r"quota\.time_zone\n.*IANA time zone"),
    ],
)
def test_what_cannot_be_counted_is_refused(fields: dict[str, object], words: str):
    with pytest.raises(ValidationError, match=words):
        Limit.model_validate(fields)


def test_a_quota_is_a_limit_for_each_period_in_its_time_zone():
    quota = {"daily": 1, "weekly": 2, "monthly": 3, "time_zone": "Asia/Tokyo"}
    specs = limit_specs([Limit.model_validate({"quota": quota})], ("rule",))
    assert [(spec.name, spec.period, spec.limit, spec.window_seconds) for spec in specs] == [
        ("requests-per-day", "day", 1, 86_400),
        ("requests-per-week", "week", 2, 604_800),
        ("requests-per-month", "month", 3, 2_678_400),
    ]
    assert {spec.time_zone for spec in specs} == {"Asia/Tokyo"}


def test_the_ledger_knows_the_periods_of_utc_only():
    assert spec_of(quota={"weekly": 1}).is_in_ledger
    assert spec_of(quota={"weekly": 1, "time_zone": "UTC"}).is_in_ledger
    assert not spec_of(quota={"weekly": 1, "time_zone": "Etc/UTC"}).is_in_ledger
    assert not spec_of(quota={"weekly": 1, "time_zone": "Asia/Tokyo"}).is_in_ledger


def test_thresholds_are_kept_in_order_each_once_and_hold_for_the_quotas_of_a_limit():
    limit = Limit.model_validate(
        {"limit": 5, "window": "1m", "quota": {"daily": 50, "monthly": 500}, "alert_at": [1, "0.80", 0.07, 0.8, 1.0]}
    )
    assert limit.model_dump(mode="json")["alert_at"] == [0.07, 0.8, 1.0]
    assert Limit.model_validate_json(limit.model_dump_json()) == limit
    specs = limit_specs([limit], ("rule",))
    assert [(spec.kind, spec.alert_at, spec.alerts) for spec in specs] == [
        (LimitKind.LOG, (), False),
        (LimitKind.BUDGET, (7, 80, 100), True),
        (LimitKind.BUDGET, (7, 80, 100), True),
    ]
    assert not spec_of(quota={"daily": 5}).alerts
    for percent in range(1, 101):  # no binary fraction comes in between
        assert spec_of(quota={"daily": 5}, alert_at=[percent / 100]).alert_at == (percent,)


@pytest.mark.parametrize("unit", ["requests", "tokens", "input_tokens", "output_tokens", "usd"])
def test_quotas_of_every_unit_may_have_thresholds(unit: str):
    assert spec_of(quota={"daily": 5}, unit=unit, alert_at=[0.5], shadow=True).alerts


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"limit": 5, "window": "1m", "alert_at": [0.5]}, "alert_at needs a quota"),
        ({"limit": 5, "unit": "concurrency", "alert_at": [0.5]}, "alert_at needs a quota"),
        ({"quota": {"daily": 5}, "alert_at": []}, "at least 1 item"),
        ({"quota": {"daily": 5}, "alert_at": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}, "at most 5 items"),
        ({"quota": {"daily": 5}, "alert_at": [0]}, "above 0 and at most 1"),
        ({"quota": {"daily": 5}, "alert_at": [1.01]}, "above 0 and at most 1"),
        ({"quota": {"daily": 5}, "alert_at": [80]}, "above 0 and at most 1"),
        ({"quota": {"daily": 5}, "alert_at": ["NaN"]}, "above 0 and at most 1"),
        ({"quota": {"daily": 5}, "alert_at": [0.805]}, "more than 2 decimals"),
        ({"quota": {"daily": 5}, "alert_at": [True]}, "must be a number"),
        ({"quota": {"daily": 5}, "alert_at": 0.5}, "valid tuple"),
    ],
)
def test_thresholds_that_cannot_be_reached_are_refused_and_the_field_is_named(fields: dict[str, object], words: str):
    with pytest.raises(ValidationError, match=words) as caught:
        Limit.model_validate(fields)
    assert {error["loc"][0] for error in caught.value.errors()} == {"alert_at"}

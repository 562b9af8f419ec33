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
    ],
)
def test_the_kind_follows_from_what_is_declared(fields: dict[str, object], kind: LimitKind):
    assert spec_of(**fields).kind is kind


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"limit": 10**12 + 1, "window": "1m"}, "less than or equal to 1000000000000"),
        ({"limit": 1, "window": "31d", "burst": 1_000_001}, "less than or equal to 1000000"),
        ({"limit": 10**12, "window": "31d", "burst": 1_000_000, "unit": "concurrency"}, "no window, burst or quota"),
        ({"unit": "concurrency"}, "needs limit"),
        ({"quota": {"weekly": 0}}, "greater than or equal to 1"),
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

"""What a rate_limiter entry declares, for whom, and which declarations are refused."""

import pytest

from gateway.errors import InvalidField
from gateway.plugin import LimitKind, LimitScope, Stage
from tests.builders import a_plugin


def declared(settings, tier="basic", default_per=("rule",)):
    return a_plugin("rate_limiter", settings).limits(LimitScope(tier, default_per))


def names(specs):
    return [(spec.name, spec.limit) for spec in specs]


def refusal(settings):
    with pytest.raises(InvalidField) as caught:
        a_plugin("rate_limiter", settings)
    return str(caught.value.param).removeprefix("plugin.settings").lstrip("."), caught.value.message


def test_limit_and_window_declare_one_exact_limit_of_the_rule():
    (spec,) = declared({"limit": 100, "window": "1m"})
    assert (spec.kind, spec.limit, spec.window_ms, spec.per, spec.unit) == (LimitKind.LOG, 100, 60_000, ("rule",), "requests")


def test_a_required_entry_counts_for_the_tenant():
    (spec,) = declared({"limit": 100, "window": "1m"}, default_per=("tenant",))
    assert spec.per == ("tenant",)


def test_per_says_what_the_count_is_kept_for():
    (spec,) = declared({"limit": 1, "window": 1, "per": ["ip", "header:X-User"]})
    assert spec.per == ("header:x-user", "ip")


def test_a_bare_number_as_window_is_seconds_and_stays_so():
    (spec,) = declared({"limit": 1, "window": 90})
    assert spec.window_ms == 90_000


def test_burst_makes_a_bucket():
    (spec,) = declared({"limit": 10, "window": "1s", "burst": 50})
    assert (spec.kind, spec.burst) == (LimitKind.BUCKET, 50)


def test_requests_in_flight_are_limited_by_a_number_alone():
    (spec,) = declared({"limit": 5, "unit": "concurrency", "per": ["api_key"]})
    assert (spec.kind, spec.name, spec.limit, spec.per) == (LimitKind.CONCURRENCY, "concurrency", 5, ("api_key",))
    assert (spec.unit, spec.window_ms, spec.window_seconds, spec.holds) == ("concurrency", 0, 0, True)


def test_a_window_beside_requests_in_flight_stays_one_of_requests():
    specs = declared({"limit": 5, "unit": "concurrency", "shadow": True, "limits": [{"limit": 9, "window": "1m"}]})
    assert [(spec.name, spec.kind, spec.shadow) for spec in specs] == [
        ("concurrency", LimitKind.CONCURRENCY, True),
        ("requests-per-1m", LimitKind.LOG, True),
    ]
    tiers = {"basic": {"limits": [{"limit": 2, "unit": "concurrency"}, {"limit": 9, "window": "1m"}]}}
    assert names(declared({"default_tier": "basic", "tiers": tiers})) == [("concurrency", 2), ("requests-per-1m", 9)]


def test_a_quota_stands_alone_or_beside_a_limit():
    assert names(declared({"quota": {"daily": 5, "monthly": 50}})) == [("requests-per-day", 5), ("requests-per-month", 50)]
    assert names(declared({"name": "n", "quota": {"weekly": 9, "time_zone": "Asia/Tokyo"}})) == [("n-per-week", 9)]
    assert names(declared({"limit": 2, "window": "1m", "quota": {"daily": 5}})) == [
        ("requests-per-1m", 2),
        ("requests-per-day", 5),
    ]


def test_several_limits_hold_at_once():
    specs = declared({"limit": 1, "window": "1s", "limits": [{"limit": 2, "window": "1m"}, {"limit": 3, "window": "1h"}]})
    assert names(specs) == [("requests-per-1s", 1), ("requests-per-1m", 2), ("requests-per-1h", 3)]


TIERS = {
    "tiers": {
        "basic": {"limit": 10, "window": "1m"},
        "pro": {"limit": 100, "window": "1m", "limits": [{"quota": {"daily": 1000}}]},
    },
    "default_tier": "basic",
}


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        ("basic", [("requests-per-1m", 10)]),
        ("pro", [("requests-per-1m", 100), ("requests-per-day", 1000)]),
        ("unheard-of", [("requests-per-1m", 10)]),
    ],
)
def test_the_tenants_tier_chooses_and_an_unlisted_one_gets_the_default(tier, expected):
    assert names(declared(TIERS, tier)) == expected


def test_a_limit_beside_tiers_holds_for_every_tier():
    assert names(declared(TIERS | {"quota": {"daily": 7}}, "pro"))[0] == ("requests-per-day", 7)


def test_shadow_per_and_unit_beside_several_limits_hold_for_those_that_do_not_say():
    settings = {
        "shadow": True,
        "per": ["ip"],
        "limits": [{"limit": 1, "window": "1s"}, {"limit": 2, "window": "1m", "shadow": False, "per": ["tenant"]}],
    }
    assert [(spec.shadow, spec.per) for spec in declared(settings)] == [(True, ("ip",)), (False, ("tenant",))]


def test_the_unit_beside_several_limits_decides_which_amounts_are_right():
    settings = {
        "unit": "usd",
        "limits": [{"limit": 0.25, "window": "1m"}, {"limit": 3, "window": "1m", "unit": "requests"}],
        "tiers": {"basic": {"quota": {"monthly": "12.50"}}, "pro": {"limits": [{"quota": {"daily": 7}}]}},
        "default_tier": "basic",
    }
    assert names(declared(settings)) == [
        ("usd-per-1m", 250_000_000),
        ("requests-per-1m", 3),
        ("usd-per-month", 12_500_000_000),
    ]
    assert names(declared(settings, tier="pro"))[2:] == [("usd-per-day", 7_000_000_000)]


def test_tiers_inherit_through_both_levels_and_the_innermost_wins():
    settings = {
        "shadow": True,
        "per": ["api_key"],
        "default_tier": "basic",
        "tiers": {
            "basic": {
                "per": ["ip"],
                "limits": [{"limit": 1, "window": "1s"}, {"limit": 2, "window": "1m", "per": ["tenant"], "shadow": False}],
            }
        },
    }
    assert [(spec.shadow, spec.per) for spec in declared(settings)] == [(True, ("ip",)), (False, ("tenant",))]


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({}, "limit", "nothing is limited"),
        ({"shadow": True}, "limit", "nothing is limited"),
        ({"limit": 3}, "window", "limit and window belong together"),
        ({"window": "1m"}, "limit", "limit and window belong together"),
        ({"burst": 3}, "limit", "burst needs limit"),
        ({"name": "x", "limits": [{"limit": 1, "window": 1}]}, "limit", "name belongs to a limit"),
        ({"limit": 1, "window": "1 fortnight"}, "window", "30s, 1m or 1h30m"),
        ({"limit": 0, "window": "1m"}, "limit", "must be above 0"),
        ({"limit": 1, "window": "1m", "unit": "words"}, "unit", "requests"),
        ({"limits": [{"limit": 1.5, "window": "1m"}], "unit": "tokens"}, "limits.0", "tokens must be whole numbers"),
        ({"limit": 1, "window": "1m", "unit": "concurrency"}, "", "no window, burst or quota"),
        ({"limit": 1, "burst": 2, "unit": "concurrency"}, "", "no window, burst or quota"),
        ({"limit": 1, "quota": {"daily": 2}, "unit": "concurrency"}, "", "no window, burst or quota"),
        ({"unit": "concurrency"}, "limit", "needs limit"),
        ({"unit": "concurrency", "limits": [{"limit": 1, "window": 1}]}, "limit", "not inherited"),
        ({"limits": [{"unit": "concurrency"}]}, "limits.0", "needs limit"),
        ({"limit": 1, "window": "1m", "per": ["cookie"]}, "per.0", "header:<name>"),
        ({"limit": 1, "window": "1m", "per": []}, "", "per must not be empty"),
        ({"limits": []}, "limits", "at least 1"),
        ({"limits": [{"limit": 1}]}, "limits.0", "limit and window belong together"),
        ({"quota": {}}, "quota", "daily, weekly or monthly"),
        ({"quota": {"time_zone": "Europe/Berlin"}}, "quota", "daily, weekly or monthly"),
        ({"quota": {"daily": 1, "time_zone": "Europe/Paderborn"}}, "quota.time_zone", "IANA time zone"),
        ({"quota": {"daily": 1, "time_zone": "localtime"}}, "quota.time_zone", "IANA time zone"),
        ({"quota": {"daily": 1, "time_zone": "../Europe/Berlin"}}, "quota.time_zone", "IANA time zone"),
        ({"default_tier": "basic", "limit": 1, "window": 1}, "tiers", "default_tier chooses"),
        ({"tiers": TIERS["tiers"]}, "default_tier", "would have no limit"),
        ({"tiers": TIERS["tiers"], "default_tier": "gold"}, "default_tier", "basic, pro"),
        ({"tiers": {"basic": {"limit": 1}}, "default_tier": "basic"}, "tiers.basic.window", "belong together"),
        ({"tiers": {"basic": {}}, "default_tier": "basic"}, "tiers.basic.limit", "nothing is limited"),
        ({"limit": 1, "windw": "1m"}, "windw", "did you mean window?"),
    ],
)
def test_an_incomplete_declaration_is_refused_and_the_field_named(settings, field, words):
    param, message = refusal(settings)
    assert param == field
    assert words in message


def test_it_takes_effect_before_anything_is_forwarded():
    plugin = a_plugin("rate_limiter", {"limit": 1, "window": 1})
    assert [stage for stage in Stage if plugin.runs_in(stage)] == [Stage.PRE_REQUEST]
    assert not plugin.needs_request_body
    assert not plugin.needs_reply_body


def test_thresholds_are_handed_down_to_quotas_that_do_not_set_them():
    settings = {
        "limit": 9,
        "window": "1m",
        "alert_at": [0.8],
        "limits": [
            {"quota": {"daily": 10}, "name": "a"},
            {"quota": {"daily": 10}, "name": "b", "alert_at": [0.5]},
            {"quota": {"daily": 10}, "name": "c", "alert_at": None},
            {"limit": 3, "unit": "concurrency"},
        ],
        "default_tier": "basic",
        "tiers": {
            "basic": {"quota": {"monthly": 10}, "name": "d", "limits": [{"quota": {"daily": 1}, "name": "e"}]},
            "pro": {"quota": {"monthly": 10}, "alert_at": [0.9, 1], "limits": [{"quota": {"daily": 1}, "name": "f"}]},
        },
    }
    basic = {spec.name.partition("-")[0]: spec.alert_at for spec in declared(settings) if spec.kind is LimitKind.BUDGET}
    assert basic == {"a": (80,), "b": (50,), "c": (), "d": (80,), "e": (80,)}
    assert [spec.alert_at for spec in declared(settings, "pro")][-2:] == [(90, 100), (90, 100)]
    assert [spec.alerts for spec in declared(settings) if spec.kind is not LimitKind.BUDGET] == [False, False]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"limit": 1, "window": 1, "alert_at": [0.5]}, "alert_at"),
        ({"alert_at": [0.5], "limits": [{"limit": 1, "window": 1}]}, "alert_at"),
        ({"quota": {"daily": 5}, "alert_at": [0]}, "alert_at.0"),
        ({"limits": [{"limit": 1, "window": 1, "alert_at": [0.5]}]}, "limits.0.alert_at"),
        (
            {"quota": {"daily": 1}, "default_tier": "a", "tiers": {"a": {"limit": 1, "window": 1, "alert_at": [0.5]}}},
            "tiers.a.alert_at",
        ),
    ],
)
def test_thresholds_without_a_quota_are_refused(settings, field):
    assert refusal(settings)[0] == field

"""What stands for a level in the name of a limit, and what is kept of the limits of a key's requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gateway.config import Config
from gateway.periods import period_word
from gateway.plugin import ApiKeyInfo
from gateway.policy import CompiledKey, Compiler
from gateway.policy.binding import limits_of_request
from gateway.store import BoundLimit, Stale
from gateway.targets import subscriber
from tests.builders import a_rule, a_tenant, built_in_plugins
from tests.gate import DAY, ms


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_an_address_stands_for_a_subscriber(address, counted):
    assert subscriber(address) == counted


# Quotas in time zones


def a_key() -> CompiledKey:
    return CompiledKey("r", ApiKeyInfo("key_1", "default"), True, None, None, None, (), False, False, False, None)


def asked(key: CompiledKey, rule: Any) -> Sequence[BoundLimit]:
    head: Any = None  # nothing of the request is looked at
    return limits_of_request(head, key, rule, None, None)


def limited(**quota: Any) -> Any:
    settings = {"quota": quota, "per": ["api_key"]}
    rule = a_rule(path="/v1", plugin_chain=[{"name": "rate_limiter", "settings": settings}])
    stale = Stale("v", a_tenant().model_dump_json().encode(), (rule.model_dump_json().encode(),), "r", None)
    compiler = Compiler(built_in_plugins(), None, Config(), lambda *_: None)
    return compiler.tenant(stale).matcher.match("GET", "/v1")


def at(monkeypatch: pytest.MonkeyPatch, now: int) -> None:
    monkeypatch.setattr("gateway.periods.time.time", lambda: now / 1_000)


def test_what_is_kept_of_a_quota_in_a_zone_tells_its_clock_as_of_now(monkeypatch: pytest.MonkeyPatch):
    key, rule = a_key(), limited(weekly=5, time_zone="Asia/Beirut")
    at(monkeypatch, ms(2026, 1, 15))
    (limit,) = asked(key, rule)
    assert limit.arguments == ("budget", "1", "5", "week|7200", "0", "0")
    # nobody changes the configuration for years
    for now in (ms(2026, 3, 1), ms(2026, 11, 1), ms(2031, 10, 1)):
        at(monkeypatch, now)
        (kept,) = asked(key, rule)
        assert kept is limit
        assert kept.arguments == ("budget", "1", "5", period_word("week", "Asia/Beirut", now // DAY), "0", "0")
        assert kept.arguments[3].count("|") == 3, "a change is near"
        assert kept._replace(cost=3).arguments == ("budget", "3", *kept.arguments[2:])


def test_the_words_of_a_quota_in_utc_are_made_once():
    (limit,) = asked(a_key(), limited(weekly=5))
    assert limit.arguments is limit.arguments
    assert limit.arguments == ("budget", "1", "5", "week", "1", "0")


def test_the_name_of_a_count_tells_period_and_zone_and_nothing_of_the_clock(monkeypatch: pytest.MonkeyPatch):
    def names(**quota: Any) -> list[str]:
        return [limit.key for limit in asked(a_key(), limited(**quota))]

    every = {"daily": 9, "weekly": 9, "monthly": 9}
    found = names(**every), names(**every, time_zone="Asia/Beirut"), names(**every, time_zone="Africa/Cairo")
    assert len({name for each in found for name in each}) == 9
    at(monkeypatch, ms(2026, 10, 30))
    assert names(**every, time_zone="Asia/Beirut") == found[1]
    assert [name.split(":")[4] for name in found[1]] == ["day@Asia/Beirut", "week@Asia/Beirut", "month@Asia/Beirut"]
    assert [name.split(":")[4] for name in found[0]] == ["day", "week", "month"]
    assert names(**every, time_zone="UTC") == found[0]

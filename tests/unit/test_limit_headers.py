"""How limits are told, in each dialect, and how long a refusal says to wait."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import LimitsSettings, RateLimitDialect
from gateway.limit_headers import duration, limit_headers_in, retry_after, retry_headers
from gateway.plugin import LimitState

limit_headers = limit_headers_in("draft-10")


def a_state(**facts):
    known: dict[str, Any] = {
        "name": "requests-per-1m",
        "level": ("rule",),
        "unit": "requests",
        "limit": 100,
        "window_seconds": 60,
        "used": 1,
        "remaining": 99,
        "retry_after_ms": 0,
        "reset_ms": 60_000,
        "refuses": False,
        "shadow": False,
        "kind": "log",
        "entry": 0,
    }
    return LimitState(**(known | facts))


def as_dict(fields):
    found = {name.decode(): value.decode() for name, value in fields}
    assert len(found) == len(fields), "a name stands twice"
    return found


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0ms"),
        (-1, "0ms"),
        (20, "20ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (1_500, "1.5s"),
        (1_005, "1.005s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
        (7_384_010, "2h3m4.01s"),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(ms, text):
    assert duration(ms) == text


@pytest.mark.parametrize(("ms", "text"), [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2"), (59_999, "60")])
def test_retry_after_is_whole_seconds_rounded_up_and_at_least_one(ms, text):
    assert retry_after(ms) == text


def test_the_limit_nearest_to_being_spent_is_told_as_openai_and_as_the_draft_do():
    far = a_state(name="far", remaining=90)
    near = a_state(name="near", limit=10, remaining=1, reset_ms=1_500, window_seconds=2)
    assert as_dict(limit_headers([far, near])) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "1.5s",
        "ratelimit-policy": '"near";q=10;w=2',
        "ratelimit": '"near";r=1;t=2',
    }


def test_a_refusing_limit_is_told_before_one_that_is_merely_empty_and_each_unit_for_itself():
    empty = a_state(name="empty", remaining=0)
    refusing = a_state(name="refusing", remaining=0, refuses=True, retry_after_ms=250)
    tokens = a_state(name="tokens", unit="tokens", remaining=5)
    told = as_dict(limit_headers([empty, refusing, tokens]))
    assert told["x-ratelimit-reset-requests"] == "250ms"
    assert told["x-ratelimit-remaining-tokens"] == "5"
    assert told["ratelimit"] == '"refusing";r=0;t=1, "tokens";r=5;t=60'


def test_of_several_that_refuse_the_one_that_does_so_longest_is_told():
    refusing = {"remaining": 0, "refuses": True}
    soon = a_state(name="soon", retry_after_ms=1_000, reset_ms=60_000, **refusing)
    later = a_state(name="later", limit=9, retry_after_ms=30_000, reset_ms=30_000, **(refusing | {"remaining": 2}))
    never = a_state(name="never", retry_after_ms=-1, reset_ms=5_000, **refusing)
    assert as_dict(limit_headers([soon, later]))["ratelimit"] == '"later";r=2;t=30'
    assert as_dict(limit_headers([never, later, soon]))["ratelimit"] == '"never";r=0;t=5'


@given(st.lists(st.tuples(st.integers(1, 100_000), st.integers(0, 99), st.integers(1, 100_000)), min_size=1, max_size=4))
def test_a_refusal_s_reset_is_the_moment_of_its_retry_after(drawn):
    states = [a_state(refuses=True, retry_after_ms=wait, remaining=left, reset_ms=reset) for wait, left, reset in drawn]
    told = ietf("draft-6", *states, a_state(remaining=0))
    assert told["ratelimit-reset"] == dict(retry_headers(states))["retry-after"]


def test_a_shadow_limit_is_not_told():
    assert limit_headers([a_state(shadow=True)]) == []
    assert limit_headers([]) == []


def test_a_limit_for_which_waiting_is_pointless_tells_when_it_resets():
    told = as_dict(limit_headers([a_state(refuses=True, remaining=0, retry_after_ms=-1, reset_ms=5_000)]))
    assert told["x-ratelimit-reset-requests"] == "5s"


def test_the_longest_wait_decides_when_to_come_back():
    states = [
        a_state(refuses=True, retry_after_ms=1_200),
        a_state(refuses=True, retry_after_ms=300),
        a_state(retry_after_ms=9_999),
    ]
    assert retry_headers(states) == [("retry-after-ms", "1200"), ("retry-after", "2")]


def test_where_waiting_cannot_help_the_sdk_is_told_not_to_try_again():
    states = [a_state(refuses=True, retry_after_ms=1_200), a_state(refuses=True, retry_after_ms=-1)]
    assert retry_headers(states) == [("x-should-retry", "false")]


def test_a_refusing_shadow_limit_makes_nobody_wait():
    states = [a_state(refuses=True, retry_after_ms=9_000, shadow=True), a_state(refuses=True, retry_after_ms=5)]
    assert retry_headers(states)[0] == ("retry-after-ms", "5")


def test_where_it_depends_on_requests_in_flight_the_wait_is_a_second_or_what_else_refuses():
    in_flight = a_state(refuses=True, retry_after_ms=-2)
    assert retry_headers([in_flight]) == [("retry-after", "1")]
    assert retry_headers([in_flight, a_state(refuses=True, retry_after_ms=4_500)]) == [("retry-after", "5")]
    assert retry_headers([in_flight, a_state(refuses=True, retry_after_ms=-1)]) == [("x-should-retry", "false")]


def test_a_limit_of_requests_in_flight_has_no_window_to_tell():
    state = a_state(name="concurrency", unit="concurrency", limit=5, remaining=2, window_seconds=0, reset_ms=60_000)
    assert as_dict(limit_headers([state])) == {
        "x-ratelimit-limit-concurrency": "5",
        "x-ratelimit-remaining-concurrency": "2",
        "ratelimit-policy": '"concurrency";q=5',
        "ratelimit": '"concurrency";r=2',
    }


# The other dialects of the IETF draft

DIALECTS: tuple[RateLimitDialect, ...] = get_args(RateLimitDialect)


def ietf(dialect: RateLimitDialect, *states):
    """The fields besides OpenAI's."""
    return {name: value for name, value in as_dict(limit_headers_in(dialect)(states)).items() if name.startswith("ratelimit")}


def test_what_is_sent_without_a_setting_is_draft_10():
    states = [a_state(), a_state(name="tokens", unit="tokens")]
    assert limit_headers_in(LimitsSettings().ratelimit_headers)(states) == limit_headers_in("draft-10")(states)


def test_every_dialect_tells_openai_s_fields_alike():
    flying = a_state(name="flying", unit="concurrency", limit=5, remaining=2, window_seconds=0)
    states = [a_state(), a_state(name="tokens", unit="tokens", remaining=3), flying]
    told = [[field for field in limit_headers_in(dialect)(states) if field[0].startswith(b"x-")] for dialect in DIALECTS]
    assert told == [told[0]] * 4
    assert len(told[0]) == 8


def test_an_older_draft_tells_the_one_limit_nearest_to_being_spent_of_whatever_unit():
    states = [
        a_state(remaining=50),
        a_state(name="day", limit=9_000, remaining=9, window_seconds=86_400, reset_ms=29_001),
        a_state(name="tokens", unit="tokens", limit=1_000, remaining=200, window_seconds=3_600),
    ]
    assert ietf("draft-7", *states) == {
        "ratelimit": "limit=9000, remaining=9, reset=30",
        "ratelimit-policy": "9000;w=86400",
    }
    assert ietf("draft-6", *states) == {
        "ratelimit-limit": "9000",
        "ratelimit-remaining": "9",
        "ratelimit-reset": "30",
        "ratelimit-policy": "9000;w=86400",
    }
    assert ietf("draft-7", states[0], states[2])["ratelimit"] == "limit=1000, remaining=200, reset=60"
    assert ietf("off", *states) == {}


@pytest.mark.parametrize(
    ("dialect", "told"),
    [
        ("draft-10", {"ratelimit-policy": '"refusing";q=100;w=60', "ratelimit": '"refusing";r=0;t=2'}),
        ("draft-7", {"ratelimit-policy": "100;w=60", "ratelimit": "limit=100, remaining=0, reset=2"}),
        (
            "draft-6",
            {"ratelimit-policy": "100;w=60", "ratelimit-limit": "100", "ratelimit-remaining": "0", "ratelimit-reset": "2"},
        ),
        ("off", {}),
    ],
)
def test_a_refusal_tells_when_to_come_back_in_each_dialect(dialect, told):
    refusing = a_state(name="refusing", remaining=0, refuses=True, retry_after_ms=1_001)
    assert ietf(dialect, a_state(remaining=0), refusing) == told
    assert dict(retry_headers([refusing]))["retry-after"] == "2"


@pytest.mark.parametrize("dialect", ["draft-7", "draft-6", "off"])
def test_what_has_no_window_cannot_be_told_in_the_older_drafts(dialect):
    """Both require a reset in seconds and a window; a client must ignore a field without."""
    flying = a_state(name="flying", unit="concurrency", limit=5, remaining=0, window_seconds=0, refuses=True, retry_after_ms=-2)
    assert ietf(dialect, flying) == {}
    assert ietf(dialect, flying, a_state()) == ietf(dialect, a_state())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_dialect_tells_a_shadow_limit_or_anything_without_limits(dialect):
    assert limit_headers_in(dialect)([]) == []
    assert limit_headers_in(dialect)([a_state(shadow=True, remaining=0, refuses=True)]) == []
    assert ietf(dialect, a_state(shadow=True, remaining=0), a_state()) == ietf(dialect, a_state())

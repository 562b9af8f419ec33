"""Header fields in both directions, and how limits are told."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.headers import CREDENTIALS, duration, forwarded, is_field, limit_headers, retry_after, retry_headers, returned
from gateway.plugin import LimitState

STRIPPED = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-url",
    "x-real-ip",
    "x-request-id",
    "x-rewrite-url",
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
]


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


@pytest.mark.parametrize("name", STRIPPED)
def test_what_belongs_to_this_hop_or_this_gateway_is_not_forwarded(name):
    assert forwarded([(name.encode(), b"x"), (b"accept", b"*/*")]) == [(b"accept", b"*/*")]


def test_what_connection_nominates_is_not_forwarded_in_either_direction():
    fields = [(b"connection", b"close, X-Private ,x-other"), (b"x-private", b"1"), (b"x-other", b"2"), (b"x-kept", b"3")]
    assert forwarded(fields) == [(b"x-kept", b"3")]
    assert returned(fields, frozenset()) == [(b"x-kept", b"3")]


def test_fields_keep_their_order_and_repetition():
    fields = [(b"b", b"1"), (b"a", b"2"), (b"b", b"3"), (b"cookie", b"s=1")]
    assert forwarded(fields) == fields


@pytest.mark.parametrize("name", ["Set-Cookie", "Alt-Svc", "Server", "set-cookie2"])
def test_what_speaks_for_the_upstream_s_origin_returns_only_if_the_rule_passes_it(name):
    fields = [(name.encode(), b"x")]
    assert returned(fields, frozenset()) == []
    assert returned(fields, frozenset({name.lower().encode()})) == [(name.lower().encode(), b"x")]


@pytest.mark.parametrize(
    "name", ["X-RateLimit-Limit-Requests", "RateLimit", "RateLimit-Policy", "X-Gateway-Anything", "Date", "TE"]
)
def test_what_only_the_gateway_may_say_does_not_return(name):
    assert returned([(name.encode(), b"x")], frozenset()) == []


def test_the_upstream_s_request_id_returns_under_another_name():
    assert returned([(b"X-Request-Id", b"up")], frozenset()) == [(b"x-upstream-request-id", b"up")]


def test_a_length_that_chunks_overrule_does_not_return():
    fields = [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked"), (b"x", b"1")]
    assert returned(fields, frozenset()) == [(b"x", b"1")]
    assert returned(fields[:1], frozenset()) == [(b"content-length", b"5")]


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"a\r\nset-cookie: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\x00"),
        (b"x", b"\x01"),
        (b"x y", b"1"),
        (b"", b"1"),
        (b"x:", b"1"),
        (b"\xe9", b"1"),
    ],
)
def test_a_field_that_would_break_the_framing_does_not_return(field):
    assert not is_field(field)
    assert returned([field, (b"ok", b"1")], frozenset()) == [(b"ok", b"1")]


def test_white_space_around_a_value_is_no_part_of_it():
    assert returned([(b"X", b" \ta b \t")], frozenset()) == [(b"x", b"a b")]


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=8))
def test_whatever_an_upstream_sends_what_returns_can_be_sent(fields):
    assert all(is_field(field) and field[0] == field[0].lower() for field in returned(fields, frozenset()))


@given(
    st.lists(st.sampled_from([*CREDENTIALS, b"connection", b"host", b"accept", b"x-a"]), max_size=8),
    st.sampled_from([b"x-a", b"close", b"x-a, accept"]),
)
def test_no_credential_is_ever_forwarded(names, nominated):
    kept = forwarded([(name, nominated) for name in names])
    assert not {name for name, _ in kept} & {*CREDENTIALS, b"host", b"connection"}


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


def test_the_limit_nearest_to_being_spent_is_told_in_both_dialects():
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

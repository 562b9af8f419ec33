"""Header fields in both directions."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.headers import CREDENTIALS, MOST_NAMES, ForwardedFields, ReturnedFields, is_field
from gateway.headers import forwarded as forwarded_for

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
    "x-forwarded-client-cert",
    "x-forwarded-whatever",
    "x_forwarded_for",
    "x-forwarded_for",
    "x_api_key",
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


def forwarded(fields):
    return forwarded_for(fields, b"the-secret")


def returned(fields, passed):
    """What returns the first time, which is what returns each time."""
    known = ReturnedFields(passed)
    first = known(fields)
    assert known(fields) == first
    return first


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


def test_an_upstream_that_invents_names_is_not_remembered_without_bound():
    known = ReturnedFields()
    for number in range(10 * MOST_NAMES):
        assert known([(b"X-%d" % number, b"1"), (b"Server", b"s")]) == [(b"x-%d" % number, b"1")]
    assert len(known._fates) == MOST_NAMES


SAID: dict[str, Any] = {
    "client_ip": "203.0.113.7",
    "scheme": "https",
    "authority": "a.example.com",
    "request_id": "req_1",
    "length": None,
}
ORIGIN = [
    (b"x-forwarded-for", b"203.0.113.7"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", b"a.example.com"),
    (b"x-request-id", b"req_1"),
]


def test_the_gateway_s_own_fields_replace_what_a_plugin_has_set():
    fields = ForwardedFields([], preserve_host=False, identity=False)
    given = [(b"accept", b"*/*"), (b"x-request-id", b"mine"), (b"content-length", b"99"), (b"transfer-encoding", b"chunked")]
    assert fields.over(given, **SAID) == [(b"accept", b"*/*"), *ORIGIN]
    assert fields.over([], **{**SAID, "length": 7}) == [*ORIGIN, (b"content-length", b"7")]


def test_the_rule_s_fields_win_over_both():
    own = [(b"authorization", b"Bearer up"), (b"x-forwarded-for", b"hidden"), (b"host", b"b.example.com")]
    fields = ForwardedFields(own, preserve_host=True, identity=False)
    assert fields.over([(b"authorization", b"x"), (b"host", b"x")], **SAID) == [*ORIGIN[1:], *own]


def test_no_other_spelling_of_a_rule_s_field_stands_beside_it():
    own = [(b"x-team-token", b"1"), (b"x_tool", b"2")]
    fields = ForwardedFields(own, preserve_host=True, identity=False)
    given = [(b"x_team_token", b"x"), (b"x-tool", b"x"), (b"x_other", b"3")]
    assert fields.over(given, **SAID) == [(b"x_other", b"3"), *ORIGIN, (b"host", b"a.example.com"), *own]


def test_a_reply_that_plugins_read_is_asked_for_as_it_is():
    fields = ForwardedFields([], preserve_host=True, identity=True)
    sent = fields.over([(b"accept-encoding", b"gzip")], **SAID)
    assert sent == [*ORIGIN, (b"host", b"a.example.com"), (b"accept-encoding", b"identity")]


def test_wherever_the_client_repeats_its_key_it_is_not_forwarded():
    fields = [(b"x-debug", b"key=the-secret"), (b"cookie", b"the-secret"), (b"x-other", b"the-sec")]
    assert forwarded(fields) == [fields[2]]
    assert forwarded_for(fields) == fields

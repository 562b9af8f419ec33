"""Which rule a path finds, and what of the path goes on."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import InvalidPath, MethodNotAllowed, NoRoute
from gateway.routing import Matcher, Route, check_path, upstream_path


def a_matcher(*paths, methods=()):
    return Matcher(Route(path, methods, path) for path in paths)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v1/chat", "/v1/chat"),
        ("/v1/chat/", "/v1/chat"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/x", "/v1/chat/completions"),
        ("/v1/chat/complete", "/v1/chat"),
        ("/v1/chatter", "/v1"),
        ("/v1", "/v1"),
        ("/v12", "/"),
        ("/", "/"),
    ],
)
def test_the_longest_prefix_of_whole_segments_wins(path, found):
    assert a_matcher("/", "/v1", "/v1/chat", "/v1/chat/completions").match("GET", path) == found


@pytest.mark.parametrize(
    "path",
    [
        "/v1/ch%61t",
        "/v1/%63%68%61%74/x",
        "/v1//chat",
        "/v1///chat//x",
        "//v1/chat".removeprefix("/"),
        "/%76%31/chat",
        "/v1/%2563hat",
    ],
)
def test_no_other_spelling_avoids_the_rule_that_an_upstream_would_understand(path):
    matcher = a_matcher("/v1", "/v1/chat")
    assert matcher.match("GET", path) == ("/v1" if "%25" in path else "/v1/chat")


def test_a_rule_whose_own_path_is_encoded_is_found_in_each_spelling():
    matcher = a_matcher("/a%20b")
    assert matcher.match("GET", "/a%20b/c") == matcher.match("GET", "/%61%20b") == "/a%20b"


@pytest.mark.parametrize("path", ["/v2", "/", "/v", "/v1x/chat"])
def test_a_path_without_a_rule_has_no_route(path):
    with pytest.raises(NoRoute):
        a_matcher("/v1").match("GET", path)


def test_without_rules_there_is_no_route():
    with pytest.raises(NoRoute):
        a_matcher().match("GET", "/")


def test_a_method_that_no_rule_serves_is_refused_with_those_that_are():
    matcher = Matcher([Route("/v1", ("GET",), 1), Route("/v1", ("POST", "PUT"), 2)])
    with pytest.raises(MethodNotAllowed) as refused:
        matcher.match("DELETE", "/v1/x")
    assert refused.value.headers == (("allow", "GET, HEAD, POST, PUT"),)


def test_a_longer_prefix_does_not_fall_back_to_a_shorter_one_for_its_method():
    matcher = Matcher([Route("/v1", (), 1), Route("/v1/chat", ("POST",), 2)])
    with pytest.raises(MethodNotAllowed) as refused:
        matcher.match("GET", "/v1/chat")
    assert refused.value.headers == (("allow", "POST"),)


def test_head_is_served_by_who_serves_get_unless_another_asks_for_it():
    assert a_matcher("/v1", methods=("GET",)).match("HEAD", "/v1") == "/v1"
    matcher = Matcher([Route("/v1", ("GET",), "get"), Route("/v1", ("HEAD",), "head")])
    assert matcher.match("HEAD", "/v1") == "head"
    with pytest.raises(MethodNotAllowed):
        a_matcher("/v1", methods=("POST",)).match("HEAD", "/v1")


def test_of_equal_paths_the_first_that_serves_the_method_wins():
    assert Matcher([Route("/v1", ("POST",), 1), Route("/v1", (), 2), Route("/v1", ("GET",), 3)]).match("GET", "/v1") == 2


BAD_PATHS = [
    "",
    "x",
    "*",
    "//",
    "//evil/x",
    "http://evil/x",
    "@evil",
    "/\\evil",
    "/a\\b",
    "/a/../b",
    "/..",
    "/.",
    "/./a",
    "/a/.",
    "/a/%2e%2e/b",
    "/a/%2E./b",
    "/a/.%2e",
    "/%2e",
    "/a/..;/b",
    "/a/..;x=y/b",
    "/a/.;/b",
    "/a/%2e%2e;/b",
    "/a/..%3b/b",
    "/a/..%3B",
    "/a%2fb",
    "/a%2Fb",
    "/a%5cb",
    "/a%5Cb",
    "/a%00b",
    "/a#b",
    "/a b",
    "/a\tb",
    "/a\x00",
    "/a\x7f",
    "/a\xe9",
    "/a\u017f",
    "/a\u212a",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_could_mean_something_else_to_the_upstream_is_refused(path):
    with pytest.raises(InvalidPath):
        check_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/a",
        "/a/",
        "/a//b",
        "/...",
        "/a/..b",
        "/a..",
        "/.well-known/x",
        "/%2e%2e%2e",
        "/a;b",
        "/a%20b",
        "/a%252e",
        "/s/k/S/K",
        "/~x!$&'()*+,;=:@",
    ],
)
def test_an_ordinary_path_passes(path):
    check_path(path)


@pytest.mark.parametrize(
    ("rule", "path", "rest"),
    [
        ("/v1/chat", "/v1/chat", ""),
        ("/v1/chat", "/v1/chat/", "/"),
        ("/v1/chat", "/v1/chat/a%20b//c", "/a%20b//c"),
        ("/v1/chat", "/v1//ch%61t/x", "/x"),
        ("/v1/chat", "/%76%31/chat/x", "/x"),
        ("/a%20b", "/a%20b/x", "/x"),
        ("/", "/x", "/x"),
    ],
)
def test_stripping_removes_what_was_matched_and_nothing_else(rule, path, rest):
    assert upstream_path(rule, True, path) == rest
    assert upstream_path(rule, False, path) == path


def test_stripping_must_not_leave_two_slashes_at_the_beginning():
    with pytest.raises(InvalidPath):
        upstream_path("/v1", True, "/v1//evil.example/x")


segments = st.text(st.sampled_from("abAB019-._~!$&'()*+,;=:@"), min_size=1, max_size=6).filter(
    lambda text: not text.startswith(("..", ".")) and text.isascii()
)


@st.composite
def spelt(draw, text):
    """The same text with some characters percent-encoded."""
    return "".join(
        char if char == "%" or draw(st.integers(0, 3)) else draw(st.sampled_from([f"%{ord(char):02x}", f"%{ord(char):02X}"]))
        for char in text
    )


@given(st.data(), st.lists(segments, min_size=1, max_size=4), st.lists(segments, max_size=3))
@example(None, ["v1"], [])
def test_whatever_the_spelling_the_same_rule_is_found_and_the_rest_is_untouched(data, rule_segments, rest_segments):
    rule = "/" + "/".join(rule_segments)
    if data is None:
        assert upstream_path(rule, True, rule) == ""
        return
    prefix = "".join(
        "/" * data.draw(st.integers(1, 2) if index else st.just(1)) + data.draw(spelt(segment))
        for index, segment in enumerate(rule_segments)
    )
    rest = "".join("/" + data.draw(spelt(segment)) for segment in rest_segments)
    try:
        check_path(prefix + rest)
    except InvalidPath:
        return
    assert a_matcher("/", rule).match("GET", prefix + rest) == rule
    assert upstream_path(rule, True, prefix + rest) == rest
    assert upstream_path(rule, False, prefix + rest) == prefix + rest

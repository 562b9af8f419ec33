"""What is read of a request before its body, whatever server hands it over."""

import ipaddress

import pytest

from gateway.errors import (
    AmbiguousCredentials,
    BadRequest,
    HeadersTooLarge,
    InvalidPath,
    MethodNotAllowed,
    MissingHost,
    UriTooLong,
)
from gateway.proxy.request_head import authority_of, read_head

MAX_BYTES = 32 << 10
TRUSTED = (ipaddress.ip_network("10.0.0.0/8"),)


def a_scope(
    *fields, method="POST", raw_path=b"/v1/x", query=b"", version="1.1", client=("203.0.113.7", 1), hosts=(b"acme.example.com",)
):
    headers = [*((b"host", host) for host in hosts), *fields]
    return {
        "type": "http",
        "method": method,
        "raw_path": raw_path,
        "path": raw_path.decode("latin-1"),
        "query_string": query,
        "headers": headers,
        "http_version": version,
        "scheme": "http",
        "client": client,
    }


def read(scope, trusted=()):
    return read_head(scope, trusted, MAX_BYTES)


@pytest.mark.parametrize(
    ("fields", "has_body", "length"),
    [
        ([], False, 0),
        ([(b"content-length", b"0")], False, 0),
        ([(b"content-length", b"00")], False, 0),
        ([(b"content-length", b"5")], True, 5),
        ([(b"transfer-encoding", b"chunked")], True, None),
    ],
)
def test_the_framing_tells_whether_a_body_comes(fields, has_body, length):
    head = read(a_scope(*fields))
    assert (head.has_body, head.content_length) == (has_body, length)


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ([(b"content-length", b"5"), (b"content-length", b"5")], "1.1"),
        ([(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], "1.1"),
        ([(b"transfer-encoding", b"chunked")], "1.0"),
        *[
            ([(b"content-length", value)], "1.1")
            for value in (b"5, 5", b"+5", b"-5", b"5_0", b"0x5", b"", b" 5", b"\xb2", b"9" * 19, b"9" * 5_000)
        ],
    ],
)
def test_ambiguous_framing_is_refused_and_closes_the_connection(fields, version):
    with pytest.raises(BadRequest) as refused:
        read(a_scope(*fields, version=version))
    assert ("connection", "close") in refused.value.headers


@pytest.mark.parametrize("hosts", [(), (b"a", b"a"), (b"a", b"b")])
def test_a_request_has_exactly_one_host(hosts):
    with pytest.raises(MissingHost):
        read(a_scope(hosts=hosts))
    with pytest.raises(MissingHost):
        authority_of(a_scope(hosts=hosts), ())


@pytest.mark.parametrize("query", [b"a#b", b"a b", b"\xc3\xa9", b"a\tb", b"a\x00", b"\x7f"])
def test_a_query_that_could_not_be_sent_as_it_is_is_refused(query):
    with pytest.raises(BadRequest):
        read(a_scope(query=query))


def test_a_query_of_visible_ascii_passes():
    query = bytes(byte for byte in range(0x21, 0x7F) if byte != ord("#"))
    assert read(a_scope(query=query)).query == query.decode()


def test_bounds_are_exact():
    assert read(a_scope(raw_path=b"/" + b"a" * 8_191))
    with pytest.raises(UriTooLong):
        read(a_scope(raw_path=b"/" + b"a" * 8_191, query=b"b"))
    assert read(a_scope(*[(b"x", b"1")] * 99))
    with pytest.raises(HeadersTooLarge):
        read(a_scope(*[(b"x", b"1")] * 100))
    assert read(a_scope((b"x", b"1" * 8_191)))
    for field in ((b"x", b"1" * 8_192), (b"x" * 8_192, b"1")):
        with pytest.raises(HeadersTooLarge) as refused:
            read(a_scope(field))
        assert refused.value.param in {"x", "x" * 64}
    whole = a_scope(*[(b"x%d" % n, b"1" * 8_000) for n in range(4)], (b"y", b""))
    left = MAX_BYTES - sum(len(name) + len(value) + 4 for name, value in whole["headers"]) - len("/v1/x")
    whole["headers"][-1] = (b"y", b"1" * left)
    assert read(whole)
    whole["query_string"] = b"z"
    with pytest.raises(HeadersTooLarge, match="32768"):
        read(whole)


def test_paths_and_methods_are_checked():
    with pytest.raises(InvalidPath):
        read(a_scope(raw_path=b"http://evil/x"))
    with pytest.raises(InvalidPath):
        read(a_scope(raw_path=b"/\xc3\xa9"))
    with pytest.raises(MethodNotAllowed):
        read(a_scope(method="TRACE"))


@pytest.mark.parametrize(
    ("fields", "secret"),
    [
        ([], None),
        ([(b"authorization", b"Bearer abc")], "abc"),
        ([(b"authorization", b"bEaReR   abc  ")], "abc"),
        ([(b"authorization", b"Basic abc")], None),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"authorization", b"abc")], None),
        ([(b"x-api-key", b" abc ")], "abc"),
        ([(b"x-api-key", b"abc"), (b"authorization", b"Bearer abc"), (b"api-key", b"")], "abc"),
        ([(b"authorization", b"Basic xyz"), (b"x-goog-api-key", b"abc")], "abc"),
    ],
)
def test_the_credential_is_found(fields, secret):
    assert read(a_scope(*fields)).secret == secret


@pytest.mark.parametrize(
    "fields", [[(b"x-api-key", b"a"), (b"api-key", b"b")], [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")]]
)
def test_two_different_credentials_are_refused(fields):
    with pytest.raises(AmbiguousCredentials):
        read(a_scope(*fields))


def test_forwarded_values_count_only_from_trusted_proxies():
    fields = [
        (b"x-forwarded-for", b"6.6.6.6, 198.51.100.9"),
        (b"x-forwarded-host", b"evil.example.com, front.example.com"),
        (b"x-forwarded-proto", b"https"),
    ]
    head = read(a_scope(*fields), TRUSTED)
    assert (head.client_ip, head.authority, head.scheme) == ("203.0.113.7", "acme.example.com", "http")
    head = read(a_scope(*fields, client=("10.0.0.1", 1)), TRUSTED)
    assert (head.client_ip, head.authority, head.scheme) == ("198.51.100.9", "front.example.com", "https")
    assert authority_of(a_scope(*fields, client=("10.0.0.1", 1)), TRUSTED) == "front.example.com"
    assert read(a_scope((b"x-forwarded-proto", b"ftp"), client=("10.0.0.1", 1)), TRUSTED).scheme == "http"
    assert read(a_scope(*fields, client=None), TRUSTED).client_ip == "0.0.0.0"

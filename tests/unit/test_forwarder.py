"""The way to targets, on real sockets: which addresses are reached, what is sent, what a hostile upstream can do."""

import asyncio
import contextlib
import socket
import ssl
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config import UpstreamSettings
from gateway.errors import UpstreamTimeout, UpstreamUnreachable
from gateway.forwarder import BodyBroken
from gateway.targets import Target, parse_target
from tests.forwarders import a_forwarder, fetch
from tests.names import names_resolve_to
from tests.servers import make_certificates
from tests.unit.test_targets import host_forms
from tests.wire import an_upstream, ok

# Addresses


class Canary:
    """Counts whoever connects to loopback, on all of 127.0.0.0/8 and on ::1."""

    def __init__(self):
        everywhere = socket.socket()
        everywhere.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")  # nobody else finds it
        everywhere.bind(("0.0.0.0", 0))
        everywhere.listen()
        self.sockets = [everywhere]
        self.port = self.sockets[0].getsockname()[1]
        with contextlib.suppress(OSError):
            self.sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for each in self.sockets:
            each.setblocking(False)

    def connections(self):
        found = 0
        for each in self.sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    each.accept()[0].close()
                    found += 1
        return found

    def close(self):
        for each in self.sockets:
            each.close()


@pytest.fixture
def canary():
    found = Canary()
    yield found
    found.close()


async def test_the_canary_sings(canary):
    """What the tests below rely on: a connection to loopback is seen, by name and in odd spellings."""
    async with a_forwarder(first_byte_timeout="200ms") as forwarder:
        for host in ("127.0.0.1", "localhost", "127.1", "0x7f.1", "2130706433"):
            with pytest.raises((UpstreamTimeout, UpstreamUnreachable)):
                await forwarder.open(
                    Target("http", host, canary.port, "", True), "GET", f"http://{host}:{canary.port}/", [], None, 0
                )
    assert canary.connections() >= 3


@pytest.mark.parametrize("inner", [False, True])
async def test_no_spelling_of_loopback_reaches_it_when_it_is_not_allowed(canary, inner):
    hosts = [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "127.255.255.254",
        "0",
        "0.0.0.0",
        "2130706433",
        "0x7f000001",
        "0x7F.1",
        "0177.0.0.1",
        "017700000001",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "127.0.0.1.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[::]",
        "[64:ff9b::7f00:1]",
        "[::1%25lo]",
    ]
    async with a_forwarder(allowed_networks="10.0.0.0/8", first_byte_timeout="1s", connect_timeout="1s") as forwarder:
        for host in hosts:
            target = Target("http", host.strip("[]").lower(), canary.port, "", inner)
            with pytest.raises((UpstreamUnreachable, UpstreamTimeout)):
                await forwarder.open(target, "GET", f"http://{host}:{canary.port}/", [], None, 0)
    assert canary.connections() == 0


async def test_a_thousand_generated_spellings_reach_nothing(canary):
    """Even past the check of the text: the decision is made on the address that is connected to."""
    async with a_forwarder(allowed_networks="", connect_timeout="1s", first_byte_timeout="1s") as forwarder:
        forms = examples_of(host_forms(), 1_000)
        loopback = [host for host, value in forms if value >> 24 in (0, 127)]
        for host in dict.fromkeys(loopback):
            target = Target("http", host.strip("[]").lower(), canary.port, "", False)
            with pytest.raises((UpstreamUnreachable, UpstreamTimeout)):
                await forwarder.open(target, "GET", f"http://{host.lower()}:{canary.port}/", [], None, 0)
    assert len(loopback) > 100
    assert canary.connections() == 0


async def test_a_name_that_resolves_to_loopback_is_not_reached_whatever_it_resolved_to_before(canary):
    answers = ["127.0.0.1"], ["::1", "127.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"]
    with names_resolve_to(*answers) as resolver:
        async with a_forwarder(allowed_networks="") as forwarder:
            target = Target("http", "rebinding.example", canary.port, "", False)
            for _ in range(4):
                with pytest.raises(UpstreamUnreachable):
                    await forwarder.open(target, "GET", target.url("/", ""), [], None, 3)
            # a forbidden address is no failed connect: it is not tried again
            assert len(resolver.asked) <= 8
    assert canary.connections() == 0


async def test_a_target_for_the_internet_does_not_reach_allowed_networks_by_a_name_for_them_only_inner_ones_do():
    with names_resolve_to(["127.0.0.1"]):
        async with an_upstream() as upstream, a_forwarder() as forwarder:
            target = Target("http", "inner.example", upstream.port, "", True)
            _, body = await fetch(forwarder, target)
            assert body == b"hello"
            assert upstream.last.get("host") == f"inner.example:{upstream.port}"


async def test_an_inner_target_reaches_nothing_public():
    with names_resolve_to(["93.184.216.34"], fresh_s=10) as resolver:
        async with a_forwarder() as forwarder:
            target = Target("http", "public.example", 80, "", True)
            with pytest.raises(UpstreamUnreachable):
                await forwarder.open(target, "GET", target.url("/", ""), [], None, 0)
            assert len(resolver.asked) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1@evil.example/",
        "http://evil.example/",
        "//evil.example/",
        "http://127.0.0.1:1",
        "http://127.0.0.1:11/x",
    ],
)
async def test_a_url_that_has_left_its_target_is_not_opened(url):
    async with a_forwarder() as forwarder:
        with pytest.raises(UpstreamUnreachable):
            await forwarder.open(Target("http", "127.0.0.1", 1, "", True), "GET", url, [], None, 0)


# Requests


def examples_of(strategy, count):
    """So many examples, for tests in which each costs a request."""
    found = []

    @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(example):
        found.append(example)

    collect()
    return found


visible = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#")


async def test_path_and_query_arrive_byte_for_byte():
    paths = st.text(visible.filter(lambda char: char not in "?\\"), max_size=20)
    async with an_upstream() as upstream, a_forwarder() as forwarder:
        for path, query in examples_of(st.tuples(paths, st.text(visible, max_size=30)), 100):
            await fetch(forwarder, upstream, f"/a{path}", query=query)
            assert upstream.last.target == f"/a{path}" + (f"?{query}" if query else "")
            assert upstream.last.get("host") == f"127.0.0.1:{upstream.port}"


async def test_nothing_is_added_to_the_headers_and_values_are_sent_as_they_came():
    async with an_upstream() as upstream, a_forwarder() as forwarder:
        await fetch(forwarder, upstream, headers=[(b"x-a", "é€".encode()), (b"x-b", b"\xe9"), (b"x-a", b"2")])
        raw = upstream.last.raw_head
        assert upstream.last.names == {"host", "x-a", "x-b"}
        assert b"x-a: \xc3\xa9\xe2\x82\xac\r\n" in raw
        assert b"x-b: \xe9\r\n" in raw
        assert len(upstream.last.all("x-a")) == 2


async def test_a_redirect_is_an_answer_like_any_other():
    async def redirecting(call):
        await call.answer(302, {"location": f"http://127.0.0.1:{call.request.get('x-port')}/secret"}, b"moved")

    async with an_upstream() as other, an_upstream(redirecting) as upstream, a_forwarder() as forwarder:
        reply, body = await fetch(forwarder, upstream, headers=[(b"x-port", str(other.port).encode())])
        assert (reply.status, body) == (302, b"moved")
        assert other.connections == 0


async def test_cookies_are_kept_for_nobody():
    async def cookies(call):
        await call.answer(200, {"set-cookie": "session=1; Path=/"})

    with names_resolve_to(["127.0.0.1"]):
        async with an_upstream(cookies) as upstream, a_forwarder() as forwarder:
            target = Target("http", "named.example", upstream.port, "", True)
            for _ in range(2):
                await fetch(forwarder, target)
            assert upstream.last.get("cookie") is None


async def test_proxy_variables_are_not_believed(monkeypatch, canary):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    async with an_upstream() as upstream, a_forwarder() as forwarder:
        await fetch(forwarder, upstream)
    assert canary.connections() == 0


async def test_connections_are_used_again_and_one_that_was_closed_while_idle_is_not():
    async def closing_second(call):
        await ok(call)
        if call.request.get("x-close") is not None:
            call.writer.close()

    async with an_upstream(closing_second) as upstream, a_forwarder() as forwarder:
        for _ in range(3):
            await fetch(forwarder, upstream)
        assert upstream.connections == 1
        await fetch(forwarder, upstream, headers=[(b"x-close", b"1")])
        await asyncio.sleep(0.05)
        await fetch(forwarder, upstream, method="POST", body=b"x")
        assert upstream.connections == 2


# Failures


async def test_a_refused_connection_is_tried_again_and_no_more_than_asked(monkeypatch):
    tried = []
    real = socket.socket

    def counting(*args, **kwargs):
        tried.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr("gateway.forwarder.pool.socket.socket", counting)
    target = Target("http", "127.0.0.1", 1, "", True)
    async with a_forwarder() as forwarder:
        for retries, count in ((0, 1), (None, 2), (3, 4)):
            tried.clear()
            with pytest.raises(UpstreamUnreachable):
                await forwarder.open(target, "POST", target.url("/", ""), [], b"x", retries)
            assert len(tried) == count


async def test_a_request_that_was_sent_is_not_sent_again_unless_its_method_allows_that_once():
    async def breaks(call):
        await call.read_body()
        call.reset()

    for method, times in (("POST", 1), ("PATCH", 1), ("GET", 2), ("PUT", 2)):
        async with an_upstream(breaks) as upstream, a_forwarder() as forwarder:
            with pytest.raises(UpstreamUnreachable):
                await fetch(forwarder, upstream, method=method, body=b"x", retries=5)
            assert len(upstream.requests) == times


async def test_a_streamed_body_is_never_sent_again_half():
    async def breaks(call):
        await call.read_body()
        call.reset()

    async with an_upstream(breaks) as upstream, a_forwarder() as forwarder:
        with pytest.raises(UpstreamUnreachable):
            await fetch(forwarder, upstream, method="PUT", body=SlowBody(0), retries=5)
        assert len(upstream.requests) == 1


async def test_an_unknown_name_is_unreachable():
    with names_resolve_to(socket.gaierror(socket.EAI_NONAME, "none")) as resolver:
        async with a_forwarder() as forwarder:
            with pytest.raises(UpstreamUnreachable):
                await fetch(forwarder, Target("https", "no-such-name.example", 443, "", False), retries=0)
    assert resolver.asked == ["no-such-name.example"]


async def test_a_certificate_that_nobody_trusts_is_unreachable_and_not_tried_again(tmp_path):
    files = make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    async with an_upstream(tls=context) as upstream, a_forwarder() as forwarder:
        with pytest.raises(UpstreamUnreachable):
            await fetch(forwarder, upstream, retries=3)
        assert upstream.requests == []


async def test_tls_to_a_server_that_speaks_none_is_unreachable():
    async with an_upstream() as upstream, a_forwarder(connect_timeout="300ms") as forwarder:
        with pytest.raises((UpstreamUnreachable, UpstreamTimeout)):
            await fetch(forwarder, Target("https", "127.0.0.1", upstream.port, "", True), retries=0)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 99 x\r\n\r\n",
        b"HTTP/1.1 101 x\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 600 x\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 999 x\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=range(11),
)
async def test_an_answer_that_is_none_is_unreachable(answer):
    async def nonsense(call):
        await call.send(answer)
        call.writer.close()

    async with an_upstream(nonsense) as upstream, a_forwarder() as forwarder:
        with pytest.raises(UpstreamUnreachable):
            await fetch(forwarder, upstream)


async def test_an_upstream_that_answers_nothing_is_a_timeout():
    async def silent(call):
        await call.until_gone()

    async with an_upstream(silent) as upstream, a_forwarder(first_byte_timeout="100ms") as forwarder:
        with pytest.raises(UpstreamTimeout):
            await fetch(forwarder, upstream)


class SlowBody:
    """A client that pauses between two parts."""

    error = None

    def __init__(self, pause, count=2):
        self.pause, self.count = pause, count

    async def chunks(self):
        for _ in range(self.count):
            yield b"x" * 10
            await asyncio.sleep(self.pause)


async def test_a_slow_client_does_not_use_up_the_time_of_the_upstream():
    async with an_upstream() as upstream, a_forwarder(first_byte_timeout="150ms") as forwarder:
        reply, _ = await fetch(forwarder, upstream, method="POST", body=SlowBody(0.3))
        assert reply.status == 200
        assert upstream.last.body == b"x" * 20


async def test_after_a_streamed_body_the_upstream_has_its_time_and_no_more():
    async def silent(call):
        await call.read_body()
        await call.until_gone()

    async with an_upstream(silent) as upstream, a_forwarder(first_byte_timeout="200ms") as forwarder:
        started = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            await fetch(forwarder, upstream, method="POST", body=SlowBody(0.0))
        assert time.monotonic() - started < 5


async def test_an_upstream_that_takes_no_more_of_a_body_is_a_timeout():
    async def deaf(call):
        await asyncio.sleep(5)

    async with an_upstream(deaf) as upstream, a_forwarder(first_byte_timeout="300ms") as forwarder:
        body = SlowBody(0)
        body.chunks = endless  # type: ignore[method-assign]
        with pytest.raises(UpstreamTimeout):
            await fetch(forwarder, upstream, method="POST", body=body)


async def endless():
    while True:
        yield b"x" * (1 << 16)


async def test_an_answer_that_comes_before_the_body_is_sent_is_returned_and_its_connection_not_used_again():
    async def early(call):
        await call.answer(413, body=b"too large")
        await call.until_gone()

    async with an_upstream(early) as upstream, a_forwarder() as forwarder:
        reply, body = await fetch(forwarder, upstream, method="POST", body=SlowBody(0.01, 1_000))
        assert (reply.status, body) == (413, b"too large")
        await fetch(forwarder, upstream)
        assert upstream.connections == 2


@pytest.mark.parametrize(
    "rest",
    [b"5\r\nhel", b"ZZ\r\n", b"5\r\nhelloX", b"fffffffffffffffff\r\n", b""],
    ids=["cut in a chunk", "no size", "no end of line", "huge size", "cut between chunks"],
)
async def test_a_body_that_breaks_off_says_so_after_what_arrived(rest):
    async def breaking(call):
        await call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await call.send_chunk(b"first")
        await asyncio.sleep(0.05)
        await call.send(rest)
        call.writer.close()

    async with an_upstream(breaking) as upstream, a_forwarder() as forwarder:
        target = Target("http", "127.0.0.1", upstream.port, "", True)
        reply = await forwarder.open(target, "GET", target.url("/", ""), [], None, 0)
        arrived = bytearray()

        async def read():
            async for chunk in reply.chunks():
                arrived.extend(chunk)

        with pytest.raises(BodyBroken):
            await asyncio.wait_for(read(), 5)
        reply.close()
        assert arrived.startswith(b"first")


async def test_a_pause_in_a_body_is_bounded():
    async def pausing(call):
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        await call.until_gone()

    async with an_upstream(pausing) as upstream, a_forwarder(idle_timeout="100ms") as forwarder:
        with pytest.raises(BodyBroken, match=r"0\.1 s"):
            await fetch(forwarder, upstream)


async def test_a_body_longer_than_asked_for_is_not_read():
    async def long(call):
        await call.answer(200, body=b"x" * 100)

    async with an_upstream(long) as upstream, a_forwarder() as forwarder:
        target = Target("http", "127.0.0.1", upstream.port, "", True)
        reply = await forwarder.open(target, "GET", target.url("/", ""), [], None, 0)
        assert await reply.read(99) is None
        reply.close()


async def test_a_compressed_body_is_not_touched():
    async def compressed(call):
        await call.answer(200, {"content-encoding": "gzip"}, b"\x1f\x8bnot really")

    async with an_upstream(compressed) as upstream, a_forwarder() as forwarder:
        _, body = await fetch(forwarder, upstream)
        assert body == b"\x1f\x8bnot really"


def test_the_default_settings_reach_no_network_of_the_inside():
    assert parse_target("https://api.openai.com", UpstreamSettings()).inner is False

"""HTTP/2 under TLS: the same requests as over HTTP/1.1, nothing smuggled, and floods that reach no app."""

import asyncio
import contextlib
import json
import ssl

import pytest

from gateway.config import ServerSettings
from tests.h2_client import h2_connected
from tests.single_server import make_certificates
from tests.unit.serving.wire_app import REST, Endless, WireApp, answer, seen_of, serving, settings_of, trusting, unverified
from tests.wire import eventually

HEAD = [(":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", "/a")]
PING, SETTINGS, HEADERS, CONTINUATION = 6, 4, 1, 9


class CountingApp(WireApp):
    calls = 0

    async def __call__(self, scope, receive, send):
        self.calls += scope["type"] == "http"
        await super().__call__(scope, receive, send)


@pytest.fixture
def app():
    return CountingApp()


@pytest.fixture
def settings(tmp_path):
    return {"http2": True, **settings_of(make_certificates(tmp_path))}


@contextlib.asynccontextmanager
async def connected(app, settings, **more):
    async with serving(app, "granian", **settings, **more) as address, h2_connected(address) as client:
        client.address = address
        yield client


def seen_in(reply):
    assert reply["status"] == 200
    return json.loads(reply["body"])


async def test_a_request_is_seen_as_over_http_1_1(app, settings):
    async with connected(app, settings) as client:
        seen = seen_in(await client.ask("GET", "/a%2Fb//c?x=%20&y=+", ("x-one", "1")))
        assert (seen["raw_path"], seen["query_string"], seen["scheme"]) == ("/a%2Fb//c", "x=%20&y=+", "https")
        assert seen["headers"] == [["host", "x"], ["x-one", "1"]]
        assert (seen["http_version"], seen["method"], seen["body"]) == ("2", "GET", "")


async def test_http_1_1_may_still_be_chosen(app, tmp_path):
    files = make_certificates(tmp_path)
    async with serving(app, "granian", http2=True, **settings_of(files)) as address:
        assert (await seen_of(address, "GET /a HTTP/1.1\r\n" + REST, **trusting(files)))["http_version"] == "1.1"


async def test_without_the_setting_it_cannot_be_chosen(app, settings):
    async with serving(app, "granian", **{**settings, "http2": False}) as address:
        with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
            async with h2_connected(address):
                pass


async def test_many_requests_at_once_share_a_connection(app, settings):
    async with connected(app, settings) as client:
        streams = [client.begin("POST", f"/{number}", body=b"%d" % number) for number in range(50)]
        for number, stream in enumerate(streams):
            seen = seen_in(await client.reply(stream))
            assert (seen["path"], seen["body"]) == (f"/{number}", str(number))


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_comes_whole_and_one_without_a_length_is_told_as_chunks(app, settings, is_announced):
    async with connected(app, settings) as client:
        fields = [("content-length", "5")] if is_announced else []
        seen = seen_in(await client.ask("POST", "/a", *fields, body=b"hello"))
        assert seen["body"] == "hello"
        assert (["transfer-encoding", "chunked"] in seen["headers"]) == (not is_announced)
        assert (["content-length", "5"] in seen["headers"]) == is_announced


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_that_ends_with_its_head_has_no_body(app, settings, method):
    async with connected(app, settings) as client:
        names = {name for name, _ in seen_in(await client.ask(method))["headers"]}
        assert names == {"host"}


async def test_a_body_that_begins_late_is_waited_for(app, settings):
    async with connected(app, settings) as client:
        stream = client.begin("POST", ends=False)
        await asyncio.sleep(1.3)
        client.h2.send_data(stream, b"hello", end_stream=True)
        client.flush()
        seen = seen_in(await client.reply(stream))
        assert seen["body"] == "hello"
        assert ["transfer-encoding", "chunked"] in seen["headers"]


async def test_pieces_of_a_cookie_become_one(app, settings):
    async with connected(app, settings) as client:
        seen = seen_in(await client.ask("GET", "/a", ("cookie", "a=1"), ("cookie", "b=2")))
        assert [value for name, value in seen["headers"] if name == "cookie"] == ["a=1; b=2"]


SMUGGLED = {
    "name in capitals": [*HEAD, ("X-Up", "1")],
    "connection": [*HEAD, ("connection", "close")],
    "keep-alive": [*HEAD, ("keep-alive", "timeout=5")],
    "proxy-connection": [*HEAD, ("proxy-connection", "close")],
    "upgrade": [*HEAD, ("upgrade", "h2c")],
    "transfer-encoding": [*HEAD, ("transfer-encoding", "chunked")],
    "te": [*HEAD, ("te", "gzip")],
    "CR LF in a value": [*HEAD, ("x-a", "a\r\nb: c")],
    "NUL in a value": [*HEAD, ("x-a", "a\0b")],
    "CR LF in a name": [*HEAD, ("x\r\na", "1")],
    "colon in a name": [*HEAD, ("x:a", "1")],
    "space in a name": [*HEAD, ("x a", "1")],
    "method twice": [*HEAD, (":method", "POST")],
    "authority twice": [*HEAD, (":authority", "y")],
    "path twice": [*HEAD, (":path", "/b")],
    "pseudo-header after a field": [*HEAD[:3], ("x", "y"), HEAD[3]],
    "unknown pseudo-header": [*HEAD, (":status", "200")],
    "no path": HEAD[:3],
    "no method": HEAD[1:],
    "empty path": [*HEAD[:3], (":path", "")],
    "URL as path": [*HEAD[:3], (":path", "http://evil/x")],
    "space in the path": [*HEAD[:3], (":path", "/a HTTP/1.1")],
    "CR LF in the path": [*HEAD[:3], (":path", "/a\r\nhost: evil")],
    "CR LF in the method": [(":method", "GET / HTTP/1.1\r\nx: "), *HEAD[1:]],
    "CR LF in the authority": [*HEAD[:2], (":authority", "x\r\nx: y"), HEAD[3]],
    "negative length": [*HEAD, ("content-length", "-5")],
    "length with a sign": [*HEAD, ("content-length", "+0")],
    "extended CONNECT": [(":method", "CONNECT"), (":protocol", "websocket"), *HEAD[1:]],
}


async def test_what_could_mean_two_things_reaches_no_app(app, settings):
    async with serving(app, "granian", **settings) as address:
        for what, head in SMUGGLED.items():
            async with h2_connected(address) as client:
                reply = await client.reply(client.begin_with(head))
                assert reply.get("status", 400) == 400, what
            assert app.calls == 0, what
        async with h2_connected(address) as client:
            assert (await client.ask())["status"] == 200


@pytest.mark.parametrize("length", ["2", "10"])
async def test_a_body_of_another_length_than_announced_is_a_disconnect(settings, length):
    ends = []

    async def upload(receive, send):
        while (message := await receive()).get("more_body"):
            pass
        ends.append(message["type"])
        await answer(send, b"")

    async with connected(WireApp(upload=upload), settings) as client:
        reply = await client.ask("POST", "/upload", ("content-length", length), body=b"hello")
        assert "reset" in reply
        await eventually(lambda: ends == ["http.disconnect"])


async def test_a_head_that_is_too_long_is_refused(app, settings):
    async with connected(app, settings) as client:
        assert (await client.ask("GET", "/a", ("x", "a" * 40_000)))["status"] == 431
        assert app.calls == 0


async def test_a_head_that_never_ends_ends_the_connection(app, settings):
    async with connected(app, settings) as client:
        client.raw(HEADERS, 1, 1, client.h2.encoder.encode(HEAD))
        with contextlib.suppress(ConnectionError):
            for _ in range(2_000):
                if client.is_over:
                    break
                client.raw(CONTINUATION, 0, 1, b"\x00\x01a\x7f\x81\x7e" + b"b" * 16_000)
                await client.writer.drain()
        await client.until(lambda: client.is_over)
        assert app.calls == 0


async def test_resetting_streams_as_fast_as_one_can_ends_the_connection_and_occupies_no_app(app, settings):
    async with connected(app, settings) as client:
        with contextlib.suppress(ConnectionError, OSError):
            for _ in range(5_000):
                if client.is_over:
                    break
                stream = client.begin()
                client.h2.reset_stream(stream, 8)
                client.flush()
                await client.writer.drain()
        await client.until(lambda: client.is_over)
        assert app.calls < 1_000
        async with h2_connected(client.address) as another:
            assert (await another.ask())["status"] == 200


async def test_streams_beyond_the_most_at_once_are_refused(settings):
    calls, release = 0, asyncio.Event()

    async def waiting(receive, send):
        nonlocal calls
        calls += 1
        await release.wait()
        await answer(send, b"")

    async with connected(WireApp(waiting=waiting), settings) as client:
        for number in range(1, 301, 2):  # a client that does not care how many are allowed
            client.raw(HEADERS, 5, number, client.h2.encoder.encode([*HEAD[:3], (":path", "/waiting")]))
        await eventually(lambda: calls >= 100)
        await asyncio.sleep(0.3)
        assert calls == 100
        release.set()


@pytest.mark.parametrize(("kind", "payload"), [(PING, b"12345678"), (SETTINGS, b"\0\3\0\0\0\x64")])
async def test_pings_and_settings_without_end_hold_nobody_else(app, settings, kind, payload):
    async with connected(app, settings) as client:
        client.writer.transport.pause_reading()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(1):
                for _ in range(100_000):
                    client.raw(kind, 0, 0, payload)
                    await client.writer.drain()
        async with h2_connected(client.address) as another:
            assert (await another.ask())["status"] == 200
        client.writer.transport.abort()


async def test_a_client_that_opens_no_window_holds_the_app_back(settings):
    endless = Endless(1 << 14)
    async with connected(WireApp(endless=endless), settings, drain_timeout="100ms") as client:
        client.reads = False
        client.begin("GET", "/endless")
        assert await endless.held_back() < 4 << 20
        another = client.begin("GET", "/a")
        await client.until(lambda: "status" in client.streams[another])  # its body waits for the window that all share


async def test_events_are_passed_on_one_by_one(settings):
    next_one = asyncio.Event()

    async def events(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            await next_one.wait()
            next_one.clear()
        await send({"type": "http.response.body", "body": b""})

    async with connected(WireApp(events=events), settings) as client:
        stream = client.begin("GET", "/events")
        for number in range(3):
            await client.until(lambda: client.streams[stream].get("body", b"").count(b"data") == number + 1)  # noqa: B023
            next_one.set()
        assert (await client.reply(stream))["ended"]


async def test_who_cancels_a_stream_has_left(settings):
    waiting, left = asyncio.Event(), asyncio.Event()

    async def patient(receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        waiting.set()
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with connected(WireApp(patient=patient), settings) as client, asyncio.timeout(10):
        stream = client.begin("GET", "/patient")
        await waiting.wait()
        client.h2.reset_stream(stream, 8)
        client.flush()
        await left.wait()
        assert (await client.ask("GET", "/a"))["status"] == 200


async def test_a_shutdown_is_told_and_lets_streams_finish(settings):
    begun, may_finish = asyncio.Event(), asyncio.Event()

    async def streaming(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first,", "more_body": True})
        begun.set()
        await may_finish.wait()
        await send({"type": "http.response.body", "body": b"last"})

    async with contextlib.AsyncExitStack() as stack:
        server = contextlib.AsyncExitStack()
        address = await server.enter_async_context(
            serving(WireApp(streaming=streaming), "granian", **{**settings, "drain_timeout": "20s"})
        )
        client = await stack.enter_async_context(h2_connected(address))
        stream = client.begin("GET", "/streaming")
        await begun.wait()
        stopping = asyncio.create_task(server.aclose())
        await client.until(lambda: client.goaway is not None)
        may_finish.set()
        reply = await client.reply(stream)
        assert (reply["body"], reply["ended"], client.goaway) == (b"first,last", True, 0)
        async with asyncio.timeout(15):
            await stopping


@pytest.mark.parametrize("says", ["nothing", "a preface", "a request"])
async def test_an_idle_connection_is_ended(app, settings, says):
    times = {"keep_alive": "600ms" if says == "a request" else "65s", "first_header_timeout": "600ms"}
    async with serving(app, "granian", **settings, **times) as address:
        if says == "nothing":
            context = unverified()
            context.set_alpn_protocols(["h2"])
            reader, writer = await asyncio.open_connection(*address, ssl=context)
            async with asyncio.timeout(10):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()
        else:
            async with h2_connected(address) as client:
                if says == "a request":
                    await client.ask()
                await client.until(lambda: client.is_over)


async def test_a_connection_with_a_long_request_is_not_idle(settings):
    async def long(receive, send):
        await asyncio.sleep(2.5)
        await answer(send, b"done")

    async with connected(WireApp(long=long), settings, keep_alive="600ms") as client:
        assert (await client.ask("GET", "/long"))["body"] == b"done"


async def test_replies_do_not_name_the_server(app, settings):
    async with connected(app, settings) as client:
        fields = (await client.ask())["fields"]
        assert fields.get("server", "") == ""
        assert "connection" not in fields


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "granian"}, "http2 needs tls_certificate and tls_key"),
        ({"engine": "hypercorn", "tls_certificate": "c", "tls_key": "k"}, "hypercorn does not speak it"),
        ({"engine": "uvicorn", "tls_certificate": "c", "tls_key": "k"}, "uvicorn does not speak it"),
    ],
)
def test_what_it_needs_is_asked_for(given, message):
    with pytest.raises(ValueError, match=message):
        ServerSettings(http2=True, **given)

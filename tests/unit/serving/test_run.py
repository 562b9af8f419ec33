"""The server on real sockets: who gets a port, what a shutdown does to connections, and the lifespan of the apps."""

import asyncio
import gc
import logging
import re
import socket
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import pytest

from gateway.config import ServerSettings
from gateway.errors import ConfigurationError
from gateway.serving import Listener, run_event_loop, serve

ENGINES = ("hypercorn", "granian", "uvicorn")
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(params=ENGINES, autouse=True)
def engine(request, monkeypatch):
    """Every test on every engine."""
    monkeypatch.setattr(sys.modules[__name__], "patient", partial(configured, engine=request.param))
    return request.param


def configured(engine="hypercorn", drain_timeout="60s", **fields):
    return ServerSettings(engine=engine, drain_timeout=drain_timeout, **fields)


patient = configured


class App:
    """Answers ``body`` when it may; notes its lifespan and what happens to its requests."""

    def __init__(self, body=b"hello", diary=None):
        self.body = body
        self.diary = [] if diary is None else diary
        self.entered = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.may_finish.set()
        self.is_ended = False

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.lifespan(receive, send)
        else:
            watch = asyncio.create_task(self.cancel_when_left(receive, asyncio.current_task()))
            try:
                await self.reply(send)
            finally:
                watch.cancel()

    async def cancel_when_left(self, receive, task):
        """As apps do: not every engine tells a client's leave when something is sent."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self.is_ended:
            task.cancel()

    async def lifespan(self, receive, send):
        for phase in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{phase}"
            self.diary.append(f"{self.body.decode()} {phase}")
            await send({"type": f"lifespan.{phase}.complete"})

    async def reply(self, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", self.body)]})
        await send({"type": "http.response.body", "body": b"first,", "more_body": True})
        self.entered.set()
        await self.may_finish.wait()
        self.is_ended = True
        await send({"type": "http.response.body", "body": self.body})
        self.diary.append(f"{self.body.decode()} replied")


@dataclass
class Running:
    bound: dict[str, tuple[str, int]]
    shutdown: asyncio.Event
    task: asyncio.Task[None]
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, name="proxy"):
        """Open a connection that is closed at the end of the test."""
        reader, writer = await asyncio.open_connection(*self.bound[name])
        self.writers.append(writer)
        return reader, writer

    async def stop(self):
        """Shut down and return how many seconds that took."""
        self.shutdown.set()
        started = time.monotonic()
        await self.task
        return time.monotonic() - started


@asynccontextmanager
async def served(*apps, settings=None, names=("proxy", "admin"), **options):
    bound = asyncio.get_running_loop().create_future()
    shutdown = asyncio.Event()
    listeners = [Listener(app, "127.0.0.1", 0, name) for app, name in zip(apps, names, strict=False)]
    task = asyncio.create_task(serve(listeners, settings or patient(), shutdown, ready=bound.set_result, **options))
    await asyncio.wait([task, bound], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    running = Running(bound.result(), shutdown, task)
    try:
        yield running
    finally:
        shutdown.set()
        for writer in running.writers:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        await asyncio.gather(task, return_exceptions=True)


async def read_reply(reader):
    """The head and the raw chunked body of one reply."""
    head = await reader.readuntil(b"\r\n\r\n")
    return head, await reader.readuntil(b"0\r\n\r\n")


def a_port_in_use():
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken, taken.getsockname()[1]


async def never_reached(scope, receive, send):
    raise AssertionError(f"the app was called with {scope['type']}")


def forget_earlier_tests(caplog):
    """asyncio reports what an earlier test left to the garbage collector, whenever that runs: let it be now."""
    gc.collect()
    caplog.clear()


async def test_each_listener_answers_on_its_own_port():
    async with served(App(b"from proxy"), App(b"from admin")) as running:
        assert running.bound["proxy"] != running.bound["admin"]
        for name in ("proxy", "admin"):
            reader, writer = await running.connect(name)
            writer.write(GET)
            head, body = await read_reply(reader)
            assert head.startswith(b"HTTP/1.1 200")
            assert f"from {name}".encode() in body


@pytest.mark.parametrize("name", ["proxy", "admin"])
async def test_a_port_in_use_is_a_configuration_error_that_names_the_key_and_nothing_is_served(name):
    taken, port = a_port_in_use()
    free, free_port = a_port_in_use()
    free.close()
    other = "admin" if name == "proxy" else "proxy"
    listeners = [Listener(never_reached, "127.0.0.1", free_port, other), Listener(never_reached, "127.0.0.1", port, name)]
    with taken, pytest.raises(ConfigurationError) as refusal:
        await serve(listeners, patient(), asyncio.Event())
    assert str(refusal.value) == f"server.{name}_port: cannot listen on 127.0.0.1:{port}: Address already in use"
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", free_port)


async def test_two_listeners_cannot_share_a_port():
    probe, port = a_port_in_use()
    probe.close()
    listeners = [Listener(never_reached, "127.0.0.1", port, name) for name in ("admin", "proxy")]
    with pytest.raises(ConfigurationError, match=r"^server\.proxy_port: cannot listen"):
        await serve(listeners, patient(), asyncio.Event())


@pytest.mark.parametrize(("host", "reason"), [("203.0.113.1", "Cannot assign"), ("no such name", "")])
async def test_a_host_that_cannot_be_bound_names_the_host_key(host, reason):
    with pytest.raises(ConfigurationError) as refusal:
        await serve([Listener(never_reached, host, 0, "proxy")], patient(), asyncio.Event())
    assert str(refusal.value).startswith(f"server.proxy_host: cannot listen on {host}:0: {reason}")


async def test_a_listener_without_configuration_keys_is_named_itself():
    taken, port = a_port_in_use()
    with taken, pytest.raises(ConfigurationError, match=r"^demo-upstream: cannot listen on"):
        await serve([Listener(never_reached, "127.0.0.1", port, "demo-upstream")], patient(), asyncio.Event())


async def a_stream_outlives_the_shutdown():
    app = App()
    app.may_finish.clear()
    async with served(app) as running:
        reader, writer = await running.connect()
        writer.write(GET)
        await app.entered.wait()
        running.shutdown.set()
        await until_refused(running.bound["proxy"])
        assert not running.task.done()
        app.may_finish.set()
        _, body = await read_reply(reader)
        assert body.endswith(b"5\r\nhello\r\n0\r\n\r\n")
        assert await reader.read() == b""
        await running.task


async def until_refused(address):
    """Connect again and again; what the server still accepts it closes at once."""
    while True:
        try:
            with suppress(ConnectionResetError):  # it had not been accepted when the socket closed
                reader, writer = await asyncio.open_connection(*address)
                with suppress(ConnectionResetError):
                    await reader.read()
                writer.close()
                await writer.wait_closed()
        except ConnectionRefusedError:
            return


async def test_after_shutdown_connections_are_refused_while_a_running_stream_finishes():
    await a_stream_outlives_the_shutdown()


def test_the_drain_is_the_same_on_the_loop_of_production():
    run_event_loop(a_stream_outlives_the_shutdown())


async def test_an_idle_connection_is_closed_at_once_and_does_not_hold_the_shutdown(engine):
    async with served(App()) as running:
        reader, writer = await running.connect()
        writer.write(GET)
        await read_reply(reader)
        unused_reader, _ = await running.connect()
        half_reader, half_writer = await running.connect()
        half_writer.write(b"GET / HTTP/1.1\r\nhos")
        assert await running.stop() < 20
        assert await reader.read() == await unused_reader.read() == b""
        if engine != "granian":  # its threads keep one with half a head until keep_alive, or the process, ends
            assert await half_reader.read() == b""


async def test_what_runs_past_the_drain_timeout_is_cut_and_may_clean_up(caplog):
    class Endless(App):
        async def reply(self, send):
            try:
                await super().reply(send)
            finally:
                await asyncio.sleep(0.05)
                self.diary.append("cleaned up")

    app = Endless()
    app.may_finish.clear()
    async with served(app, settings=patient(drain_timeout="100ms")) as running:
        reader, writer = await running.connect()
        writer.write(GET)
        await app.entered.wait()
        assert 0.1 <= await running.stop() < 5
        assert b"0\r\n\r\n" not in await reader.read()
    assert app.diary == ["hello startup", "cleaned up", "hello shutdown"]
    assert "1 running requests are cut" in caplog.text


class Firehose(App):
    def __init__(self):
        super().__init__()
        self.left = asyncio.Event()

    async def reply(self, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.entered.set()
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
                await asyncio.sleep(0)
        finally:
            self.left.set()


async def test_a_client_that_does_not_read_cannot_hold_the_shutdown():
    app = Firehose()
    options = {"settings": patient(drain_timeout="100ms"), "write_stall_ms": 60_000, "cleanup_ms": 300}
    async with served(app, **options) as running:
        with socket.create_connection(running.bound["proxy"]) as client:
            client.sendall(GET)
            await app.entered.wait()
            assert await running.stop() < 5
    assert app.diary[-1] == "hello shutdown"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel has no TCP_USER_TIMEOUT")
async def test_a_client_that_does_not_read_is_disconnected(caplog):
    app = Firehose()
    async with served(app, write_stall_ms=200) as running:
        with socket.create_connection(running.bound["proxy"]) as client:
            client.sendall(GET)
            async with asyncio.timeout(20):
                await app.left.wait()
    assert "Error in ASGI Framework" not in caplog.text


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel has no TCP_USER_TIMEOUT")
async def test_a_connection_that_breaks_while_draining_does_not_end_the_drain_of_the_others(caplog):
    class Both(Firehose):
        async def __call__(self, scope, receive, send):
            if scope.get("path") == "/patient":
                await App.reply(self, send)
            else:
                await super().__call__(scope, receive, send)

    app = Both()
    app.may_finish.clear()
    async with served(app, write_stall_ms=200) as running:
        reader, writer = await running.connect()
        writer.write(GET.replace(b"/", b"/patient", 1))
        await reader.readuntil(b"first,")
        with socket.create_connection(running.bound["proxy"]) as client:
            client.sendall(GET)
            async with asyncio.timeout(20):
                running.shutdown.set()
                await app.left.wait()
            done, _ = await asyncio.wait([running.task], timeout=0.2)
            assert not done
        app.may_finish.set()
        assert (await reader.read()).endswith(b"5\r\nhello\r\n0\r\n\r\n")
    assert "Error in ASGI Framework" not in caplog.text


async def test_apps_start_before_anything_is_accepted_and_stop_after_every_listener_has_drained():
    diary: list[str] = []
    proxy, admin = App(b"proxy", diary), App(b"admin", diary)
    proxy.may_finish.clear()
    async with served(proxy, admin) as running:
        assert diary == ["proxy startup", "admin startup"]
        reader, writer = await running.connect("proxy")
        writer.write(GET)
        await proxy.entered.wait()
        running.shutdown.set()
        await until_refused(running.bound["admin"])
        proxy.may_finish.set()
        await read_reply(reader)
        await running.task
    assert diary == ["proxy startup", "admin startup", "proxy replied", "admin shutdown", "proxy shutdown"]


async def test_an_app_that_refuses_to_start_stops_the_start_and_the_others_are_shut_down():
    class Refusing(App):
        async def lifespan(self, receive, send):
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no store"})

    first = App(b"first")
    with pytest.raises(ConfigurationError, match=r"^admin: does not start: no store$"):
        async with served(first, Refusing()):
            pass
    assert first.diary == ["first startup", "first shutdown"]


async def test_a_failing_shutdown_is_logged_and_the_other_app_is_shut_down_all_the_same(caplog):
    class Failing(App):
        async def lifespan(self, receive, send):
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.failed", "message": "not flushed"})

    first = App(b"first")
    async with served(first, Failing()):
        pass
    assert first.diary == ["first startup", "first shutdown"]
    assert "admin: shutdown failed: not flushed" in caplog.text


@pytest.mark.parametrize("how", ["raises", "returns"])
async def test_an_app_that_knows_no_lifespan_is_served(how, caplog):
    caplog.set_level(logging.INFO)

    class Plain(App):
        async def lifespan(self, receive, send):
            if how == "raises":
                raise NotImplementedError("http only")

    async with served(Plain()) as running:
        reader, writer = await running.connect()
        writer.write(GET)
        assert (await read_reply(reader))[0].startswith(b"HTTP/1.1 200")
    assert ("proxy: runs without lifespan: NotImplementedError('http only')" in caplog.messages) == (how == "raises")


async def test_an_error_in_an_app_reaches_our_logger_and_the_client_gets_500(caplog):
    forget_earlier_tests(caplog)

    class Broken(App):
        async def reply(self, send):
            raise RuntimeError("a bug")

    async with served(Broken()) as running:
        reader, writer = await running.connect()
        writer.write(GET)
        assert (await reader.readline()).startswith(b"HTTP/1.1 500")
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (record.name, str(record.exc_info[1])) == ("gateway.server", "a bug")


async def test_nothing_is_logged_per_request_and_the_server_is_not_named(caplog, capfd, engine):
    caplog.set_level(logging.DEBUG)
    async with served(App()) as running:
        caplog.clear()
        reader, writer = await running.connect()
        writer.write(GET)
        head, _ = await read_reply(reader)
        unnamed = b"\r\nserver: \r" if engine == "granian" else b""  # Granian leaves no reply without the field
        assert b"".join(re.findall(rb"\r\nserver:.*\r", head.lower())) == unnamed
        assert b"\r\nconnection:" not in head.lower()
        assert [record for record in caplog.records if record.name != "asyncio"] == []
    assert capfd.readouterr() == ("", "")


async def test_the_header_block_is_limited():
    async with served(App(), settings=patient(max_header_bytes="16KiB")) as running:
        reader, writer = await running.connect()
        writer.write(GET.replace(b"\r\n\r\n", b"\r\nx-long: " + b"a" * 15_000 + b"\r\n\r\n"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        reader, writer = await running.connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 20_000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 431")


async def test_an_idle_connection_is_closed_after_keep_alive():
    async with served(App(), settings=patient(keep_alive="150ms")) as running:
        reader, writer = await running.connect()
        writer.write(GET)
        await read_reply(reader)
        async with asyncio.timeout(4):
            assert await reader.read() == b""


async def test_once_leaving_replies_ask_the_client_to_close():
    leaving = asyncio.Event()
    async with served(App(), leaving=leaving) as running:
        reader, writer = await running.connect()
        writer.write(GET)
        await read_reply(reader)
        leaving.set()
        writer.write(GET)
        head, _ = await read_reply(reader)
        assert b"\r\nconnection: close\r\n" in head
        assert await reader.read() == b""
        _, writer = await running.connect()  # still accepting


async def test_cancelling_serve_cuts_the_requests_and_shuts_the_apps_down():
    app = App()
    app.may_finish.clear()
    async with served(app) as running:
        reader, writer = await running.connect()
        writer.write(GET)
        await app.entered.wait()
        running.task.cancel()
        started = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await running.task
        assert time.monotonic() - started < 5
        await reader.read()
    assert app.diary == ["hello startup", "hello shutdown"]


def test_uvloop_is_taken_where_it_is_installed_and_asyncio_otherwise(monkeypatch):
    async def module_of_the_loop():
        return type(asyncio.get_running_loop()).__module__

    pytest.importorskip("uvloop")
    assert run_event_loop(module_of_the_loop()) == "uvloop"
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run_event_loop(module_of_the_loop()).startswith("asyncio")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel has no TCP_USER_TIMEOUT")
def test_a_lost_client_writes_no_error_into_the_log_on_the_loop_of_production(caplog):
    forget_earlier_tests(caplog)

    async def lose_a_client():
        app = Firehose()
        async with served(app, write_stall_ms=200) as running:
            with socket.create_connection(running.bound["proxy"]) as client:
                client.sendall(GET)
                async with asyncio.timeout(20):
                    await app.left.wait()

    run_event_loop(lose_a_client())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []

"""Bodies on their way: chunk by chunk, with back-pressure, and what happens when either side leaves."""

import asyncio
import contextlib
import json
import os
import time
from pathlib import Path

import pytest

from gateway.plugin import Plugin, Settings
from tests.engines import engine_differs
from tests.gateways import running_proxy
from tests.servers import Server
from tests.stores import dump
from tests.wire import Cut, an_upstream, head_of, ok

SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices": []}\n\n'


def rss_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def prepared(gateway, upstream, **rule):
    tenant = await gateway.new_tenant()
    await gateway.new_rule(tenant, upstream.url, **rule)
    return tenant


@contextlib.contextmanager
def within(seconds):
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


async def test_an_event_reaches_the_client_before_the_upstream_has_sent_the_next(gateway):
    may_go_on = asyncio.Event()

    async def streaming(call):
        await call.read_body()
        await call.send(SSE_HEAD)
        for number in range(3):
            await call.send_chunk(b"data: %d\n\n" % number)
            await asyncio.wait_for(may_go_on.wait(), 5)
            may_go_on.clear()
        await call.send(b"7\r\ndata: [\r\n7\r\nDONE]\n\n\r\n0\r\n\r\n")

    async with an_upstream(streaming) as upstream, gateway.connected() as wire:
        tenant = await prepared(gateway, upstream)
        await wire.send(head_of("POST", "/v1/x", gateway.fields(key=tenant.secret, body=b"{}")) + b"{}")
        head = await wire.head()
        assert head.get("content-type") == "text/event-stream; charset=utf-8"
        parts = wire.parts(head)
        for number in range(3):
            assert await anext(parts) == b"data: %d\n\n" % number
            may_go_on.set()
        assert b"".join([part async for part in parts]) == b"data: [DONE]\n\n"
        # and the connection is still good
        upstream_ok = await wire.ask("GET", "/nowhere", gateway.fields(key=tenant.secret))
        assert upstream_ok.status == 404


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ([EVENT, EVENT], EVENT * 2),
        ([EVENT, b'data: {"half'], EVENT + b'data: {"half\n\n'),
        ([b"data: 1\r\n\r\n"], b"data: 1\r\n\r\n"),
        ([b"data: 1\n", b"\n"], b"data: 1\n\n"),
        ([], b""),
    ],
)
async def test_a_stream_whose_upstream_dies_ends_with_an_error_event_and_without_done(gateway, sent, received):
    async def dying(call):
        await call.read_body()
        await call.send(SSE_HEAD)
        for part in sent:
            await call.send_chunk(part)
            await asyncio.sleep(0.02)
        call.reset()

    async with an_upstream(dying) as upstream, gateway.connected() as wire:
        tenant = await prepared(gateway, upstream)
        with pytest.raises(Cut) as cut:
            await wire.ask("POST", "/v1/x", gateway.fields(key=tenant.secret, body=b"{}"), b"{}")
        assert cut.value.message.status == 200
        body = cut.value.message.body
        assert body.startswith(received)
        event = body[len(received) :].decode()
        assert event.startswith("event: error\ndata: ")
        assert event.endswith("\n\n")
        error = json.loads(event.removeprefix("event: error\ndata: "))["error"]
        assert error["code"] == "upstream_unreachable"
        assert error["request_id"] == cut.value.message.get("x-request-id")
        assert b"[DONE]" not in body
        line = await gateway.logged()
        assert (line["status"], line["code"]) == (200, "upstream_unreachable")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9000\r\n\r\n",
        SSE_HEAD[:-2] + b"content-encoding: gzip\r\n\r\n4\r\n",
    ],
    ids=["json", "events of known length", "compressed events"],
)
async def test_any_other_reply_that_breaks_off_is_cut_and_nothing_is_added(gateway, head):
    async def dying(call):
        await call.read_body()
        await call.send(head + b"half")
        await asyncio.sleep(0.02)
        call.reset()

    async with an_upstream(dying) as upstream, gateway.connected() as wire:
        tenant = await prepared(gateway, upstream)
        with pytest.raises(Cut) as cut:
            await wire.ask("GET", "/v1/x", gateway.fields(key=tenant.secret))
        assert cut.value.message.body == b"half"
        assert await wire.is_closed()


async def test_broken_framing_in_the_middle_of_a_stream_is_noticed_at_once(gateway):
    async def breaking(call):
        await call.send(SSE_HEAD)
        await call.send_chunk(EVENT)
        await asyncio.sleep(0.02)
        await call.send(b"ZZ\r\n")
        await call.until_gone()

    async with an_upstream(breaking) as upstream, gateway.connected() as wire:
        tenant = await prepared(gateway, upstream)
        with within(2), pytest.raises(Cut) as cut:
            await wire.ask("GET", "/v1/x", gateway.fields(key=tenant.secret))
        assert b"event: error" in cut.value.message.body


async def test_an_idle_stream_is_given_up(store_url):
    async def pausing(call):
        await call.send(SSE_HEAD)
        await call.send_chunk(EVENT)
        await call.until_gone()

    async with running_proxy(store_url, upstream={"idle_timeout": "100ms"}) as gateway, an_upstream(pausing) as upstream:
        tenant = await prepared(gateway, upstream)
        with within(2), pytest.raises(Cut) as cut:
            await gateway.ask("GET", "/v1/x", key=tenant.secret)
        assert b"event: error" in cut.value.message.body


# A client that leaves


class Watched:
    """An upstream that stops at a point of the exchange and notes when it is left alone."""

    def __init__(self, phase):
        self.phase = phase
        self.reached = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, call):
        if self.phase != "while it sends":
            await call.read_body()
        if self.phase in ("in the middle of the reply", "after a reset"):
            await call.send(SSE_HEAD)
            await call.send_chunk(EVENT)
        self.reached.set()
        await call.until_gone()
        self.left.set()


PHASES = ["before the reply", "after a large upload", "in the middle of the reply", "while it sends", "after a reset"]


@pytest.mark.parametrize("phase", PHASES)
async def test_a_client_that_leaves_takes_the_upstream_s_work_with_it(gateway, phase):
    watched = Watched(phase)
    async with an_upstream(watched) as upstream:
        tenant = await prepared(
            gateway, upstream, plugin_chain=[{"name": "rate_limiter", "settings": {"limit": 5, "window": "1m"}}]
        )
        async with gateway.connected() as wire:
            length = 200_000 if phase in ("while it sends", "after a large upload") else 2
            body = bytes(2 if phase == "while it sends" else length)
            await wire.send(
                head_of("POST", "/v1/x", gateway.fields(key=tenant.secret, fields={"content-length": str(length)})) + body
            )
            await asyncio.wait_for(watched.reached.wait(), 5)
            if phase == "after a reset":
                wire.abort()
        with within(1):
            await asyncio.wait_for(watched.left.wait(), 5)
            await gateway.idle()
        line = await gateway.logged()
        assert (line["code"], line["status"]) == ("client_left", 499)
        # it was admitted and forwarded, so it counts; nothing else of it stays
        reply = await gateway.ask("GET", "/nowhere", key=tenant.secret)
        assert reply.status == 404
        names = [name.decode() for name in await dump(gateway.stores.connection)]
        assert sum(":limit:" in name for name in names) == 1


class Stubborn(Plugin[Settings]):
    """Will not be cancelled."""

    name = "stubborn"

    async def pre_response(self, exchange):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.5)


async def test_a_client_that_leaves_is_noticed_also_where_a_plugin_swallows_the_cancellation(store_url):
    asked, gone = asyncio.Event(), asyncio.Event()

    async def endless(call):
        await call.send(SSE_HEAD)
        asked.set()
        with contextlib.suppress(ConnectionError):
            while True:
                await call.send_chunk(EVENT)
                await asyncio.sleep(0.001)
        gone.set()

    async with running_proxy(store_url, plugins=[Stubborn]) as gateway, an_upstream(endless) as upstream:
        tenant = await prepared(gateway, upstream, plugin_chain=[{"name": "stubborn"}])
        async with gateway.connected() as wire:
            await wire.send(head_of("GET", "/v1/x", gateway.fields(key=tenant.secret)))
            await asyncio.wait_for(asked.wait(), 5)
            await asyncio.sleep(0.05)
        with within(2):
            await asyncio.wait_for(gone.wait(), 5)
            await gateway.idle()
        assert (await gateway.logged())["code"] == "client_left"


async def test_a_hundred_clients_that_leave_at_any_moment_leave_nothing_behind(gateway):
    async def slow(call):
        await call.read_body()
        await asyncio.sleep(0.02)
        await call.send(SSE_HEAD)
        for _ in range(3):
            await call.send_chunk(EVENT)
            await asyncio.sleep(0.01)
        await call.send(b"0\r\n\r\n")

    async with an_upstream(slow) as upstream:
        tenant = await prepared(gateway, upstream)
        request = head_of("POST", "/v1/x", gateway.fields(key=tenant.secret, body=b"{}")) + b"{}"

        async def leaving(number):
            async with gateway.connected() as wire:
                await wire.send(request[: len(request) - number % 7])
                await asyncio.sleep(number % 25 * 0.004)
                if number % 2:
                    wire.abort()

        await asyncio.gather(*(leaving(number) for number in range(100)))
        await gateway.idle()
        assert (await gateway.ask("POST", "/v1/x", key=tenant.secret, body=b"{}")).body == EVENT * 3
        tasks = [
            task for task in asyncio.all_tasks() if "_wait" in repr(task.get_coro()) or "post_response" in repr(task.get_coro())
        ]
        assert tasks == []


# Uploads


async def test_a_large_upload_streams_with_bounded_memory_as_fast_as_the_upstream_takes_it(store_url):
    size, took = 200 << 20, 0
    may_read = asyncio.Event()

    async def sink(call):
        nonlocal took
        await may_read.wait()
        while took < size:
            took += len(await call.reader.read(1 << 20))
        await call.answer(200, body=b"done")

    async with running_proxy(store_url, limits={"max_body_bytes": "300MiB"}) as gateway, an_upstream(sink) as upstream:
        tenant = await prepared(gateway, upstream)
        block = bytes(1 << 20)
        before = peak = rss_bytes()
        async with gateway.connected() as wire:
            fields = gateway.fields(key=tenant.secret, fields={"content-length": str(size)})
            sent = 0

            async def upload():
                nonlocal sent, peak
                await wire.send(head_of("PUT", "/v1/x", fields))
                while sent < size:
                    await wire.send(block)
                    sent += len(block)
                    peak = max(peak, rss_bytes())

            uploading = asyncio.create_task(upload())
            await asyncio.sleep(0.5)
            # nobody takes it, so nobody may go on sending it: sockets and buffers hold a few MB
            assert sent < 30 << 20
            may_read.set()
            reply = await wire.reply()
            await uploading
        assert (reply.status, reply.body) == (200, b"done")
        assert took == size
        assert peak - before < 40 << 20
        assert (await gateway.logged())["bytes_in"] == size


async def test_a_large_reply_waits_for_a_slow_client(gateway):
    size, sent = 60 << 20, 0

    async def source(call):
        nonlocal sent
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            await call.send(bytes(1 << 20))
            sent += 1 << 20

    async with an_upstream(source) as upstream, gateway.connected() as wire:
        tenant = await prepared(gateway, upstream)
        await wire.send(head_of("GET", "/v1/x", gateway.fields(key=tenant.secret)))
        head = await wire.head()
        await asyncio.sleep(0.5)
        assert sent < 30 << 20
        assert sum([len(part) async for part in wire.parts(head)]) == size


async def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(store_url):
    async with running_proxy(store_url, limits={"max_body_bytes": "1KiB"}) as gateway, an_upstream() as upstream:
        tenant = await prepared(gateway, upstream)
        reply = await gateway.ask("POST", "/v1/x", key=tenant.secret, fields={"content-length": "1025"})
        assert (reply.status, reply.code, reply.get("connection")) == (413, "body_too_large", "close")
        assert (await gateway.ask("POST", "/v1/x", key=tenant.secret, body=b"x" * 1_024)).status == 200
        assert len(upstream.requests) == 1


async def test_a_chunked_body_that_becomes_too_large_is_refused_when_it_does(store_url):
    async with running_proxy(store_url, limits={"max_body_bytes": "100KB"}) as gateway, an_upstream() as upstream:
        tenant = await prepared(gateway, upstream)
        chunk = b"%x\r\n%s\r\n" % (40_000, b"x" * 40_000)
        async with gateway.connected() as wire:
            fields = [*gateway.fields(key=tenant.secret), ("transfer-encoding", "chunked")]
            reply = await wire.ask("POST", "/v1/x", fields, chunk * 3 + b"0\r\n\r\n")
        assert (reply.status, reply.code) == (413, "body_too_large")
        await gateway.idle()


async def test_a_body_that_stops_coming_is_given_up(store_url):
    async with running_proxy(store_url, limits={"body_idle_timeout": "100ms"}) as gateway, an_upstream() as upstream:
        tenant = await prepared(gateway, upstream)
        for length in ("10", *["100000"] * 3):
            async with gateway.connected() as wire:
                with within(4):
                    reply = await wire.ask(
                        "POST", "/v1/x", gateway.fields(key=tenant.secret, fields={"content-length": length}), b"x"
                    )
                    assert (reply.status, reply.code) == (408, "request_timeout")
                    assert length == "10" or await wire.is_closed(3)


EARLY = 20 << 20


@pytest.mark.parametrize("case", ["the upstream's", "no key", "no tenant", "too large"])
async def test_a_client_that_sends_all_before_it_reads_gets_an_early_answer(store_url, case):
    async def early(call):
        await call.answer(413, {"content-type": "text/plain"}, b"too large")
        await call.until_gone()

    limit = "1MiB" if case == "too large" else "32MiB"
    async with running_proxy(store_url, limits={"max_body_bytes": limit}) as gateway, an_upstream(early) as upstream:
        tenant = await prepared(gateway, upstream)
        key = None if case == "no key" else tenant.secret
        host = "nobody.example.com" if case == "no tenant" else tenant.host
        with within(5):
            reply = await gateway.ask("POST", "/v1/x", key=key, host=host, body=bytes(EARLY))
        expected = {"the upstream's": 413, "no key": 401, "no tenant": 404, "too large": 413}[case]
        assert reply.status == expected
        if case == "the upstream's":
            assert reply.body == b"too large"
        await gateway.idle()


@engine_differs(granian="may close the connection of a request that was answered before its body came")
async def test_the_connection_of_a_refused_request_goes_on_once_its_body_has_come(gateway):
    await gateway.new_tenant()
    async with gateway.connected() as wire:
        await wire.send(head_of("POST", "/v1/x", gateway.fields(key=None, fields={"content-length": "5"})))
        assert (await wire.reply()).status == 401
        await wire.send(b"hello")
        assert (await wire.ask("GET", "/v1/x", gateway.fields(key=None))).status == 401


async def test_after_an_early_answer_the_upstream_s_connection_is_not_used_again(gateway):
    async def early(call):
        if call.request.target == "/v1/early":
            await call.answer(413, body=b"no")
            await call.until_gone()
        else:
            await ok(call)

    async with an_upstream(early) as upstream:
        tenant = await prepared(gateway, upstream)
        assert (await gateway.ask("POST", "/v1/early", key=tenant.secret, body=bytes(EARLY))).status == 413
        assert (await gateway.ask("POST", "/v1/x", key=tenant.secret, body=b"hello")).status == 200
        assert upstream.last.body == b"hello"
        assert upstream.connections == 2


async def test_nothing_is_forwarded_for_a_client_that_leaves_before_its_small_body_has_come(
    gateway, valkey_store_server: Server
):
    async with an_upstream() as upstream:
        tenant = await prepared(gateway, upstream)
        async with gateway.connected() as wire:
            await wire.send(head_of("POST", "/v1/x", gateway.fields(key=tenant.secret, fields={"content-length": "5"})) + b"he")
        line = await gateway.logged()
        assert (line["status"], line["code"]) == (499, "client_left")
        assert upstream.connections == 0

"""Targets that refuse, hang, lie and break off, on raw sockets behind a proxy that serves: each way is a row of the table.

Whatever a target does, its client gets the right status or a reply that is visibly cut, nothing hangs, the next
request, of another tenant to the same origin, gets its own reply and no byte of an earlier one, and nothing stays held.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.amounts import amount
from tests.e2e.processes import free_ports
from tests.faults.hostile import BROKEN_WITH_ITS_HEAD, EVENT, EVENTS, OK, POISON, WAYS, Hostile, Script
from tests.gateways import running_proxy
from tests.servers import make_certificates
from tests.sse_events import DONE
from tests.wire import Cut, an_upstream, eventually

UPSTREAM = {
    # what is good must keep them as well, on a busy machine
    "connect_timeout": "2s",
    "first_byte_timeout": "2s",
    "idle_timeout": "2s",
    "total_timeout": "4s",
    "connect_retries": 0,
    "breaker_failures": 0,
}
PLACES = {"name": "rate_limiter", "settings": {"limit": 1_000, "unit": "concurrency"}}
ANSWERED_WITHIN_S = 20
MOST_GROWTH_BYTES = 100 << 20
LOOK_EVERY_S = 0.005
AT_ONCE = 8


@pytest.fixture
async def gateway(valkey_store_server):
    valkey_store_server.command("FLUSHALL")
    async with running_proxy(valkey_store_server.url, upstream=UPSTREAM) as running:
        yield running


def rss_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def little_memory():
    """Whatever runs meanwhile never needs much more than there was: a thread looks, as what blocks the loop counts as well."""
    before, seen, over = rss_bytes(), [], threading.Event()

    def look():
        while not over.wait(LOOK_EVERY_S):
            seen.append(rss_bytes())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
    assert max(seen) - before < MOST_GROWTH_BYTES


async def two_tenants(gateway, url, number=0, **rule):
    """The one that is told lies, and another one with the same target."""
    tenants = [await gateway.new_tenant(f"{name}{number}") for name in ("one", "other")]
    for tenant in tenants:
        await gateway.new_rule(tenant, url, plugin_chain=[PLACES], **rule)
    return tenants


async def ask(gateway, tenant, path="/v1/x", method="GET", body=None):
    """The reply, and whether it was cut."""
    try:
        async with asyncio.timeout(ANSWERED_WITHIN_S):
            return await gateway.ask(method, path, key=tenant.secret, host=tenant.host, body=body), False
    except Cut as cut:
        return cut.message, True


async def nothing_is_held(gateway):
    await gateway.idle()
    client = gateway.stores.connection.client
    async with asyncio.timeout(10):
        while any([await client.zcard(key) for key in await client.keys("*:limit:concurrency:*")]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@dataclass
class Liar:
    """A target that is hostile to requests but to those for its fine path; it knows on which connections it was that."""

    script: Script
    lied_on: set[object] = field(default_factory=set)
    asked_after_a_lie: int = 0

    async def __call__(self, call):
        if call.request.target.startswith("/v1/fine"):
            self.asked_after_a_lie += call.writer in self.lied_on
            await call.answer(200, {"content-type": "text/plain"}, call.request.target.encode())
        else:
            self.lied_on.add(call.writer)
            await self.script(call)


@pytest.mark.parametrize("kind", WAYS)
async def test_whatever_a_target_answers_is_contained(gateway, row, tries, kind):
    row.kind = kind
    at_once = asyncio.Semaphore(AT_ONCE)

    async def suffer(number, way):
        async with at_once:
            try:
                await contained(gateway, row, tries, way, number)
            except BaseException as error:
                error.add_note(f"the target: {way.name}")
                raise

    with little_memory():
        async with asyncio.TaskGroup() as group:
            for number, way in enumerate(WAYS[kind]):
                group.create_task(suffer(number, way))
        await nothing_is_held(gateway)


async def contained(gateway, row, tries, way: Hostile, number):
    liar = Liar(way.script)
    async with an_upstream(liar) as upstream:
        one, other = await two_tenants(gateway, upstream.url, number)
        for _ in range(max(1, tries // 3)):  # of each way, of which there are many
            with row.one_try():
                with row.answer():
                    reply, was_cut = await ask(gateway, one, method=way.method, body=bytes(way.sent_bytes))
                if not (way in BROKEN_WITH_ITS_HEAD and reply.status == 502):
                    assert (reply.status, was_cut) == (way.status, way.cut)
                    if way.body is not None:
                        assert reply.body == way.body
                assert POISON not in reply.raw_head + reply.body
                assert {"set-cookie", "alt-svc", "server"}.isdisjoint(reply.names)
                if reply.status in (502, 504) and way.method != "HEAD":
                    auth = "upstream_auth_failed" if "credentials" in way.name else "upstream_unreachable"
                    assert reply.code == ("upstream_timeout" if reply.status == 504 else auth)
                for tenant in (other, one):
                    path = f"/v1/fine/{tenant.subdomain}/{number}"
                    with row.recovery():
                        fine, was_cut = await ask(gateway, tenant, path)
                    assert (fine.status, fine.body, was_cut) == (200, path.encode(), False)
                    await asyncio.sleep(0.05)  # what a target says later has come
        assert bool(liar.asked_after_a_lie) is way.reused


# A stream that is cut anywhere

EVENTS_HEAD = OK + EVENTS + b"transfer-encoding: chunked\r\n\r\n"
MODEL = b'{"model":"gpt-4o-mini","stream":true,"messages":[{"role":"user","content":"Hi"}]}'
CUTS = amount("GATEWAY_STREAM_CUTS", 60)


async def test_a_stream_that_is_reset_after_any_byte_is_told_from_a_whole_one_and_costs_what_it_delivered(gateway, row):
    row.kind = "target: stream reset after n bytes"
    events = [EVENT] * 4 + [DONE]
    whole = EVENTS_HEAD + b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"
    where = sorted({round(number * len(whole) / (CUTS - 1)) for number in range(CUTS)} | {len(whole) - 5, len(whole) - 1})

    async def dying(call):
        await call.read_body()
        sent = int(call.request.target.rpartition("=")[2])
        await call.send(whole[:sent])
        await asyncio.sleep(0.02)
        call.reset()

    async with an_upstream(dying) as upstream:
        one, _ = await two_tenants(gateway, upstream.url)
        for sent in where:
            with row.one_try(), row.answer():
                reply, was_cut = await ask(gateway, one, f"/v1/chat/completions?n={sent}", "POST", MODEL)
                line = await gateway.logged(row.tried)
                if sent < len(EVENTS_HEAD):
                    assert (reply.status, reply.code, was_cut) == (502, "upstream_unreachable", False)
                    assert line["output_tokens"] == line["cost_nano_usd"] == 0
                    continue
                delivered = whole[len(EVENTS_HEAD) : sent].count(EVENT)
                assert (reply.status, was_cut) == (200, sent < len(whole))
                assert reply.body.count(EVENT) >= delivered
                assert line["output_tokens"] >= delivered
                assert line["cost_nano_usd"] > 0
                if was_cut:
                    assert reply.body.endswith(b"\n\n")
                    assert b"event: error\ndata: " in reply.body
                    # what the target has said itself may lack no more than the end of its line
                    assert DONE not in reply.body or DONE.rstrip() in whole[:sent]
        await nothing_is_held(gateway)


# Connecting


def tls_context(folder, **how):
    files = make_certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    for name, value in how.items():
        setattr(context, name, value)
    return context


@contextlib.asynccontextmanager
async def a_listener(kind, folder):
    """The port of something that cannot be spoken to."""
    if kind == "refused":
        with socket.socket() as placeholder:  # bound, and never listening
            placeholder.bind(("127.0.0.1", 0))
            yield placeholder.getsockname()[1]
    elif kind == "backlog full":
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listening, contextlib.ExitStack() as stack:
            # what is never accepted fills the queue, and then nobody gets an answer
            for _ in range(3):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(listening.getsockname())
            yield listening.getsockname()[1]
    elif kind == "handshake stalls":
        with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
            yield listening.getsockname()[1]
    elif kind == "plain text":

        async def answer(_reader, writer):
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]
            await asyncio.sleep(0.05)
    else:
        old = {"minimum_version": ssl.TLSVersion.TLSv1, "maximum_version": ssl.TLSVersion.TLSv1}
        async with an_upstream(tls=tls_context(folder, **(old if kind == "TLS 1.0" else {}))) as upstream:
            yield upstream.port


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("refused", 502),
        ("backlog full", 504),
        ("handshake stalls", 504),
        ("plain text", 502),
        ("a certificate of its own", 502),
        ("TLS 1.0", 502),
    ],
)
async def test_a_target_that_cannot_be_connected_to_is_answered_in_time_and_leaves_no_socket(
    gateway, row, tries, folder, kind, status
):
    row.kind = f"target: {kind}"
    async with a_listener(kind, folder) as port:
        scheme = "http" if kind in ("refused", "backlog full") else "https"
        one, _ = await two_tenants(gateway, f"{scheme}://127.0.0.1:{port}")
        await ask(gateway, one)
        before = open_sockets()
        for _ in range(tries):
            with row.one_try(), row.answer():
                reply, was_cut = await ask(gateway, one, "/v1/x", "POST", b"{}")
                assert (reply.status, was_cut) == (status, False)
                assert reply.code == ("upstream_timeout" if status == 504 else "upstream_unreachable")
        await nothing_is_held(gateway)
        await eventually(lambda: open_sockets() <= before + 1, 20)


def open_sockets():
    links = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(each.readlink()))
    return sum(link.startswith("socket:") for link in links)


# Many requests


async def test_a_target_that_is_down_is_left_alone_and_used_again_when_it_is_back(valkey_store_server, row, tries):
    row.kind = "target: down, then up"
    valkey_store_server.command("FLUSHALL")
    quick = UPSTREAM | {"breaker_failures": 5, "breaker_pause": "200ms", "connect_retries": 1}
    (port,) = free_ports(1)
    async with running_proxy(valkey_store_server.url, upstream=quick) as gateway, an_upstream() as other_upstream:
        one, other = await two_tenants(gateway, f"http://127.0.0.1:{port}")
        await gateway.new_rule(one, other_upstream.url, path="/up")
        for _ in range(tries):
            with row.one_try():
                replies = []
                for _ in range(40):
                    with row.answer():
                        replies.append((await ask(gateway, one))[0])
                assert {(reply.status, reply.code) for reply in replies} == {(502, "upstream_unreachable")}
                refused = [reply for reply in replies if reply.get("retry-after")]
                assert len(refused) >= 20
                assert "not asked" in refused[0].error["message"]
                await eventually(
                    lambda: {line["code"] for line in gateway.log_lines()} >= {"breaker_open", "upstream_unreachable"}
                )
                # neither the tenant's other target nor another tenant is concerned
                assert (await ask(gateway, one, "/up"))[0].status == 200
                assert (await ask(gateway, other))[0].get("retry-after") is None
                async with an_upstream(port=port):
                    with row.recovery():
                        async with asyncio.timeout(20):
                            while (await ask(gateway, one))[0].status != 200:  # noqa: ASYNC110
                                await asyncio.sleep(0.02)
                    assert {(await ask(gateway, one))[0].status for _ in range(20)} == {200}
                    assert (await ask(gateway, other))[0].status == 200
        counted = {series for series in gateway.series() if series.startswith("gateway_target_outages_total")}
        assert 'gateway_target_outages_total{tenant="one0"}' in counted
        assert len(counted) <= 2
        await nothing_is_held(gateway)


async def test_a_target_that_hangs_takes_no_more_than_its_tenant_s_share_and_leaves_others_unharmed(valkey_store_server, row):
    row.kind = "target: hangs under load"
    valkey_store_server.command("FLUSHALL")
    slow = UPSTREAM | {
        "first_byte_timeout": "100s",
        "total_timeout": "100s",
        "connect_timeout": "30s",
        "max_per_target": 20,
        "pool_size": 40,
    }
    bounds = {"max_in_flight_per_tenant": 60}

    async def silent(call):
        await call.until_gone()

    async with (
        running_proxy(valkey_store_server.url, upstream=slow, limits=bounds) as gateway,
        an_upstream(silent) as hung,
        an_upstream() as fine,
    ):
        one, other = await two_tenants(gateway, hung.url)
        await gateway.new_rule(one, fine.url, path="/fine")
        await gateway.new_rule(other, fine.url, path="/fine")
        tasks = [asyncio.create_task(ask(gateway, one)) for _ in range(50)]
        await eventually(lambda: len(hung.requests) == 20 and sum(task.done() for task in tasks) == 30, 60)
        assert {task.result()[0].code for task in tasks if task.done()} == {"overloaded"}
        for tenant in (other, one) * 10:
            with row.one_try(), row.answer():
                assert (await ask(gateway, tenant, "/fine"))[0].status == 200
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await nothing_is_held(gateway)

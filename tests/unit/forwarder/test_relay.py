"""Bodies passed on as they come: nobody is woken for a part, nothing is lost when the client is slow, and no deadline is."""

import asyncio

import pytest

from gateway.forwarder import BodyBroken
from tests.forwarders import a_forwarder, relayed, target_at
from tests.wire import an_upstream

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
PARTS = [b"one", b"two", b"three"]


async def paced(call):
    """Three chunks, with a pause before each."""
    await call.send(HEAD)
    for part in PARTS:
        await asyncio.sleep(0.02)
        await call.send_chunk(part)
    await asyncio.sleep(0.02)
    await call.send(b"0\r\n\r\n")


async def opened(forwarder, upstream):
    target = target_at(upstream.port)
    return await forwarder.open(target, "GET", target.url("/x", ""), [], None, 0)


async def test_parts_are_passed_on_without_a_task_being_woken():
    found, callers = [], []

    def pass_on(chunk):
        found.append(chunk)
        callers.append(asyncio.current_task())

    async with an_upstream(paced) as upstream, a_forwarder() as forwarder:
        reply = await opened(forwarder, upstream)
        found.append(await reply.next_chunk())
        await reply.relay(pass_on)
        assert await reply.next_chunk() == b""
        reply.close()
        assert found == PARTS
        assert callers == [None, None]
        # and the connection is as good as before
        again = await opened(forwarder, upstream)
        assert await relayed(again) == b"".join(PARTS)
        again.close()
        assert upstream.connections == 1


async def test_what_comes_while_there_is_no_room_waits_and_nothing_is_lost_or_out_of_order():
    room, found = asyncio.Event(), []

    async def later(chunk):
        await room.wait()
        found.append(chunk)

    async with an_upstream(paced) as upstream, a_forwarder() as forwarder:
        reply = await opened(forwarder, upstream)
        found.append(await reply.next_chunk())
        relay = asyncio.create_task(reply.relay(later))
        await asyncio.sleep(0.2)
        assert found == [b"one"]
        room.set()
        await relay
        rest = await relayed(reply)
        assert b"".join(found) + rest == b"".join(PARTS)
        reply.close()


async def test_the_target_s_time_does_not_run_while_the_client_is_slow():
    async def pausing(call):
        await call.send(HEAD)
        await call.send_chunk(b"one")
        await asyncio.sleep(0.1)
        await call.send_chunk(b"two")
        await asyncio.sleep(0.9)
        await call.send_chunk(b"three")
        await call.send(b"0\r\n\r\n")

    async def slow(chunk):
        found.append(chunk)
        await asyncio.sleep(0.8)

    found: list[bytes] = []
    async with an_upstream(pausing) as upstream, a_forwarder(idle_timeout="400ms") as forwarder:
        reply = await opened(forwarder, upstream)
        while chunk := await reply.next_chunk():
            found.append(chunk)
            await reply.relay(slow)
        assert found == PARTS
        reply.close()


async def test_a_target_that_falls_silent_is_noticed():
    async def silent(call):
        await call.send(HEAD)
        await call.send_chunk(b"one")
        await asyncio.sleep(0.05)
        await call.send_chunk(b"two")
        await asyncio.sleep(20)

    found: list[bytes] = []
    async with an_upstream(silent) as upstream, a_forwarder(idle_timeout="200ms") as forwarder:
        reply = await opened(forwarder, upstream)
        found.append(await reply.next_chunk())
        async with asyncio.timeout(5):
            await reply.relay(found.append)
        assert found == [b"one", b"two"]
        with pytest.raises(BodyBroken, match=r"no data for 0\.2 s"):
            await reply.next_chunk()
        reply.close()


async def test_an_exchange_that_takes_too_long_as_a_whole_is_cut_although_parts_come():
    async def endless(call):
        await call.send(HEAD)
        while True:
            await call.send_chunk(b"x")
            await asyncio.sleep(0.01)

    async with an_upstream(endless) as upstream, a_forwarder(total_timeout="300ms") as forwarder:
        reply = await opened(forwarder, upstream)
        with pytest.raises(BodyBroken, match="took too long"):
            async with asyncio.timeout(5):
                await relayed(reply)
        reply.close()


async def test_an_error_of_who_takes_the_parts_is_raised_and_the_rest_stays_readable():
    def refuse(_chunk):
        raise ZeroDivisionError

    async with an_upstream(paced) as upstream, a_forwarder() as forwarder:
        reply = await opened(forwarder, upstream)
        assert await reply.next_chunk() == b"one"
        with pytest.raises(ZeroDivisionError):
            await reply.relay(refuse)
        assert await reply.next_chunk() == b"three"
        reply.close()


async def test_after_a_cancellation_nothing_is_passed_on():
    found: list[bytes] = []
    async with an_upstream(paced) as upstream, a_forwarder() as forwarder:
        reply = await opened(forwarder, upstream)
        assert await reply.next_chunk() == b"one"
        relay = asyncio.create_task(reply.relay(found.append))
        await asyncio.sleep(0)
        relay.cancel()
        with pytest.raises(asyncio.CancelledError):
            await relay
        await asyncio.sleep(0.1)
        assert found == []
        assert await relayed(reply) == b"twothree"
        reply.close()

"""Thousands of requests that are given up at any moment: no reply reaches another request, and no connection is lost."""

import asyncio
import random

import pytest
import uvloop

from gateway.errors import GatewayError
from gateway.forwarder import BodyBroken
from tests.forwarders import a_forwarder, fetch, idle_and_busy, target_at
from tests.wire import an_upstream, eventually

REQUESTS = 3_000
AT_ONCE = 60
POOL = 20


class Slow:
    """A body that comes in pieces."""

    error = None

    def __init__(self, text, chance):
        self.text, self.chance = text, chance

    async def chunks(self):
        for char in self.text:
            if self.chance.random() < 0.3:
                await asyncio.sleep(self.chance.random() * 0.002)
            yield bytes([char])


def echoing(chance):
    """Answers each request with its own name and body, in any framing, in pieces, with pauses; sometimes it breaks."""

    async def pause():
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random() * 0.004)

    async def echo(call):
        await pause()
        text = f"{call.request.target} ".encode() + await call.read_body()
        await pause()
        kind = chance.randrange(12)
        if kind == 0:
            call.reset()
        elif kind == 1:
            await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(text) + 1, text))
            call.writer.close()
        elif kind < 5:
            await call.send(b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for start in range(0, len(text), 5):
                await pause()
                await call.send_chunk(text[start : start + 5])
            await call.send(b"0\r\n\r\n")
        elif kind < 7:
            half = len(text) // 2
            await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text[:half]))
            await pause()
            await call.send(text[half:])
        else:
            await call.answer(200, body=text)

    return echo


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_no_reply_reaches_another_request_and_no_connection_is_lost(run):
    chance = random.Random(20_261_123)
    outcomes = {"whole": 0, "cancelled": 0, "failed": 0}

    async def main():
        async with an_upstream(echoing(chance)) as upstream, a_forwarder(pool_size=POOL) as forwarder:
            target, numbers = target_at(upstream.port), iter(range(REQUESTS))

            async def one(number):
                path, text = f"/{number}", b"%d" % number * chance.randrange(1, 9)
                body = chance.choice([None, text, Slow(text, chance)])
                method = chance.choice(["GET", "PUT", "POST"])
                _, found = await fetch(forwarder, target, path, method=method, body=body, relay=chance.random() < 0.5)
                assert found == f"{path} ".encode() + (text if body is not None else b"")

            async def several():
                for number in numbers:
                    task = asyncio.create_task(one(number))
                    if chance.random() < 0.5:
                        await asyncio.sleep(chance.random() * 0.006)
                        for _ in range(chance.randrange(3)):
                            await asyncio.sleep(0)
                        task.cancel()
                    try:
                        await task
                        outcomes["whole"] += 1
                    except asyncio.CancelledError:
                        outcomes["cancelled"] += 1
                    except (GatewayError, BodyBroken):
                        outcomes["failed"] += 1
                    assert len(forwarder._pools[True].connector._acquired) <= POOL

            await asyncio.gather(*(several() for _ in range(AT_ONCE)))
            # whatever was given up has let go of its place
            await eventually(lambda: idle_and_busy(forwarder)[1] == 0)
            assert idle_and_busy(forwarder)[0] <= POOL
            assert not forwarder._pools[True].connector._waiters

    run(main())
    assert sum(outcomes.values()) == REQUESTS
    assert min(outcomes.values()) > REQUESTS // 30, outcomes

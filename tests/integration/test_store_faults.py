"""The store is killed under load and started again with its append-only file: nobody sees more than 503, little is lost."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from tests.gateways import running_proxy
from tests.servers import Server, valkey_server, wait_until
from tests.traffic import LEASE_MS, LIMITS, REDIS, left_in, traffic

pytestmark = pytest.mark.real_store

# As the embedded server is started, and as the documentation asks of others.
DURABLE = {"appendfsync": "everysec", "maxmemory-policy": "noeviction"}
LIMIT = 250


def append_only_file(server: Server) -> Path:
    (file,) = (server.directory / "appendonlydir").glob("*.incr.aof")
    return file


async def sizes_of(file: Path, sizes: list[tuple[float, int]]) -> None:
    """Notes how long the file was when."""
    while True:
        sizes.append((time.monotonic(), os.stat(file).st_size))  # noqa: PTH116  # no disk is asked
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("lost_s", [0.0, 1.5], ids=["the process dies", "the machine dies with 1.5 s in memory"])
async def test_a_store_that_is_killed_under_load_is_503_until_it_is_back_and_forgets_little(lost_s: float):
    with valkey_server(persistent=True, options=DURABLE) as server:
        async with running_proxy(server.url, limits=LIMITS, redis=REDIS) as gateway, traffic(gateway, LIMIT) as load:
            sizes: list[tuple[float, int]] = []
            sampling = asyncio.create_task(sizes_of(append_only_file(server), sizes))
            async with load.running():
                await load.until(100, lambda told: told.status == 200)
                sampling.cancel()
                server.kill()
                killed = time.monotonic()
                # everysec: what the kernel has not written to the disk is at most some 2 s old
                lost_since = killed - 2
                if lost_s:
                    lost_since, kept_bytes = [sample for sample in sizes if sample[0] <= killed - lost_s][-1]
                    os.truncate(append_only_file(server), kept_bytes)
                await load.until(20, lambda told: told.asked > killed)
                starting = time.monotonic()
                await asyncio.to_thread(server.start)
                back = time.monotonic()
                await load.until(20, lambda told: told.asked > back and told.status == 200)
                await load.until(20, lambda told: told.asked > back and told.status == 429)
            load.check_answers()
            assert {told.status for told in load.told if killed < told.asked and told.answered < starting} == {503}
            # Two more calls may find a connection of before; from then on the store is there for everybody.
            assert {told.status for told in load.told if told.asked > back + 2} <= {200, 429}

            may_be_lost = load.reached_since(lost_since, back)
            unsure = load.lost_replies(killed)
            assert LIMIT - unsure <= len(load.reached) <= LIMIT + may_be_lost
            assert len(load.reached) > LIMIT or not lost_s
            await gateway.idle()
            await asyncio.to_thread(wait_until, lambda: not left_in([server]).in_flight, "settled", LEASE_MS / 1_000)
            left = left_in([server])
            assert (left.in_flight, left.holds, left.endless) == (0, 0, 0)
            assert LIMIT - unsure <= left.logged <= LIMIT
            assert len(load.reached) - may_be_lost <= left.known <= len(load.reached)

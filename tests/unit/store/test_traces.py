"""Random traces of calls get the replies of the model on fakeredis, Redis and Valkey, and keep every promise by name."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable
from typing import Any

import pytest

from gateway.store import Stores
from tests.gate import Gate
from tests.stores import keys_without_end
from tests.unit.store.traces import Call, Trace

BATCH = 50
CALLS = 4_000
SEEDS = (1, 2, 3, 4, 5)
LONG_CALLS, LONG_SEEDS = 50_000, range(100, 120)


async def run(stores: Stores, calls: Iterable[Call], *, watched: bool) -> int:
    """Make the calls in pipelines. ``watched`` compares every key that a call names before and after, unless it may write."""
    client, digests = stores.connection.client, stores.runner._shas
    done = 0
    for batch in _batched(calls):
        async with client.pipeline(transaction=False) as pipe:
            for call in batch:
                seen = call.keys if watched and not call.writes else ()
                for name in seen:
                    pipe.dump(name).pexpiretime(name)
                pipe.evalsha(digests[call.script], len(call.keys), *call.keys, *call.arguments)
                for name in seen:
                    pipe.dump(name).pexpiretime(name)
            answers: list[Any] = await pipe.execute()
        place = 0
        for call in batch:
            seen_count = 2 * len(call.keys) if watched and not call.writes else 0
            before, reply = answers[place : place + seen_count], answers[place + seen_count]
            after = answers[place + seen_count + 1 : place + 2 * seen_count + 1]
            place += 2 * seen_count + 1
            assert reply == call.reply, f"call {done}, {call.script} {call.arguments}"
            assert before == after, f"call {done}, {call.script} has written although it replied {reply[0]!r}"
            done += 1
    return done


@functools.lru_cache(maxsize=len(SEEDS))
def trace_of(seed: int, count: int) -> tuple[list[Call], dict[str, int]]:
    """A trace, and how often each kind of limit admitted in it."""
    trace = Trace(seed)
    return list(trace.calls(count)), trace.checked


def _batched(calls: Iterable[Call]) -> Iterable[list[Call]]:
    calls = iter(calls)
    while batch := list(itertools.islice(calls, BATCH)):
        yield batch


async def checked(stores: Stores, seed: int, calls: int, *, watched: bool) -> None:
    await Gate(stores).prepare()
    kept = await keys_without_end(stores.connection)
    found, admitted = trace_of(seed, calls)
    assert await run(stores, found, watched=watched) >= calls
    assert min(admitted.values()) > calls // 100, admitted
    assert await keys_without_end(stores.connection) == kept, "every key of a limit has an end"


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_trace_gets_the_replies_of_the_model_and_keeps_every_promise(stores: Stores, seed: int):
    is_fake = "fake" in type(stores.connection.client).__module__
    await checked(stores, seed, CALLS, watched=not is_fake)


@pytest.mark.long
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("seed", LONG_SEEDS)
async def test_a_long_trace_gets_the_replies_of_the_model_and_keeps_every_promise(stores: Stores, seed: int):
    is_fake = "fake" in type(stores.connection.client).__module__
    await checked(stores, seed + int(os.environ.get("TRACE_SEED", "0")), LONG_CALLS, watched=not is_fake)

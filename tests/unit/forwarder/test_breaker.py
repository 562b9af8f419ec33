"""When a target is left alone and when it is asked again, and how many retries it may cost."""

import asyncio
import contextlib
import socket

import pytest

from gateway.config import UpstreamSettings
from gateway.errors import BreakerOpen, Overloaded, UpstreamTimeout, UpstreamUnreachable
from gateway.forwarder.breaker import FREE_RETRY_EVERY_S, LONGEST_PAUSES, MOST_SAVED_RETRIES, RETRY_SHARE, Breaker, RetryBudget
from gateway.targets import AddressPolicy, Target
from tests.forwarders import a_forwarder, fetch, target_at
from tests.names import names_resolve_to
from tests.wire import an_upstream, eventually, ok

PAUSE_S = 10.0


def fail(breaker, times, now=0.0, *, connecting=True):
    """So many requests that begin and fail at once; how often that opened the breaker."""
    return sum(breaker.failed(breaker.enter(now), now, connecting=connecting) for _ in range(times))


def an_open_breaker(**how):
    breaker = Breaker(3, PAUSE_S)
    assert fail(breaker, 3, **how) == 1
    return breaker


def test_so_many_failures_in_a_row_open_it_and_a_reply_between_them_does_not():
    breaker = Breaker(3, PAUSE_S)
    for _ in range(5):
        assert not fail(breaker, 2)
        breaker.succeeded()
    assert fail(breaker, 3) == 1

    with pytest.raises(BreakerOpen) as refused:
        breaker.enter(1.0)
    assert 1 <= int(dict(refused.value.headers)["retry-after"]) <= PAUSE_S
    assert (refused.value.status, refused.value.code) == (502, "upstream_unreachable")


def test_after_a_pause_one_request_is_let_through_and_its_reply_closes_it():
    breaker = an_open_breaker()

    breaker.enter(PAUSE_S)
    with pytest.raises(BreakerOpen):
        breaker.enter(PAUSE_S)
    assert breaker.succeeded()
    for _ in range(10):
        breaker.enter(PAUSE_S)


def test_pauses_grow_and_are_bounded_and_jittered():
    breaker, now, pauses = an_open_breaker(), 0.0, []
    for _ in range(20):
        began = now
        while True:
            try:
                number = breaker.enter(now)
                break
            except BreakerOpen:
                now += 0.5
        pauses.append(now - began)
        breaker.failed(number, now, connecting=True)

    expected = [min(PAUSE_S * 2**number, PAUSE_S * LONGEST_PAUSES) for number in range(20)]
    assert all(most / 2 <= pause <= most + 1 for pause, most in zip(pauses, expected, strict=True))
    assert len(set(pauses[8:])) > 5

    breaker.enter(now + 10_000)
    breaker.succeeded()
    fail(breaker, 3, now)
    breaker.enter(now + PAUSE_S)  # the next outage begins with the first pause


def test_requests_that_began_before_it_opened_do_not_lengthen_the_pause():
    breaker = Breaker(3, PAUSE_S)
    numbers = [breaker.enter(0.0) for _ in range(50)]
    assert [breaker.failed(number, 0.0, connecting=True) for number in numbers].count(True) == 1

    breaker.enter(PAUSE_S)


def test_a_probe_that_hangs_does_not_keep_it_open():
    breaker = an_open_breaker()
    breaker.enter(PAUSE_S)
    breaker.enter(2 * PAUSE_S)


def test_a_client_that_leaves_says_nothing_and_gives_its_place_as_a_probe_to_the_next():
    breaker = Breaker(3, PAUSE_S)
    for _ in range(10):
        breaker.left(breaker.enter(0.0), 0.0)
    assert not breaker.failures

    breaker = an_open_breaker()
    breaker.left(breaker.enter(PAUSE_S), PAUSE_S)
    breaker.enter(PAUSE_S)


@pytest.mark.parametrize("connecting", [True, False])
def test_a_connection_is_enough_only_where_that_was_what_failed(connecting):
    breaker = an_open_breaker(connecting=connecting)
    breaker.enter(PAUSE_S)
    assert breaker.connected() is connecting
    assert breaker.is_open is not connecting


def test_it_can_be_switched_off():
    breaker = Breaker(0, PAUSE_S)
    assert fail(breaker, 1_000) == 0
    assert not breaker.failures


def test_retries_are_a_fifth_of_the_requests_and_one_a_second():
    budget = RetryBudget()
    saved = sum(budget.take(0.0) for _ in range(100))
    assert saved == MOST_SAVED_RETRIES + 1  # and the free one

    taken = 0
    for _ in range(1_000):
        budget.saved += RETRY_SHARE
        taken += budget.take(0.5)
    assert 195 <= taken <= 205

    assert sum(budget.take(1.0 + second * FREE_RETRY_EVERY_S) for second in range(10)) == 10


# On sockets


@contextlib.asynccontextmanager
async def counting_listener():
    """Takes each connection, counts it and resets it. Yields the list of them and the port."""
    taken = []

    async def take(_reader, writer):
        taken.append(writer)
        writer.transport.abort()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield taken, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def asked(forwarder, port, times, *, owner="", method="POST"):
    """The errors of so many requests, one after the other."""
    errors = []
    target = target_at(port)
    for _ in range(times):
        try:
            (await forwarder.open(target, method, target.url("/", ""), [], b"x", None, owner=owner)).close()
        except (UpstreamUnreachable, UpstreamTimeout, Overloaded) as error:
            errors.append(type(error))
    return errors


async def test_a_target_that_breaks_every_connection_is_soon_left_alone():
    async with counting_listener() as (taken, port), a_forwarder(breaker_pause="1h") as forwarder:
        errors = await asked(forwarder, port, 1_000)
    assert errors == [UpstreamUnreachable] * 5 + [BreakerOpen] * 995
    assert len(taken) == 5


async def test_one_owner_s_failures_are_not_another_s():
    async with counting_listener() as (_, port), a_forwarder(breaker_pause="1h") as forwarder:
        await asked(forwarder, port, 6, owner="one")
        assert await asked(forwarder, port, 1, owner="other") == [UpstreamUnreachable]
        assert await asked(forwarder, port, 1, owner="one") == [BreakerOpen]


async def test_statuses_are_replies():
    async def unwell(call):
        await call.read_body()
        await call.answer(503)

    async with an_upstream(unwell) as upstream, a_forwarder() as forwarder:
        assert await asked(forwarder, upstream.port, 20) == []


@pytest.mark.parametrize("failures", [5, 0])
async def test_a_target_that_is_back_is_found_again(failures):
    async with an_upstream() as upstream:
        port = upstream.port
    async with a_forwarder(breaker_pause="50ms", breaker_failures=failures, connect_retries=0) as forwarder:
        assert BreakerOpen in await asked(forwarder, port, 10) or not failures
        async with an_upstream(ok, port=port):
            for _ in range(500):
                if not await asked(forwarder, port, 1):
                    break
                await asyncio.sleep(0.01)
            assert await asked(forwarder, port, 20) == []


async def test_a_connection_closes_it_before_the_head_of_a_slow_reply_has_come():
    answer = asyncio.Event()

    async def slow(call):
        await call.read_body()
        await answer.wait()
        await call.answer(200)

    async with an_upstream() as upstream:
        port = upstream.port
    async with a_forwarder(breaker_pause="20ms", connect_retries=0) as forwarder:
        await asked(forwarder, port, 6)
        async with an_upstream(slow, port=port) as upstream:
            await asyncio.sleep(0.05)
            both = [asyncio.create_task(asked(forwarder, port, 1))]
            await eventually(lambda: upstream.requests)
            both.append(asyncio.create_task(asked(forwarder, port, 1)))
            await eventually(lambda: len(upstream.requests) == 2)
            answer.set()
            assert await asyncio.gather(*both) == [[], []]


async def test_clients_that_leave_do_not_open_it():
    async def silent(call):
        await call.until_gone()

    async with an_upstream(silent) as upstream, a_forwarder() as forwarder:
        for _ in range(20):
            task = asyncio.create_task(asked(forwarder, upstream.port, 1))
            await eventually(lambda: upstream.requests)
            upstream.requests.clear()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        task = asyncio.create_task(asked(forwarder, upstream.port, 1))
        await eventually(lambda: upstream.requests)
        task.cancel()


async def test_a_dead_target_under_load_costs_few_connects_and_few_retries(monkeypatch):
    """Without a breaker, so that only the budget holds the retries back."""
    tried = []
    real = AddressPolicy.is_allowed

    def counting(policy, address):
        tried.append(address)
        return real(policy, address)

    monkeypatch.setattr(AddressPolicy, "is_allowed", counting)
    async with an_upstream() as upstream:
        port = upstream.port

    async def load(**given):
        tried.clear()
        async with a_forwarder(connect_retries=5, **given) as forwarder:
            await asyncio.gather(*(asked(forwarder, port, 25) for _ in range(20)))
        return len(tried)

    budget = 500 * 0.2 + MOST_SAVED_RETRIES
    assert 500 <= await load(breaker_failures=0) <= 500 + budget + 20
    assert await load(breaker_pause="1h") <= 20 * 6


async def test_a_place_is_kept_while_a_reply_lasts_and_there_are_no_more_than_so_many_for_a_target():
    hold = asyncio.Event()

    async def holding(call):
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na")
        await hold.wait()
        await call.send(b"b")

    async with an_upstream(holding) as upstream, a_forwarder(max_per_target=3) as forwarder:
        target = target_at(upstream.port)

        def opened(owner):
            return forwarder.open(target, "POST", target.url("/", ""), [], b"x", None, owner=owner)

        replies = [await opened("one") for _ in range(3)]
        with pytest.raises(Overloaded):
            await opened("one")
        replies.append(await opened("other"))
        hold.set()
        for reply in replies:
            assert await reply.read(10) == b"ab"
            reply.close()
            reply.close()
        replies = [await opened("one") for _ in range(3)]
        with pytest.raises(Overloaded):
            await opened("one")
        for reply in replies:
            reply.close()


async def test_failures_give_their_place_back():
    async with counting_listener() as (_, port), a_forwarder(max_per_target=1, breaker_failures=0) as forwarder:
        assert await asked(forwarder, port, 10, method="GET") == [UpstreamUnreachable] * 10


async def test_where_no_connection_becomes_free_the_gateway_says_that_it_is_overloaded_and_not_the_target_slow():
    async def silent(call):
        await call.until_gone()

    async with (
        an_upstream(silent) as hung,
        an_upstream() as upstream,
        a_forwarder(pool_size=2, connect_timeout="200ms") as forwarder,
    ):
        tasks = [asyncio.create_task(fetch(forwarder, hung)) for _ in range(2)]
        await eventually(lambda: len(hung.requests) == 2)
        with pytest.raises(Overloaded):
            await fetch(forwarder, upstream)
        for task in tasks:
            task.cancel()


async def test_what_is_known_of_targets_is_bounded_and_troubled_ones_are_kept_longest(monkeypatch):
    monkeypatch.setattr("gateway.forwarder.pool.MAX_DESTINATIONS", 50)
    async with a_forwarder(connect_retries=0, breaker_failures=1, breaker_pause="1h") as forwarder:
        pool = forwarder._pools[True]
        await asked(forwarder, 1, 1, owner="bad")
        for number in range(500):
            pool.destination(target_at(2), f"tenant{number}")
        assert len(pool._destinations) == 50
        assert await asked(forwarder, 1, 1, owner="bad") == [BreakerOpen]


def test_a_target_may_have_a_tenth_of_the_pool_unless_that_is_few():
    assert UpstreamSettings().most_per_target == 200
    assert UpstreamSettings(pool_size=1_000).most_per_target == 200
    assert UpstreamSettings(pool_size=5_000).most_per_target == 500
    assert UpstreamSettings(max_per_target=7).most_per_target == 7


@contextlib.contextmanager
def a_port_at_which_nobody_answers(addresses):
    """At each of these addresses connections wait for ever: what the kernel queues there is full."""
    with contextlib.ExitStack() as stack:
        port = 0
        for address in addresses:
            listening = stack.enter_context(socket.create_server((address, port), backlog=0))
            port = listening.getsockname()[1]
            for _ in range(3):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex((address, port))
        yield port


async def test_a_try_to_connect_ends_in_its_time_however_many_addresses_a_name_has():
    addresses = [f"127.0.9.{last}" for last in range(1, 41)]
    with names_resolve_to(addresses), a_port_at_which_nobody_answers(addresses) as port:
        async with a_forwarder(connect_timeout="500ms") as forwarder:
            target = Target("http", "many.example", port, "", True)
            async with asyncio.timeout(10):
                with pytest.raises(UpstreamTimeout):
                    await forwarder.open(target, "GET", target.url("/", ""), [], None, 1)

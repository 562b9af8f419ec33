"""The gate, and work in the background."""

import asyncio

import pytest

from gateway.errors import InternalError, Overloaded
from gateway.proxy.background import Background
from gateway.proxy.gate import Gate


def test_a_gate_counts_and_forgets():
    gate = Gate(3, 2)
    with gate.replica(), gate.tenant("a"), gate.replica(), gate.tenant("a"):
        with pytest.raises(Overloaded), gate.tenant("a"):
            pass
        with gate.tenant("b"), gate.replica():
            assert gate.in_flight == 3
            with pytest.raises(Overloaded), gate.replica():
                pass
        assert gate.in_flight == 2
    assert gate.in_flight == 0
    assert gate._by_tenant == {}


def test_a_gate_opens_again_after_a_failure():
    gate = Gate(1, 1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), gate.replica(), gate.tenant("a"):
            raise ZeroDivisionError
    assert (gate.in_flight, gate._by_tenant) == (0, {})


async def test_a_bug_in_background_work_is_logged_once_and_not_repeated(caplog):
    background, called = Background(), []

    async def broken():
        called.append(1)
        raise ZeroDivisionError

    background.run(broken)
    await background.drain(1_000)
    assert called == [1]
    assert caplog.text.count("work in the background failed") == 1


async def test_draining_gives_up_after_its_time(caplog):
    background = Background()
    background.run(lambda: asyncio.sleep(30))
    await asyncio.wait_for(background.drain(10), 2)
    assert "1 pieces of work were given up" in caplog.text
    await background.drain(10)


def test_an_internal_error_says_nothing():
    assert InternalError().message == "The gateway failed to handle the request."

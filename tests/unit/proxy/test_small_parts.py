"""The gate, the refusal of limits, the memory of configurations, and work in the background."""

import asyncio

import pytest

from gateway.errors import BudgetExceeded, InternalError, Overloaded, RateLimited, StoreUnavailable
from gateway.proxy import background as background_module
from gateway.proxy.background import Background
from gateway.proxy.configurations import Recent
from gateway.proxy.gate import Gate
from gateway.proxy.plan import _subscriber
from gateway.proxy.refusals import refusal_of
from tests.unit.test_headers import a_state


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


def refusing(**facts):
    return a_state(**({"refuses": True, "used": 100, "remaining": 0, "retry_after_ms": 500} | facts))


def test_the_first_refusing_entry_is_the_place_and_the_longest_wait_the_message():
    states = [a_state(entry=0), refusing(entry=5, name="long", retry_after_ms=90_000), refusing(entry=2, name="short")]
    place, error = refusal_of(states)
    assert place == 2
    assert type(error) is RateLimited
    assert error.message == "Limit long is spent: 100 of 100 requests used; try again in 1m30s."
    assert [limit["name"] for limit in error.details["limits"]] == ["long", "short"]
    assert dict(error.headers) == {"retry-after-ms": "90000", "retry-after": "90"}


def test_a_limit_for_which_waiting_is_pointless_decides():
    place, error = refusal_of([refusing(retry_after_ms=90_000), refusing(kind="budget", retry_after_ms=-1, entry=-1)])
    assert (place, type(error)) == (-1, BudgetExceeded)
    assert error.message.endswith("waiting does not help.")
    assert dict(error.headers) == {"x-should-retry": "false"}
    assert [limit["retry_after_ms"] for limit in error.details["limits"]] == [90_000, None]


def test_a_shadow_limit_takes_no_part():
    place, error = refusal_of([refusing(entry=0, shadow=True, retry_after_ms=-1), refusing(entry=3)])
    assert place == 3
    assert len(error.details["limits"]) == 1


def test_what_was_not_used_for_longest_is_forgotten():
    recent: Recent[str, int] = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert [recent.get(name) for name in "abc"] == [1, None, 3]


@pytest.mark.parametrize(
    ("address", "subscriber"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_an_address_stands_for_a_subscriber(address, subscriber):
    assert _subscriber(address) == subscriber


async def test_background_work_is_tried_again_while_the_store_is_away(monkeypatch):
    monkeypatch.setattr(background_module, "RETRY_AFTER_MS", (1, 1, 1))
    for failures, calls in ((0, 1), (2, 3), (9, 4)):
        called: list[int] = []

        async def work(called=called, failures=failures):
            called.append(1)
            if len(called) <= failures:
                raise StoreUnavailable

        background = Background()
        background.run(work)
        await background.drain(2_000)
        assert len(called) == calls


async def test_a_bug_in_background_work_is_logged_once_and_not_repeated(caplog):
    background, called = Background(), []

    async def broken():
        called.append(1)
        raise ZeroDivisionError

    background.run(broken)
    background.run_once(broken)
    await background.drain(1_000)
    assert called == [1, 1]
    assert caplog.text.count("work in the background failed") == 2


async def test_draining_gives_up_after_its_time(caplog):
    background = Background()
    background.run(lambda: asyncio.sleep(30))
    await asyncio.wait_for(background.drain(10), 2)
    assert "1 pieces of work were given up" in caplog.text
    await background.drain(10)


def test_an_internal_error_says_nothing():
    assert InternalError().message == "The gateway failed to handle the request."

"""Who gets in when a process is full or late, by counting alone."""

import random

import pytest

from gateway.errors import Overloaded
from gateway.proxy.gate import Gate


def entered(gate: Gate, tenant: str, times: int = 1_000_000) -> int:
    """How many requests of a tenant get in, one after the other."""
    for count in range(times):
        try:
            gate.enter(tenant)
        except Overloaded:
            return count
    return times


def strangers(gate: Gate, claimed: str, *, has_key: bool, times: int = 1_000_000) -> int:
    for count in range(times):
        try:
            gate.enter_stranger(claimed, has_key=has_key)
        except Overloaded:
            return count
    return times


def test_a_single_tenant_may_use_everything_and_what_it_leaves_is_free_again():
    gate = Gate(10, 100)
    assert entered(gate, "a") == 10
    gate.leave("a")
    assert entered(gate, "a") == 1
    for _ in range(10):
        gate.leave("a")
    assert (gate.in_flight, gate._by_tenant) == (0, {})


def test_of_a_full_process_tenants_below_their_share_get_it_and_those_above_wait():
    gate = Gate(100, 1_000)
    assert entered(gate, "flood") == 100
    assert entered(gate, "modest") == 50
    assert entered(gate, "third") == 33
    for _ in range(60):
        gate.leave("flood")
    # 40, 50 and 33 are in flight: the process is still full, and a third of it is the share
    assert [entered(gate, name) for name in ("flood", "modest", "third")] == [0, 0, 0]
    for _ in range(20):
        gate.leave("modest")
    assert entered(gate, "modest") == 3


def test_every_active_tenant_has_at_least_one_place():
    gate = Gate(3, 1_000)
    assert entered(gate, "flood") == 3
    assert [entered(gate, f"t{number}") for number in range(4)] == [1, 1, 1, 0]


def test_there_are_never_more_than_twice_as_many_whatever_their_shares():
    gate = Gate(50, 1_000)
    for number in range(200):
        entered(gate, f"t{number}")
    assert gate.in_flight == 100
    assert strangers(gate, "", has_key=True) == 0


def test_whoever_comes_and_goes_is_counted_exactly():
    rng = random.Random(5)
    gate = Gate(50, 40)
    inside: list[str] = []
    for _ in range(5_000):
        tenant = f"t{rng.randrange(30)}"
        if inside and rng.random() < 0.45:
            gate.leave(inside.pop(rng.randrange(len(inside))))
        else:
            inside += [tenant] * entered(gate, tenant, times=rng.randrange(1, 12))
        assert gate.in_flight == len(inside)
        assert gate._by_tenant == {name: inside.count(name) for name in inside}
        assert max(gate._by_tenant.values(), default=0) <= 40


def test_a_tenant_at_its_own_bound_is_refused_however_empty_the_process_is():
    gate = Gate(100, 2)
    assert entered(gate, "a") == 2
    assert strangers(gate, "a", has_key=True) == 0
    assert entered(gate, "b") == 2


def test_strangers_are_the_first_to_go_and_those_without_a_key_have_no_place_in_a_full_process():
    gate = Gate(32, 100)
    entered(gate, "known")
    assert strangers(gate, "", has_key=False) == 0
    assert strangers(gate, "", has_key=True) == 2
    assert entered(gate, "another") == 16
    for _ in range(2):
        gate.leave_stranger("")
    for _ in range(32):
        gate.leave("known")
    for _ in range(16):
        gate.leave("another")
    assert (gate.in_flight, gate._by_tenant, gate._strangers) == (0, {}, {})


def test_wrong_keys_keep_no_right_one_out():
    gate = Gate(20, 10)
    assert strangers(gate, "a", has_key=True) == 10
    assert strangers(gate, "", has_key=True, times=10) == 10
    assert entered(gate, "a") == 10
    # what strangers hold lessens nobody's share
    assert entered(gate, "b") == 10


def test_a_stranger_who_is_let_in_counts_for_its_tenant():
    gate = Gate(20, 3)
    gate.enter_stranger("a", has_key=True)
    gate.recognise("a", "a")
    gate.enter_stranger("", has_key=True)
    gate.name_stranger("a")
    gate.recognise("a", "a")
    assert entered(gate, "a") == 1
    gate.enter_stranger("", has_key=True)
    with pytest.raises(Overloaded):
        gate.name_stranger("a")
    gate.leave_stranger("")
    for _ in range(3):
        gate.leave("a")
    assert (gate.in_flight, gate._by_tenant, gate._strangers_in_all) == (0, {}, 0)


def test_a_late_loop_takes_on_less_and_recovers_step_by_step():
    gate = Gate(1_000, 1_000)
    entered(gate, "flood", times=400)
    gate.adjust(late=True)
    assert gate.capacity == 320
    assert entered(gate, "flood") == 0
    assert entered(gate, "modest", times=30) == 30
    for _ in range(100):
        gate.adjust(late=True)
    assert gate.capacity == 20
    assert entered(gate, "new") == 6  # a third of it
    steps = 0
    while gate.capacity < 1_000:
        gate.adjust(late=False)
        steps += 1
    assert 20 < steps < 50
    gate.adjust(late=False)
    assert gate.capacity == 1_000
    assert entered(gate, "flood", times=5) == 5


def test_one_tenant_alone_goes_on_while_the_loop_is_late():
    gate = Gate(100, 100)
    for _ in range(50):
        gate.adjust(late=True)
    assert entered(gate, "a") == gate.capacity == 2

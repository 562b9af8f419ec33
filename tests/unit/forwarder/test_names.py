"""Names of targets: what is asked, what is remembered, and that nobody waits for another one's name servers."""

import asyncio
import socket
import threading

import pytest

from gateway.forwarder.names import MOST_ADDRESSES, MOST_LOOKUPS, MOST_LOOKUPS_OF_ONE, MOST_NAMES, Names
from tests.names import names_resolve_to
from tests.wire import eventually


async def addresses_of(names, host):
    return [found["host"] for found in await names.resolve(host, 80)]


async def test_a_name_is_asked_for_once_in_a_while_however_many_want_it():
    with names_resolve_to(["192.0.2.1", "2001:db8::1"], fresh_s=10) as resolver:
        names = Names()
        await asyncio.gather(*(names.look_up("a.example", f"owner{number}") for number in range(50)))
        assert set(await addresses_of(names, "a.example")) == {"192.0.2.1", "2001:db8::1"}
        assert resolver.asked == ["a.example"]


async def test_the_addresses_of_a_name_take_turns():
    with names_resolve_to(["192.0.2.1", "192.0.2.2"], fresh_s=10):
        names = Names()
        await names.look_up("a.example", "")
        firsts = [(await addresses_of(names, "a.example"))[0] for _ in range(4)]
    assert set(firsts) == {"192.0.2.1", "192.0.2.2"}


async def test_a_name_that_is_not_found_is_asked_for_again():
    with names_resolve_to(socket.gaierror(socket.EAI_NONAME, "none"), ["192.0.2.1"]) as resolver:
        names = Names()
        with pytest.raises(OSError, match="none"):
            await names.look_up("a.example", "")
        await names.look_up("a.example", "")
        assert await addresses_of(names, "a.example") == ["192.0.2.1"]
    assert len(resolver.asked) == 2


async def test_of_very_many_addresses_some_are_taken_and_none_with_a_zone():
    with names_resolve_to(["fe80::1%lo", *(f"10.0.{number >> 8}.{number & 255}" for number in range(5_000))]):
        found = await addresses_of(Names(), "a.example")
    assert len(found) == MOST_ADDRESSES
    assert not any("%" in each for each in found)


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "\udcff", "a..example", "\0"])
async def test_what_is_no_name_is_an_error_like_any_other(host):
    with pytest.raises(socket.gaierror):
        await Names().look_up(host, "")


async def test_names_whose_servers_do_not_answer_hold_up_no_one_else():
    """The loop's own threads are four to six: as many such names kept every other one from being found."""
    go_on = threading.Event()

    def stuck(host):
        if host.startswith("stuck"):
            go_on.wait(30)

    with names_resolve_to(["192.0.2.1"], before=stuck) as resolver:
        names = Names()
        try:
            waiting = [asyncio.create_task(names.look_up(f"stuck{number}.example", "hostile")) for number in range(100)]
            await eventually(lambda: len(resolver.asked) == MOST_LOOKUPS_OF_ONE)
            async with asyncio.timeout(10):
                for number in range(20):
                    await names.look_up(f"fine{number}.example", "other")
            assert sum(host.startswith("stuck") for host in resolver.asked) == MOST_LOOKUPS_OF_ONE
            for task in waiting[10:]:
                task.cancel()
        finally:
            go_on.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        await eventually(lambda: not names._places_of)
        assert names._places._value == MOST_LOOKUPS
        assert not names._under_way


async def test_what_is_remembered_is_bounded():
    with names_resolve_to(["192.0.2.1"], fresh_s=100):
        names = Names()
        for number in range(MOST_NAMES + 50):
            await names.look_up(f"a{number}.example", "")
    assert len(names._known) == MOST_NAMES

"""How many connections clients may open, on every engine: what is beyond the bounds is closed, and holds nobody else."""

import asyncio
import contextlib
import ipaddress
import resource
import socket
import sys
from functools import partial
from pathlib import Path

import pytest

from gateway.config import RedisSettings, ServerSettings, UpstreamSettings
from gateway.serving import bounds as bounding
from gateway.serving.bounds import ADMIN_CONNECTIONS, Bounds, connections_left
from tests.single_server import make_certificates
from tests.unit.serving.wire_app import REST, WireApp, exchange, seen_of, serving, settings_of, status_of, trusting
from tests.wire import eventually

GET = "GET /a HTTP/1.1\r\nConnection: close\r\n" + REST


@pytest.fixture(params=["hypercorn", "granian", "uvicorn"])
def engine(request):
    if request.param == "granian" and not sys.platform.startswith("linux"):
        pytest.skip("Granian's connections are found in /proc")
    return request.param


class Crowd:
    """Connections from one address that ask for nothing."""

    def __init__(self, address, count, source="127.0.0.1"):
        self.sockets = [socket.create_connection(address, source_address=(source, 0)) for _ in range(count)]
        for sock in self.sockets:
            sock.setblocking(False)

    def ended(self):
        """What those were told that were closed."""
        told = []
        for sock in self.sockets:
            with contextlib.suppress(BlockingIOError):
                try:
                    told.append(sock.recv(1024, socket.MSG_PEEK))
                except ConnectionError:
                    told.append(b"")
        return told

    def close(self):
        for sock in self.sockets:
            sock.close()


def everyone_is_told(crowd):
    return len(crowd.ended()) == len(crowd.sockets)


async def until_served(address):
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(ConnectionError, IndexError):  # it may have been closed before it could say anything
                if status_of(await exchange(address, GET)) == 200:
                    return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("name", ["proxy", "admin"])
async def test_idle_connections_from_one_address_keep_no_other_out(engine, name, caplog):
    async with serving(WireApp(), engine, name=name) as address:
        crowd = Crowd(address, 200)
        with contextlib.closing(crowd):
            excess = 200 - 128
            await eventually(lambda: len(crowd.ended()) == excess, 10)
            assert status_of(await exchange(address, GET, local_addr=("127.0.0.2", 0))) == 200
            if name == "proxy":
                assert set(crowd.ended()) == {b""} or all(b" 503 " in said for said in crowd.ended())
            await asyncio.sleep(1.2)
            assert len(crowd.ended()) == excess  # and not one more
    assert "refused connections" in caplog.text
    assert caplog.text.count("refused connections") == 1  # however many they were


async def test_the_bound_is_free_again_when_connections_have_ended(engine):
    async with serving(WireApp(), engine, max_connections_per_ip=8) as address:
        for _ in range(3):
            crowd = Crowd(address, 8)
            await asyncio.sleep(0.05)
            crowd.close()

            await until_served(address)


async def test_the_bound_is_free_again_after_handshakes_that_failed(engine, tmp_path):
    files = make_certificates(tmp_path)
    async with serving(WireApp(), engine, max_connections_per_ip=8, **settings_of(files)) as address:
        for _ in range(10):
            crowd = Crowd(address, 4)
            for sock in crowd.sockets:
                sock.send(b"no TLS")
            await eventually(partial(everyone_is_told, crowd))
            crowd.close()
        assert (await seen_of(address, "GET /a HTTP/1.1\r\n" + REST, **trusting(files)))["scheme"] == "https"


async def test_trusted_proxies_and_zero_have_no_bound_for_one_address(engine):
    for settings in ({"trusted_proxies": "127.0.0.0/30"}, {"max_connections_per_ip": 0}):
        async with serving(WireApp(), engine, **{"max_connections_per_ip": 4, **settings}) as address:
            crowd = Crowd(address, 40)
            with contextlib.closing(crowd):
                assert status_of(await exchange(address, GET)) == 200
                await asyncio.sleep(1.2)
                assert crowd.ended() == []


async def test_all_connections_together_are_bounded_too(engine):
    async with serving(WireApp(), engine, max_connections=20) as address:
        crowd = Crowd(address, 30)
        if engine == "granian":  # its own bound lets the rest wait in the queue of the kernel
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await exchange(address, GET, local_addr=("127.0.0.2", 0))
            assert crowd.ended() == []
        else:
            await eventually(lambda: len(crowd.ended()) == 10)
            assert all(b" 503 " in said for said in crowd.ended())
        crowd.close()
        await until_served(address)


def test_who_is_counted_together():
    bounds = Bounds("proxy", 1, 100, [ipaddress.ip_network("10.0.0.0/8")])
    assert bounds.enter("::ffff:192.0.2.1") is not None
    assert bounds.enter("192.0.2.1") is None
    assert bounds.enter("2001:db8:1:2:3:4:5:6") is not None
    assert bounds.enter("2001:db8:1:2::1") is None
    assert bounds.enter("2001:db8:1:3::1") is not None
    for exempt in ("10.0.0.1", "10.0.0.1", "::ffff:10.0.0.1"):
        assert bounds.enter(exempt) is not None


def test_what_has_left_twice_is_counted_once():
    bounds = Bounds("proxy", 1, 10)
    leave = bounds.enter("192.0.2.1")
    assert leave is not None
    assert bounds.enter("192.0.2.1") is None
    leave()
    leave()
    assert bounds.enter("192.0.2.1") is not None
    assert bounds.enter("192.0.2.1") is None


def test_what_the_limit_of_open_files_leaves(monkeypatch):
    def left(limit, reserved):
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
        return connections_left(reserved)

    fixed = bounding.KEPT_FILES + ADMIN_CONNECTIONS
    assert left(20_000, 1_064) == 20_000 - fixed - 1_064
    assert left(1_024, 1_064) == (1_024 - fixed) // 2
    assert left(100, 1_064) == bounding.FEWEST_CONNECTIONS
    wanted = UpstreamSettings().most_connections + RedisSettings().pool_size
    page = (Path(__file__).parents[3] / "docs" / "servers.md").read_text()
    assert f"{left(20_000, wanted):,}".replace(",", " ") + f" of 20 000, {left(1_024, wanted)} of 1 024" in page
    assert left(resource.RLIM_INFINITY, 1_064) > 1_000_000


def test_the_admin_api_has_connections_of_its_own():
    settings = ServerSettings(max_connections=5)
    assert Bounds.of("proxy", settings, 0).total == 5
    admin = Bounds.of("admin", ServerSettings(max_connections=5, max_connections_per_ip=10_000), 0)
    assert admin.per_ip < admin.total == ADMIN_CONNECTIONS  # one address cannot have them all


def test_the_demo_upstream_has_no_bound_for_one_address():
    assert Bounds.of("demo", ServerSettings(), 0).per_ip == 0

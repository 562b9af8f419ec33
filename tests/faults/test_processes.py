"""Parts of one replica that are killed: a worker, the supervisor, the embedded store. The others go on, or come back."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.e2e.processes import DEADLINE_S, Gateway, a_demo_upstream, a_gateway, a_rule, is_free
from tests.faults.table import FaultRow
from tests.servers import short_directory, wait_until

pytestmark = pytest.mark.real_store

LEASE_MS, PLACES, LIMIT = 2_000, 6, 1_000
LIFE_S = max(DEADLINE_S, 900.0)
"""Of what all tests of this file share."""

CHAT = {"model": "demo-small", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
SETTINGS = {
    "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
    "LIMITS__LEASE": f"{LEASE_MS}ms",
    "LIMITS__RENEW_EVERY": "300ms",
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    with short_directory() as folder, a_demo_upstream(folder, seconds=LIFE_S) as port:
        yield port


def children(pid: int) -> dict[int, str]:
    """Of a process: their pids and command lines."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            found[int(child)] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def store_of(gateway: Gateway) -> int:
    """The pid of its embedded store."""
    return next(pid for pid, words in children(gateway.program.process.pid).items() if "-server" in words.split(" ")[0])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def workers_of(gateway: Gateway) -> list[int]:
    return [pid for pid, words in children(gateway.program.process.pid).items() if "gateway.workers" in words]


def a_tenant(gateway: Gateway, upstream: int) -> tuple[str, str]:
    """Its id and its key."""
    limits = [{"limit": LIMIT, "window": "1h"}, {"name": "places", "limit": PLACES, "unit": "concurrency"}]
    made = gateway.new_tenant("parts", a_rule(f"http://127.0.0.1:{upstream}", limits))
    return made.id, made.key


def used(gateway: Gateway, tenant_id: str, key: str) -> list[int]:
    report = gateway.admin("GET", f"/tenants/{tenant_id}/usage", key=key).json
    return [limit["used"] for limit in report["limits"]]


def ask(gateway: Gateway, key: str) -> int:
    return gateway.proxy("GET", "/v1/models", key=key).status


def test_an_embedded_store_that_is_killed_comes_back_with_all_it_had_promised(
    row: FaultRow, tries: int, folder: Path, upstream: int
):
    row.kind = "kill -9 of the embedded store"
    with a_gateway(folder, "--local", settings=SETTINGS) as gateway:
        tenant_id, key = a_tenant(gateway, upstream)
        served = 0
        for _ in range(tries):
            with row.one_try():
                served += [ask(gateway, key) for _ in range(5)].count(200)
                os.kill(store_of(gateway), signal.SIGKILL)
                with row.recovery():
                    until = time.monotonic() + 30
                    while True:
                        with row.answer():
                            answer = gateway.proxy("GET", "/v1/models", key=key)
                        if answer.status == 200:
                            served += 1
                            break
                        assert answer.refusal[:2] == (503, "store_unavailable"), answer
                        assert answer.headers["retry-after"] == "1"
                        assert time.monotonic() < until, "the store has not come back"
                        time.sleep(0.02)
                counted, _ = used(gateway, tenant_id, key)
                # an answer that was lost may have been counted
                assert served <= counted <= served + 2
                served = counted
        wait_until(lambda: used(gateway, tenant_id, key)[1] == 0, "no place is held")


def test_what_a_killed_worker_held_is_free_after_a_lease_and_its_port_serves_on(
    row: FaultRow, dear_tries: int, folder: Path, upstream: int
):
    row.kind = "kill -9 of a worker"
    settings = {**SETTINGS, "SERVER__WORKERS": "2"}
    slow = [("x-demo-chunks", "1000"), ("x-demo-chunk-delay-ms", "50")]
    with a_gateway(folder, "--local", settings=settings) as gateway, ThreadPoolExecutor(PLACES) as clients:
        gateway.program.wait_until(lambda: len(workers_of(gateway)) == 2, "two workers")
        tenant_id, key = a_tenant(gateway, upstream)

        def stream() -> None:
            with contextlib.suppress(OSError, HTTPException):
                gateway.proxy("POST", "/v1/chat/completions", CHAT, key=key, headers=slow, timeout=60)

        for _ in range(dear_tries):
            with row.one_try():
                streams = [clients.submit(stream) for _ in range(PLACES)]
                wait_until(lambda: used(gateway, tenant_id, key)[1] == PLACES, "every place is taken")
                assert ask(gateway, key) == 429
                for victim in workers_of(gateway):
                    os.kill(victim, signal.SIGKILL)
                with row.recovery():
                    wait_until(lambda: _is_served(gateway, key), "served again", 60)
                # all that waited has broken off, and no place outlasts the lease
                for each in streams:
                    each.result(60)
                wait_until(lambda: used(gateway, tenant_id, key)[1] == 0, "no place is held")
                gateway.program.wait_until(lambda: len(workers_of(gateway)) == 2, "two workers")


def _is_served(gateway: Gateway, key: str) -> bool:
    try:
        return ask(gateway, key) == 200
    except (OSError, HTTPException):  # nobody there yet, or killed in the middle of an answer
        return False


def test_after_a_killed_supervisor_the_next_one_takes_over_at_once(row: FaultRow, dear_tries: int, folder: Path, upstream: int):
    row.kind = "kill -9 of the supervisor"
    settings = {**SETTINGS, "SERVER__WORKERS": "2"}
    key, temporary = "", folder / "tmp"
    temporary.mkdir()
    for _ in range(1 + dear_tries):  # the first one takes over from nobody
        with row.one_try(), row.recovery():
            key = _live_and_be_killed(folder, {"TMPDIR": str(temporary)}, settings, key, upstream)


def _live_and_be_killed(folder: Path, environment: dict[str, str], settings: dict[str, str], key: str, upstream: int) -> str:
    with a_gateway(folder, "--local", settings=settings, environment=environment) as gateway:
        gateway.program.wait_until(lambda: gateway.program.stderr().count("is ready (pid") == 2, "two workers")
        key = key or a_tenant(gateway, upstream)[1]
        assert ask(gateway, key) == 200
        # what the one before left is gone
        assert len(list(Path(environment["TMPDIR"]).glob("gateway-metrics-*"))) == 1
        orphans = workers_of(gateway)
        assert len(orphans) == 2
        gateway.program.kill()
        wait_until(lambda: not any(map(is_alive, orphans)), "no worker is left", 60)
        # a process is a zombie before the last of its threads has let go of the socket
        wait_until(lambda: is_free(gateway.proxy_port), "the port is free")
    return key

"""Several worker processes behind one pair of ports: a dead one is replaced, and none of the others notices."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.calls import Answer
from tests.e2e.processes import Gateway, a_demo_upstream, a_gateway, answers_200, is_free
from tests.servers import short_directory, wait_until

WORKERS = 2
CHAT = {"model": "demo-small", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}


@dataclass
class Scene:
    gateway: Gateway
    upstream_port: int

    def pids(self) -> list[int]:
        """Of all workers that were ever ready, the youngest last."""
        said = (json.loads(line)["message"] for line in self.gateway.program.stderr().splitlines() if line.startswith("{"))
        return [int(found[1]) for text in said if (found := re.fullmatch(r"worker \d+ is ready \(pid (\d+)\)", text))]

    def tenant(self, subdomain: str = "acme", **limits: object) -> str:
        """The key of a new tenant that leads to the demo upstream."""
        made = self.gateway.admin("POST", "/tenants", {"name": "A", "subdomain": subdomain, **limits}).json
        rule = {"path": "/", "target": f"http://127.0.0.1:{self.upstream_port}"}
        assert self.gateway.admin("POST", f"/tenants/{made['id']}/rules", rule, key=made["api_key"]).status == 201
        return str(made["api_key"])

    def stream(self, key: str, chunks: int, delay_ms: int = 50) -> Answer:
        slow = [("x-demo-chunks", str(chunks)), ("x-demo-chunk-delay-ms", str(delay_ms))]
        return self.gateway.proxy("POST", "/v1/chat/completions", CHAT, key=key, headers=slow)

    def metric(self, name: str) -> float:
        text = self.gateway.proxy("GET", "/metrics").body.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))

    def kill_one(self) -> int:
        victim = self.pids()[0]
        os.kill(victim, signal.SIGKILL)
        return victim


@pytest.fixture(scope="module")
def upstream_port() -> Iterator[int]:
    with short_directory() as folder, a_demo_upstream(folder) as port:
        yield port


@contextlib.contextmanager
def workers(upstream_port: int, folder: Path, **settings: str) -> Iterator[Scene]:
    """Two workers on an embedded store, both ready."""
    more = {"SERVER__WORKERS": str(WORKERS), "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8", **settings}
    with a_gateway(folder, "--local", settings=more) as gateway:
        scene = Scene(gateway, upstream_port)
        gateway.program.wait_until(lambda: len(scene.pids()) == WORKERS, "all workers ready")
        gateway.program.wait_until(lambda: "curl" in gateway.program.stdout(), "announced")
        yield scene


@pytest.fixture
def scene(upstream_port: int, folder: Path) -> Iterator[Scene]:
    with workers(upstream_port, folder) as found:
        yield found


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_workers_share_exact_limits_and_the_metrics_show_all_of_them(scene: Scene):
    key = scene.tenant(limits=[{"limit": 25, "window": "1h"}])
    with ThreadPoolExecutor(16) as clients:
        statuses = Counter(clients.map(lambda _: scene.gateway.proxy("GET", "/v1/models", key=key).status, range(80)))
    assert statuses == {200: 25, 429: 55}
    wait_until(lambda: scene.metric("gateway_requests_total") == 80, "counted")
    assert {scene.metric("gateway_requests_total") for _ in range(10)} == {80}
    wait_until(lambda: len(scene.gateway.program.access_log()) >= 80, "logged")
    assert Counter(line["status"] for line in scene.gateway.program.access_log()) == statuses


def test_a_worker_that_is_killed_takes_only_its_own_requests_along_and_is_replaced(scene: Scene):
    key = scene.tenant(limits=[{"limit": 100_000, "window": "1h"}])
    stop, clients = threading.Event(), 8

    def hammer() -> Counter[str]:
        seen: Counter[str] = Counter()
        while not stop.is_set():
            try:
                seen[str(scene.gateway.proxy("GET", "/v1/models", key=key).status)] += 1
            except OSError:
                seen["lost"] += 1
            except Exception as error:
                seen[repr(error)] += 1
        return seen

    with ThreadPoolExecutor(clients + 1) as pool:
        running = [pool.submit(hammer) for _ in range(clients)]
        streams = [pool.submit(scene.stream, key, 20) for _ in range(1)]
        wait_until(lambda: scene.metric("gateway_requests_total") > 20, "load")
        scene.kill_one()
        scene.gateway.program.wait_until(lambda: len(scene.pids()) == WORKERS + 1, "replaced")
        before = scene.metric("gateway_requests_total")
        wait_until(lambda: scene.metric("gateway_requests_total") > before + 20, "more load")
        stop.set()
        seen = sum((future.result() for future in running), Counter())
        with contextlib.suppress(OSError, Exception):
            streams[0].result()
    served = seen.pop("200")
    # a client has one request on its way; what waited to be accepted was taken by the other worker
    assert served > 40
    assert sum(seen.values()) <= clients, seen
    wait_until(lambda: scene.metric("gateway_requests_in_flight") == 0, "nothing in flight")


def test_streams_on_all_workers_are_finished_after_sigterm(upstream_port: int, folder: Path):
    with workers(upstream_port, folder, SERVER__DRAIN_DELAY="500ms") as scene, ThreadPoolExecutor(6) as clients:
        key = scene.tenant()
        streams = [clients.submit(scene.stream, key, 60, 80) for _ in range(6)]
        wait_until(lambda: scene.metric("gateway_requests_in_flight") == 6, "streaming")
        scene.gateway.program.signal(signal.SIGTERM)
        ports = (scene.gateway.admin_port, scene.gateway.proxy_port)
        # one of the workers may hear of it a moment later
        wait_until(lambda: not any(answers_200(port, "/health/ready") for port in ports * 5), "leaving")
        assert scene.gateway.proxy("GET", "/v1/models", key=key).headers["connection"] == "close"
        assert scene.gateway.program.wait() == 0
        assert all(stream.result().body.rstrip().endswith(b"data: [DONE]") for stream in streams)
        assert all(map(is_free, ports))
        assert '"level": "error"' not in scene.gateway.program.stderr()


def test_sigterm_while_a_worker_is_being_replaced_ends_in_order(scene: Scene):
    scene.kill_one()
    wait_until(lambda: "ended unasked" in scene.gateway.program.stderr(), "noticed")
    scene.gateway.program.signal(signal.SIGTERM)
    assert scene.gateway.program.wait() == 0
    assert not any(map(is_alive, scene.pids()))


def test_ctrl_c_is_for_the_supervisor_alone(scene: Scene):
    scene.gateway.program.interrupt()
    assert scene.gateway.program.wait() == 0
    assert not any(map(is_alive, scene.pids()))
    assert "Traceback" not in scene.gateway.program.stderr()


def test_a_second_signal_does_not_wait_for_the_load_balancer(upstream_port: int, folder: Path):
    with workers(upstream_port, folder, SERVER__DRAIN_DELAY="1h") as scene:
        scene.gateway.program.signal(signal.SIGTERM)
        wait_until(lambda: not answers_200(scene.gateway.proxy_port, "/health/ready"), "leaving")
        scene.gateway.program.signal(signal.SIGTERM)
        assert scene.gateway.program.wait() == 0


def test_workers_end_when_their_supervisor_was_killed(scene: Scene):
    key = scene.tenant()
    with ThreadPoolExecutor(1) as client:
        stream = client.submit(scene.stream, key, 40)
        wait_until(lambda: scene.metric("gateway_requests_in_flight") == 1, "streaming")
        scene.gateway.program.kill()
        assert stream.result().body.rstrip().endswith(b"data: [DONE]")
    wait_until(lambda: not any(map(is_alive, scene.pids())), "workers gone")
    assert is_free(scene.gateway.proxy_port)

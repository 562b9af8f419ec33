"""The promises hold while clients are killed and stopped, and the way to the store loses connections and replies.

``HAMMER_SECONDS`` and ``HAMMER_SEED`` choose how long and with which chances. A seed repeats what is done to the system,
not how its processes run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.store.embedded import find_server
from tests.append_only_file import KEEP_EVERYTHING, admissions, scripts
from tests.e2e.calls import call
from tests.e2e.hammer_checks import TRACED, Evidence, broken_promises
from tests.e2e.load_client import Load, Receipt, receipts
from tests.e2e.processes import GATEWAY, HOST, ROOT, Program, answers_200, clean_environment, free_ports, running, settings_of
from tests.e2e.recording_upstream import most_at_once, received
from tests.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.servers import Server, redis_server, short_directory, wait_until

pytestmark = pytest.mark.real_store

CLIENTS, COROUTINES, PAUSE_MS, LEAVES = 4, 64, 600, 0.02
LEASE_S = 5
SHARES = {
    Fault.DELAY_REPLY: 0.01,
    Fault.SPLIT_REPLY: 0.01,
    Fault.CUT_IN_REPLY: 0.004,
    Fault.DROP_REPLY: 0.004,
    Fault.DROP_REPLY_AND_CUT: 0.01,
    Fault.CUT_BEFORE_REQUEST: 0.004,
    Fault.CUT_AFTER_REQUEST: 0.01,
    Fault.GARBAGE: 0.004,
    Fault.HALF_CLOSE: 0.004,
}
QUOTA = 200
# By tenant, and with how many keys it is called. Each admission holds a place, so each one is settled.
LIMITS: Mapping[str, tuple[int, Sequence[Mapping[str, Any]]]] = {
    "windows": (
        1,
        [
            {"limit": 30, "window": "1s"},
            {"quota": {"daily": 10**6}, "on_lost": "release"},
            {"limit": 40, "unit": "concurrency"},
        ],
    ),
    "buckets": (
        2,
        [
            {"limit": 25, "window": "1s", "burst": 15, "per": ["api_key"]},
            {"limit": 500_000, "window": "20m"},
            {"quota": {"daily": 10**6}, "per": ["api_key"]},
            {"limit": 40, "unit": "concurrency"},
        ],
    ),
    "quotas": (1, [{"quota": {"daily": QUOTA}}, {"limit": 15, "unit": "concurrency"}]),
    "places": (1, [{"limit": 4, "unit": "concurrency"}, {"quota": {"daily": 10**6}, "on_lost": "charge"}]),
}


def kind_of(limit: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and extent, as in the name of its key."""
    if "quota" in limit:
        return "budget", "day"
    if limit.get("unit") == "concurrency":
        return "concurrency", "0"
    window_ms = {"1s": 1_000, "20m": 1_200_000}[limit["window"]]
    if "burst" in limit:
        return "bucket", str(window_ms)
    return ("ring", f"{window_ms}/60") if limit["limit"] > 10_000 else ("log", str(window_ms))


@dataclass
class Scene:
    """Everything that runs, and what was done to it."""

    folder: Path
    store: Server
    proxy: FaultProxy
    chance: random.Random
    seconds: float
    stack: contextlib.ExitStack
    record: Path
    ports: list[int]
    callers: list[tuple[str, str, str]] = field(default_factory=list)
    replicas: list[Program] = field(default_factory=list)
    dead_replicas: list[Program] = field(default_factory=list)
    clients: dict[str, Program] = field(default_factory=dict)
    stopped: list[Program] = field(default_factory=list)
    killed: list[tuple[int, float]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, *args: str | Path, **settings: str) -> Program:
        """A program, for as long as the scene lasts; it imports the code beside this test, whatever else is installed."""
        env = clean_environment(self.folder, PYTHONPATH=str(ROOT), **settings)
        return self.stack.enter_context(running(*args, env=env, cwd=self.folder, seconds=self.seconds + 160))

    def start_replica(self, port: int) -> Program:
        """A proxy of the gateway, ready, whose way to the store leads through the faults."""
        more = {
            "REDIS__URL": self.store.url_over(self.proxy.port),
            "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
            "LIMITS__LEASE": f"{LEASE_S}s",
        }
        replica = self.run(*GATEWAY, "proxy", **settings_of(free_ports(1)[0], port, self.folder, **more))
        replica.wait_until(lambda: answers_200(port, "/health/ready"), "ready")
        return replica

    def start_client(self) -> None:
        name = f"c{next(self._numbers)}"
        load = Load(
            name,
            str(self.folder / f"{name}.receipts"),
            self.ports,
            self.callers,
            COROUTINES,
            PAUSE_MS,
            LEAVES,
            self.chance.getrandbits(32),
        )
        load.write(self.folder / f"{name}.load")
        client = self.run(sys.executable, "-m", "tests.e2e.load_client", self.folder / f"{name}.load")
        client.wait_until((self.folder / f"{name}.receipts").exists, "at work")
        self.clients[name] = client

    def request(self, port: int, caller: tuple[str, str, str], request_id: str) -> Receipt:
        """One request outside the load, with its receipt."""
        host, key, path = caller
        start = time.monotonic()
        answer = call(port, "POST", path, key=key, host=host, headers=[("X-Request-Id", request_id)], data=b"{}")
        code = answer.json["error"]["code"] if answer.status >= 400 else ""
        return Receipt(port, path, start, start, "answered", answer.status, code, time.monotonic())


def set_up_tenants(admin_port: int, target: str) -> list[tuple[str, str, str]]:
    """The tenants; host, key and path of their callers."""

    def admin(path: str, body: Mapping[str, Any], key: str | None = None) -> Any:
        answer = call(admin_port, "POST", f"/api/v1/tenants{path}", body, key=key)
        assert answer.status == 201, answer
        return answer.json

    callers = []
    for name, (keys, limits) in LIMITS.items():
        made = admin("", {"name": name, "subdomain": name})
        tenant, key = f"/{made['id']}", made["api_key"]
        plugin = {"name": "rate_limiter", "settings": {"limits": [TRACED, *limits]}}
        admin(f"{tenant}/rules", {"path": "/", "target": target, "plugin_chain": [plugin]}, key)
        others = [admin(f"{tenant}/api-keys", {"name": "another"}, key)["api_key"] for _ in range(keys - 1)]
        callers += [(f"{name}.example.com", secret, f"/{name}/x") for secret in (key, *others)]
    return callers


@contextlib.contextmanager
def a_scene(seconds: float, seed: int) -> Iterator[Scene]:
    """Everything up and calm, without clients."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(short_directory())
        store = stack.enter_context(redis_server(find_server(), persistent=True, options=KEEP_EVERYTHING))
        proxy = stack.enter_context(fault_proxy(store.port, seed=seed))
        scene = Scene(folder, store, proxy, random.Random(seed), seconds, stack, folder / "received", free_ports(2))
        upstream = scene.run(sys.executable, "-m", "tests.e2e.recording_upstream", scene.record, str(seed))
        upstream.wait_until(lambda: upstream.stdout().endswith("\n"), "ready")
        admin_port, unused = free_ports(2)
        more = {"REDIS__URL": store.url, "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8"}
        admin = scene.run(*GATEWAY, "admin", **settings_of(admin_port, unused, folder, **more))
        admin.wait_until(lambda: answers_200(admin_port, "/health/ready"), "ready")
        scene.callers = set_up_tenants(admin_port, f"http://{HOST}:{upstream.stdout().strip()}")
        scene.replicas = [scene.start_replica(port) for port in scene.ports]
        yield scene


def kill_a_client(scene: Scene) -> None:
    name = scene.chance.choice(list(scene.clients))
    scene.clients.pop(name).kill()
    scene.start_client()


def stop_a_client(scene: Scene) -> None:
    stopped = scene.chance.choice(list(scene.clients.values()))
    stopped.signal(signal.SIGSTOP)
    scene.stopped.append(stopped)


def refuse_for_a_while(scene: Scene) -> None:
    scene.proxy.refuse()
    time.sleep(scene.chance.uniform(0.1, 0.6))
    scene.proxy.accept()


def cut_all_connections(scene: Scene) -> None:
    scene.proxy.cut_all()


def kill_a_replica(scene: Scene) -> None:
    number = scene.chance.randrange(2)
    scene.replicas[number].kill()
    scene.killed.append((scene.ports[number], time.monotonic()))
    scene.dead_replicas.append(scene.replicas[number])
    scene.proxy.at_random({})  # a replica that does not reach the store does not start
    scene.replicas[number] = scene.start_replica(scene.ports[number])
    scene.proxy.at_random(SHARES)


Harm = Callable[[Scene], None]
HARM: Sequence[Harm] = (kill_a_client, kill_a_client, stop_a_client, stop_a_client, refuse_for_a_while, cut_all_connections)


def hammer(scene: Scene, once: Sequence[Harm] = ()) -> None:
    """Load and harm for the time that the scene has; what is done ``once`` at even distances."""
    for _ in range(CLIENTS):
        scene.start_client()
    scene.proxy.at_random(SHARES)
    start = time.monotonic()
    due = [(start + scene.seconds * number / (len(once) + 1), harm) for number, harm in enumerate(once, 1)]
    deck: list[Harm] = []
    while time.monotonic() < start + scene.seconds:
        time.sleep(scene.chance.uniform(0.3, 1.0))
        while scene.stopped:
            scene.stopped.pop().signal(signal.SIGCONT)
        if not deck:
            deck = scene.chance.sample(HARM, len(HARM))
        harm = due.pop(0)[1] if due and time.monotonic() >= due[0][0] else deck.pop()
        harm(scene)
        scene.done[harm.__name__] += 1
    while scene.stopped:
        scene.stopped.pop().signal(signal.SIGCONT)
    scene.proxy.at_random({})


def leave_in_order(scene: Scene) -> dict[str, Receipt]:
    """Everybody ends what is begun. Returns receipts of a last request to each replica."""
    for client in scene.clients.values():
        client.signal(signal.SIGTERM)
    for client in scene.clients.values():
        assert client.wait(60) == 0
    last: dict[str, Receipt] = {}
    for number, port in enumerate(scene.ports):
        by = time.monotonic() + LEASE_S + 1
        for attempt in itertools.count():
            # What was lost with a connection to the store is settled in another try, and holds its place until then.
            # A store that was just away is asked again half a second later.
            name = f"last-{number}-{attempt}"
            last[name] = scene.request(port, scene.callers[-1], name)
            if last[name].status not in (429, 503) or time.monotonic() > by:
                break
            time.sleep(0.2)
    for replica in scene.replicas:
        replica.signal(signal.SIGTERM)
    for replica in scene.replicas:
        assert replica.wait(60) == 0
    return last


def gather(scene: Scene, last: dict[str, Receipt]) -> Evidence:
    """All records, a lease after the last of them."""

    def is_over() -> bool:
        with scene.store.admin() as client:
            states = [client.get(key) for key in client.scan_iter("gw:{*}:req:*", 1_000)]
            return not any(state and state != b"S" and int(state.split()[2]) > time.time() * 1_000 for state in states)

    with contextlib.suppress(TimeoutError):  # the checks will say what is left
        wait_until(is_over, "all leases ended", LEASE_S + 1)
    replicas = [*scene.replicas, *scene.dead_replicas]
    return Evidence(
        receipts=receipts(scene.folder.glob("*.receipts")) | last,
        access_log={line["request_id"]: line for replica in replicas for line in replica.access_log()},
        charges=admissions(scene.store.directory),
        scripts=list(scripts(scene.store.directory)),
        received=received(scene.record),
        most_at_once=most_at_once(scene.record),
        limits={name: {kind_of(limit): limit for limit in limits} for name, (_, limits) in LIMITS.items()},
        store=scene.store,
        stopped_clients=list(scene.clients),
        logged="".join(replica.stderr() for replica in replicas),
        lease_s=LEASE_S,
        killed=scene.killed,
    )


def what_was_hammered(scene: Scene, evidence: Evidence) -> str:
    """For people, and whoever wants to know whether it was enough."""
    answers = Counter(f"{one.status or one.outcome} {one.code}".strip() for one in evidence.receipts.values())
    ends = Counter(one.ended for one in evidence.charges.values())
    spared = evidence.paid.keys() - evidence.received.keys()
    return (
        f"{len(evidence.receipts)} requests, {len(evidence.charges)} admitted, {len(evidence.paid)} paid for,"
        f" {len(evidence.received)} at the target, {len(spared)} paid for and not forwarded\n"
        f"answers {dict(answers)}\nends {dict(ends)}\nmost at once {dict(evidence.most_at_once)}\n"
        f"{scene.proxy.requests} calls of the store, faults {dict(scene.proxy.seen)}, harm {dict(scene.done)}"
    )


def prove(seconds: float, seed: int, once: Sequence[Harm] = ()) -> Evidence:
    print(f"HAMMER_SECONDS={seconds:g} HAMMER_SEED={seed}")
    with a_scene(seconds, seed) as scene:
        hammer(scene, once)
        last = leave_in_order(scene)
        evidence = gather(scene, last)
        print(what_was_hammered(scene, evidence))
        broken = broken_promises(evidence)
        assert not broken, f"HAMMER_SEED={seed}\n" + "\n".join(broken)
        served = {one.port for one in last.values() if one.status in (200, 502)}
        assert served == set(scene.ports), f"the replicas do not serve any more: {last}"
        # what was promised was also put to the test
        assert scene.proxy.seen.keys() == set(Fault)
        assert scene.done.keys() == {harm.__name__ for harm in (*HARM, *once)}
        answers = Counter((one.status, one.code) for one in evidence.receipts.values())
        for refusal in (
            (429, "rate_limited"),
            (429, "too_many_concurrent"),
            (429, "budget_exceeded"),
            (503, "store_unavailable"),
        ):
            assert answers[refusal] > 0, answers
        assert any(one.ended == "given back" for one in evidence.charges.values())
        spent = sum(one.tenant == "quotas" for one in evidence.paid.values())
        assert spent >= QUOTA  # to the last unit; midnight gives another one
        return evidence


def _seed() -> int:
    return int(os.environ.get("HAMMER_SEED", random.SystemRandom().getrandbits(32)))


def test_limits_stay_exact_and_nothing_leaks_under_the_hammer():
    evidence = prove(float(os.environ.get("HAMMER_SECONDS", "20")), _seed())
    assert len(evidence.received) >= 500


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_limits_stay_exact_and_nothing_leaks_under_a_long_hammer_that_kills_replicas():
    evidence = prove(float(os.environ.get("HAMMER_SECONDS", "180")), _seed(), [kill_a_replica] * 4)
    assert len(evidence.killed) == 4

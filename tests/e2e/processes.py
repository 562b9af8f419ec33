"""Real processes for end-to-end tests: on loopback only, watched, and gone afterwards whatever happens.

A program hangs on a pipe of the process that started it, so it ends when a test run is killed; it has a deadline of its own;
and leaving its context kills its whole process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.calls import Answer, call
from tests.engines import ENGINE
from tests.no_secrets import assert_no_key
from tests.servers import short_directory, wait_until

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
GATEWAY = (sys.executable, "-m", "gateway")

DEADLINE_S = float(os.environ.get("GATEWAY_TEST_DEADLINE_S", "170"))
START_S = 60.0
STOP_S = 10.0
LAST_S = 3.0
SHOWN_OUTPUT = 4_000

# Below what systems hand out to outgoing connections, so that none of these sits on a port between finding and binding it.
_PORTS = range(20_000, 32_000)
# The shell becomes the program; what it leaves behind waits for the end of the pipe and then kills the group.
_LAUNCH = 'exec 3<&0 </dev/null; (read _ <&3; kill -KILL -$$) >/dev/null 2>&1 & exec "$@" 3<&-'
# What installing a package may need on a machine with its own index or certificates.
_KEPT = ("PATH", "PYTHONFAULTHANDLER", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass
class Program:
    """A running program that leads a process group. Its output goes to files, so nobody has to read it for it to go on."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]

    def stdout(self) -> str:
        """What it has printed so far."""
        return (self.folder / "stdout").read_text(errors="replace")

    def stderr(self) -> str:
        """What it has complained and logged so far."""
        return (self.folder / "stderr").read_text(errors="replace")

    def access_log(self) -> list[dict[str, Any]]:
        """The complete lines of its access log."""
        lines = self.stdout().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def signal(self, number: signal.Signals) -> None:
        """To the program alone."""
        self.process.send_signal(number)

    def interrupt(self) -> None:
        """What Ctrl-C in its terminal does: SIGINT to everything in the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to the program alone, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def wait(self, seconds: float = STOP_S) -> int:
        """Its exit code. Raises AssertionError if it runs on."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {seconds:g} s\n{self.said()}") from None

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = START_S) -> None:
        """Poll. Raises AssertionError, with the program's last words, when it ends or the time is over."""

        def settled() -> bool:
            return bool(condition()) or self.process.poll() is not None

        with contextlib.suppress(TimeoutError):
            wait_until(settled, what, seconds)
            if condition():
                return
        raise AssertionError(f"{self.name}: not {what}; exit code {self.process.poll()}\n{self.said()}")

    def said(self) -> str:
        """The end of its output."""
        return f"stdout: {self.stdout()[-SHOWN_OUTPUT:]}\nstderr: {self.stderr()[-SHOWN_OUTPUT:]}"


@contextlib.contextmanager
def running(*args: str | Path, env: Mapping[str, str], cwd: Path, seconds: float = DEADLINE_S) -> Iterator[Program]:
    """A program, and whatever it starts in its process group, for as long as the context lasts, at most so many seconds."""
    with short_directory() as folder:
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCH, "sh", *map(str, args)],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        program = Program(" ".join(map(str, args)), folder, process)
        deadline = threading.Timer(seconds, _kill_group, (process.pid,))
        deadline.daemon = True
        deadline.start()
        try:
            yield program
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # in order if it can: then what it started goes as well
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LAST_S)
            deadline.cancel()
            _kill_group(process.pid)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
            print(f"{program.name}: exit code {process.returncode}\n{program.said()}")  # shown if the test failed
        if {"run", "proxy", "admin"} & set(args):  # other commands are asked for keys
            assert_no_key("the log", program.stderr())
            assert_no_key("the access log", "".join(line for line in program.stdout().splitlines(True) if line.startswith("{")))


def run(*args: str | Path, env: Mapping[str, str], cwd: Path, seconds: float = 60.0) -> tuple[int, str, str]:
    """A program that ends by itself: exit code, standard output, standard error."""
    with running(*args, env=env, cwd=cwd) as program:
        code = program.wait(seconds)
        return code, program.stdout(), program.stderr()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the second of a group of zombies
        os.killpg(leader, signal.SIGKILL)


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """Next to nothing: PATH, a home folder, what pip needs on some machines, and the engine that is tested."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("PIP_")}
    if ENGINE != "hypercorn":
        kept["GATEWAY_SERVER__ENGINE"] = ENGINE
    # pip's news about itself are no errors
    return {**kept, "HOME": str(home), "LC_ALL": "C.UTF-8", "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | more


class NewTenant(NamedTuple):
    """Ids of a tenant and of its rules, and the secret of its first key."""

    id: str
    key: str
    rules: tuple[str, ...]


def a_rule(target: str, limits: Sequence[Mapping[str, Any]] = (), *, path: str = "/") -> dict[str, Any]:
    """As the admin API takes it, with these limits of requests."""
    chain = [{"name": "rate_limiter", "settings": {"limits": limits}}] if limits else []
    return {"path": path, "target": target, "plugin_chain": chain}


@dataclass
class Gateway:
    """A running gateway with both servers, and how to call it."""

    program: Program
    admin_port: int
    proxy_port: int
    demo_port: int
    data_dir: Path

    def admin(self, method: str, path: str, body: Any = None, **how: Any) -> Answer:
        """A call of the admin API; the prefix is added. ``how`` as `call` takes it."""
        return call(self.admin_port, method, f"/api/v1{path}", body, **how)

    def new_tenant(self, subdomain: str, *rules: Mapping[str, Any]) -> NewTenant:
        """A tenant with these rules."""
        made = self.admin("POST", "/tenants", {"name": subdomain.title(), "subdomain": subdomain})
        assert made.status == 201, made
        tenant_id, key = made.json["id"], made.json["api_key"]
        answers = [self.admin("POST", f"/tenants/{tenant_id}/rules", rule, key=key) for rule in rules]
        assert all(answer.status == 201 for answer in answers), answers
        return NewTenant(tenant_id, key, tuple(answer.json["id"] for answer in answers))

    def proxy(self, method: str, path: str, body: Any = None, *, tenant: str | None = None, **how: Any) -> Answer:
        """A tenant's call: by subdomain if one is given, else by key."""
        host = None if tenant is None else f"{tenant}.example.com"
        return call(self.proxy_port, method, path, body, host=host, **how)

    def demo_key(self) -> str:
        """The secret of the demo tenant."""
        return (self.data_dir / "demo.key").read_text().strip()

    def is_ready(self) -> bool:
        """Whether both servers take requests."""
        return all(answers_200(port, "/health/ready") for port in (self.admin_port, self.proxy_port))


def settings_of(admin_port: int, proxy_port: int, data_dir: Path, **more: str) -> dict[str, str]:
    """Environment of a gateway on loopback that finds no Redis unless it is told where; ``more`` are names without prefix."""
    settings = {
        "SERVER__ADMIN_PORT": str(admin_port),
        "SERVER__PROXY_PORT": str(proxy_port),
        "SERVER__PROXY_HOST": HOST,
        "SERVER__DRAIN_DELAY": "0",
        "SERVER__MAX_CONNECTIONS_PER_IP": "0",  # every client of a test has the same address
        "REDIS__DATA_DIR": str(data_dir),
        "REDIS__PORT": str(free_ports(1)[0]),
    } | more
    return {f"GATEWAY_{name}": value for name, value in settings.items()}


@contextlib.contextmanager
def a_gateway(
    folder: Path,
    *options: str,
    settings: Mapping[str, str] = {},
    command: Sequence[str | Path] = GATEWAY,
    wait: bool = True,
    seconds: float = DEADLINE_S,
    environment: Mapping[str, str] = {},
) -> Iterator[Gateway]:
    """``gateway run`` with these options, ready if ``wait``. ``settings`` as `settings_of` takes them.

    Data and home are in the folder. Ports are free ones, unless the settings name them.
    """
    admin_port, proxy_port, demo_port = free_ports(3)
    admin_port = int(settings.get("SERVER__ADMIN_PORT", admin_port))
    proxy_port = int(settings.get("SERVER__PROXY_PORT", proxy_port))
    data_dir = folder / "data"
    env = clean_environment(folder, **settings_of(admin_port, proxy_port, data_dir, **settings), **environment)
    demo = ("--demo-port", str(demo_port)) if "--demo" in options else ()
    with running(*command, "run", *options, *demo, env=env, cwd=folder, seconds=seconds) as program:
        gateway = Gateway(program, admin_port, proxy_port, demo_port, data_dir)
        if wait:
            program.wait_until(gateway.is_ready, "ready")
        yield gateway


@contextlib.contextmanager
def a_demo_upstream(folder: Path, *options: str, seconds: float = DEADLINE_S) -> Iterator[int]:
    """``gateway demo-upstream``; its port."""
    (port,) = free_ports(1)
    env = clean_environment(folder)
    with running(*GATEWAY, "demo-upstream", "--port", str(port), *options, env=env, cwd=folder, seconds=seconds) as program:
        program.wait_until(lambda: answers_200(port, "/health"), "ready")
        yield port


def answers_200(port: int, path: str) -> bool:
    """Whether somebody on that port of loopback says so."""
    try:
        return call(port, "GET", path, timeout=2).status == 200
    except OSError:
        return False


def is_free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Different TCP ports that nobody listens on right now."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)
        if port not in found and is_free(port):
            found.append(port)
    return found


def a_clean_clone(folder: Path) -> Path:
    """The work tree as a clone would have it once everything in it is committed: without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    for name in listed.decode().split("\0"):
        source = ROOT / name
        if name and (source.is_file() or source.is_symlink()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name, follow_symlinks=False)
    return folder

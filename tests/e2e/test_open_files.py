"""A gateway that may open few files: clients take none that it needs, and running out neither ends nor occupies it."""

import contextlib
import os
import socket
import time
from pathlib import Path

import pytest

from tests.e2e.processes import GATEWAY, a_gateway, answers_200

LIMITED = ("/bin/sh", "-c", 'ulimit -n 600; exec "$@"', "sh", *GATEWAY)
ENGINES = ["hypercorn", "granian", "uvicorn"]
TICKS = os.sysconf("SC_CLK_TCK")
MANY = 140
"""Open files of a gateway that has taken nearly all the clients it may; it has 20 to 40 without them."""


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def open_files(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@contextlib.contextmanager
def a_crowd(port, count):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(count)]


@pytest.mark.parametrize("engine", ENGINES)
def test_clients_get_what_the_limit_of_open_files_leaves_and_no_more(engine, tmp_path):
    settings = {"SERVER__ENGINE": engine}
    with a_gateway(tmp_path, "--local", settings=settings, command=LIMITED) as gateway:
        with a_crowd(gateway.proxy_port, 700):
            pid = gateway.program.process.pid
            gateway.program.wait_until(lambda: open_files(pid) > MANY, "taking clients")
            until = time.monotonic() + 1
            while time.monotonic() < until:
                assert open_files(pid) < 450
                time.sleep(0.02)
            assert answers_200(gateway.admin_port, "/health/ready")
        gateway.program.wait_until(gateway.is_ready, "ready again")
        assert "Too many open files" not in gateway.program.stderr()


@pytest.mark.parametrize("engine", ["hypercorn", "uvicorn"])
def test_a_process_without_a_free_file_waits_and_accepts_again(engine, tmp_path):
    settings = {"SERVER__ENGINE": engine, "SERVER__MAX_CONNECTIONS": "5000"}
    with a_gateway(tmp_path, "--local", settings=settings, command=LIMITED) as gateway:
        pid = gateway.program.process.pid
        with a_crowd(gateway.proxy_port, 700):
            gateway.program.wait_until(lambda: "Too many open files" in gateway.program.stderr(), "out of files")
            before = cpu_s(pid)
            time.sleep(2)
            assert cpu_s(pid) - before < 0.3  # trying again and again would take all that the machine gives
        gateway.program.wait_until(gateway.is_ready, "ready again")
        assert gateway.program.stderr().count("Too many open files") < 5

"""The README does what it says: its commands, word for word, in a fresh clone on a machine that has nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.calls import call
from tests.e2e.processes import (
    HOST,
    ROOT,
    Program,
    answers_200,
    clean_environment,
    free_ports,
    is_free,
    run,
    running,
)
from tests.servers import short_directory

INSTALL_S = 150.0
ADMIN, PROXY, DEMO, REDIS = 8080, 8081, 9000, 6379
END = "--- end of block"

BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
START = BLOCKS[0][1].strip()
PASTED = [(language, text) for language, text in BLOCKS[1:] if "scripts/test.sh" not in text]


@dataclass
class Reader:
    """Somebody with a fresh clone. Ports that are taken on this machine are replaced by free ones, wherever they are named."""

    clone: Path
    ports: dict[int, int]
    env: dict[str, str]
    outputs: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def started(self) -> Iterator[Program]:
        """The gateway as the README's first command starts it, ready."""
        with running("bash", "-c", f"exec {self.adapted(START)}", env=self.env, cwd=self.clone) as program:
            program.wait_until(self.is_ready, "ready", INSTALL_S)
            yield program

    def is_ready(self) -> bool:
        """Whether it has printed its first steps and takes requests."""
        return answers_200(self.ports[ADMIN], "/health/ready") and answers_200(self.ports[PROXY], "/health/ready")

    def adapted(self, text: str) -> str:
        """The text with the ports of this machine."""
        for documented, used in self.ports.items():
            text = text.replace(f":{documented}", f":{used}")
        if self.ports[DEMO] != DEMO:
            text = text.replace("--demo", f"--demo --demo-port {self.ports[DEMO]}")
        return text

    def paste(self, blocks: list[tuple[str, str]]) -> list[str]:
        """Run blocks in one shell session; what each printed. A block of Python is run by the Python of the tests."""
        script = "set -e\n"
        for language, text in blocks:
            lines = self.adapted(text).strip("\n")
            if language == "python":
                lines = f"{shlex.quote(sys.executable)} - <<'PYTHON'\n{lines}\nPYTHON"
            script += f"{lines}\nprintf '\\n%s\\n' '{END}'\n"
        code, output, errors = run("bash", "-c", script, env=self.env, cwd=self.clone)
        assert code == 0, output + errors
        assert "rror" not in errors
        return [part.strip() for part in output.split(END)[:-1]]

    def admin(self, path: str) -> Any:
        """What the admin API answers."""
        return call(self.ports[ADMIN], "GET", f"/api/v1{path}").json

    def demo_answers(self) -> bool:
        """Whether the demo tenant's key is good for a completion."""
        key = (self.clone / "data" / "demo.key").read_text().strip()
        body = {"model": "demo-small", "messages": [{"role": "user", "content": "Hello"}]}
        answer = call(self.ports[PROXY], "POST", "/v1/chat/completions", body, key=key, host="testcompany.localhost")
        return answer.status == 200 and bool(answer.json["choices"])

    def left_behind(self) -> list[str]:
        """What still runs: who listens, and who holds the locks that gateway and store have while they live."""
        ports = [f"port {port}" for port in self.ports.values() if not is_free(port)]
        return ports + [name for name in ("gateway.lock", "server.lock") if _is_held(self.clone / "data" / name)]


def _is_held(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@pytest.fixture(scope="module")
def reader(clone: Path) -> Iterator[Reader]:
    wanted = (ADMIN, PROXY, DEMO, REDIS)
    ports = {port: port if is_free(port) else free for port, free in zip(wanted, free_ports(len(wanted)), strict=True)}
    with short_directory() as home:
        # All but REDIS__PORT say what is so anyway, unless a port is taken: somebody's Redis is not for tests to write to.
        env = clean_environment(
            home,
            GATEWAY_SERVER__ADMIN_PORT=str(ports[ADMIN]),
            GATEWAY_SERVER__PROXY_PORT=str(ports[PROXY]),
            GATEWAY_SERVER__PROXY_HOST=HOST,
            GATEWAY_REDIS__PORT=str(ports[REDIS]),
        )
        yield Reader(clone, ports, env)


@dataclass
class FirstRun:
    """What happened from the first command to Ctrl-C."""

    printed: str
    pasted: list[str]
    as_printed: list[str]
    exit_code: int
    left_behind: list[str]


@pytest.fixture(scope="module")
def first_run(reader: Reader) -> FirstRun:
    with reader.started() as program:
        pasted = reader.paste(PASTED)
        printed = program.stdout()
        as_printed = reader.paste([("bash", _indented(printed))])
        program.interrupt()
        exit_code = program.wait()
        return FirstRun(printed, pasted, as_printed, exit_code, reader.left_behind())


def _indented(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("  "))


def _completion(output: str) -> None:
    answer = json.loads(output)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"]


def _stream(output: str) -> None:
    events = [line.removeprefix("data: ") for line in output.splitlines() if line]
    assert len(events) > 10
    assert events[-1] == "[DONE]"
    assert all(json.loads(event)["object"] == "chat.completion.chunk" for event in events[:-1])


def _cost(output: str) -> None:
    told = dict(line.strip().split(": ") for line in output.splitlines())
    sent, written = int(told["x-gateway-tokens-input"]), int(told["x-gateway-tokens-output"])
    assert round(float(told["x-gateway-cost-usd"]) * 1e9) == sent * 500 + written * 1_500


def _new_tenant(output: str) -> None:
    tenant = json.loads(output)
    assert (tenant["subdomain"], tenant["tier"], tenant["status"]) == ("acme", "pro", "active")
    assert tenant["api_key"].startswith("gw_")


def _new_rule(output: str) -> None:
    rule = json.loads(output)
    assert rule["headers"] == {"Authorization": "•••"}
    assert rule["warnings"] == []
    assert "the-provider-key" not in output


def _limit(output: str) -> None:
    assert re.findall(r"\b(200|429)\b", output) == ["200", "200", "200", "429"]
    (wait_ms,) = re.findall(r"retry-after-ms: (\d+)", output)
    assert 0 < int(wait_ms) <= 10_000


def _suspension(output: str) -> None:
    decoder = json.JSONDecoder()
    tenant, end = decoder.raw_decode(output)
    refusal, _ = decoder.raw_decode(output[end:].lstrip())
    assert tenant["status"] == "suspended"
    assert refusal["error"]["code"] == "tenant_suspended"


def _nothing(output: str) -> None:
    assert not output


def _some_words(output: str) -> None:
    assert len(output.split()) >= 10


CHECKS: list[Callable[[str], None]] = [
    _completion,
    _stream,
    _cost,
    _new_tenant,
    _new_rule,
    _limit,
    _suspension,
    _nothing,
    _some_words,
]


def test_every_block_of_the_readme_is_run_here():
    assert START == "./scripts/run_local.sh --demo"
    assert len(PASTED) == len(CHECKS)
    assert len(BLOCKS) == 1 + len(PASTED) + 1


@pytest.mark.parametrize("number", range(len(CHECKS)), ids=[check.__name__.strip("_") for check in CHECKS])
def test_a_block_of_the_readme_works_as_pasted(first_run: FirstRun, number: int):
    CHECKS[number](first_run.pasted[number])


def test_what_the_gateway_prints_at_its_start_works_as_pasted(first_run: FirstRun):
    assert "curl" in first_run.printed
    (output,) = first_run.as_printed
    _completion(output)


def test_ctrl_c_ends_everything(first_run: FirstRun):
    assert first_run.exit_code in {0, 130}
    assert first_run.left_behind == []


def test_the_data_are_there_at_the_next_start(reader: Reader, first_run: FirstRun):
    key = (reader.clone / "data" / "demo.key").read_text()
    with reader.started() as program:
        assert "acme" in [tenant["subdomain"] for tenant in reader.admin("/tenants")["tenants"]]
        assert (reader.clone / "data" / "demo.key").read_text() == key
        assert reader.demo_answers()
        assert program.stderr().count("Installing") == 0


def test_a_gateway_that_is_killed_loses_nothing_it_has_answered(reader: Reader, first_run: FirstRun):
    with reader.started() as program:
        new = {"name": "Survivor", "subdomain": "survivor"}
        assert call(reader.ports[ADMIN], "POST", "/api/v1/tenants", new).status == 201
        program.kill()
    with reader.started():
        assert "survivor" in [tenant["subdomain"] for tenant in reader.admin("/tenants")["tenants"]]
        assert reader.demo_answers()

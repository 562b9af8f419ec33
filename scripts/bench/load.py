"""Load from wrk: keep-alive connections that each send the same request, one after the other."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.bench.processes import HOST

MODEL = "gpt-4o-mini"


def chat_body(size_bytes: int = 500, *, stream: bool = False) -> str:
    """A chat request of about this size."""
    asked: dict[str, object] = {"model": MODEL, "temperature": 0.7, "max_tokens": 256}
    if stream:
        asked["stream"] = True
    system = {"role": "system", "content": "You are a helpful assistant that answers in short sentences."}
    user = {"role": "user", "content": ""}
    asked["messages"] = [system, user]
    words = "Explain how a gateway keeps the limits of its tenants exact when many replicas share them. "
    missing = max(0, size_bytes - len(json.dumps(asked)))
    user["content"] = (words * (missing // len(words) + 1))[:missing]
    return json.dumps(asked)


@dataclass(frozen=True)
class Request:
    """What every connection sends to a contender. ``senders`` is a file of hosts and keys to choose from, one pair a line."""

    port: int
    path: str = "/v1/chat/completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = field(default_factory=chat_body)
    senders: Path | None = None


def ask_once(request: Request, timeout_s: float = 30.0) -> tuple[int, bytes]:
    """Status and body of one answer, on a connection of its own. Raises OSError."""
    connection = http.client.HTTPConnection(HOST, request.port, timeout=timeout_s)
    with contextlib.closing(connection):
        connection.request("POST", request.path, request.body, {"Content-Type": "application/json", **request.headers})
        answer = connection.getresponse()
        return answer.status, answer.read()


@dataclass(frozen=True)
class Answers:
    """What wrk counted. ``refused`` are answers with a status over 399; ``lost`` are broken connections and timeouts."""

    requests: int
    refused: int
    lost: int
    seconds: float
    p50_us: float
    p99_us: float

    @property
    def failed(self) -> int:
        """Of these there should be none: they cost something else than the others."""
        return self.refused + self.lost

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


# the argument of a long-bracket string may hold anything but its own end
_SCRIPT = """
wrk.method = "POST"
wrk.path = [==[{path}]==]
wrk.body = [==[{body}]==]
{headers}
{extra}
function done(summary, latency, requests)
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  local result = '"requests": %d, "refused": %d, "lost": %d, "seconds": %f, "p50_us": %f, "p99_us": %f'
  io.write(string.format('\\nRESULT {{' .. result .. '}}\\n',
    summary.requests, errors.status, lost, summary.duration / 1e6, latency:percentile(50), latency:percentile(99)))
end
"""
_MANY_SENDERS = """
local senders = {{}}
for line in io.lines([==[{path}]==]) do
  local host, key = line:match("^(%S+) (%S+)$")
  senders[#senders + 1] = {{ host, "Bearer " .. key }}
end
function request()
  local sender = senders[math.random(#senders)]
  wrk.headers["Host"], wrk.headers["Authorization"] = sender[1], sender[2]
  return wrk.format()
end
"""


class Wrk:
    """Runs wrk on its cores."""

    def __init__(self, folder: Path, cores: Sequence[int]) -> None:
        self._folder = folder
        self.cores = cores

    def run(self, request: Request, connections: int, seconds: float, *, pause_ms: int = 0) -> Answers:
        """One run. ``pause_ms`` is how long each connection waits before each request."""
        script = self._folder / "load.lua"
        script.write_text(script_of(request, pause_ms), encoding="utf-8")
        command = [
            "taskset",
            "-c",
            ",".join(map(str, self.cores)),
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
        ]
        command += ["--timeout", "20s", "-s", str(script), f"http://{HOST}:{request.port}"]
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
        found = [line for line in told.stdout.splitlines() if line.startswith("RESULT ")]
        if not found:
            raise RuntimeError(f"wrk: {told.stdout[-500:]} {told.stderr[-500:]}")
        return Answers(**json.loads(found[0].removeprefix("RESULT ")))


def script_of(request: Request, pause_ms: int = 0) -> str:
    """The Lua script that makes wrk send this."""
    headers = {"Content-Type": "application/json", **request.headers}
    lines = "\n".join(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items())
    extra = "" if request.senders is None else _MANY_SENDERS.format(path=request.senders)
    if pause_ms:
        extra += f"\nfunction delay() return {pause_ms} end\n"
    return _SCRIPT.format(path=request.path, body=request.body, headers=lines, extra=extra)

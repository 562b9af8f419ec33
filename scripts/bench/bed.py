"""What all contenders share: the cores, one Redis, one upstream, one tenant."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from scripts.bench.load import Request, Wrk
from scripts.bench.processes import HOST, Program, free_port, running

HERE = Path(__file__).parent
UPSTREAM_CONFIG = """
daemon off; master_process off; worker_processes 1; error_log {folder}/upstream-errors.log; pid {folder}/upstream.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_timeout 3600s; keepalive_requests 1000000000; client_body_temp_path {folder}/upstream-bodies;
  client_max_body_size 64m; client_body_buffer_size 16k;
  server {{
    listen {port} backlog=8192;
    location / {{ default_type application/json; return 200 '{reply}'; }}
  }}
}}
"""
_TEXT = "A replica keeps no truth of its own, so the one script that decides in the store is all that has to be exact. "
REPLY = (
    '{"id": "chatcmpl-0123456789abcdef", "object": "chat.completion", "created": 1750000000, "model": "demo-small",'
    ' "choices": [{"index": 0, "message": {"role": "assistant", "content": "' + _TEXT * 6 + '"}, "logprobs": null,'
    ' "finish_reason": "stop"}], "usage": {"prompt_tokens": 96, "completion_tokens": 121, "total_tokens": 217}}'
)


@dataclass(frozen=True)
class Cores:
    """Who runs where: what is measured alone on one core, everything else on another."""

    proxy: tuple[int, ...]
    others: tuple[int, ...]

    @classmethod
    def available(cls) -> Cores:
        """The last core that we may use for the proxies. Raises RuntimeError where there is only one."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise RuntimeError("needs two cores: one for the proxy, one for everything else")
        return cls(tuple(cores[-1:]), tuple(cores[:-1][-1:]))


@dataclass
class Bed:
    """The servers that all contenders use. ``notes`` are what the reader of the results has to know."""

    cores: Cores
    folder: Path
    redis_port: int
    redis: Program
    upstream_port: int
    upstream: Program
    streams_port: int
    peers_folder: Path
    wrk: Wrk
    notes: list[str] = field(default_factory=list)

    @property
    def redis_url(self) -> str:
        return f"redis://{HOST}:{self.redis_port}"

    def target_port(self, streams: bool) -> int:
        """Of the upstream that answers at once, or of the one that streams."""
        return self.streams_port if streams else self.upstream_port

    def target_url(self, streams: bool) -> str:
        return f"http://{HOST}:{self.target_port(streams)}"

    def client(self, db: int = 0) -> Any:
        """A blocking client of the shared Redis."""
        return redis.Redis(host=HOST, port=self.redis_port, db=db)


@dataclass(frozen=True)
class Endpoint:
    """A contender that runs: its processes, and what to send it. None for the upstream itself."""

    program: Program | None
    request: Request


@contextlib.contextmanager
def a_bed(folder: Path, peers_folder: Path) -> Iterator[Bed]:
    """Start what is shared. Raises DidNotStart, RuntimeError."""
    for needed in ("wrk", "nginx", "redis-server", "taskset", "setpriv"):
        if shutil.which(needed) is None:
            raise RuntimeError(f"{needed} is not installed; see docs/performance.md")
    cores = Cores.available()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # also of all that we start
    os.sched_setaffinity(0, cores.others)
    redis_port, upstream_port, streams_port = free_port(), free_port(), free_port()
    config = folder / "upstream.conf"
    config.write_text(UPSTREAM_CONFIG.format(folder=folder, port=upstream_port, reply=REPLY), encoding="utf-8")
    store = ["redis-server", "--port", str(redis_port), "--bind", HOST, "--save", "", "--appendonly", "no"]
    store += ["--dir", str(folder), "--loglevel", "warning", "--maxclients", "20000"]
    with contextlib.ExitStack() as stack:
        started = stack.enter_context(running("redis", store, folder=folder, cores=cores.others, port=redis_port))
        upstream = stack.enter_context(
            running("upstream", ["nginx", "-c", config], folder=folder, cores=cores.others, port=upstream_port)
        )
        streams = [sys.executable, HERE / "stream_upstream.py", str(streams_port)]
        stack.enter_context(running("streams", streams, folder=folder, cores=cores.others, port=streams_port))
        wrk = Wrk(folder, cores.others)
        yield Bed(cores, folder, redis_port, started, upstream_port, upstream, streams_port, peers_folder, wrk)

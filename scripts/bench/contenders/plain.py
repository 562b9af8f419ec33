"""Starts the two plain proxies."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.bed import Bed, Endpoint
from scripts.bench.contenders.gateway import Callers
from scripts.bench.contenders.recorded_calls import Recordings
from scripts.bench.load import Request
from scripts.bench.processes import free_port, running

HERE = Path(__file__).parent


@dataclass(frozen=True)
class PlainQuart:
    """One redis-py call and one aiohttp call in a Quart view."""

    calls: Recordings
    callers: Callers
    name: str = "plain quart"

    @contextlib.contextmanager
    def start(self, bed: Bed, *, streams: bool = False) -> Iterator[Endpoint]:
        port = free_port()
        words = bed.folder / f"words-{port}.json"
        words.write_text(json.dumps(self.calls.of(streams).admit.words[1:]), encoding="utf-8")
        command: list[str | Path] = [
            sys.executable,
            HERE / "plain_quart.py",
            str(port),
            bed.redis_url,
            bed.target_url(streams),
            words,
        ]
        with running(self.name, command, folder=bed.folder, cores=bed.cores.proxy, port=port) as program:
            yield Endpoint(program, Request(port, headers=self.callers.of(streams).headers))


@dataclass(frozen=True)
class PlainForward:
    """aiohttp's server and client and nothing else."""

    callers: Callers
    name: str = "plain aiohttp"

    @contextlib.contextmanager
    def start(self, bed: Bed, *, streams: bool = False) -> Iterator[Endpoint]:
        port = free_port()
        command: list[str | Path] = [sys.executable, HERE / "plain_forward.py", str(port), bed.target_url(streams)]
        with running(self.name, command, folder=bed.folder, cores=bed.cores.proxy, port=port) as program:
            yield Endpoint(program, Request(port, headers=self.callers.of(streams).headers))

"""One JSON line for each proxied request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as _quoted
from typing import TextIO

from gateway.telemetry.visit import Visit

_LOG = logging.getLogger("gateway")

MAX_METHOD_LOGGED = 16
MAX_PATH_LOGGED = 512
MAX_MODEL_LOGGED = 200
MAX_LINES = 1_000
FLUSH_EVERY_MS = 100
WHOLE_BYTES = 4_096
"""A pipe takes so much at once (PIPE_BUF on Linux): lines of several workers do not get mixed."""


class AccessLog:
    """One line of JSON a request; ASCII only, bounded, without bodies, query strings or secrets.

    Between `start` and `stop` lines are written together, ten times a second; otherwise each at once.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._task: asyncio.Task[None] | None = None
        self._second = -1
        self._moment = ""

    def write(self, visit: Visit, total_ms: float) -> None:
        """Append a line."""
        if self._stream is None:
            return
        # json.dumps takes three times as long; what is not quoted here cannot hold anything that needs it
        self._lines.append(
            f'{{"time":"{self._now()}","request_id":{_quoted(visit.request_id)},"tenant":{_quoted(visit.tenant)},'
            f'"rule":{_quoted(visit.rule)},"key_id":{_quoted(visit.key_id)},"client_ip":{_quoted(visit.client_ip)},'
            f'"method":{_quoted(visit.method[:MAX_METHOD_LOGGED])},"path":{_quoted(visit.path[:MAX_PATH_LOGGED])},'
            f'"status":{visit.status},"code":{_quoted(visit.code)},"bytes_in":{visit.bytes_in},"bytes_out":{visit.bytes_out},'
            f'"admission_ms":{_ms(visit.admission_ms)},"upstream_ms":{_ms(visit.upstream_ms)},"total_ms":{_ms(total_ms)}'
            f"{_call_fields(visit)}}}\n"
        )
        if self._task is None or len(self._lines) >= MAX_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what was appended. What cannot be written is lost, and said on standard error: requests go on."""
        lines, self._lines = self._lines, []
        if self._stream is None or not lines:
            return
        pieces, size = [[lines[0]]], len(lines[0])
        for line in lines[1:]:
            size += len(line)
            if size > WHOLE_BYTES:
                pieces.append([])
                size = len(line)
            pieces[-1].append(line)
        try:
            for piece in pieces:
                self._stream.write("".join(piece))
                self._stream.flush()
        except (OSError, ValueError) as error:  # a disk that is full, a reader that is gone, a stream that was closed
            _LOG.error("up to %d lines of the access log are lost: %s", len(lines), error)

    def start(self) -> None:
        """Gather lines from now on."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what was gathered; lines that come later are written at once."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self.flush()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY_MS / 1_000)
            self.flush()

    def _now(self) -> str:
        second, ms = divmod(int(time.time() * 1_000), 1_000)
        if second != self._second:
            self._second = second
            self._moment = datetime.fromtimestamp(second, UTC).isoformat(timespec="seconds")[:-6]
        return f"{self._moment}.{ms:03d}+00:00"


def _call_fields(visit: Visit) -> str:
    """What is logged of a call to a model, besides what is logged of every request."""
    if visit.called is None:
        return ""
    model, usage, cost_nano_usd, _, _ = visit.called
    return (
        f',"model":{_quoted(model[:MAX_MODEL_LOGGED])},"input_tokens":{usage.input_tokens},'
        f'"output_tokens":{usage.output_tokens},"cached_tokens":{usage.cached_tokens},"cost_nano_usd":{cost_nano_usd}'
    )


def _ms(value: float | None) -> str:
    return "null" if value is None else f"{value:.3f}"

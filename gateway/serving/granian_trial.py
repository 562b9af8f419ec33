"""A program of its own: serve nothing with a certificate, and end. What it imports is what it costs.

Granian aborts the process over a certificate that its TLS library cannot use, such as one with a key on the curve P-521.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

from granian import _granian
from granian.http import HTTP1Settings

_RUST: Any = _granian


def main(chain: str, key: str, min_version: str) -> None:
    """Files in PEM, and ``1.2`` or ``1.3``."""
    loop = asyncio.new_event_loop()
    signal = _RUST.WorkerSignal()
    signal.add_cb(lambda: loop.call_soon_threadsafe(loop.stop))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        holder = _RUST.SocketHolder(os.dup(sock.fileno()), False, *([1] if sys.platform == "linux" else []))
        tls = {"ssl_enabled": True, "ssl_cert": chain, "ssl_key": key, "ssl_protocol_min": f"tls{min_version}"}
        worker = _RUST.ASGIWorker(1, (None, holder), None, backpressure=1, http1_opts=HTTP1Settings(), **tls)
        worker.serve_async(_RUST.CallbackScheduler(loop, None, None, None, None), loop, signal)
        loop.call_soon(signal.set)
        loop.run_forever()
    os._exit(0)  # whatever its threads are still at


if __name__ == "__main__":
    main(*sys.argv[1:])

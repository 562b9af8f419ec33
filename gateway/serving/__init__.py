"""The HTTP server: listeners, their life and death, and an engine that speaks HTTP for them.

``serve`` runs several listeners in one process and one event loop. Every socket is bound before anything starts, every
app has started before anything is accepted, and every listener has drained before the first app shuts down, so apps may
share what they open. One process is one loop; several processes share the sockets and have a `Supervisor` of ours, as
Hypercorn's own workers cut streams on SIGTERM and die together.
"""

from gateway.serving.listener import ASGIApp, Listener, bind
from gateway.serving.run import CLEANUP_MS, Ready, check_server, run_event_loop, serve
from gateway.serving.supervisor import Supervisor
from gateway.serving.worker_process import WorkerLink, WorkerProcess

__all__ = [
    "CLEANUP_MS",
    "ASGIApp",
    "Listener",
    "Ready",
    "Supervisor",
    "WorkerLink",
    "WorkerProcess",
    "bind",
    "check_server",
    "run_event_loop",
    "serve",
]

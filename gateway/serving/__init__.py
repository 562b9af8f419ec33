"""The HTTP server: listeners, their life and death, and an engine that speaks HTTP for them.

``serve`` runs several listeners in one process and one event loop. Every socket is bound before anything starts, every
app has started before anything is accepted, and every listener has drained before the first app shuts down, so apps may
share what they open. One process is one loop on purpose: Hypercorn with several workers cuts streams on SIGTERM.
"""

from gateway.serving.listener import ASGIApp, Listener
from gateway.serving.run import Ready, run_event_loop, serve

__all__ = ["ASGIApp", "Listener", "Ready", "run_event_loop", "serve"]

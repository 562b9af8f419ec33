"""One log line for each admin write, whatever became of it, and each refused login: who, what, what changed. No secrets."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from quart import g, request

from gateway.telemetry import AUDIT
from gateway.web import current_request_id

logger = logging.getLogger(AUDIT)

CHANGED = "changed"
READ = "read"
MAX_ID = 80

Outcome = Literal["done", "repeated", "refused", "denied", "unknown"]
"""``repeated`` is answered as before, ``refused`` has changed nothing, ``unknown`` may or may not have: the store went away."""

# may hold what the tenant would not like to find in a log
_CONTENTS_WITHHELD = frozenset({"headers", "metadata", "plugin_chain", "required_plugins"})
_NOT_NEWS = frozenset({"created_at", "updated_at", "last_used_at", "warnings"})


def expect(action: str | None, address: str) -> None:
    """Begin the request that Quart is handling: what it is about to do, None if it only reads, and where it comes from."""
    g.audit = {"action": action or READ, "address": address}
    g.audit_is_due = action is not None


def record(
    tenant_id: str,
    object_id: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """The line of a write that was done. ``before`` and ``after`` are public forms; what differs is ``[before, after]``."""
    before, after = before or {}, after or {}
    changes = {
        name: CHANGED if name in _CONTENTS_WITHHELD else [before.get(name), after.get(name)]
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and name not in _NOT_NEWS
    }
    _write("done", tenant_id, object_id, changes)


def record_answer(status: int) -> None:
    """Write the line of a request that is answered so, unless there is one or none is due: reads that were not denied."""
    if "audit" not in g:
        return  # no route
    denied = status >= 400 and ("caller" not in g or status == 403)
    if g.audit_is_due:
        others: Outcome = "unknown" if status >= 500 else "refused" if status >= 400 else "repeated"
        _write("denied" if denied else others)
    elif denied and "authorization" in request.headers:
        _write("denied")


def record_loss() -> None:
    """Write the line of a write that nobody answered, because the client has left meanwhile."""
    if g.get("audit_is_due"):
        _write("unknown")


def _write(outcome: Outcome, tenant_id: str | None = None, object_id: str | None = None, changes: Any = None) -> None:
    g.audit_is_due = False
    named = request.view_args or {}
    line = {
        "action": g.audit["action"],
        "outcome": outcome,
        "by": g.claimed.name if "claimed" in g else "nobody",
        "address": g.audit["address"],
        "tenant": (tenant_id or named.get("tenant_id", ""))[:MAX_ID],
        "object": (object_id or named.get("key_id") or named.get("rule_id") or named.get("tenant_id", ""))[:MAX_ID],
        "changes": changes or {},
        "request_id": current_request_id(),
    }
    logger.info("%s %s", line["action"], outcome, extra={"audit": line})

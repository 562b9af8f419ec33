"""One log line for each admin write: who did what to which object, and what changed. No secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from gateway.admin.auth import Caller
from gateway.web import current_request_id

logger = logging.getLogger("gateway.audit")

CHANGED = "changed"

# may hold what the tenant would not like to find in a log
_CONTENTS_WITHHELD = frozenset({"headers", "metadata", "plugin_chain", "required_plugins"})
_NOT_NEWS = frozenset({"created_at", "updated_at", "last_used_at", "warnings"})


def record(
    caller: Caller,
    action: str,
    tenant_id: str,
    object_id: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write the line. ``before`` and ``after`` are public forms; what differs is shown as ``[before, after]``.

    Also found as the attribute ``audit`` of the log record.
    """
    before, after = before or {}, after or {}
    changes = {
        name: CHANGED if name in _CONTENTS_WITHHELD else [before.get(name), after.get(name)]
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and name not in _NOT_NEWS
    }
    line = {
        "action": action,
        "by": caller.name,
        "tenant": tenant_id,
        "object": object_id,
        "changes": changes,
        "request_id": current_request_id(),
    }
    logger.info("%s", json.dumps(line), extra={"audit": line})

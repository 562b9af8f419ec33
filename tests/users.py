"""The users of the servers that tests start: those of ``docs/redis.acl`` and ``docs/sentinel.acl``, with passwords.

The gateway is the user ``gateway`` there; what a test does behind its back, it does as ``administrator``.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
REDIS_ACL = ROOT / "docs" / "redis.acl"
SENTINEL_ACL = ROOT / "docs" / "sentinel.acl"

ADMINISTRATOR = "administrator"
GATEWAY = "gateway"
REPLICA = "replica"
SENTINEL = "sentinel"


def password_of(user: str) -> str:
    """Of a user of a test server; with what must be quoted in a URL."""
    return f"{user}/p@ss?"


def login_of(user: str) -> str:
    """User and password as a URL has them, with the @ behind."""
    return f"{user}:{quote(password_of(user), safe='')}@"


def write_users(directory: Path, source: Path = REDIS_ACL) -> Path:
    """The file with a password for each user in the place of what is to be replaced."""
    file = directory / source.name
    file.write_text(re.sub(r">REPLACE-(\w+)", lambda found: f">{password_of(found[1])}", source.read_text()))
    return file


def as_administrator(url: str) -> str:
    """The URL of a test server, for whoever may do everything there; one without users stays as it is."""
    return url.replace(f"//{login_of(GATEWAY)}", f"//{login_of(ADMINISTRATOR)}")

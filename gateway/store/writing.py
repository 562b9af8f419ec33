"""What the admin writes share: optimistic edits, versions, identifiers and answers to repeated requests."""

from __future__ import annotations

import hashlib
import secrets
import string
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from gateway.errors import EditConflict, IdempotencyConflict
from gateway.models import ApiKey

MAX_TRIES = 10
ANSWER_TTL_MS = str(86_400_000)

_ALPHABET = string.ascii_lowercase + string.digits

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Once:
    """A write that happens once. ``answer`` is the sealed answer to give to whoever repeats the request."""

    digest: str
    fingerprint: str
    answer: bytes


@dataclass(frozen=True, slots=True)
class Repeated:
    """The request was answered before; ``answer`` is the sealed answer."""

    answer: bytes


class Conflict(Exception):
    """Somebody else wrote between our read and our write."""


def once_arguments(once: Once | None) -> tuple[str | bytes, ...]:
    """Fingerprint, answer and lifetime as the scripts take them."""
    return ("", "", ANSWER_TTL_MS) if once is None else (once.fingerprint, once.answer, ANSWER_TTL_MS)


def expiry_argument(key: ApiKey) -> str:
    """The end of a key as the scripts take it."""
    return "" if key.expires_ms is None else str(key.expires_ms)


def once_digest(once: Once | None) -> str:
    """Names the record of the answer."""
    return "none" if once is None else once.digest


def repeated_or_conflict(reply: list[object]) -> Repeated:
    """The reply of a script that found the request repeated. Raises IdempotencyConflict."""
    match reply:
        case [b"repeated", bytes(answer)]:
            return Repeated(answer)
        case [b"key_reused"]:
            raise IdempotencyConflict(param="Idempotency-Key")
    raise AssertionError(f"unexpected reply {reply!r}")


async def retried(attempt: Callable[[], Awaitable[T]]) -> T:
    """Read, change and write again while others win the race. Raises EditConflict if they always do."""
    for _ in range(MAX_TRIES):
        try:
            return await attempt()
        except Conflict:
            continue
    raise EditConflict("The object is being changed by others at the same time; try again.")


def new_version() -> str:
    """A version differs from every other one, also of a deleted tenant with the same subdomain."""
    return secrets.token_hex(8)


def new_id(prefix: str) -> str:
    """An identifier such as ``rule_k3v9x0q2m7a1``."""
    return f"{prefix}_{''.join(secrets.choice(_ALPHABET) for _ in range(16))}"


def etag(document: bytes) -> str:
    """A strong entity tag of a stored document (RFC 9110 §8.8.3)."""
    return f'"{hashlib.sha256(document).hexdigest()[:32]}"'


def check_etag(if_match: str | None, current: str) -> None:
    """Raises EditConflict unless one of the tags in ``If-Match`` is the current one."""
    if if_match is None or if_match.strip() == "*":
        return
    if current not in [tag.strip() for tag in if_match.split(",")]:
        raise EditConflict(param="If-Match")

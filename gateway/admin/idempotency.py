"""``Idempotency-Key``: a POST that is repeated with the same key is answered as before and changes nothing.

The answer may hold a secret, so it is stored sealed; only who repeats the request with the same credential can open it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable

from quart import Response, request

from gateway.admin.answering import Answer
from gateway.admin.auth import Caller
from gateway.admin.reading import raw_body
from gateway.errors import IdempotencyConflict, InvalidField
from gateway.secrets import OneTimeSeal, SealBroken
from gateway.store import Once, Repeated

HEADER = "Idempotency-Key"

_KEY = re.compile(r"[!-~]{1,255}")


class Idempotency:
    """What one request says about being repeated; without a key, nothing."""

    def __init__(self, key: str | None, caller: Caller, request_parts: Iterable[bytes]) -> None:
        self._repeatable = key is not None
        credential = caller.credential.encode()
        self._digest = _hash((b"key", credential, (key or "").encode()))
        self._fingerprint = _hash((b"request", credential, *request_parts))
        self._seal = OneTimeSeal(caller.credential, key or "")

    @classmethod
    async def of_request(cls, caller: Caller) -> Idempotency:
        """For the request that Quart is handling. Raises InvalidField."""
        key = request.headers.get(HEADER)
        if key is not None and not _KEY.fullmatch(key):
            raise InvalidField(f"{HEADER}: must be 1 to 255 visible ASCII characters", param=HEADER)
        return cls(key, caller, (request.method.encode(), request.path.encode(), await raw_body()))

    def once(self, answer: Answer) -> Once | None:
        """What the store keeps, to be found by a repetition."""
        if not self._repeatable:
            return None
        kept = {"body": answer.body, "status": answer.status, "etag": answer.etag, "location": answer.location}
        return Once(self._digest, self._fingerprint, self._seal.seal(json.dumps(kept).encode()))

    def response(self, outcome: Repeated) -> Response:
        """The answer of the first time."""
        try:
            kept = json.loads(self._seal.open(outcome.answer))
        except SealBroken:
            raise IdempotencyConflict(param=HEADER) from None
        return Answer(**kept).response(replayed=True)


def _hash(parts: Iterable[bytes]) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.hexdigest()

"""Who tells of a limit that has reached a threshold: one of all replicas, and another one if that one dies before it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gateway.store.connect import Connection
from gateway.store.failures import store_errors
from gateway.store.keyspace import Keyspace

Ending = Literal["sent", "given_up"]

_ENDINGS = (b"sent", b"given_up")


@dataclass(frozen=True, slots=True)
class Claim:
    """What came of asking to be the one. ``left_ms`` is how long the answer holds if it is no.

    ``mine``: send it. ``taken``: somebody else does, and may die before. ``over``: it was sent, or given up for now.
    """

    state: Literal["mine", "taken", "over"]
    left_ms: int = 0


class AlertStore:
    """A key for each crossing of a threshold: a token while its webhook is being sent, then how that ended.

    Nothing here is part of a decision, so these are single commands and no script. Everything raises StoreUnavailable,
    Overloaded.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def is_first(self, keyspace: Keyspace, crossing: str, life_ms: int) -> bool:
        """True for one caller only, of all that ask about this crossing in so much time."""
        with store_errors():
            return bool(await self._client.set(keyspace.alert_count(crossing), b"1", nx=True, px=life_ms))

    async def claim(self, keyspace: Keyspace, crossing: str, token: str, lease_ms: int) -> Claim:
        """Ask to be the one who sends, for so long. ``token`` is random."""
        key = keyspace.alert(crossing)
        with store_errors():
            pipe = self._client.pipeline(transaction=False)
            pipe.set(key, token, nx=True, px=lease_ms)
            pipe.get(key)
            pipe.pttl(key)
            is_set, value, left_ms = await pipe.execute()
        if is_set:
            return Claim("mine")
        # a key that ended meanwhile is asked for again at once
        return Claim("over" if value in _ENDINGS else "taken", max(0, left_ms))

    async def keep(self, keyspace: Keyspace, crossing: str, token: str, lease_ms: int) -> bool:
        """Prolong a claim. False if it has ended and somebody else has it, who is to go on."""
        key = keyspace.alert(crossing)
        with store_errors():
            pipe = self._client.pipeline(transaction=False)
            pipe.set(key, token, nx=True, px=lease_ms)
            pipe.get(key)
            _, value = await pipe.execute()
            if value != token.encode():
                return False
            await self._client.pexpire(key, lease_ms)
        return True

    async def end(self, keyspace: Keyspace, crossing: str, ending: Ending, life_ms: int) -> None:
        """Say that nobody else needs to send it for so long."""
        with store_errors():
            await self._client.set(keyspace.alert(crossing), ending, px=life_ms)

    @property
    def _client(self) -> Any:
        return self._connection.client

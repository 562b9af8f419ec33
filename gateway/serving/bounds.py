"""How many connections clients may have open."""

from __future__ import annotations

import ipaddress
import logging
import resource
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network

from gateway.config import ServerSettings
from gateway.targets import subscriber
from gateway.targets.addresses import plain

KEPT_FILES = 64
"""Open files that are neither a connection of a client nor one that the caller of `serve` has reserved."""

ADMIN_CONNECTIONS = 256
"""Most connections to the admin API, which are set aside: a full proxy locks no operator out."""

FEWEST_CONNECTIONS = 16

UNLIMITED = 1 << 20
"""Taken for the limit of open files where there is none."""

TELL_EVERY_S = 60.0
MOST_REASONS = 1_000

logger = logging.getLogger("gateway.server")


def connections_left(reserved_files: int) -> int:
    """What the limit of open files leaves for clients of the proxy: at least half of it, however much is reserved."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = (UNLIMITED if soft == resource.RLIM_INFINITY else soft) - KEPT_FILES - ADMIN_CONNECTIONS
    return max(left - reserved_files, left // 2, FEWEST_CONNECTIONS)


class Bounds:
    """Of one listener. What is refused is logged once a minute."""

    def __init__(self, name: str, per_ip: int, total: int, exempt: Sequence[IPv4Network | IPv6Network] = ()) -> None:
        self.per_ip = per_ip
        self.total = total
        self._name = name
        self._exempt = exempt
        self._open = 0
        self._by_subscriber: dict[str, int] = {}
        self._refused: dict[str, int] = {}
        self._tell_at = 0.0

    @classmethod
    def of(cls, name: str, settings: ServerSettings, reserved_files: int) -> Bounds:
        """As configured."""
        per_ip, total = settings.max_connections_per_ip, settings.max_connections or connections_left(reserved_files)
        if name not in {"admin", "proxy"}:  # the demo upstream, which the gateway itself calls
            per_ip = 0
        elif name == "admin":
            per_ip, total = min(per_ip, ADMIN_CONNECTIONS // 2), ADMIN_CONNECTIONS
        return cls(name, per_ip, total, settings.trusted_proxies)

    def enter(self, host: str) -> Callable[[], None] | None:
        """What is to be called when a connection from that address has ended; None if it is one too many."""
        if self._open >= self.total:
            self.refuse("server.max_connections")
            return None
        who = "" if not self.per_ip or self.is_exempt(host) else subscriber(host)
        count = self._by_subscriber.get(who, 0)
        if who and count >= self.per_ip:
            self.refuse(f"server.max_connections_per_ip, {who}")
            return None
        self._open += 1
        self._by_subscriber[who] = count + 1
        is_open = True

        def leave() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                self._open -= 1
                left = self._by_subscriber[who] - 1
                if left:
                    self._by_subscriber[who] = left
                else:
                    del self._by_subscriber[who]

        return leave

    def is_exempt(self, host: str) -> bool:
        """Whether the bound for one address does not hold for this one."""
        if not self._exempt:
            return False
        address = plain(ipaddress.ip_address(host.partition("%")[0]))
        return any(address in network for network in self._exempt)

    def refuse(self, why: str) -> None:
        """Note a connection that was closed."""
        if why not in self._refused and len(self._refused) >= MOST_REASONS:
            why = "others"
        self._refused[why] = self._refused.get(why, 0) + 1
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + TELL_EVERY_S
            for reason, count in sorted(self._refused.items(), key=lambda item: -item[1])[:8]:
                logger.warning("%s: refused connections: %d (%s)", self._name, count, reason)
            self._refused.clear()

"""How much a replica takes on at once, fair between tenants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import Overloaded


class Gate:
    """Counts requests in flight. Beyond the bounds a request is refused at once, while it is still cheap."""

    def __init__(self, max_in_flight: int, max_per_tenant: int) -> None:
        self._max = max_in_flight
        self._max_per_tenant = max_per_tenant
        self._by_tenant: Counter[str] = Counter()
        self.in_flight = 0

    @contextmanager
    def replica(self) -> Iterator[None]:
        """A place in this process. Raises Overloaded."""
        if self.in_flight >= self._max:
            raise Overloaded
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    @contextmanager
    def tenant(self, subdomain: str) -> Iterator[None]:
        """A place for one tenant. Raises Overloaded."""
        if self._by_tenant[subdomain] >= self._max_per_tenant:
            raise Overloaded("Too many requests of this tenant are in flight at this replica; try again.")
        self._by_tenant[subdomain] += 1
        try:
            yield
        finally:
            self._by_tenant[subdomain] -= 1
            if not self._by_tenant[subdomain]:
                del self._by_tenant[subdomain]

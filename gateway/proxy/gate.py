"""How much a replica takes on at once, fair between tenants."""

from __future__ import annotations

from collections import Counter

from gateway.errors import Overloaded


class Gate:
    """Counts requests in flight. Beyond the bounds a request is refused at once, while it is still cheap.

    Who has entered must leave, whatever happens in between.
    """

    def __init__(self, max_in_flight: int, max_per_tenant: int) -> None:
        self._max = max_in_flight
        self._max_per_tenant = max_per_tenant
        self._by_tenant: Counter[str] = Counter()
        self.in_flight = 0

    def enter(self) -> None:
        """Take a place in this process. Raises Overloaded."""
        if self.in_flight >= self._max:
            raise Overloaded
        self.in_flight += 1

    def leave(self) -> None:
        """Give it back."""
        self.in_flight -= 1

    def enter_tenant(self, subdomain: str) -> None:
        """Take a place of one tenant. Raises Overloaded."""
        if self._by_tenant[subdomain] >= self._max_per_tenant:
            raise Overloaded("Too many requests of this tenant are in flight at this replica; try again.")
        self._by_tenant[subdomain] += 1

    def leave_tenant(self, subdomain: str) -> None:
        """Give it back."""
        left = self._by_tenant[subdomain] - 1
        if left:
            self._by_tenant[subdomain] = left
        else:
            del self._by_tenant[subdomain]

"""How much a replica takes on at once, fair between tenants."""

from __future__ import annotations

from collections import Counter

from gateway.errors import Overloaded

OVERDRAFT = 2
"""Whatever shares allow, no more requests are in flight than so many times the bound."""

STRANGERS_PART = 16
"""Of a full process, this part is kept for callers who may turn out to be known: the first request of each is a stranger's."""

LEAST_PART = 50
"""However late the event loop is, this part of the bound is left."""

SHRINK = 0.8
GROW_PART = 8


class Gate:
    """Counts requests in flight. Beyond the bounds a request is refused at once, while it is still cheap.

    Until ``capacity`` is reached everybody may enter, also a single tenant. Then those enter that have less in flight than
    their share, capacity by the number of tenants with requests in flight; what others took meanwhile is not taken back, so
    there may be up to twice as many requests. `strangers`, whose tenant or key this replica does not know, come last.

    Who has entered must leave, whatever happens in between.
    """

    def __init__(self, max_in_flight: int, max_per_tenant: int) -> None:
        self._max = max_in_flight
        self._max_per_tenant = max_per_tenant
        self._by_tenant: dict[str, int] = {}
        self._strangers: Counter[str] = Counter()
        self._strangers_in_all = 0
        self.capacity = max_in_flight
        self.in_flight = 0

    def enter(self, tenant: str) -> None:
        """Take a place for a tenant whose key is known. Raises Overloaded."""
        count = self._by_tenant.get(tenant, 0)
        if count >= self._max_per_tenant:
            raise _too_many()
        if self.in_flight >= self.capacity:
            active = len(self._by_tenant) + (not count)
            if count >= max(1, self.capacity // active) or self.in_flight >= OVERDRAFT * self._max:
                raise Overloaded
        self._by_tenant[tenant] = count + 1
        self.in_flight += 1

    def leave(self, tenant: str) -> None:
        """Give it back."""
        self.in_flight -= 1
        left = self._by_tenant[tenant] - 1
        if left:
            self._by_tenant[tenant] = left
        else:
            del self._by_tenant[tenant]

    def enter_stranger(self, claimed: str, *, has_key: bool) -> None:
        """Take a place for a caller who is not known; ``claimed`` is the tenant of its host, if any. Raises Overloaded.

        Strangers cannot use up the places of those who are known, so that no wrong key keeps a right one out.
        """
        self._check_claim(claimed)
        if self.in_flight >= self.capacity:
            kept = max(1, self.capacity // STRANGERS_PART)
            if not has_key or self._strangers_in_all >= kept or self.in_flight >= OVERDRAFT * self._max:
                raise Overloaded
        self._strangers[claimed] += 1
        self._strangers_in_all += 1
        self.in_flight += 1

    def name_stranger(self, tenant: str) -> None:
        """A stranger's tenant turned out, which its host has not told. Raises Overloaded; it still must leave as it came."""
        self._check_claim(tenant)
        self._strangers[tenant] += 1
        self._strangers[""] -= 1

    def leave_stranger(self, claimed: str) -> None:
        """Give it back."""
        self.in_flight -= 1
        self._drop_stranger(claimed)

    def recognise(self, claimed: str, tenant: str) -> None:
        """A stranger was let in: from now on its place is the tenant's."""
        self._drop_stranger(claimed)
        self._by_tenant[tenant] = self._by_tenant.get(tenant, 0) + 1

    def adjust(self, *, late: bool) -> None:
        """Take on less while the event loop is ``late``, and step by step all again afterwards. Called on a timer."""
        if late:
            least = max(1, self._max // LEAST_PART)
            self.capacity = max(least, int(min(self.capacity, max(self.in_flight, least)) * SHRINK))
        elif self.capacity < self._max:
            self.capacity = min(self._max, self.capacity + max(1, self.capacity // GROW_PART))

    def _check_claim(self, tenant: str) -> None:
        if tenant and self._by_tenant.get(tenant, 0) + self._strangers[tenant] >= self._max_per_tenant:
            raise _too_many()

    def _drop_stranger(self, claimed: str) -> None:
        self._strangers_in_all -= 1
        self._strangers[claimed] -= 1
        if not self._strangers[claimed]:
            del self._strangers[claimed]


def _too_many() -> Overloaded:
    return Overloaded("Too many requests of this tenant are in flight at this replica; try again.")

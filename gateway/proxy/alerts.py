"""Tells who wants to know that limits reach thresholds: the client at once, everybody else once a period, off the path."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from functools import partial

from gateway.errors import StoreUnavailable
from gateway.limit_headers import alert_headers
from gateway.models import shown_threshold
from gateway.plugin import TenantInfo
from gateway.policy import Reached, Recent
from gateway.proxy.background import Background
from gateway.proxy.crossing import Crossing
from gateway.proxy.webhook import Undelivered, Webhook
from gateway.store import AlertStore
from gateway.telemetry import Metrics

_LOG = logging.getLogger("gateway.proxy")

MOST_KNOWN = 10_000
MOST_UNDER_WAY = 256
MOST_OF_A_TENANT = 32
"""What is more than that waits for the next request that finds the threshold reached."""

LEAST_WAIT_MS = 20
AFTER_FAILURE_MS = 1_000
AFTER_GIVING_UP_MS = 3_600_000
"""From then on the next request that finds the threshold reached has it sent again."""


class Alerts:
    """Counts each crossing and sends its webhook, once over all replicas; ``webhook`` None means that none is wanted.

    ``lease_ms`` is how long a replica that died keeps others from sending what it had begun to.
    """

    def __init__(
        self, store: AlertStore, background: Background, metrics: Metrics, webhook: Webhook | None, lease_ms: int = 0
    ) -> None:
        self._store = store
        self._background = background
        self._metrics = metrics
        self._webhook = webhook
        self._lease_ms = lease_ms or (0 if webhook is None else webhook.lease_ms)
        self._quiet_until: Recent[tuple[str, int, int, int], float] = Recent(MOST_KNOWN)
        self._under_way: dict[tuple[str, int, int, int], str] = {}
        self._stopping = asyncio.Event()

    def note(self, tenant: TenantInfo, reached: list[Reached], now_ms: int) -> list[tuple[bytes, bytes]]:
        """What the client is told. The rest, if anything is left to do, happens in the background."""
        for each in reached:
            for percent in each.thresholds:
                self._begin(Crossing(tenant, each, percent, now_ms))
        return alert_headers([each.told for each in reached])

    def stop(self) -> None:
        """Wait for nobody any more. What is being sent may still be taken."""
        self._stopping.set()

    def _begin(self, crossing: Crossing) -> None:
        known_as, under_way = crossing.known_as, self._under_way
        if known_as in under_way:
            return
        quiet_until = self._quiet_until.get(known_as)
        if quiet_until is not None and quiet_until > asyncio.get_running_loop().time():
            return
        tenant_id = crossing.tenant.id
        if len(under_way) >= MOST_UNDER_WAY or sum(each == tenant_id for each in under_way.values()) >= MOST_OF_A_TENANT:
            return
        under_way[known_as] = tenant_id
        self._background.run(partial(self._run, crossing))

    async def _run(self, crossing: Crossing) -> None:
        quiet_ms = AFTER_FAILURE_MS
        try:
            quiet_ms = await self._tell(crossing)
        except StoreUnavailable as error:
            _LOG.warning("alert of %s: %s", crossing, error.message)
        finally:
            del self._under_way[crossing.known_as]
            self._quiet_until.put(crossing.known_as, asyncio.get_running_loop().time() + quiet_ms / 1_000)

    async def _tell(self, crossing: Crossing) -> int:
        """For how long nothing more is to be done. Raises StoreUnavailable."""
        if await self._store.is_first(crossing.keyspace, crossing.name, crossing.life_ms):
            labels = crossing.tenant.subdomain, crossing.reached.state.name, shown_threshold(crossing.percent)
            self._metrics.alerts.labels(*labels).inc()
        webhook = self._webhook
        if webhook is None:
            return crossing.life_ms
        token = secrets.token_hex(8)
        while True:
            claim = await self._store.claim(crossing.keyspace, crossing.name, token, self._lease_ms)
            if claim.state == "over":
                return claim.left_ms
            if claim.state == "taken":
                # it may be a replica that has died, and no further request may come
                if await self._is_stopping_within(max(LEAST_WAIT_MS, claim.left_ms)):
                    return 0
                continue
            quiet_ms = await self._send(crossing, webhook, token)
            if quiet_ms is not None:
                return quiet_ms

    async def _send(self, crossing: Crossing, webhook: Webhook, token: str) -> int | None:
        """For how long nothing more is to be done; None if somebody else has it now."""
        quiet_ms = crossing.life_ms
        try:
            if not await webhook.send(
                crossing.event_id, crossing.event(webhook.signing_key), partial(self._keep, crossing, token)
            ):
                return None
            await self._end(crossing, given_up=False, quiet_ms=quiet_ms)
        except Undelivered as error:
            _LOG.error("alert of %s was not delivered: %s", crossing, error)
            self._metrics.undelivered_alerts.labels(crossing.tenant.subdomain).inc()
            quiet_ms = min(AFTER_GIVING_UP_MS, quiet_ms)
            await self._end(crossing, given_up=True, quiet_ms=quiet_ms)
        return quiet_ms

    async def _keep(self, crossing: Crossing, token: str) -> bool:
        try:
            return await self._store.keep(crossing.keyspace, crossing.name, token, self._lease_ms)
        except StoreUnavailable:
            return True  # rather twice than never

    async def _end(self, crossing: Crossing, *, given_up: bool, quiet_ms: int) -> None:
        try:
            await self._store.end(crossing.keyspace, crossing.name, "given_up" if given_up else "sent", quiet_ms)
        except StoreUnavailable as error:
            _LOG.warning("alert of %s may be sent again by another replica: %s", crossing, error.message)

    async def _is_stopping_within(self, wait_ms: int) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), wait_ms / 1_000)
        return self._stopping.is_set()

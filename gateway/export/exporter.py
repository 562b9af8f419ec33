"""Takes receipts from the store to files. A receipt leaves the store once its line is on the disk: none is lost in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from gateway.errors import GatewayError, InternalError
from gateway.export.files import ReceiptFiles
from gateway.store import Receipt, ReceiptStore

_LOG = logging.getLogger("gateway.export")

BATCH = 2_000
"""As many receipts are written before any of them is removed."""

TENANTS_AT_ONCE = 1_000
TIDY_EVERY_S = 3_600.0
PAUSES_S = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)

_DAY_MS = 86_400_000
_EPOCH_DAY = date(1970, 1, 1).toordinal()


@dataclass
class Totals:
    """What was exported. ``lost`` receipts had been dropped because too many waited."""

    receipts: int = 0
    lost: int = 0
    tenants: set[str] = field(default_factory=set)


class Exporter:
    """Exports what waits in one store. Of a tenant that fails, the error is kept and the others are exported."""

    def __init__(self, receipts: ReceiptStore, files: ReceiptFiles, totals: Totals) -> None:
        self._receipts = receipts
        self._files = files
        self._totals = totals
        self._batch: dict[str, list[Receipt]] = {}
        self._size = 0
        self._lost = 0
        # written, and not removed because the store did not answer
        self._safe: dict[str, Receipt] = {}
        self._failure: Exception | None = None

    async def tidy(self) -> int:
        """What need not be done often: find tenants that the index has lost, and forget those who are no more.

        Returns how many were found; their receipts are exported next time.
        """
        found = await self._receipts.recover()
        if found:
            _LOG.warning("%d tenants have receipts and were missing in the index", found)
        await self._receipts.retire()
        return found

    async def run(self, stop: asyncio.Event) -> None:
        """Export what waits when it is looked for, and less if ``stop`` is set meanwhile.

        Raises OSError of a file, and in the end what kept the receipts of some tenants from being exported.
        """
        self._failure = None
        self._batch, self._size, self._lost = {}, 0, 0
        await self._remove()
        tenant_ids = await self._receipts.tenants()
        for start in range(0, len(tenant_ids), TENANTS_AT_ONCE):
            waiting = await self._receipts.waiting(tenant_ids[start : start + TENANTS_AT_ONCE])
            for tenant_id, count in waiting.items():
                if isinstance(count, Exception):
                    self._fails(tenant_id, count)
                elif tenant_id not in self._safe:
                    await self._export(tenant_id, count, stop)
                if stop.is_set():
                    break
        await self._flush()
        if self._failure is not None:
            raise self._failure

    async def _export(self, tenant_id: str, count: int, stop: asyncio.Event) -> None:
        """So many receipts of a tenant; they are written when a batch is full."""
        try:
            known, after = await self._receipts.exported(tenant_id), 0
            while count > 0 and not stop.is_set():
                receipts = await self._receipts.read(tenant_id, after, count)
                if not receipts:
                    break
                self._notice_gaps(tenant_id, after or known, receipts)
                count -= len(receipts)
                after = receipts[-1].number
                self._batch.setdefault(tenant_id, []).extend(receipts)
                self._size += len(receipts)
                if self._size >= BATCH:
                    await self._flush()
        except GatewayError as error:
            self._fails(tenant_id, error)

    def _notice_gaps(self, tenant_id: str, before: int, receipts: list[Receipt]) -> None:
        for receipt in receipts:
            lost = receipt.number - before - 1
            if lost > 0:
                _LOG.error("receipts %d to %d of %s are lost", before + 1, receipt.number - 1, tenant_id)
                self._lost += lost
            before = receipt.number

    async def _flush(self) -> None:
        """Write what was gathered; when it is safe, remove it."""
        batch, self._batch, self._size = self._batch, {}, 0
        days: dict[int, list[bytes]] = {}
        for tenant_id, receipts in batch.items():
            for receipt in receipts:
                days.setdefault(receipt.settled_ms // _DAY_MS, []).append(line_of(tenant_id, receipt))
        for day, lines in sorted(days.items()):
            self._files.append(date.fromordinal(_EPOCH_DAY + day), lines)
        self._totals.lost += self._lost
        self._lost = 0
        self._totals.receipts += sum(map(len, batch.values()))
        self._totals.tenants.update(batch)
        self._safe.update({tenant_id: receipts[-1] for tenant_id, receipts in batch.items()})
        await self._remove()

    async def _remove(self) -> None:
        failed = await self._receipts.remove(self._safe) if self._safe else {}
        self._safe = {tenant_id: last for tenant_id, last in self._safe.items() if tenant_id in failed}
        for tenant_id, error in failed.items():
            self._fails(tenant_id, error)

    def _fails(self, tenant_id: str, error: Exception) -> None:
        _LOG.error("receipts of %s cannot be exported: %r", tenant_id, error)
        self._failure = error


async def follow(
    opened: Callable[[], AbstractAsyncContextManager[ReceiptStore]],
    files: ReceiptFiles,
    totals: Totals,
    every_s: float,
    stop: asyncio.Event,
) -> None:
    """Export again and again until ``stop`` is set. What fails is tried again, with pauses that grow to half a minute.

    ``opened`` opens the store, which need not be there yet. Raises ConfigurationError.
    """
    failures = 0
    while not stop.is_set():
        try:
            async with opened() as receipts:
                exporter = Exporter(receipts, files, totals)
                tidied = float("-inf")
                while not stop.is_set():
                    try:
                        with _damage_logged():
                            await exporter.run(stop)
                        now = asyncio.get_running_loop().time()
                        if tidied + TIDY_EVERY_S <= now:
                            with _damage_logged():
                                await exporter.tidy()
                            tidied = now
                        failures, pause_s = 0, every_s
                    except (GatewayError, OSError) as error:
                        pause_s = _pause(failures, error)
                        failures += 1
                    await _wait(stop, pause_s)
        except GatewayError as error:  # it cannot be opened
            await _wait(stop, _pause(failures, error))
            failures += 1


@contextlib.contextmanager
def _damage_logged() -> Iterator[None]:
    """What is damaged, a tenant's stream most likely, is not mended by a pause, and everybody else goes on."""
    try:
        yield
    except InternalError as error:
        _LOG.error("something in the store is damaged: %r", error.__cause__ or error)


def _pause(failures: int, error: Exception) -> float:
    pause_s = PAUSES_S[min(failures, len(PAUSES_S) - 1)] * random.uniform(0.5, 1)  # noqa: S311
    _LOG.warning("nothing can be exported now: %s; again in %.1f s", error, pause_s)
    return pause_s


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


def line_of(tenant_id: str, receipt: Receipt) -> bytes:
    """A line of JSON; ASCII, with its newline."""
    document = {
        "id": receipt.id,
        "number": receipt.number,
        "tenant_id": tenant_id,
        "subdomain": tenant_id.rpartition("-")[0],
        "api_key_id": receipt.key_id,
        "rule_id": receipt.rule_id,
        "model": receipt.model,
        "admitted_at": _moment(receipt.admitted_ms),
        "settled_at": _moment(receipt.settled_ms),
        "requests": receipt.requests,
        "input_tokens": receipt.input_tokens,
        "output_tokens": receipt.output_tokens,
        "cached_tokens": receipt.cached_tokens,
        "cost_nano_usd": receipt.cost_nano_usd,
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _moment(ms: int) -> str:
    """RFC 3339 in UTC."""
    second, rest = divmod(ms, 1_000)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"

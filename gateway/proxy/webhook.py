"""Sends webhooks as Standard Webhooks says (https://www.standardwebhooks.com), again and again until one is taken."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Sequence

import stamina
from stamina.instrumentation import set_on_retry_hooks

from gateway import __version__
from gateway.config import Config
from gateway.errors import ConfigurationError, GatewayError, InvalidField
from gateway.forwarder import Forwarder
from gateway.targets import Target, parse_target

PATIENCE_S = 300.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
JITTER_S = 2.0
MARGIN_MS = 5_000

_ERRORS = (GatewayError, TimeoutError)


class Undelivered(Exception):
    """A webhook that nobody took; the message says why, for the log."""


class _NotTaken(Exception):
    """The receiver answered with another status than 2xx. ``pause_s`` is how long it asks to wait, if it does."""

    def __init__(self, status: int, pause_s: float | None) -> None:
        super().__init__(f"it answered {status}")
        self.is_final = status < 500 and status != 429
        self.pause_s = pause_s


def webhook_target(config: Config) -> Target | None:
    """Where webhooks go, checked like the target of a rule. Raises ConfigurationError."""
    url = config.alerts.webhook_url
    if url is None:
        return None
    try:
        return parse_target(url, config.upstream)
    except InvalidField as error:
        raise ConfigurationError(f"alerts.webhook_url: {error.message.removeprefix('target ')}") from None


def signature(key: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: version and base64 of an HMAC-SHA256 over id, time and body, with dots between."""
    signed = hmac.new(key, b"%s.%d.%s" % (event_id.encode(), timestamp, body), hashlib.sha256)
    return f"v1,{base64.b64encode(signed.digest()).decode()}"


class Webhook:
    """One receiver. The forwarder reaches it, so it follows no redirect and goes to no address that targets may not have."""

    def __init__(self, config: Config, target: Target, forwarder: Forwarder) -> None:
        # a target joins paths, so it does not end with a slash; here the path is all there is
        is_folder = (config.alerts.webhook_url or "").endswith("/")
        self._target = target
        self._url = target.url("/" if is_folder else "", "")
        self._forwarder = forwarder
        self._timeout_s = config.alerts.timeout / 1_000
        self.signing_key = config.alerts.signing_key
        self.lease_ms = config.alerts.timeout + round(LONGEST_PAUSE_S * 1_000) + MARGIN_MS
        # the default ones log arguments and add series to a registry of their own
        set_on_retry_hooks(())

    async def send(self, event_id: str, body: bytes, keep: Callable[[], Awaitable[bool]]) -> bool:
        """Send it until it is taken; no two tries begin further than ``lease_ms`` apart.

        ``keep`` is asked before each further try; if it says no, the answer is False. Raises Undelivered after some minutes,
        and at once where trying again would be no use.
        """
        attempts = stamina.retry_context(
            _pause,
            attempts=None,
            timeout=PATIENCE_S,
            wait_initial=FIRST_PAUSE_S,
            wait_max=LONGEST_PAUSE_S,
            wait_jitter=JITTER_S,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    if attempt.num > 1 and not await keep():
                        return False
                    await self._send(event_id, body)
        except (_NotTaken, *_ERRORS) as error:
            raise Undelivered(f"{self._target.origin}: {_reason(error)}") from error
        return True

    async def _send(self, event_id: str, body: bytes) -> None:
        """One try. Raises _NotTaken, GatewayError, TimeoutError."""
        timestamp = int(time.time())
        headers = [
            (b"content-type", b"application/json"),
            (b"user-agent", f"ai-gateway/{__version__}".encode()),
            (b"webhook-id", event_id.encode()),
            (b"webhook-timestamp", b"%d" % timestamp),
        ]
        if self.signing_key is not None:
            headers.append((b"webhook-signature", signature(self.signing_key, event_id, timestamp, body).encode()))
        async with asyncio.timeout(self._timeout_s):
            reply = await self._forwarder.open(self._target, "POST", self._url, headers, body, 0)
        try:
            if not reply.is_success:
                raise _NotTaken(reply.status, _retry_after(reply.raw_headers))
        finally:
            reply.close()


def _reason(error: Exception) -> str:
    if isinstance(error, GatewayError):
        return error.code
    return str(error) or "no answer in time"


def _pause(error: Exception) -> bool | float:
    """Whether to try again, or in how many seconds."""
    if isinstance(error, _NotTaken):
        return False if error.is_final else error.pause_s or True
    return isinstance(error, _ERRORS)


def _retry_after(headers: Sequence[tuple[bytes, bytes]]) -> float | None:
    """In seconds; a date, which the field may also hold, is not looked at."""
    told = next((value for name, value in headers if name.lower() == b"retry-after"), b"")
    return min(float(told), LONGEST_PAUSE_S) if told.isdigit() else None

"""Answers 500 to 504: the gateway, a plugin, the store or the target failed."""

from __future__ import annotations

from typing import Any

from gateway.errors.base import GatewayError


class PluginFailed(GatewayError):
    """A plugin raised or ran past its deadline before anything was forwarded."""

    code = "plugin_failed"
    default_message = "A plugin of this route failed."


class PluginFailedOnReply(PluginFailed):
    """A plugin raised or ran past its deadline after the upstream had answered."""

    status = 502


# 502, 503, 504


class UpstreamUnreachable(GatewayError):
    """No connection to the target, or it broke before the reply head."""

    status, code = 502, "upstream_unreachable"
    default_message = "The target of this route cannot be reached."


class BreakerOpen(UpstreamUnreachable):
    """Requests to the target have failed one after the other, so this one was not sent."""

    noted_code = "breaker_open"
    default_message = "The target of this route has failed several times in a row and is not asked for a moment; try again."


class UpstreamAuthFailed(GatewayError):
    """The target refused the gateway's own credentials; its body could name them and is withheld."""

    status, code = 502, "upstream_auth_failed"
    default_message = "The target of this route refused the gateway's credentials."


class UpstreamTimeout(GatewayError):
    """The target did not answer in time."""

    status, code = 504, "upstream_timeout"
    default_message = "The target of this route did not answer in time."


class StoreUnavailable(GatewayError):
    """Redis did not answer, or not in time. Nothing was decided, so nothing was forwarded."""

    status, code = 503, "store_unavailable"
    default_message = "The gateway's store is not available; try again."

    def __init__(self, message: str | None = None, **facts: Any) -> None:
        facts.setdefault("headers", (("retry-after", "1"),))
        super().__init__(message, **facts)


class StoreAway(StoreUnavailable):
    """Redis was not even asked, because it does not answer or cannot be reached: no part of the call can have happened."""


class Overloaded(StoreUnavailable):
    """More work in flight than this replica takes."""

    code = "overloaded"
    default_message = "The gateway is overloaded; try again."


class Draining(StoreUnavailable):
    """This replica is shutting down."""

    code = "draining"
    default_message = "This replica is shutting down; try again."

"""The border at which exceptions of Redis clients become the gateway's own."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

from gateway.errors import InternalError, Overloaded, StoreAway, StoreUnavailable
from gateway.store.breaker import NotSent

_log = logging.getLogger("gateway.store")

_AUTH = (
    redis_errors.AuthenticationError,
    redis_errors.AuthorizationError,
    redis_errors.AuthenticationWrongNumberOfArgsError,
    redis_errors.NoPermissionError,
)
# What Redis and Valkey say; another server could repeat the password.
_SAID_OF_LOGIN = re.compile(
    r"Authentication required\.|invalid username-password pair or user is disabled\."
    r"|(?:this user|User [\w.-]{1,64}) has no permissions to (?:run the '[\w|]+' command|access one of the (?:keys|channels))"
)
_UNAVAILABLE = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.InvalidResponse,
    redis_errors.ClusterError,
    redis_errors.SlotNotCoveredError,
    redis_errors.AskError,
    redis_errors.TryAgainError,
    redis_errors.ReadOnlyError,
    redis_errors.OutOfMemoryError,
    OSError,
)
# What has no class of its own, and what Redis 6 wraps in an error of the script: "ERR Error running script …: -OOM command …".
_UNAVAILABLE_CODE = re.compile(r"(?:^|caused error: |: -)(?:BUSY|READONLY|OOM|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN)\b")
# What a script was not allowed, by Redis and by Valkey; of everything else they say NOPERM.
_DENIED = re.compile(r"The user executing the script can't (?:run|access)|ACL failure in script|\bNOPERM\b")
_TOPOLOGY = re.compile(r"Redis Cluster cannot be connected|All slots are not covered|could not agree")


def is_denied(message: str) -> bool:
    """Whether a server says that the user of the connection may not do this."""
    return _DENIED.search(message) is not None


def store_error(error: Exception) -> Exception:
    """The gateway's error for an exception of redis-py; ``NoScriptError`` comes back as it is, for the script runner.

    For the replies of a pipeline, which are values. Overloaded: no free connection in time. StoreUnavailable: Redis did not
    answer or may not be asked now; StoreAway: it was not asked. InternalError: everything else is a bug. What it says about a
    refused login is logged, never part of the message.
    """
    if isinstance(error, redis_errors.NoScriptError):
        return error
    if isinstance(error, NotSent):
        mapped = store_error(error.__cause__) if isinstance(error.__cause__, Exception) else StoreUnavailable()
        return StoreAway() if type(mapped) is StoreUnavailable else mapped
    if isinstance(error, redis_errors.MaxConnectionsError):
        return Overloaded()
    if refusal := _refusal(error):
        said = _SAID_OF_LOGIN.match(str(refusal))
        _log.error("Redis refuses the gateway's user or password: %s", said[0] if said else type(refusal).__name__)
        return StoreUnavailable()
    if is_denied(str(error)):
        return StoreUnavailable()  # the runner of scripts has said what, where it was one
    unavailable = isinstance(error, _UNAVAILABLE) or (
        _TOPOLOGY if isinstance(error, redis_errors.RedisClusterException) else _UNAVAILABLE_CODE
    ).search(str(error))
    return StoreUnavailable() if unavailable else InternalError()


def _refusal(error: BaseException | None) -> BaseException | None:
    """What a server has refused, also where redis-py calls it something else, such as "cluster mode is not enabled"."""
    while error is not None and not isinstance(error, _AUTH):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def store_errors() -> Iterator[None]:
    """Inside, exceptions of redis-py and timeouts become those of ``store_error``, chained to the original."""
    try:
        yield
    except (redis_errors.RedisError, redis_errors.RedisClusterException, OSError) as error:
        mapped = store_error(error)
        if mapped is error:
            raise
        raise mapped from error

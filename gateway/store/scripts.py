"""Runs the Lua scripts: loads them on every primary, calls them by digest, traces their errors back to a file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from gateway.errors import ConfigurationError, InternalError
from gateway.store.connect import Connection, Node
from gateway.store.failures import is_denied, store_error, store_errors
from gateway.store.script_source import Script

_LOG = logging.getLogger("gateway.store")

FIRST_VERSION_WITH_SHEBANG = (7, 0)

Argument = str | bytes


class ScriptRunner:
    """Every decision and every write that touches more than one key goes through here.

    A script is never sent twice for one call, but for the one case in which it cannot have run: the server does not know it.
    """

    def __init__(self, connection: Connection, scripts: Mapping[str, Script]) -> None:
        self._connection = connection
        self._scripts = dict(scripts)
        self._shas = {name: script.sha for name, script in self._scripts.items()}

    async def start(self, *, shebang: bool | None = None) -> None:
        """Load every script and check that the server names it as we do. Raises StoreUnavailable, ConfigurationError.

        ``shebang`` overrides what follows from the server's version.
        """
        if shebang is None:
            shebang = await self._connection.server_version() >= FIRST_VERSION_WITH_SHEBANG
        if shebang:
            self._scripts = {name: script.with_shebang() for name, script in self._scripts.items()}
        self._shas = {name: script.sha for name, script in self._scripts.items()}
        with store_errors():
            for primary in await self._connection.primaries():
                for script in self._scripts.values():
                    await self._load(primary, script)

    async def _load(self, primary: Node, script: Script) -> None:
        try:
            answered = await primary.execute_command("SCRIPT LOAD", script.body)
        except ResponseError as error:
            raise ConfigurationError(f"lua/{script.name}.lua: {script.locate(str(error))}") from None
        named = answered.decode() if isinstance(answered, bytes) else str(answered)
        if named != script.sha:
            raise ConfigurationError(f"lua/{script.name}.lua: the server calls it {named}, we call it {script.sha}")

    async def call(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> list[Any]:
        """Run a script once. Raises StoreUnavailable, Overloaded, or InternalError if the script itself fails."""
        send = self._connection.scripts.call
        with store_errors():
            try:
                try:
                    reply = await send("EVALSHA", self._shas[name], len(keys), *keys, *arguments)
                except NoScriptError:
                    reply = await send("EVAL", self._scripts[name].body, len(keys), *keys, *arguments)
            except ResponseError as error:
                self._explain(name, keys, error)
                raise
        if not isinstance(reply, list):
            raise InternalError from AssertionError(f"{name}.lua replied {reply!r}")
        return reply

    async def call_each(
        self, name: str, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]
    ) -> list[list[Any] | Exception]:
        """Run a script once for each of these keys and arguments, all sent at once. What fails is an error in its place."""
        replies = await self._send_each("EVALSHA", self._shas[name], calls)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            again = await self._send_each("EVAL", self._scripts[name].body, [calls[index] for index in unknown])
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        for (keys, _), reply in zip(calls, replies, strict=True):
            if isinstance(reply, ResponseError):
                self._explain(name, keys, reply)
        return [store_error(reply) if isinstance(reply, Exception) else reply for reply in replies]

    async def _send_each(
        self, command: str, script: str, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]
    ) -> list[Any]:
        send = self._connection.scripts.call
        return await asyncio.gather(
            *(send(command, script, len(keys), *keys, *arguments) for keys, arguments in calls), return_exceptions=True
        )

    def failure(self, name: str, message: str) -> InternalError:
        """The error of a part of a call; the script tells of it in its reply, because the other parts were done."""
        self._explain(name, (), ResponseError(message))
        return InternalError()

    def _explain(self, name: str, keys: Sequence[str], error: ResponseError) -> None:
        message, script = str(error), self._scripts[name]
        if is_denied(message):
            _LOG.error("Redis does not let the gateway's user run %s: %s", script.command_at(message), script.locate(message))
        elif "user_script" in message:
            # its first key tells whose data it was called for
            whose = f" for {keys[0]}" if keys else ""
            _LOG.error("lua/%s.lua failed%s: %s", name, whose, script.locate(message))

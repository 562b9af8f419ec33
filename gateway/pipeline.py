"""The chain of one rule: plugins sorted once when it is compiled, run stage by stage."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple

from gateway.awaiting import within_at_last
from gateway.errors import GatewayError, PluginFailed, PluginFailedOnReply
from gateway.models import LimitSpec, OnError, Stage
from gateway.plugin import Exchange, LimitScope, Plugin
from gateway.soundness import Kept, Unsound, check_refusal

_LOG = logging.getLogger("gateway.plugin")

AnyPlugin = Plugin[object]  # type: ignore[type-var]
OnFailure = Callable[[str, Stage], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A plugin at its place. ``required`` entries are the tenant's own and stand before the rule's at equal priority."""

    name: str
    plugin: AnyPlugin
    priority: int
    on_error: OnError
    required: bool

    def has_step(self, stage: Stage) -> bool:
        """True if there is something to run: limits take effect in a stage that the plugin itself may not define."""
        return self.plugin.runs_in(stage) and getattr(type(self.plugin), stage.value) is not getattr(Plugin, stage.value)


@dataclass(frozen=True, slots=True)
class Stopped:
    """The entry at which the chain ended before the target was asked: by ``error``, or by an answer if that is None."""

    index: int
    error: GatewayError | None


@dataclass(frozen=True, slots=True)
class _Step:
    index: int
    name: str
    run: Callable[[Exchange], Awaitable[None]]
    skip_on_error: bool


class Running(NamedTuple):
    """A plugin at work."""

    plugin: str
    stage: Stage
    request_id: str


class Chain:
    """Immutable; one instance serves every request of a rule until the configuration changes.

    ``observes``, ``sees_request`` and ``sees_reply`` say whether there is anything to run after the reply, before the target
    is asked, and between its reply and the client.
    """

    def __init__(self, entries: Sequence[Entry], timeout_ms: int, on_failure: OnFailure) -> None:
        # sorted() is stable: ties keep their position
        self.entries = tuple(sorted(entries, key=lambda entry: (entry.priority, not entry.required)))
        self._timeout = timeout_ms / 1_000
        self._on_failure = on_failure
        self._steps = {stage: self._steps_of(stage) for stage in Stage}
        self.needs_request_body = any(
            entry.plugin.needs_request_body for entry in self.entries if entry.plugin.runs_in(Stage.PRE_REQUEST)
        )
        self.needs_reply_body = any(
            entry.plugin.needs_reply_body for entry in self.entries if entry.plugin.runs_in(Stage.PRE_RESPONSE)
        )
        self.observes = bool(self._steps[Stage.POST_RESPONSE])
        self.sees_request = bool(self._steps[Stage.PRE_REQUEST])
        self.sees_reply = bool(self._steps[Stage.POST_REQUEST] or self._steps[Stage.PRE_RESPONSE])

    def _steps_of(self, stage: Stage) -> tuple[_Step, ...]:
        return tuple(
            _Step(index, entry.name, getattr(entry.plugin, stage.value), entry.on_error == "skip")
            for index, entry in enumerate(self.entries)
            if entry.has_step(stage)
        )

    def reads_request_body_before(self, index: int | None) -> bool:
        """True if an entry that stands before ``index`` (None: any entry) needs the request body."""
        return self.needs_request_body and any(
            entry.plugin.needs_request_body and entry.plugin.runs_in(Stage.PRE_REQUEST)
            for entry in self.entries[: None if index is None else max(0, index)]
        )

    def limits(self, tier: str) -> list[tuple[int, Entry, LimitSpec]]:
        """Every declared limit with the index of its entry."""
        found: list[tuple[int, Entry, LimitSpec]] = []
        for index, entry in enumerate(self.entries):
            scope = LimitScope(tier, ("tenant",) if entry.required else ("rule",))
            found.extend((index, entry, spec) for spec in entry.plugin.limits(scope))
        return found

    async def pre_request(
        self, exchange: Exchange, refused_at: int | None, refusal: GatewayError | None, *, without: Container[int] = ()
    ) -> Stopped | None:
        """Run the stage. A refusal by limits takes effect at the place of the entry that declared the first of them.

        ``without`` has the indexes of entries that a dry run must not call.
        """
        if refused_at is not None and refused_at < 0:
            return Stopped(refused_at, refusal)
        for step in self._steps[Stage.PRE_REQUEST]:
            if refused_at is not None and step.index > refused_at:
                break
            if step.index != refused_at and step.index not in without:
                try:
                    await self._run(step, Stage.PRE_REQUEST, exchange, PluginFailed)
                except GatewayError as error:
                    return Stopped(step.index, error)
                if exchange.answer is not None:
                    return Stopped(step.index, None)
        return None if refused_at is None else Stopped(refused_at, refusal)

    async def post_request(self, exchange: Exchange) -> None:
        """Run the stage. Raises what a plugin rejects with, or PluginFailedOnReply."""
        for step in self._steps[Stage.POST_REQUEST]:
            await self._run(step, Stage.POST_REQUEST, exchange, PluginFailedOnReply)

    async def pre_response(self, exchange: Exchange) -> None:
        """Run the stage. Raises what a plugin rejects with, or PluginFailedOnReply."""
        for step in self._steps[Stage.PRE_RESPONSE]:
            await self._run(step, Stage.PRE_RESPONSE, exchange, PluginFailedOnReply)

    async def post_response(self, exchange: Exchange) -> None:
        """Run the stage; whatever fails is logged and counted, and the next plugin still runs."""
        for step in self._steps[Stage.POST_RESPONSE]:
            try:
                await self._run(step, Stage.POST_RESPONSE, exchange, PluginFailed)
            except GatewayError:
                continue

    async def _run(self, step: _Step, stage: Stage, exchange: Exchange, failure: type[PluginFailed]) -> None:
        kept = None
        try:
            kept = Kept(exchange)
            try:
                await within_at_last(self._timeout, step.run(exchange))
            except GatewayError as error:
                check_refusal(error)
                with contextlib.suppress(Unsound):
                    kept.check(exchange)
                    raise
                kept.restore(exchange)
                raise
            kept.check(exchange)
        except GatewayError:
            raise
        except BaseException as error:
            # also SystemExit and KeyboardInterrupt, which would end the process, groups of what is no Exception, and a
            # cancellation that nobody but the plugin asked for
            task = asyncio.current_task()
            if task is None or (isinstance(error, asyncio.CancelledError) and task.cancelling()):
                raise
            if kept is not None:
                kept.restore(exchange)
            self._on_failure(step.name, stage)
            _LOG.exception("plugin %s failed in %s of request %s", step.name, stage.value, exchange.request_id)
            if not step.skip_on_error:
                raise failure from None


def running_in(frame: FrameType | None) -> Running | None:
    """Which plugin's code a thread is in, by its innermost frame; so a request need not note where it is."""
    while frame is not None:
        if frame.f_code is Chain._run.__code__:
            seen = frame.f_locals
            return Running(seen["step"].name, seen["stage"], seen["exchange"].request_id)
        frame = frame.f_back
    return None

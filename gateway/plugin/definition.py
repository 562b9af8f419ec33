"""What a plugin is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict

from gateway.models import LimitSpec, Stage
from gateway.plugin.exchange import Exchange


class Settings(BaseModel):
    """Base of a plugin's settings: frozen, closed to unknown fields, and its own JSON Schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class LimitScope:
    """Where limits are declared: the tenant's tier, and what they count for unless they say otherwise."""

    tier: str
    default_per: tuple[str, ...]


class Plugin(Generic[S]):
    """One behaviour in a chain. One instance serves every request of its chain entry, so it keeps no request state.

    A stage is a method; a stage that is not defined does not run. Raise `Reject` to refuse, set ``exchange.answer`` to
    answer instead of the target. Anything else that is raised is a failure of the plugin: the request is refused, or
    with ``on_error: skip`` goes on without it.
    """

    name: ClassVar[str] = ""
    settings_type: ClassVar[type[Settings]] = Settings
    dry_run: ClassVar[bool] = False
    """True if `pre_request` does nothing but read and change the exchange, so that a dry run may call it."""

    def __init__(self, settings: S, stage: Stage | None = None) -> None:
        self.settings = settings
        self.stage = stage
        self.prepare()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in getattr(cls, "__orig_bases__", ()):
            arguments = get_args(base)
            if get_origin(base) is Plugin and isinstance(arguments[0], type):
                cls.settings_type = arguments[0]

    def prepare(self) -> None:
        """Compile what the settings say, once, before the first request."""

    @property
    def needs_request_body(self) -> bool:
        """True if `pre_request` reads ``exchange.request.body``; otherwise bodies are streamed past the plugin."""
        return False

    @property
    def needs_reply_body(self) -> bool:
        """True if `pre_response` reads ``exchange.reply.body``; otherwise it is streamed past the plugin.

        A reply of the type ``text/event-stream`` is streamed all the same: its ``body`` stays None.
        """
        return False

    def limits(self, scope: LimitScope) -> Sequence[LimitSpec]:
        """Limits to decide before the first plugin runs; a refusal takes effect at this plugin's place."""
        del scope
        return ()

    async def pre_request(self, exchange: Exchange) -> None:
        """Before anything is forwarded: change the request, answer it, or reject it."""

    async def post_request(self, exchange: Exchange) -> None:
        """The request is forwarded, the reply head known, its body unread: note something, or reject."""

    async def pre_response(self, exchange: Exchange) -> None:
        """Before the first byte goes to the client: change status, headers and (if needed) body, or reject."""

    async def post_response(self, exchange: Exchange) -> None:
        """After the last byte, or after the client left: observe only."""

    @classmethod
    def stages(cls) -> tuple[Stage, ...]:
        """The stages this plugin defines, in the order they run. Limits take effect in `pre_request`."""
        defined = {stage for stage in Stage if getattr(cls, stage.value) is not getattr(Plugin, stage.value)}
        if cls.limits is not Plugin.limits:
            defined.add(Stage.PRE_REQUEST)
        return tuple(stage for stage in Stage if stage in defined)

    def runs_in(self, stage: Stage) -> bool:
        """True if this entry takes part in the stage."""
        return stage in self.stages() and self.stage in (None, stage)

"""Requests, tokens and money per window and in quotas, requests in flight, bursts, and other limits for other tiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from gateway.plugin import Limit, LimitScope, LimitSpec, Plugin, Settings, limit_specs

MAX_LIMITS = 16

TierName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]

_INHERITED = ("per", "shadow", "alert_at")
_OF_ONE_LIMIT = ("name", "cost", "on_lost")


def _at(field: str, message: str) -> ValidationError:
    """An error at a field, which a model validator cannot otherwise say."""
    line = InitErrorDetails(type=PydanticCustomError("missing", "{message}", {"message": message}), loc=(field,), input=None)
    return ValidationError.from_exception_data("settings", [line])


class Limits(Limit, Settings):
    """One limit written directly, and/or several under ``limits``."""

    limits: Annotated[tuple[Limit, ...], Field(min_length=1, max_length=MAX_LIMITS)] | None = Field(
        None,
        description="Several limits at once; `unit`, `per`, `shadow` and `alert_at` beside it hold for those that do not set"
        " them, but not the unit `concurrency`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _hand_down_the_unit(cls, given: Any) -> Any:
        """What amounts are right depends on the unit, so it is handed down before they are looked at."""
        unit = given.get("unit") if isinstance(given, dict) else None
        # what else a limit has depends on whether it counts requests in flight, so that is not inherited
        if not isinstance(unit, str) or unit == "concurrency":
            return given
        filled = dict(given)
        if isinstance(given.get("limits"), list | tuple):
            filled["limits"] = [_with_unit(limit, unit) for limit in given["limits"]]
        if isinstance(given.get("tiers"), dict):
            filled["tiers"] = {name: _with_unit(tier, unit) for name, tier in given["tiers"].items()}
        return filled

    # the names are those of `Limit`'s own checks, which these replace: here the direct form may be absent
    @field_validator("alert_at")
    @classmethod
    def _alerts_fit(cls, alert_at: Any, _info: ValidationInfo) -> Any:
        return alert_at

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.unit == "concurrency":
            if self.limit is None:
                raise _at("limit", "unit concurrency needs limit; it is not inherited")
        elif self.limit is not None and self.window is None:
            raise _at("window", "limit and window belong together")
        if self.window is not None and self.limit is None:
            raise _at("limit", "limit and window belong together")
        if self.burst is not None and self.limit is None:
            raise _at("limit", "burst needs limit and window")
        if self._has_own:
            self._own()
        elif beside := next((name for name in _OF_ONE_LIMIT if name in self.model_fields_set), None):
            raise _at("limit", f"{beside} belongs to a limit")
        elif not self._has_more:
            raise _at("limit", "nothing is limited without limit and window, quota, limits or tiers")
        if self.per is not None and not self.per:
            raise ValueError("per must not be empty")
        if self.alert_at is not None and not self._has_quota:
            raise _at("alert_at", "needs a quota")
        return self

    @property
    def _has_own(self) -> bool:
        return self.limit is not None or self.quota is not None

    @property
    def _has_more(self) -> bool:
        return self.limits is not None

    @property
    def _has_quota(self) -> bool:
        return self.quota is not None or any(limit.quota is not None for limit in self.limits or ())

    def _own(self) -> Limit:
        given = {name: getattr(self, name) for name in Limit.model_fields if name in self.model_fields_set}
        if self.quota is None:
            given.pop("alert_at", None)  # it is for the quotas among the others
        if self.window is not None:
            given["window"] = f"{self.window}ms"  # a bare number would be read as seconds
        return Limit(**given)

    def declared(self, *outer: Limits) -> list[Limit]:
        """All limits of this level. What they leave out is taken from here, then from ``outer``."""
        own = [self._own()] if self._has_own else []
        return [_filled(limit, (self, *outer)) for limit in (*own, *(self.limits or ()))]


def _with_unit(given: Any, unit: str) -> Any:
    return {"unit": unit, **given} if isinstance(given, dict) else given


def _filled(limit: Limit, levels: tuple[Limits, ...]) -> Limit:
    found = {}
    for name in _INHERITED:
        source = next((level for level in (limit, *levels) if name in level.model_fields_set), limit)
        found[name] = getattr(source, name)
    return limit.model_copy(update=found)


class Tier(Limits):
    """The limits of one tier."""


class RateLimiterSettings(Limits):
    """Settings of `rate_limiter`. Everything declared holds at once; the strictest limit decides."""

    tiers: Annotated[dict[TierName, Tier], Field(min_length=1, max_length=50)] | None = Field(
        None, description="Further limits, chosen by the tenant's tier. Needs `default_tier`."
    )
    default_tier: str | None = Field(None, description="The tier whose limits hold for tenants of a tier that is not listed.")

    @property
    def _has_more(self) -> bool:
        return self.limits is not None or self.tiers is not None

    @property
    def _has_quota(self) -> bool:
        return super()._has_quota or any(tier._has_quota for tier in (self.tiers or {}).values())

    @model_validator(mode="after")
    def _default_tier_exists(self) -> Self:
        if self.tiers is None:
            if self.default_tier is not None:
                raise _at("tiers", "are required: default_tier chooses one of them")
            return self
        if self.default_tier is None:
            raise _at("default_tier", "is required: without it, a tenant of a tier that is not listed would have no limit")
        if self.default_tier not in self.tiers:
            raise _at("default_tier", f"must be one of the tiers: {', '.join(self.tiers)}")
        return self

    def for_tier(self, tier: str) -> list[Limit]:
        """The limits of a tenant of this tier."""
        if self.tiers is None or self.default_tier is None:
            return self.declared()
        chosen = self.tiers.get(tier) or self.tiers[self.default_tier]
        return self.declared() + chosen.declared(self)


class RateLimiter(Plugin[RateLimiterSettings]):
    """Limits requests, tokens and money: per window, with bursts, per day, week and month, in flight, and by tier."""

    name = "rate_limiter"
    dry_run = True

    def limits(self, scope: LimitScope) -> Sequence[LimitSpec]:
        """What is declared for the tenant's tier. The decision is the store's, the refusal comes at this plugin's place."""
        return limit_specs(self.settings.for_tier(scope.tier), scope.default_per)

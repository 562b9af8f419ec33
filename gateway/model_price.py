"""What a model costs, as people write it: in the configuration, for a tenant or in a rule.

Stands below the configuration and the documents because both contain it.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from gateway.money import UsdPerMtok

MAX_PRICES = 200


class ModelPrice(BaseModel):
    """Prices in USD, those of tokens for a million. What is unset costs what the wider class costs that it belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    input_usd_per_mtok: UsdPerMtok = Field(description="Tokens that the model reads.")
    output_usd_per_mtok: UsdPerMtok = Field(description="Tokens that the model writes, reasoning among them.")
    cached_input_usd_per_mtok: UsdPerMtok | None = Field(
        None, description="Tokens read from the provider's cache; unset means the price of input."
    )
    cache_write_usd_per_mtok: UsdPerMtok | None = Field(
        None, description="Tokens written to the provider's cache; unset means the price of input."
    )
    audio_input_usd_per_mtok: UsdPerMtok | None = Field(
        None, description="Audio that the model hears; unset means the price of input."
    )
    audio_output_usd_per_mtok: UsdPerMtok | None = Field(
        None, description="Audio that the model speaks; unset means the price of output."
    )
    request_usd: UsdPerMtok = Field(Decimal(0), description="Each request, besides its tokens.")


ModelPattern = Annotated[str, Field(pattern=r"^[^\s*\x00-\x1f\x7f]{1,200}\*?$|^\*$")]
"""A model's name, or the beginning of one followed by ``*``; ``*`` alone is every model."""

Prices = Annotated[dict[ModelPattern, ModelPrice], Field(max_length=MAX_PRICES)]
"""Prices by the names of models. An exact name wins over the longest beginning."""

"""What tenants use, and what it costs."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from gateway.config.fields import Section
from gateway.model_price import ModelPrice, Prices
from gateway.units import DurationMs

DAY_MS = 86_400_000
MAX_RETENTION_DAYS = 3_660


class UsageSettings(Section):
    """The ledger of what tenants use, and receipts for a billing system."""

    retention: Annotated[DurationMs, Field(ge=32 * DAY_MS, le=MAX_RETENTION_DAYS * DAY_MS)] = Field(
        400 * DAY_MS,
        description="How long the sums of a day are kept, `32d` to `3660d`: monthly quotas that the store has lost are"
        " restored from them.",
    )
    receipts: bool = Field(
        False,
        description="Keep a receipt of each settled request until `gateway export-usage` has written it to a file. The same for"
        " every replica; needs Redis 7 or Valkey.",
    )
    max_receipts: int = Field(
        1_000_000,
        ge=1_000,
        le=1_000_000_000,
        description="About so many receipts a tenant wait for their export; beyond that the oldest are dropped, and the export"
        " says how many.",
    )


class PricesSettings(Section):
    """What models cost, where a rule or a tenant says nothing else."""

    unknown_model: Literal["price", "refuse"] = Field(
        "price",
        description="A model whose price nobody knows: `price` counts it at `fallback`, `refuse` answers 400 where a limit in"
        " USD applies.",
    )
    fallback: ModelPrice = Field(
        ModelPrice(input_usd_per_mtok=Decimal(30), output_usd_per_mtok=Decimal(180)),
        description="The price of unknown models. The default is that of the dearest models that are in general use:"
        " an unknown one should rather be charged too much than too little.",
    )
    models: Prices = Field(
        {},
        description="Prices by the name of the model, or by its beginning and `*`; they win over the catalogue.",
        examples=[{"my-model": {"input_usd_per_mtok": 0.5, "output_usd_per_mtok": 1.5}}],
    )

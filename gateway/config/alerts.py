"""The section `alerts`."""

from __future__ import annotations

import base64
import binascii

from pydantic import Field, SecretStr, field_validator

from gateway.config.fields import PositiveMs, Section

SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with
LEAST_SECRET_BYTES, MOST_SECRET_BYTES = 24, 64


def _key_of(secret: str) -> bytes:
    """Raises ValueError."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    if not LEAST_SECRET_BYTES <= len(key) <= MOST_SECRET_BYTES:
        raise ValueError
    return key


class AlertsSettings(Section):
    """Who is told when limits reach their `alert_at`."""

    webhook_url: str | None = Field(
        None,
        description="Where webhooks are sent: `https://…`, or `http://…` inside `upstream.allowed_networks`; no query. Unset"
        " means that alerts are told in headers and metrics only.",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="Signs webhooks (Standard Webhooks): `whsec_` and 24 to 64 random bytes as base64. Unset means unsigned.",
    )
    timeout: PositiveMs = Field(15_000, description="Longest wait for the answer to a webhook, each try.")

    @field_validator("webhook_secret")
    @classmethod
    def _strong_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                _key_of(value.get_secret_value())
            except (ValueError, binascii.Error):
                raise ValueError("must be whsec_ followed by 24 to 64 bytes as base64") from None
        return value

    @property
    def signing_key(self) -> bytes | None:
        """The bytes of the secret."""
        return None if self.webhook_secret is None else _key_of(self.webhook_secret.get_secret_value())

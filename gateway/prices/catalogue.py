"""Public prices (interface; the data follows)."""

from __future__ import annotations

from gateway.prices.price import Price


class Catalogue:
    """Public prices of providers' models."""

    def find(self, model: str, host: str = "") -> Price | None:
        """The price of a model where ``host`` serves it; None if it is not known."""
        return None

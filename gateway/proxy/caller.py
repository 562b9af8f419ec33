"""Who sends a request, as far as that is known before the store is asked."""

from __future__ import annotations

from typing import NamedTuple


class Caller(NamedTuple):
    """Which tenant a request is for, and the digest of its key; empty if the host names none, or for no usable key.

    ``is_known`` says that this replica has seen both in the store; whether they still hold, the admission decides.
    """

    subdomain: str
    digest: str
    by_host: bool
    is_known: bool

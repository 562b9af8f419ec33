"""Which tenant a Host header names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from gateway.errors import MissingHost
from gateway.policy import CLOSE

CACHED_HOSTS = 4_096

_AUTHORITY = re.compile(
    r"(\[[0-9A-Fa-f:.%]{2,64}\]|(?=[^:]{1,254}(?::|$))[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.?(:[0-9]{1,5})?"
)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class TenantDomains:
    """The base domains: a tenant is exactly one label directly under one of them."""

    def __init__(self, domains: Sequence[str]) -> None:
        self._suffixes = tuple(f".{domain}" for domain in domains)
        self.subdomain_of = lru_cache(CACHED_HOSTS)(self._subdomain_of)

    def _subdomain_of(self, authority: str) -> str | None:
        """The tenant's label, or None on every other host. Raises MissingHost for what is no authority.

        Label boundaries count: neither ``a.b.example.com`` nor ``aexample.com`` names a tenant.
        """
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            raise MissingHost(param="Host", headers=CLOSE)
        host = match[1].lower()
        for suffix in self._suffixes:
            label = host.removesuffix(suffix)
            if label != host and _LABEL.fullmatch(label):
                return label
        return None

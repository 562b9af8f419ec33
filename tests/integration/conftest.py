"""Fixtures of tests that serve a whole proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.gateways import Gateway, running_proxy
from tests.servers import Server
from tests.stores import valkey_store_server

__all__ = ["valkey_store_server"]


@pytest.fixture
def store_url(valkey_store_server: Server) -> str:
    """An empty store."""
    valkey_store_server.command("FLUSHALL")
    return valkey_store_server.url


@pytest.fixture
async def gateway(store_url: str) -> AsyncIterator[Gateway]:
    """A proxy with the default configuration, in front of an empty store."""
    async with running_proxy(store_url) as running:
        yield running

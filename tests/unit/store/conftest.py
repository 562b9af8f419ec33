"""Fixtures of the store's tests."""

from __future__ import annotations

import pytest

from gateway.store import Stores
from tests.gate import Gate
from tests.stores import *  # noqa: F403


@pytest.fixture
async def gate(stores: Stores) -> Gate:
    """A tenant and a key in front of limits, on each kind of server."""
    return await Gate(stores).prepare()


@pytest.fixture
async def real_gate(real_stores: Stores) -> Gate:
    """The same on real servers only."""
    return await Gate(real_stores).prepare()

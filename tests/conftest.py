"""For all tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.no_secrets import KeyFinder

# how long an example takes says more about what else the machine does than about the code
settings.register_profile("gateway", deadline=None)
settings.load_profile("gateway")


@pytest.fixture(scope="session")
def key_finder() -> Iterator[KeyFinder]:
    """Listens to every logger for as long as tests run, and to the gateway's from debug on."""
    finder, ours = KeyFinder(), logging.getLogger("gateway")
    logging.getLogger().addHandler(finder)
    before = ours.level
    ours.setLevel(logging.DEBUG)
    yield finder
    ours.setLevel(before)
    logging.getLogger().removeHandler(finder)


@pytest.fixture(autouse=True)
def no_key_is_logged(key_finder: KeyFinder) -> Iterator[None]:
    """No log line of a test may hold a whole virtual key."""
    yield
    found, key_finder.found = key_finder.found, []
    assert not found, found

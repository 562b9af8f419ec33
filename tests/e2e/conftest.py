"""What all end-to-end tests share: more time, and one gateway as a new user starts it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.e2e.processes import Gateway, a_clean_clone, a_gateway, clean_environment, run
from tests.engines import EXTRAS
from tests.servers import short_directory

TIMEOUT_S = 180
INSTALL_S = 150.0
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Installing packages and starting processes take longer than other tests may."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a path short enough for a unix socket."""
    with short_directory() as path:
        yield path


@pytest.fixture(scope="module")  # no program runs longer than `DEADLINE_S`
def local_gateway() -> Iterator[Gateway]:
    """``gateway run --local --demo`` with an embedded store, open to whoever reaches it."""
    with short_directory() as path, a_gateway(path, "--local", "--demo") as gateway:
        yield gateway


@pytest.fixture(scope="session")
def clone() -> Iterator[Path]:
    """A clone in which nothing is installed yet. Whoever needs more runs its scripts/setup.sh: the second time is quick."""
    with short_directory() as path:
        clone = a_clean_clone(path / "clone")
        if EXTRAS:  # what the engine needs is no part of requirements.lock
            extra = (".venv/bin/python", "-m", "pip", "install", "--quiet", *[f"{name}=={version(name)}" for name in EXTRAS])
            for step in ("scripts/setup.sh",), extra:
                code, output, errors = run(*step, env=clean_environment(path), cwd=clone, seconds=INSTALL_S)
                assert code == 0, output + errors
        yield clone

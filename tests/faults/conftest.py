"""Faults that the gateway must survive; each test is told how often, and what it saw becomes a row of the printed table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.table import FaultRow, merged, printed
from tests.servers import short_directory
from tests.stores import valkey_store_server

__all__ = ["valkey_store_server"]

TIMEOUT_S = 180
HERE = Path(__file__).parent
TRIES = "GATEWAY_FAULT_TRIES"
"""Environment variable: how often each fault is tried; three times unless it is set."""
TABLE = "GATEWAY_FAULT_TABLE"
"""Environment variable: a file to which the table is written as well."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Outages and restarts take longer than other tests may."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S * max(1, tries() // 3)))


def tries() -> int:
    """How often each fault is tried."""
    return int(os.environ.get(TRIES, "3"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that use ``again`` need servers of their own for each try."""
    if "again" in metafunc.fixturenames:
        metafunc.parametrize("again", range(dear_tries()))


def dear_tries() -> int:
    """How often faults are tried that take many seconds: once in an ordinary run."""
    return tries() if tries() > 3 else 1


@pytest.fixture(name="tries")
def _tries() -> int:
    return tries()


@pytest.fixture(name="dear_tries")
def _dear_tries() -> int:
    return dear_tries()


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[FaultRow]:
    """The row of the test's fault; the test says what happened to each try."""
    made = FaultRow(request.node.name)
    yield made
    request.node.user_properties.append(("fault", json.dumps(made.facts())))


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a path short enough for a unix socket."""
    with short_directory() as path:
        yield path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of all faults that were tried, also by other processes."""
    rows = merged(
        json.loads(str(value))
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
        for name, value in report.user_properties
        if name == "fault"
    )
    if not rows:
        return
    text = printed(rows)
    terminalreporter.write_sep("=", "faults")
    terminalreporter.write_line(text)
    if os.environ.get(TABLE):
        Path(os.environ[TABLE]).write_text(text + "\n")

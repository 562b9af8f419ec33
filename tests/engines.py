"""Which HTTP engine the servers of a test run have: ``GATEWAY_TEST_ENGINE``, or the default. See scripts/test.sh."""

import os

import pytest

ENGINE = os.environ.get("GATEWAY_TEST_ENGINE", "hypercorn")
EXTRAS = {"granian": ("granian",), "uvicorn": ("uvicorn", "httptools")}.get(ENGINE, ())
"""The packages that its extra installs."""


def engine_differs(**how: str) -> pytest.MarkDecorator:
    """Skip on the engines named; how they differ has its line in docs/servers.md and its test in tests/unit/serving."""
    return pytest.mark.skipif(ENGINE in how, reason=f"{ENGINE} {how.get(ENGINE)}")

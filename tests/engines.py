"""Which HTTP engine the servers of a test run have: ``GATEWAY_TEST_ENGINE``, or the default. See scripts/test.sh."""

import os

import pytest

ENGINE = os.environ.get("GATEWAY_TEST_ENGINE", "hypercorn")


def granian_differs(how: str) -> pytest.MarkDecorator:
    """Skip on Granian; how it differs has its line in docs/servers.md and its test in tests/unit/serving."""
    return pytest.mark.skipif(ENGINE == "granian", reason=f"Granian {how}")

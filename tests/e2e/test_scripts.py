"""The scripts that drive running servers with curl: they pass where all is well, and fail where something is off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import HOST, ROOT, Gateway, a_gateway, clean_environment, free_ports, run
from tests.servers import short_directory

TOKEN = "operator-token-of-the-scripts"
TENANT, LIMITS = "test_tenant.sh", "test_rate_limiter.sh"


@pytest.fixture(scope="module")
def guarded_gateway() -> Iterator[Gateway]:
    """With an operator token."""
    with short_directory() as path, a_gateway(path, "--demo", settings={"SERVER__ADMIN_TOKEN": TOKEN}) as gateway:
        yield gateway


def drive(script: str, gateway: Gateway, folder: Path, **env: str) -> tuple[int, str, str]:
    """Run a script against a gateway. It must leave neither tenants nor files."""
    at = {
        "ADMIN": f"http://{HOST}:{gateway.admin_port}",
        "PROXY": f"http://{HOST}:{gateway.proxy_port}",
        "TARGET": f"http://{HOST}:{gateway.demo_port}",
        "TMPDIR": str(folder),
    }
    token = env.get("ADMIN_TOKEN")
    result = run(ROOT / "scripts" / script, env=clean_environment(folder, **(at | env)), cwd=folder)
    tenants = gateway.admin("GET", "/tenants", key=token if token == TOKEN else None).json
    assert [tenant["subdomain"] for tenant in tenants.get("tenants", ())] in ([], ["testcompany"])
    assert list(folder.iterdir()) == []
    return result


@pytest.mark.parametrize("script", [TENANT, LIMITS])
def test_a_script_passes_on_an_open_gateway(local_gateway: Gateway, folder: Path, script: str):
    code, output, errors = drive(script, local_gateway, folder)
    assert (code, errors) == (0, "")
    assert output.rstrip().endswith("all as expected")


@pytest.mark.parametrize("script", [TENANT, LIMITS])
def test_a_script_passes_with_an_operator_token(guarded_gateway: Gateway, folder: Path, script: str):
    code, _, errors = drive(script, guarded_gateway, folder, ADMIN_TOKEN=TOKEN)
    assert (code, errors) == (0, "")


def test_a_script_without_the_operator_token_fails(guarded_gateway: Gateway, folder: Path):
    code, _, errors = drive(TENANT, guarded_gateway, folder)
    assert code == 1
    assert "SURPRISE: expected status 201" in errors
    assert "invalid_api_key" in errors


def test_a_script_fails_when_the_target_is_not_there(local_gateway: Gateway, folder: Path):
    code, _, errors = drive(LIMITS, local_gateway, folder, TARGET=f"http://{HOST}:{free_ports(1)[0]}")
    assert code == 1
    assert "SURPRISE: expected status 200" in errors
    assert "upstream_unreachable" in errors


def test_a_script_fails_under_the_wrong_domain(local_gateway: Gateway, folder: Path):
    code, _, errors = drive(TENANT, local_gateway, folder, DOMAIN="example.org")
    assert code == 1
    assert "SURPRISE: expected error.code = unknown_tenant" in errors


def test_a_script_fails_where_nobody_listens(local_gateway: Gateway, folder: Path):
    code, _, errors = drive(LIMITS, local_gateway, folder, ADMIN=f"http://{HOST}:{free_ports(1)[0]}")
    assert code != 0
    assert errors

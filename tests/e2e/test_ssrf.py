"""Nothing that a tenant writes or a client sends makes the gateway connect to an address inside.

Observed at the sockets of the real program. Rules are written through the admin API and used through the proxy; names resolve
to whatever their owner wants, differently each time.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import sys
from pathlib import Path

import pytest

from tests.amounts import amount, figure
from tests.e2e.processes import Gateway, a_gateway
from tests.e2e.watched_gateway import PUBLIC, PUBLIC6
from tests.ssrf_forms import METADATA, METADATA6, REQUEST_FIELDS, REQUEST_TARGETS, targets

pytestmark = pytest.mark.real_store

FORMS = amount("GATEWAY_SSRF_FORMS", 1_000)
SEED = int(os.environ.get("GATEWAY_SSRF_SEED", "20260101"))
WATCHED = Path(__file__).with_name("watched_gateway.py")
SETTINGS = {"UPSTREAM__BREAKER_FAILURES": "0", "UPSTREAM__CONNECT_RETRIES": "0", "UPSTREAM__CONNECT_TIMEOUT": "10s"}
TENANT = {"name": "Test", "subdomain": "ssrf"}


class Watched:
    """A gateway, its tenant and its log."""

    def __init__(self, gateway: Gateway, log: Path) -> None:
        self.gateway, self._log = gateway, log
        answer = gateway.admin("POST", "/tenants", TENANT)
        assert answer.status == 201, answer.body
        self.id, self.key = answer.json["id"], answer.json["api_key"]
        self.written = 0

    def told(self, what: str) -> list[str]:
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [str(line[what]) for line in lines if what in line]

    def write(self, target: str, **more: object) -> str | None:
        """The path of a new rule, or None if it is refused."""
        self.written += 1
        path = f"/r{self.written}"
        rule = {"path": path, "target": target, "strip_path": True, **more}
        answer = self.gateway.admin("POST", f"/tenants/{self.id}/rules", rule, key=self.key)
        assert answer.status in (201, 400), (target, answer.body)
        return path if answer.status == 201 else None

    def use(self, path: str, *, method: str = "GET", headers: object = ()) -> int:
        return self.gateway.proxy(method, path, tenant="ssrf", key=self.key, headers=headers).status


@contextlib.contextmanager
def watched(folder: Path, **settings: str):
    log = folder / "watched"
    command = (sys.executable, str(WATCHED), str(log))
    with a_gateway(folder, "--local", settings=SETTINGS | settings, command=command) as gateway:
        yield Watched(gateway, log)


def test_no_target_that_can_be_written_leads_inside(folder):
    with watched(folder) as gateway:
        accepted = []
        for target in targets(SEED, FORMS):
            path = gateway.write(target)
            if path is not None:
                accepted.append(target)
                # names have another answer each time
                for _ in range(3):
                    assert gateway.use(f"{path}/x") in (502, 504), target
        rebinding = gateway.write("https://rebinding2.example/base")
        assert rebinding is not None
        assert {gateway.use(f"{rebinding}/x") for _ in range(40)} <= {502, 504}

        assert len(accepted) < FORMS / 4, accepted
        connected = gateway.told("connect")
        assert set(connected) == {PUBLIC, PUBLIC6}
        assert len(gateway.told("name")) >= 40
        figure(f"{FORMS} forms, {len(accepted)} taken and used three times, {len(connected)} connections, 0 inside")


def test_no_request_leads_anywhere_but_to_its_rule_s_target(folder):
    with watched(folder) as gateway:
        rule = {"path": "/v1", "target": "https://fine.example"}
        for more in (
            {},
            {"path": "/", "strip_path": True},
            {"path": "/v1/x", "preserve_host": True, "headers": {"X-Host": "e"}},
        ):
            answer = gateway.gateway.admin("POST", f"/tenants/{gateway.id}/rules", rule | more, key=gateway.key)
            assert answer.status == 201, answer.body
        sent = 0
        for target in REQUEST_TARGETS:
            for fields in REQUEST_FIELDS:
                for method in ("GET",) if fields else ("GET", "POST"):
                    with contextlib.suppress(OSError):
                        assert gateway.use(target, method=method, headers=fields) >= 400
                    sent += 1
        assert sent > 250
        assert set(gateway.told("name")) == {"fine.example"}
        assert set(gateway.told("connect")) == {PUBLIC, PUBLIC6}


def test_metadata_services_are_not_reached_where_everything_else_is(folder):
    networks = {"UPSTREAM__ALLOWED_NETWORKS": "0.0.0.0/0,::/0"}
    forbidden = {ipaddress.ip_address(address) for address in METADATA + METADATA6}
    with watched(folder, **networks) as gateway:
        canary = gateway.write("http://127.0.0.1:9/")
        assert canary is not None
        assert gateway.use(canary) == 502
        assert gateway.told("connect") == ["127.0.0.1"]  # the log sees what it is to see

        forms = [*targets(SEED, FORMS // 4, METADATA, plain=True), *(f"http://[{address}]" for address in METADATA6)]
        names = ["http://metadata.google.internal", "http://instance-data", "http://rebinding3.example"]
        for target in [*forms, *names * 10]:
            path = gateway.write(target)
            if path is not None:
                assert gateway.use(path) in (502, 504), target
        connected = [ipaddress.ip_address(address.partition("%")[0]) for address in gateway.told("connect")]
        plain = {getattr(address, "ipv4_mapped", None) or address for address in connected}
        assert not plain & forbidden
        assert not {inner for each in plain if each.version == 6 for inner in embedded(each)} & forbidden
        assert len(plain) > 3


def embedded(address):
    """Every IPv4 address that an IPv6 address may stand for: mapped, translated, tunnelled, or of an interface."""
    return {ipaddress.IPv4Address(int(address) & 0xFFFFFFFF), address.sixtofour, *(address.teredo or ())} - {None}

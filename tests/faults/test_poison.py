"""Garbage in the store, written past the gateway: it harms its tenant alone, the log names it, the admin API mends it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis

from tests.e2e.calls import Answer
from tests.e2e.processes import DEADLINE_S, HOST, Gateway, a_gateway
from tests.faults.table import FaultRow
from tests.servers import Server, short_directory, valkey_server, wait_until

pytestmark = pytest.mark.real_store

OPERATOR = "an-operator-token-of-tests"
SETTINGS = {
    "SERVER__ADMIN_TOKEN": OPERATOR,
    "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
    "REDIS__COMMAND_TIMEOUT": "20s",
    "REDIS__CONNECT_TIMEOUT": "20s",
}
LIMITS = [
    {"limit": 1_000, "window": "1h"},
    {"limit": 100_000, "window": "1h"},
    {"limit": 1_000, "window": "1m", "burst": 1_000},
    {"quota": {"daily": 1_000}},
    {"quota": {"monthly": 1_000}, "on_lost": "charge"},
    {"limit": 100, "unit": "concurrency"},
]
LIFE_S = max(DEADLINE_S, 900.0)
"""Of what all tests of this file share."""


@dataclass
class Scene:
    """Two replicas: one has served the tenants before, one sees them for the first time after the damage."""

    store: Server
    client: redis.Redis
    old: Gateway
    new: Gateway
    target: str
    count: int = 0

    def tenant(self) -> Tenant:
        self.count += 1
        made = self.admin("POST", "/tenants", {"name": "Poison", "subdomain": f"poison{self.count}"}).json
        tenant = Tenant(self, made["id"], f"poison{self.count}", made["api_key"])
        tenant.add_rule()
        assert tenant.ask(self.old).status == 200
        # its end is told to the store behind the reply, and is not to meet the damage
        wait_until(lambda: tenant.names("usage:*"), "recorded")
        return tenant

    def admin(self, method: str, path: str, body: Any = None) -> Answer:
        """As the operator."""
        return self.old.admin(method, path, body, key=OPERATOR)

    def until_logged(self, what: str, since: int) -> None:
        """Returns once an error of the first replica says this, after so many characters of its log."""
        wait_until(lambda: any(what in error for error in self.errors(since)), f"logged: {what}")

    def errors(self, since: int) -> list[str]:
        lines = self.old.program.stderr()[since:].splitlines(keepends=True)
        logged = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
        return [line["message"] for line in logged if line["level"] == "error"]


@dataclass
class Tenant:
    scene: Scene
    id: str
    subdomain: str
    key: str
    rule: str = ""

    def add_rule(self) -> None:
        chain = [{"name": "rate_limiter", "settings": {"limits": LIMITS}}]
        rule = {"path": "/", "target": self.scene.target, "plugin_chain": chain}
        made = self.scene.admin("POST", f"/tenants/{self.id}/rules", rule)
        assert made.status == 201, made
        self.rule = made.json["id"]

    def ask(self, replica: Gateway) -> Answer:
        return replica.proxy("GET", "/x", tenant=self.subdomain, key=self.key)

    def name(self, rest: str) -> str:
        return f"gw:{{{self.subdomain}}}:{rest}"

    def names(self, pattern: str) -> list[bytes]:
        return sorted(bytes(name) for name in self.scene.client.scan_iter(self.name(pattern)))


class _Target(BaseHTTPRequestHandler):
    """Answers everything."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(ThreadingHTTPServer((HOST, 0), _Target))
        thread = threading.Thread(target=target.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(target.shutdown)
        store = stack.enter_context(valkey_server())
        client = stack.enter_context(store.admin())
        settings = {**SETTINGS, "REDIS__URL": store.url}
        folders = [stack.enter_context(short_directory()) for _ in range(2)]
        old, new = (stack.enter_context(a_gateway(each, settings=settings, seconds=LIFE_S)) for each in folders)
        yield Scene(store, client, old, new, f"http://{HOST}:{target.server_port}")


DEEP = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
HUGE = json.dumps({"id": "x", "padding": "y" * 8_000_000}).encode()
DOCUMENTS = [b"", b'{"id": "te', b"\xff\x00\xfe", b"null", b"[]", b'{"id": 1}', b"1e999", DEEP, HUGE]


def damaged_tenant(tenant: Tenant, document: bytes) -> None:
    tenant.scene.client.hset(tenant.name("tenant"), mapping={"document": document, "version": "damaged"})


def damaged_rule(tenant: Tenant, document: bytes) -> None:
    tenant.scene.client.hset(tenant.name("rules"), tenant.rule, document)
    tenant.scene.client.hset(tenant.name("tenant"), "version", "damaged")


def damaged_key(tenant: Tenant, document: bytes) -> None:
    (key,) = tenant.names("key:*")
    tenant.scene.client.hset(key, mapping={"document": document, "revision": "damaged"})


def check_others(scene: Scene, bystander: Tenant) -> None:
    for replica in (scene.old, scene.new):
        assert bystander.ask(replica).status == 200
    listed = scene.admin("GET", "/tenants?limit=100")
    assert listed.status == 200
    assert bystander.id in {tenant["id"] for tenant in listed.json["tenants"]}


@pytest.mark.parametrize("what", [damaged_tenant, damaged_rule, damaged_key], ids=["tenant", "rule", "key"])
def test_a_damaged_document_leaves_the_last_good_one_in_force_and_can_be_mended(
    scene: Scene, row: FaultRow, what: Callable[[Tenant, bytes], None]
):
    row.kind = f"poisoned document ({what.__name__.removeprefix('damaged_')})"
    bystander = scene.tenant()
    for document in DOCUMENTS:
        with row.one_try():
            tenant = scene.tenant()
            said = len(scene.old.program.stderr())
            what(tenant, document)
            for _ in range(2):
                with row.answer():
                    assert tenant.ask(scene.old).status == 200, document[:20]
            refused = tenant.ask(scene.new)
            assert (refused.status, refused.json["error"]["code"]) == (500, "internal_error")
            assert refused.json["error"]["message"] == "This tenant's stored configuration is damaged."
            scene.until_logged(f"the stored configuration of tenant {tenant.subdomain} is damaged", said)
            check_others(scene, bystander)

            if what is damaged_rule:
                assert scene.admin("GET", f"/tenants/{tenant.id}/rules").json["rules"] == []
                assert scene.admin("DELETE", f"/tenants/{tenant.id}/rules/{tenant.rule}").status == 204
                tenant.add_rule()
            elif what is damaged_key:
                assert scene.admin("GET", f"/tenants/{tenant.id}/api-keys").json["api_keys"] == []
                tenant.key = scene.admin("POST", f"/tenants/{tenant.id}/api-keys", {"name": "another"}).json["api_key"]
            else:
                assert scene.admin("GET", f"/tenants/{tenant.id}").status == 500
                assert scene.admin("DELETE", f"/tenants/{tenant.id}").status == 204
                made = scene.admin("POST", "/tenants", {"name": "Again", "subdomain": tenant.subdomain}).json
                tenant.id, tenant.key = made["id"], made["api_key"]
                tenant.add_rule()
            assert [tenant.ask(replica).status for replica in (scene.old, scene.new)] == [200, 200]


def test_limits_whose_state_is_damaged_are_closed_for_that_tenant_only(scene: Scene, row: FaultRow):
    row.kind = "poisoned state of a limit"
    bystander = scene.tenant()
    for number in range(len(LIMITS) - 1):
        with row.one_try():
            tenant = scene.tenant()
            said = len(scene.old.program.stderr())
            # places in flight come and go
            name = [name for name in tenant.names("limit:*") if b":concurrency:" not in name][number]
            scene.client.delete(name)
            scene.client.lpush(name, "garbage") if b":limit:log" not in name else scene.client.set(name, "garbage")
            with row.answer():
                refused = tenant.ask(scene.old)
            assert (refused.status, refused.json["error"]["code"]) == (500, "internal_error"), name
            assert b"WRONGTYPE" not in refused.body
            scene.until_logged(f"lua/admit.lua failed for gw:{{{tenant.subdomain}}}:", said)
            check_others(scene, bystander)
            # another rule counts elsewhere
            assert scene.admin("DELETE", f"/tenants/{tenant.id}/rules/{tenant.rule}").status == 204
            tenant.add_rule()
            assert [tenant.ask(replica).status for replica in (scene.old, scene.new)] == [200, 200]


def test_what_is_not_even_a_hash_harms_nobody_else(scene: Scene, row: FaultRow):
    row.kind = "poisoned record (another type)"
    bystander = scene.tenant()
    for record in ("tenant", "rules", "keys", "clock", "key:*"):
        with row.one_try():
            tenant = scene.tenant()
            for name in tenant.names(record):
                scene.client.delete(name)
                scene.client.set(name, "garbage")
            with row.answer():
                answers = [tenant.ask(replica) for replica in (scene.old, scene.new)]
            # what is read at each request closes; what is read when it has changed is still known
            wanted = {"rules": (200, 500), "keys": (200, 200)}.get(record, (500, 500))
            assert tuple(answer.status for answer in answers) == wanted, record
            check_others(scene, bystander)
            if record in ("rules", "clock", "key:*"):
                assert scene.admin("DELETE", f"/tenants/{tenant.id}").status == 204

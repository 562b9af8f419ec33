"""`gateway doctor`: each finding on a real server, file or limit that provokes it; and no secret is ever told."""

from __future__ import annotations

import datetime
import json
import os
import re
import resource
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.config import Config
from gateway.doctor import Finding, as_json, as_lines, examine
from gateway.doctor.finding import fail, ok, warn
from gateway.doctor.store import store_findings
from gateway.store import EmbeddedServer, Keyspace, NodeFacts, StoreFacts
from gateway.store.embedded import find_server
from gateway.store.permissions import NEEDED, SUPERFLUOUS
from tests.e2e.processes import GATEWAY as COMMAND
from tests.fault_proxy import Fault, fault_proxy
from tests.gateways import running_proxy
from tests.servers import (
    DEBIAN_REDIS,
    Server,
    redis_cluster,
    redis_sentinel,
    redis_server,
    short_directory,
    valkey_server,
    wait_until,
)
from tests.users import GATEWAY

pytestmark = pytest.mark.real_store

TIMES = {"connect_timeout": "5s", "command_timeout": "5s"}
SOUND: dict[str, str | int] = {"appendonly": "yes", "maxmemory": "200mb", "maxmemory-policy": "noeviction"}
needs_debian = pytest.mark.skipif(not DEBIAN_REDIS.exists(), reason=f"{DEBIAN_REDIS} is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """As the documentation asks for."""
    with valkey_server(persistent=True, options=SOUND) as running:
        yield running


def a_config(url: str | None = None, **sections: Mapping[str, Any]) -> Config:
    """Nothing is unwise about it, but for what the test says."""
    redis = {"url": url, **TIMES, **sections.pop("redis", {})}
    own: dict[str, Any] = {
        "base_domain": "gateway.test",
        "base_domains": ["gateway.test"],
        "admin_token": "x" * 20,
        "proxy_host": "127.0.0.1",
    }
    key: dict[str, Any] = {"master_key": "00" * 32}
    own |= sections.pop("server", {})
    key |= sections.pop("secrets", {})
    return Config.model_validate({"server": own, "secrets": key, "redis": redis, **sections})


async def found(config: Config, file: Path | None = None, **how: Any) -> list[Finding]:
    return await examine(config, file, **how)


def told(findings: list[Finding], level: str) -> str:
    return "\n".join(line for line in as_lines(findings) if line.startswith(level))


async def about(url: str, level: str) -> str:
    return told(await found(a_config(url)), level)


# The store


async def test_a_store_as_it_should_be_is_all_right(server: Server):
    findings = await found(a_config(server.url))
    assert {finding.level for finding in findings} == {"ok"}, as_lines(findings)


async def test_a_store_that_does_not_answer_fails():
    assert "single 127.0.0.1:1 cannot be asked" in await about("redis://127.0.0.1:1", "fail")


async def test_an_eviction_policy_that_forgets_fails():
    with valkey_server(options={"maxmemory-policy": "allkeys-lru"}) as server:
        assert "maxmemory-policy allkeys-lru" in await about(server.url, "fail")


async def test_memory_without_an_end_and_without_an_append_only_file_is_unwise():
    with valkey_server() as bare:
        warnings = await about(bare.url, "warn")
        assert "maxmemory is unset" in warnings
        assert "append-only file is off" in warnings


@pytest.mark.parametrize(("most", "level"), [(1.15, "warn"), (1.01, "fail")])
async def test_memory_that_is_nearly_used_is_told(most: float, level: str):
    with valkey_server() as full:
        full.command("SET", "gw:x", b"x" * 20_000_000)
        used = int(full.command("INFO", "memory")["used_memory"])
        full.command("CONFIG", "SET", "maxmemory", int(used * most))
        assert "MiB of" in await about(full.url, level)


async def test_a_file_that_cannot_be_written_fails():
    with valkey_server() as broken:
        (broken.directory / "dump.rdb").mkdir()  # in the way
        broken.command("SET", "gw:x", "y")
        broken.command("BGSAVE")
        wait_until(lambda: broken.command("INFO", "persistence")["rdb_last_bgsave_status"] != "ok", "a failed snapshot")
        assert "last snapshot failed" in await about(broken.url, "fail")


async def test_the_default_user_is_unwise():
    with valkey_server(users=False) as open_to_all:
        assert "the gateway is the user `default`" in await about(open_to_all.url, "warn")


async def test_a_user_with_too_little_fails_and_with_too_much_is_unwise(server: Server):
    for command in "hincrby", "script|load":
        server.command("ACL", "SETUSER", GATEWAY, f"-{command}")
        try:
            assert f"may not run {command} — " in await about(server.url, "fail")
        finally:
            server.command("ACL", "SETUSER", GATEWAY, f"+{command}")
    server.command("ACL", "SETUSER", GATEWAY, "+flushall", "allkeys")
    try:
        assert "more than it needs: keys of others, flushall" in await about(server.url, "warn")
    finally:
        server.command("ACL", "SETUSER", GATEWAY, "-flushall", "resetkeys", "~gw:*")


async def test_a_user_who_may_not_ask_is_told_what_to_allow(server: Server):
    server.command("ACL", "SETUSER", GATEWAY, "-acl|dryrun")
    try:
        assert "does not tell what the gateway's user may do" in await about(server.url, "warn")
    finally:
        server.command("ACL", "SETUSER", GATEWAY, "+acl|dryrun")


def test_every_question_about_rights_is_one_that_the_server_understands(server: Server):
    for words in *NEEDED.values(), *SUPERFLUOUS.values():
        assert server.command("ACL", "DRYRUN", "administrator", *words) in {b"OK", "OK"}, words


@needs_debian
async def test_a_line_without_fixes_is_unwise_and_no_more():
    with redis_server(DEBIAN_REDIS) as old:
        assert "Redis 7.0." in await about(old.url, "warn")
        assert await about(old.url, "fail") == ""


@pytest.mark.parametrize(
    ("info", "level"),
    [
        ({"redis_version": "6.2.23"}, "warn"), ({"redis_version": "6.2.24"}, "ok"),
        ({"redis_version": "7.2.15"}, "warn"), ({"redis_version": "7.2.16"}, "ok"),
        ({"redis_version": "7.4.10"}, "warn"), ({"redis_version": "7.4.11"}, "ok"),
        ({"redis_version": "8.0.5"}, "warn"), ({"redis_version": "8.2.8"}, "warn"), ({"redis_version": "8.2.9"}, "ok"),
        ({"redis_version": "8.4.0"}, "ok"), ({"redis_version": "7.0.15"}, "warn"),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.3"}, "warn"),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.4"}, "ok"),
        ({"redis_version": "7.2.4", "valkey_version": "9.0.0"}, "ok"),
    ],
    ids=str,
)  # fmt: skip
def test_versions_with_known_holes_are_told(info: dict[str, str], level: str):
    facts = StoreFacts((NodeFacts("", info, (1.0,), 0.0, None),), (), None)
    first = next(store_findings(a_config(), facts, embedded=False))
    assert first.level == level


@pytest.mark.parametrize("lags", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_a_replica_of_the_store_fails_and_one_that_lags_is_told(lags: bool):
    with valkey_server() as primary, valkey_server(options={"replicaof": f"127.0.0.1 {primary.port}"}) as replica:
        wait_until(lambda: "slave0" in primary.command("INFO", "replication"), "the replica")
        wait_until(lambda: primary.command("INFO", "replication")["slave0"]["state"] == "online", "the replica online")
        assert "is a replica, which takes no writes" in await about(replica.url, "fail")
        assert f"its replica 127.0.0.1:{replica.port} is online" in await about(primary.url, "ok")
        if not lags:
            return
        with replica.hung():
            wait_until(lambda: primary.command("INFO", "replication")["slave0"]["lag"] > 10, "lag", 30)
            assert "was last heard" in await about(primary.url, "warn")


async def test_clocks_that_differ_are_told_and_in_which_direction(server: Server):
    ahead = told(await found(a_config(server.url), clock=lambda: time.time() - 90), "warn")
    behind = told(await found(a_config(server.url), clock=lambda: time.time() + 90), "warn")
    for warning, direction in (ahead, "ahead of"), (behind, "behind"):
        differs = re.search(rf"([\d.]+) s {direction} this machine's", warning)
        assert differs is not None, warning
        assert float(differs[1]) == pytest.approx(90, abs=2)


async def test_a_slow_way_is_told(server: Server):
    with fault_proxy(server.port, delay_ms=(30, 30)) as proxy:
        proxy.at_random({Fault.DELAY_REPLY: 1.0})
        assert "every request waits for one" in await about(server.url_over(proxy.port), "warn")


async def test_few_clients_are_told():
    with valkey_server(options={"maxclients": 60}) as small:
        assert "of 60 clients connected" in await about(small.url, "fail")


async def test_sentinels_that_are_few_away_or_ignorant_are_told():
    with redis_sentinel(find_server(), sentinels=2) as replicated:
        assert "knows 2 with a quorum of 2" in await about(replicated.url, "warn")
        strange = replicated.url.replace("/gateway?", "/stranger?")
        assert "cannot be asked" in await about(strange, "fail")
        replicated.sentinels[1].kill()
        assert "1 of 2 do not answer" in await about(replicated.url, "warn")


async def test_a_cluster_without_replicas_is_told():
    with redis_cluster(find_server()) as cluster:
        findings = await found(a_config(cluster.url))
        assert "3 primaries have all slots" in told(findings, "ok")
        assert told(findings, "warn").count("has no replica") == 3
        assert told(findings, "fail") == ""


# What tenants have configured


async def test_what_is_stored_and_does_not_come_into_force_is_told(server: Server):
    server.command("FLUSHALL")
    try:
        async with running_proxy(server.url) as gateway:
            tenant = await gateway.new_tenant(
                required_plugins={"rate_limiter": {"enabled": False, "settings": {"limit": 1, "window": "1s"}}}
            )
            one = await gateway.new_rule(tenant, "https://api.example.org", plugin_chain=[{"name": "gone", "settings": {}}])
            two = await gateway.new_rule(tenant, "https://api.example.org", "/v2", headers={"authorization": "Bearer canary"})
            await gateway.change_rule(tenant, one, plugin_chain=[{"name": "rate_limiter", "settings": {"limit": -1}}])
            other = await gateway.new_tenant("other")
        server.command("HSET", Keyspace("other").tenant, "document", "{")
        findings = await found(a_config(server.url))
        failures = told(findings, "fail")
        assert f"tenant {tenant.id} rule {one}: plugin_chain.rate_limiter.settings" in failures
        assert f"tenant {tenant.id} rule {two}: its credential does not open" in failures
        assert f"tenant {other.id}: its stored document cannot be read" in failures
        assert "requires the plugin rate_limiter, which is switched off" in told(findings, "warn")
        assert "canary" not in as_json(findings)
    finally:
        server.command("FLUSHALL")


async def test_a_plugin_that_cannot_be_loaded_fails(server: Server, tmp_path: Path):
    (tmp_path / "broken.py").write_text("raise RuntimeError('no')")
    findings = await found(a_config(server.url, plugins={"paths": [str(tmp_path)]}))
    assert "broken.py" in told(findings, "fail")


# The configuration


@pytest.mark.parametrize(
    ("sections", "subject"),
    [
        ({"server": {"admin_token": None}}, "server.admin_token"),
        ({"server": {"base_domains": ["example.com"]}}, "server.base_domain"),
        ({"server": {"proxy_host": "0.0.0.0"}}, "server.trusted_proxies"),
        ({"server": {"drain_delay": 0}}, "server.drain_delay"),
        ({"secrets": {"master_key": None}}, "secrets.master_key"),
        ({"alerts": {"webhook_url": "https://hooks.example.org/"}}, "alerts.webhook_secret"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_allowed_and_unwise_is_told(server: Server, sections: dict[str, Any], subject: str):
    findings = await found(a_config(server.url, **sections))
    assert [finding.subject for finding in findings if finding.level != "ok"] == [subject]


# Files and certificates


async def test_a_configuration_with_secrets_that_others_may_read_fails(server: Server, tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("server: {admin_token: xxxxxxxxxxxxxxxxxxxx}")
    file.chmod(0o644)
    assert f"{file}: the configuration with its secrets may be read by others (mode 644)" in told(
        await found(a_config(server.url), file), "fail"
    )
    file.chmod(0o640)
    assert told(await found(a_config(server.url), file), "fail") == ""
    file.write_text("server: {admin_port: 8080}")
    file.chmod(0o644)
    assert f"{file}: holds no secret" in told(await found(a_config(server.url), file), "ok")


async def test_a_data_folder_and_a_master_key_that_others_may_read_fail():
    with short_directory() as folder:
        (folder / "master.key").write_text("00" * 32)
        (folder / "master.key").chmod(0o604)
        folder.chmod(0o755)
        config = a_config("embedded", redis={"data_dir": str(folder)}, secrets={"master_key": None})
        failures = told(await found(config), "fail")
        assert "the data folder may be read by others (mode 755)" in failures
        assert "the master key may be read by others (mode 604)" in failures


async def test_an_embedded_store_is_asked_while_a_gateway_runs_it():
    with short_directory() as folder:
        config = a_config("embedded", redis={"data_dir": str(folder)})
        assert "nobody runs it" in told(await found(config), "warn")
        async with EmbeddedServer(folder):
            findings = await found(config)
        assert {finding.level for finding in findings} == {"ok"}, as_lines(findings)
        assert "append-only file on" in told(findings, "ok")


async def test_whoever_examines_a_configured_store_beside_a_local_gateway_is_told_of_the_other_one():
    with short_directory() as folder:
        config = a_config("redis://127.0.0.1:1", redis={"data_dir": str(folder)})
        assert "start it" in told(await found(config), "fail")
        async with EmbeddedServer(folder):
            failures = told(await found(config), "fail")
        assert f"runs one of its own in {folder}: asked with redis.url embedded" in failures


def certificate(file: Path, begins_days: float, ends_days: float) -> None:
    now, key = datetime.datetime.now(datetime.UTC), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "store")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now + datetime.timedelta(begins_days))
    made = builder.not_valid_after(now + datetime.timedelta(ends_days)).sign(key, hashes.SHA256())
    file.write_bytes(made.public_bytes(Encoding.PEM))


@pytest.mark.parametrize(
    ("days", "level", "words"),
    [
        ((-10, -1), "fail", "has expired"), ((-10, 10), "warn", "expires on"), ((-10, 90), "ok", "is valid until"),
        ((1, 90), "fail", "begins on"), (None, "fail", "no readable certificate"),
    ],
)  # fmt: skip
async def test_certificates_that_end_soon_are_told(tmp_path: Path, days: tuple[int, int] | None, level: str, words: str):
    file = tmp_path / "client.pem"
    if days is None:
        file.write_text("no certificate")
    else:
        certificate(file, *days)
    config = a_config(f"rediss://127.0.0.1:1?ssl_certfile={file}", redis={"connect_timeout": "200ms"})
    assert words in "".join(line for line in told(await found(config), level).splitlines() if str(file) in line)


async def test_a_key_of_a_certificate_that_others_may_read_fails(tmp_path: Path):
    key = tmp_path / "client.key"
    key.write_text("a key")
    key.chmod(0o604)
    config = a_config(f"rediss://127.0.0.1:1?ssl_keyfile={key}", redis={"connect_timeout": "200ms"})
    assert f"{key}: the key of a certificate may be read by others" in told(await found(config), "fail")


# The machine


@contextmanager
def open_files(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("count", "level"), [(1_500, "warn"), (900, "fail")])
async def test_few_open_files_are_told(server: Server, count: int, level: str):
    with open_files(count):
        assert f"{count} open files for 1000 requests in flight" in await about(server.url, level)


# How it is told


def doctor(*options: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [*COMMAND, "doctor", *options],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_line_is_one_finding_and_says_what_to_do():
    findings = [ok("a", "fine"), warn("b", "so so", "do x"), fail("c", "bad\nvery", "do y")]
    assert as_lines(findings) == ["ok    a: fine", "warn  b: so so — do x", "fail  c: bad very — do y"]


def test_only_a_failure_is_an_exit_code_and_json_says_the_same(server: Server):
    settings = {"GATEWAY_REDIS__URL": server.url, "GATEWAY_REDIS__COMMAND_TIMEOUT": "5s"}
    code, output, _ = doctor(**settings)
    assert code == 0, output
    assert {line[:4] for line in output.splitlines()} == {"ok  ", "warn"}
    code, document, _ = doctor("--json", **settings)
    assert code == 0
    assert {"level", "subject", "what", "advice"} == set(json.loads(document)[0])
    code, output, errors = doctor(GATEWAY_REDIS__URL="redis://127.0.0.1:1")
    assert code == 1
    assert "fail  store: single 127.0.0.1:1 cannot be asked" in output
    assert "Traceback" not in errors


def test_a_configuration_that_cannot_be_read_is_a_finding():
    code, output, errors = doctor(GATEWAY_SERVER__ADMIN_PORTS="1")
    assert (code, errors) == (1, "")
    assert output.startswith(
        "fail  configuration: environment: server.admin_ports: unknown key; did you mean server.admin_port?"
    )


@pytest.mark.parametrize("reachable", [True, False])
def test_no_secret_is_ever_told(server: Server, tmp_path: Path, reachable: bool):
    canary = "c4n4ry" * 6
    file = tmp_path / "config.yaml"
    url = server.url if reachable else f"redis://gateway:{canary}@{server.address}"
    hook = "whsec_" + "Y2FuYXJ5" * 6
    file.write_text(
        f"redis: {{url: '{url}'}}\nserver: {{admin_token: {canary}}}\nsecrets: {{master_key: '{'ca' * 32}'}}\n"
        f"alerts: {{webhook_url: 'https://hooks.example.org', webhook_secret: {hook}}}\n"
    )
    file.chmod(0o644)
    code, output, errors = doctor("--config", str(file), *([] if reachable else ["--json"]))
    assert code == 1, "others may read the file"
    for secret in canary, url, hook, "ca" * 32, url.partition("@")[0]:
        assert secret not in output + errors

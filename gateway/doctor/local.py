"""Findings about the configuration and the machine: files, certificates, limits of the process."""

from __future__ import annotations

import resource
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from gateway.certificates import validities
from gateway.config import Config, is_loopback
from gateway.doctor.finding import Finding, fail, ok, warn
from gateway.errors import ConfigurationError
from gateway.store import certificate_files

EXPIRES_SOON = timedelta(days=30)
LITTLE_DISK_BYTES = 1 << 30
TOO_LITTLE_DISK_BYTES = 100 << 20
SPARE_FILES = 100


def configuration_findings(config: Config) -> Iterator[Finding]:
    """What is allowed and unwise."""
    found: list[Finding] = []
    server = config.server
    if server.admin_token is None:
        found.append(warn("server.admin_token", "unset: whoever is on this machine is an operator", "set one"))
    if "example.com" in server.tenant_domains:
        found.append(warn("server.base_domain", "is still example.com", "set the domain whose subdomains are your tenants"))
    if not server.trusted_proxies and not is_loopback(server.proxy_host):
        found.append(
            warn(
                "server.trusted_proxies",
                "empty: X-Forwarded-For is not believed, so behind a balancer every client has its address",
                "name the balancer's network if there is one",
            )
        )
    if server.drain_delay == 0:
        found.append(
            warn("server.drain_delay", "0: balancers learn of a shutdown by requests that fail", "set what they need to notice")
        )
    if config.secrets.master_key is None and not config.redis.is_embedded:
        found.append(
            warn("secrets.master_key", "unset: no rule with a credential can be stored", "set 32 bytes: openssl rand -hex 32")
        )
    if config.alerts.webhook_url is not None and config.alerts.webhook_secret is None:
        found.append(warn("alerts.webhook_secret", "unset: anybody may send such webhooks", "set a secret"))
    yield from found or [ok("configuration", "nothing unwise")]


def file_findings(config: Config, file: Path | None, now: datetime) -> Iterator[Finding]:
    """Who may read what is secret, and until when certificates are valid."""
    if file is not None and file.is_file():
        yield _config_file(config, file)
    folder = config.redis.data_dir
    if config.redis.is_embedded and folder.is_dir():
        yield _private(folder, "the data folder", 0o077, "chmod 700")
    if config.secrets.master_key is None and (folder / "master.key").is_file():
        yield _private(folder / "master.key", "the master key", 0o077, "chmod 600")
    certificates, keys = _tls_files(config)
    for path in keys:
        yield _private(path, "the key of a certificate", 0o007, "chmod 640 or 600")
    for path in certificates:
        yield from _certificates(path, now)


def machine_findings(config: Config) -> Iterator[Finding]:
    """Open files and the disk."""
    # a client, a target, and what is kept open besides
    wanted = 2 * config.limits.max_in_flight + config.redis.pool_size + SPARE_FILES
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    told = f"{'any number of' if allowed < 0 else allowed} open files for {config.limits.max_in_flight} requests in flight"
    if 0 <= allowed < wanted:
        advice = f"allow {wanted} or more (ulimit -n, LimitNOFILE), or lower limits.max_in_flight"
        yield (fail if allowed < config.limits.max_in_flight else warn)("open files", told, advice)
    else:
        yield ok("open files", told)
    if config.redis.is_embedded:
        yield _disk(config.redis.data_dir)


def _disk(folder: Path) -> Finding:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    told = f"{free / 2**20:.0f} MiB free in {folder}"
    if free < LITTLE_DISK_BYTES:
        return (fail if free < TOO_LITTLE_DISK_BYTES else warn)(
            "disk", told, "make room: a store that cannot write refuses all"
        )
    return ok("disk", told)


def _config_file(config: Config, file: Path) -> Finding:
    text = file.read_text(encoding="utf-8", errors="replace")
    if not any(secret in text for secret in _secrets(config)):
        return ok(str(file), "holds no secret")
    return _private(file, "the configuration with its secrets", 0o007, "chmod 640 or 600")


def _secrets(section: BaseModel) -> Iterator[str]:
    for name in type(section).model_fields:
        value: Any = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _secrets(value)
        elif isinstance(value, SecretStr) and value.get_secret_value():
            yield value.get_secret_value()
        elif name == "url" and isinstance(value, str) and "@" in value:
            yield value


def _private(path: Path, what: str, nobody: int, advice: str) -> Finding:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return fail(str(path), f"{what}: {error.strerror}", "correct the path or who may read it")
    if mode & nobody:
        return fail(str(path), f"{what} may be read by others (mode {mode:o})", advice)
    return ok(str(path), f"{what} is private")


def _tls_files(config: Config) -> tuple[list[Path], list[Path]]:
    """Certificates, then keys: of the servers, and of the way to the store."""
    try:
        certificates, keys = certificate_files(config.redis)
    except ConfigurationError:  # which is told with the store
        certificates, keys = [], []
    for name in type(config.server).model_fields:
        path = getattr(config.server, name)
        if "tls" in name and isinstance(path, Path):
            (keys if name.endswith("key") else certificates).append(path)
    return certificates, keys


def _certificates(path: Path, now: datetime) -> Iterator[Finding]:
    try:
        found = validities(path)
    except OSError as error:
        yield fail(str(path), f"certificate: {error.strerror}", "correct the path or who may read it")
        return
    except ValueError:
        yield fail(str(path), "holds no readable certificate", "put a PEM file there")
        return
    begins, ends = max(one.begins for one in found), min(one.ends for one in found)
    day = ends.astimezone(UTC).date().isoformat()
    if ends <= now:
        yield fail(str(path), f"the certificate has expired on {day}", "renew it")
    elif begins > now:
        yield fail(str(path), f"the certificate begins on {begins.date().isoformat()}", "look at this machine's clock")
    elif ends - now < EXPIRES_SOON:
        yield warn(str(path), f"the certificate expires on {day}", "renew it")
    else:
        yield ok(str(path), f"the certificate is valid until {day}")

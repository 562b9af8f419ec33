"""One real server for a test, on loopback, gone afterwards. ``tests.servers`` has these names and those of whole sets.

Every server hangs on a pipe of the process that started it: when that process dies, in whatever way, so does the server.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from gateway.store.embedded import find_server
from tests.users import ADMINISTRATOR, GATEWAY, REPLICA, login_of, password_of, write_users

DEBIAN_REDIS = Path("/usr/bin/redis-server")
"""The oldest server line that is supported; absent where it is not installed."""

HOST = "127.0.0.1"
"""Everything here listens on loopback and nowhere else."""

_START_TIMEOUT = 10.0
# The shell becomes the server; what it leaves behind waits for the end of the pipe and then kills the server.
_LAUNCH = 'exec 3<&0 </dev/null; (read _ <&3; kill -KILL $$) >/dev/null 2>&1 & exec "$@" 3<&-'


class ServerDidNotStart(Exception):
    """Carries the end of the server's log."""


@dataclass
class Server:
    """A running server. ``unix`` and ``tls`` servers have no TCP port in the clear.

    Either it ``has_users`` (`tests.users`), or whoever knows its ``password``, if it has one, may do everything.
    """

    args: tuple[str, ...]
    directory: Path
    port: int
    password: str = ""
    has_users: bool = False
    certificates: Certificates | None = None
    socket_path: Path | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """As ``redis.url`` takes it, for the gateway."""
        login = login_of(GATEWAY) if self.has_users else f":{quote(self.password, safe='')}@" if self.password else ""
        if self.socket_path is not None:
            return f"unix://{login}{self.socket_path}"
        if self.certificates is not None:
            return f"rediss://{login}{self.address}?ssl_ca_certs={self.certificates.authority}"
        return f"redis://{login}{self.address}"

    def url_over(self, port: int) -> str:
        """The same through somebody who listens on another port of loopback and hands on what comes."""
        return self.url.replace(self.address, f"{HOST}:{port}")

    @property
    def pid(self) -> int:
        """Of the server process."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @contextlib.contextmanager
    def admin(self, **options: Any) -> Iterator[Any]:
        """A blocking client for whatever a test does behind the gateway's back."""
        if self.has_users:
            options = {"username": ADMINISTRATOR, "password": password_of(ADMINISTRATOR)} | options
        elif self.password:
            options.setdefault("password", self.password)
        if self.socket_path is not None:
            options["unix_socket_path"] = str(self.socket_path)
        else:
            options |= {"host": HOST, "port": self.port}
        if self.certificates is not None:
            options |= {"ssl": True, "ssl_ca_certs": str(self.certificates.authority)}
        with redis.Redis(**options) as client:
            yield client

    def command(self, *words: str | int | bytes) -> Any:
        """One command on a connection of its own; returns the parsed reply."""
        with self.admin() as client:
            return client.execute_command(*words)

    def start(self) -> None:
        """Start, or start again with the same data and port, and wait for PONG."""
        assert self._process is None, "the server is running"
        log = self.directory / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCH, "sh", *self.args],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, f"{self.args[0]} on port {self.port}")
        except TimeoutError as error:
            self.kill()
            raise ServerDidNotStart(f"{error}:\n{log.read_text(errors='replace')[-2000:]}") from None
        except BaseException:
            self.kill()
            raise

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise TimeoutError("the server ended at once")
        try:
            with self.admin(socket_timeout=1) as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP makes a hung server, SIGCONT lets it go on."""
        os.kill(self.pid, number)

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """The kernel still accepts connections and bytes; nobody answers."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone. Does nothing to a server that is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority nobody else knows, and a server certificate for loopback that it signed."""

    authority: Path
    certificate: Path
    key: Path


def valkey_server(**how: Any) -> contextlib.AbstractContextManager[Server]:
    """The server that the embedded mode runs (the one bundled with the package, else the one on PATH)."""
    return redis_server(find_server(), **how)


@contextlib.contextmanager
def redis_server(
    binary: Path | str,
    *,
    password: str = "",
    options: Mapping[str, str | int] | None = None,
    persistent: bool = False,
    unix: bool = False,
    certificates: Certificates | None = None,
    users: bool | None = None,
) -> Iterator[Server]:
    """One server on a free port. ``persistent`` keeps data over ``kill()`` and ``start()``; ``options`` are directives.

    Its ``users`` are those of docs/redis.acl unless it has a password or the test says otherwise.
    """
    with short_directory() as directory:
        directives: dict[str, str | int] = {"bind": HOST, "dir": str(directory), "save": "", "daemonize": "no"}
        directives["appendonly"] = "yes" if persistent else "no"
        has_users = not password if users is None else users
        if has_users:
            directives |= {"aclfile": str(write_users(directory)), "masteruser": REPLICA, "masterauth": password_of(REPLICA)}
        if password:
            directives["requirepass"] = password
        if unix:
            directives["unixsocket"] = str(directory / "s")
        if certificates is not None:
            directives |= {
                "tls-cert-file": str(certificates.certificate),
                "tls-key-file": str(certificates.key),
                "tls-ca-cert-file": str(certificates.authority),
                "tls-auth-clients": "no",
            }
        directives |= options or {}
        server = Server((), directory, 0, password, has_users, certificates, directory / "s" if unix else None)
        for attempt in range(3):  # somebody else may take the port between finding and binding it
            server.port = free_port()
            ports = {"port": 0 if unix or certificates else server.port} | ({"tls-port": server.port} if certificates else {})
            words = [word for name, value in (directives | ports).items() for word in (f"--{name}", str(value))]
            server.args = (str(binary), *words)
            try:
                server.start()
                break
            except ServerDidNotStart:
                if attempt == 2:
                    raise
        try:
            yield server
        finally:
            server.kill()


def make_certificates(directory: Path) -> Certificates:
    """For ``127.0.0.1`` and ``localhost``; valid for an hour."""
    now = datetime.datetime.now(datetime.UTC)

    def certify(
        name: str, public: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey, *, ca: bool
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(signer, hashes.SHA256())

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = certify("test authority", authority_key.public_key(), authority_key, ca=True)
    certificate = certify("localhost", key.public_key(), authority_key, ca=False)
    files = Certificates(directory / "authority.pem", directory / "certificate.pem", directory / "key.pem")
    files.authority.write_bytes(authority.public_bytes(Encoding.PEM))
    files.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    files.key.touch(0o600)
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def free_port() -> int:
    """A TCP port of loopback that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], what: str, seconds: float = _START_TIMEOUT) -> None:
    """Poll every 10 ms; raise TimeoutError naming what did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not ready after {seconds:g} s")
        time.sleep(0.01)


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory of its own; pytest's have paths too long for a unix socket."""
    directory = Path(tempfile.mkdtemp(prefix="gw-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)

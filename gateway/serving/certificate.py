"""The certificate that the listeners show, and how it changes without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.config import ServerSettings
from gateway.errors import ConfigurationError

HANDSHAKE_S = 10.0
"""Longest TLS handshake."""

LOOK_EVERY_S = 10.0
"""How often the files are looked at."""

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secret and authenticated, all else has known weaknesses. TLS 1.3 has no others."""

_TOO_WEAK = frozenset({"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"})

logger = logging.getLogger("gateway.server")


@dataclass(frozen=True, slots=True)
class Pair:
    """What the two files held."""

    chain: bytes
    key: bytes
    min_version: str

    @contextlib.contextmanager
    def files(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Names of two files with just that, for libraries that want names, and descriptors that a child needs for them.

        The named files themselves may change between two readings. These are nowhere but in memory, where the system can.
        """
        with contextlib.ExitStack() as stack:
            names, fds = [], []
            for content in (self.chain, self.key):
                if sys.platform == "linux":
                    fd = os.memfd_create("pem")
                    file = stack.enter_context(os.fdopen(fd, "wb"))
                    names.append(f"/proc/self/fd/{fd}")
                    fds.append(fd)
                else:
                    file = stack.enter_context(tempfile.NamedTemporaryFile())
                    names.append(file.name)
                file.write(content)
                file.flush()
            yield names[0], names[1], tuple(fds)


class Certificate:
    """What clients are shown: of the files in ``server.tls_certificate`` and ``tls_key``, what they held when they last fitted.

    ``check`` raises ConfigurationError for what the engine's own TLS library cannot use.
    """

    def __init__(self, settings: ServerSettings, check: Callable[[Pair], None]) -> None:
        """Read them. Raises ConfigurationError that names the key at fault."""
        if settings.tls_certificate is None or settings.tls_key is None:
            raise ConfigurationError("server.tls_certificate, server.tls_key: not set")
        self._chain: Path = settings.tls_certificate
        self._key: Path = settings.tls_key
        self._check = check
        self._renewed: list[Callable[[], None]] = []
        self.min_version = settings.tls_min_version
        self._seen = self._look()
        self.pair, self.context = self._load()

    def on_renewal(self, call: Callable[[], None]) -> None:
        """Call it each time another certificate has come into force."""
        self._renewed.append(call)

    async def refresh(self) -> None:
        """Take up what has changed on disk. What does not fit together is logged, and the last one that did stays in force."""
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self.pair, self.context = await asyncio.to_thread(self._load)
        except ConfigurationError as error:
            logger.error("the last certificate stays in force: %s", error)
            return
        logger.info("a new certificate is in force: %s", self._chain)
        for call in self._renewed:
            call()

    async def watch(self) -> None:
        """Refresh for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.refresh()
            except Exception:  # whatever it is, the next renewal must not be missed
                logger.exception("the last certificate stays in force")

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_identity(self._chain), _identity(self._key)]

    def _load(self) -> tuple[Pair, ssl.SSLContext]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if self.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        pair = Pair(_read("tls_certificate", self._chain), _read("tls_key", self._key), self.min_version)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=pair.chain.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError):
            raise ConfigurationError(f"server.tls_certificate: {self._chain} holds no certificate in PEM") from None
        try:
            with pair.files() as (chain, key, _):
                context.load_cert_chain(chain, key, password=self._no_password)
        except ssl.SSLError as error:
            raise ConfigurationError(self._explain(error)) from None
        self._check(pair)
        if self._key.stat().st_mode & stat.S_IROTH:
            logger.warning("server.tls_key: %s may be read by every user of this machine", self._key)
        return pair, context

    def _no_password(self) -> str:  # asked for nothing else; without it OpenSSL would ask the terminal
        raise ConfigurationError(f"server.tls_key: {self._key} is encrypted")

    def _explain(self, error: ssl.SSLError) -> str:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"server.tls_key: {self._key} is not the key of {self._chain}"
        if error.reason in _TOO_WEAK:
            return f"server.tls_certificate: {self._chain} is too weak ({error.reason})"
        return f"server.tls_key: {self._key} holds no key in PEM"


def _identity(path: Path) -> tuple[int, ...] | None:
    """What changes with the content; None while there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read(key: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"server.{key}: cannot read {path}: {error.strerror}") from None

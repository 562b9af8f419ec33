"""Encryption of what is stored and must be read again: upstream credentials and answers to repeated requests.

AES-256-GCM with a random 96-bit nonce (NIST SP 800-38D). The context (whose secret it is, and where it stands) is
associated data, so that a ciphertext moved to another tenant or header does not open.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.errors import ConfigurationError, InvalidField

KEY_BYTES = 32
NONCE_BYTES = 12
MARK = "sealed:v1:"


class SealBroken(Exception):
    """A ciphertext does not open: another master key, another context, or damage."""


class Vault:
    """Seals and opens texts with the master key; without one it can do neither."""

    def __init__(self, master_key: bytes | None) -> None:
        self._cipher = None if master_key is None else AESGCM(master_key)

    def seal(self, text: str, context: str, *, param: str) -> str:
        """The text encrypted for this context. Raises InvalidField naming ``param`` if there is no master key."""
        if self._cipher is None:
            raise InvalidField(
                "a secret can only be stored when secrets.master_key is configured (32 random bytes as base64 or hex)",
                param=param,
            )
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, text.encode(), context.encode())
        return MARK + base64.b64encode(sealed).decode()

    def open(self, sealed: str, context: str) -> str:
        """The text that was sealed for this context. Raises SealBroken."""
        if self._cipher is None:
            raise SealBroken("secrets.master_key is not configured")
        try:
            raw = base64.b64decode(sealed.removeprefix(MARK), validate=True)
            return self._cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], context.encode()).decode()
        except (InvalidTag, binascii.Error, ValueError):
            raise SealBroken("a stored secret does not open with this secrets.master_key") from None


def is_sealed(text: str) -> bool:
    """True for what `Vault.seal` returns."""
    return text.startswith(MARK)


class OneTimeSeal:
    """Seals an answer so that only someone who repeats the same request with the same credential can open it."""

    def __init__(self, *secrets_of_caller: str) -> None:
        material = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in secrets_of_caller)
        self._cipher = AESGCM(HKDF(SHA256(), KEY_BYTES, salt=None, info=b"gateway idempotency").derive(material))

    def seal(self, data: bytes) -> bytes:
        """Encrypt."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, None)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt. Raises SealBroken."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            raise SealBroken("a stored answer does not open") from None


def parse_master_key(text: str) -> bytes:
    """32 bytes from base64 (either alphabet) or hexadecimal. Raises ConfigurationError."""
    compact = text.strip()
    for decode in (bytes.fromhex, _from_base64):
        try:
            key = decode(compact)
        except ValueError:
            continue
        if len(key) == KEY_BYTES:
            return key
    raise ConfigurationError("secrets.master_key: must be 32 bytes as base64 or hexadecimal, e.g. `openssl rand -hex 32`")


def local_master_key(folder: Path) -> bytes:
    """The key in ``folder/master.key``, made with mode 0600 if there is none. Raises ConfigurationError."""
    path = folder / "master.key"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        # written under another name and linked, so that a crash leaves no half key and two starters agree on one
        draft = folder / f".master.key.{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"{path}: can be read by others; chmod it to 600")
        return parse_master_key(path.read_text(encoding="ascii"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text.translate(str.maketrans("-_", "+/")) + "=" * (-len(text) % 4), validate=True)

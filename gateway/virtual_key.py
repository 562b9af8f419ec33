"""The secrets that clients present: ``gw_<43 base62 characters>_<6 characters of checksum>``.

The prefix lets secret scanners recognise a leaked key; the checksum lets anyone refuse a mistyped one without asking the
store (the design of GitHub's tokens: https://github.blog/engineering/behind-githubs-new-authentication-token-formats/).
"""

from __future__ import annotations

import hashlib
import secrets
import string
import zlib

PREFIX = "gw_"
RANDOM_LENGTH = 43
CHECKSUM_LENGTH = 6
HINT_LENGTH = 9

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_LENGTH = len(PREFIX) + RANDOM_LENGTH + 1 + CHECKSUM_LENGTH


def new_secret() -> str:
    """A fresh secret with 256 bits of randomness."""
    body = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM_LENGTH))
    return f"{body}_{_checksum(body)}"


def is_well_formed(secret: str) -> bool:
    """True if the text has the form of a secret and its checksum is right; says nothing about whether it is known."""
    if len(secret) != _LENGTH or not secret.startswith(PREFIX) or not secret.isascii():
        return False
    body, _, checksum = secret.rpartition("_")
    return checksum == _checksum(body)


def digest(secret: str) -> str:
    """SHA-256 in hexadecimal: all that is ever stored of a secret. With 256 random bits there is nothing to guess."""
    return hashlib.sha256(secret.encode()).hexdigest()


def hint(secret: str) -> str:
    """The start of a secret, enough for its owner to recognise it."""
    return f"{secret[:HINT_LENGTH]}…"


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = []
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))

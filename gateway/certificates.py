"""How long the certificates of a file are valid."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509


@dataclass(frozen=True, slots=True)
class Validity:
    """From when until when a certificate is valid."""

    begins: datetime
    ends: datetime


def validities(file: Path) -> list[Validity]:
    """Of each certificate in a PEM file, in their order. Raises OSError, ValueError if there is none or one is damaged."""
    certificates = x509.load_pem_x509_certificates(file.read_bytes())
    return [Validity(one.not_valid_before_utc, one.not_valid_after_utc) for one in certificates]

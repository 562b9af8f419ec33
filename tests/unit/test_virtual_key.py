"""Secrets of API keys."""

import hashlib
import string
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import virtual_key


def test_a_secret_looks_as_documented_and_is_well_formed():
    secret = virtual_key.new_secret()
    prefix, random, checksum = secret.split("_")
    assert (prefix, len(random), len(checksum)) == ("gw", 43, 6)
    assert (random + checksum).isalnum()
    assert virtual_key.is_well_formed(secret)


def test_no_two_secrets_are_alike():
    assert len({virtual_key.new_secret() for _ in range(1_000)}) == 1_000


def test_the_checksum_is_the_one_that_scanners_know():
    # CRC32 of everything before it, in base 62, most significant digit first
    body, _, checksum = virtual_key.new_secret().rpartition("_")
    digits = string.digits + string.ascii_uppercase + string.ascii_lowercase
    number = 0
    for digit in checksum:
        number = number * 62 + digits.index(digit)
    assert number == zlib.crc32(body.encode())


@given(st.integers(0, 52), st.characters())
def test_a_single_wrong_character_is_noticed_without_asking_anybody(position, char):
    secret = "gw_" + "aB3" * 14 + "x_" + virtual_key._checksum("gw_" + "aB3" * 14 + "x")
    assert virtual_key.is_well_formed(secret)
    changed = secret[:position] + char + secret[position + 1 :]
    assert virtual_key.is_well_formed(changed) == (changed == secret)


@pytest.mark.parametrize("text", ["", "gw_", "gw__", "sk-1234", "gw_" + "a" * 50, "é" * 53])
def test_what_is_no_secret_is_not_well_formed(text):
    assert not virtual_key.is_well_formed(text)


@given(st.text(max_size=80))
def test_any_text_can_be_asked_about(text):
    assert not virtual_key.is_well_formed(text)


def test_only_the_digest_is_kept_and_the_hint_tells_little():
    secret = virtual_key.new_secret()
    assert virtual_key.digest(secret) == hashlib.sha256(secret.encode()).hexdigest()
    assert virtual_key.hint(secret) == secret[:9] + "…"

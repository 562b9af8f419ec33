"""What is encrypted opens with the right key in the right place and nowhere else."""

import base64
import os
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigurationError, InvalidField
from gateway.secrets import MARK, OneTimeSeal, SealBroken, Vault, is_sealed, local_master_key, parse_master_key

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


@given(st.text(), st.text())
def test_a_sealed_text_opens_in_its_place(text, context):
    sealed = Vault(KEY).seal(text, context, param="x")
    assert is_sealed(sealed)
    assert sealed.isascii()
    assert Vault(KEY).open(sealed, context) == text


def test_sealing_twice_gives_two_ciphertexts_that_do_not_tell_the_text():
    first, second = (Vault(KEY).seal("sk-secret", "a", param="x") for _ in range(2))
    assert first != second
    assert b"sk-secret" not in base64.b64decode(first.removeprefix(MARK))


@pytest.mark.parametrize(
    ("key", "context"),
    [(OTHER, "tenant-1/rule/authorization"), (KEY, "tenant-2/rule/authorization"), (None, "tenant-1/rule/authorization")],
)
def test_it_does_not_open_with_another_key_or_in_another_place(key, context):
    sealed = Vault(KEY).seal("sk-secret", "tenant-1/rule/authorization", param="x")
    with pytest.raises(SealBroken):
        Vault(key).open(sealed, context)


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_byte_is_noticed(position, flip):
    raw = bytearray(base64.b64decode(Vault(KEY).seal("sk-secret", "a", param="x").removeprefix(MARK)))
    raw[position % len(raw)] ^= flip
    with pytest.raises(SealBroken):
        Vault(KEY).open(MARK + base64.b64encode(raw).decode(), "a")


@given(st.text() | st.binary(max_size=60).map(lambda raw: base64.b64encode(raw).decode()))
def test_damage_of_any_kind_is_a_broken_seal(text):
    with pytest.raises(SealBroken):
        Vault(KEY).open(MARK + text, "a")


def test_without_a_master_key_nothing_is_stored_and_the_error_names_the_field():
    with pytest.raises(InvalidField, match=r"secrets\.master_key") as refused:
        Vault(None).seal("sk-secret", "a", param="headers.authorization")
    assert refused.value.param == "headers.authorization"


def test_plain_text_is_not_taken_for_sealed():
    assert not is_sealed("Bearer sk-1")


def test_an_answer_opens_for_who_repeats_the_request_with_the_same_credential():
    sealed = OneTimeSeal("token", "key").seal(b"answer")
    assert OneTimeSeal("token", "key").open(sealed) == b"answer"
    for others in (("token", "kez"), ("tokenk", "ey"), ("key", "token"), ("token",)):
        with pytest.raises(SealBroken):
            OneTimeSeal(*others).open(sealed)
    with pytest.raises(SealBroken):
        OneTimeSeal("token", "key").open(b"")


@pytest.mark.parametrize(
    "text",
    [
        KEY.hex(),
        KEY.hex().upper(),
        base64.b64encode(KEY).decode(),
        base64.urlsafe_b64encode(bytes([251] * 32)).decode(),
        base64.b64encode(KEY).decode().rstrip("="),
        f" {KEY.hex()}\n",
    ],
)
def test_a_master_key_is_hexadecimal_or_either_base64(text):
    assert parse_master_key(text) in (KEY, bytes([251] * 32))


@pytest.mark.parametrize(
    "text", ["", "short", KEY.hex()[:-2], KEY.hex() + "00", "é" * 32, "!" * 44, base64.b64encode(bytes(31)).decode()]
)
def test_any_other_master_key_is_refused_without_repeating_it(text):
    with pytest.raises(ConfigurationError) as refused:
        parse_master_key(text)
    assert not text or text not in str(refused.value)


def test_the_local_key_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    folder = tmp_path / "data"
    first = local_master_key(folder)
    assert local_master_key(folder) == first
    assert stat.S_IMODE((folder / "master.key").stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == ["master.key"]


def test_what_a_crash_has_left_behind_is_in_nobody_s_way(tmp_path):
    (tmp_path / f".master.key.{os.getpid()}").write_text("half")
    assert local_master_key(tmp_path) == local_master_key(tmp_path)


def test_a_local_key_that_others_can_read_is_refused(tmp_path):
    local_master_key(tmp_path)
    (tmp_path / "master.key").chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod"):
        local_master_key(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_configuration_error(tmp_path):
    (tmp_path / "master.key").mkdir()
    with pytest.raises(ConfigurationError):
        local_master_key(tmp_path)


def test_two_starters_in_one_process_agree_on_one_key(tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(local_master_key(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1

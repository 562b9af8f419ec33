"""Folders of shared series: what a killed replica left is removed, what a living process uses is not."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gateway.telemetry import metrics_folder

HOLD = """
import sys
from gateway.telemetry import metrics_folder
with metrics_folder() as (folder, _):
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_a_folder_is_gone_when_its_replica_has_ended_in_order(tmp_path):
    with metrics_folder() as (folder, _):
        (folder / "counter_1.db").write_bytes(b"x")
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_replica_left_is_removed_by_the_next_one(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as replica:
        assert replica.stdout is not None
        left = Path(replica.stdout.readline().decode().strip())
        with metrics_folder():
            assert left.is_dir()
        replica.kill()
        replica.wait()
        assert left.is_dir()
        with metrics_folder():
            assert not left.exists()


def test_a_folder_stays_as_long_as_one_process_that_inherited_its_lock_lives(tmp_path):
    with metrics_folder() as (folder, lock):
        worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
        kept = folder.rename(tmp_path / "gateway-metrics-kept")
    with worker:
        with metrics_folder():
            assert kept.is_dir()
        worker.kill()
        worker.wait()
        with metrics_folder():
            assert not kept.exists()


def test_what_is_no_folder_of_ours_is_left_alone(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "gateway-metrics-without-a-lock").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "lock").touch()
    (tmp_path / "gateway-metrics-link").symlink_to(target)
    before = set(tmp_path.iterdir())
    with metrics_folder():
        assert before < set(tmp_path.iterdir())
    assert set(tmp_path.iterdir()) == before

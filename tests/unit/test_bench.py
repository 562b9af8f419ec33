"""scripts/bench: every row is measured. Never how fast: that is for a quiet machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench.admission import FIVE, MIXES, NOTHING, SERVERS, TARGETS, Result, Sample
from scripts.bench.calls import TOGETHER

ROOT = Path(__file__).resolve().parents[2]
OTHERS = [
    NOTHING,
    "admit, no limit, server's clock",
    "settle, five limits",
    "refused by one of five limits",
    "replay, five limits",
    "renew, what five limits hold",
    *(f"settle with nothing due, each of {together} together" for together in TOGETHER),
]
_CALL = re.compile(r"^\| (.+?) \| (\d+\.\d) \| (\d+\.\d\d) \| (\d+\.\d) \| (.*) \|$", re.MULTILINE)
_RATE = re.compile(r"^\| (.+?) \| ([\d,]+) \| ([\d,]+) \|$", re.MULTILINE)


@pytest.mark.real_store
@pytest.mark.parametrize("server", SERVERS)
def test_a_run_prints_every_row_with_numbers_and_says_which_targets_are_reached(server: str):
    command = [sys.executable, "-m", "scripts.bench.admission", "--rounds", "1", "--calls", "1", "--server", server]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100).stdout
    assert told.startswith(f"## {server.capitalize()} ")
    calls = {row: numbers for row, *numbers in _CALL.findall(told)}
    assert set(calls) == {*OTHERS, *MIXES}
    assert {row for row, numbers in calls.items() if numbers[-1]} == set(TARGETS)
    assert calls[NOTHING][2] == "1.0"
    commands = [float(calls[row][0]) for row in (NOTHING, "admit, no limit", "admit, one limit: bucket", FIVE)]
    assert commands[:2] == [0, 2], "tenant and key are read"
    assert commands == sorted(set(commands))
    rates = {row: numbers for row, *numbers in _RATE.findall(told)}
    assert set(rates) == set(MIXES)


@pytest.mark.parametrize(("micros", "verdict"), [(60, "reached"), (61, "missed")])
def test_a_target_is_reached_up_to_its_own_number(micros: int, verdict: str):
    rounds = [{NOTHING: Sample([1], [0]), FIVE: Sample([number, number, 999], [6, 7, 8])} for number in (1, micros, 999)]
    table = "\n".join(Result("any", rounds, {}).tables())
    assert f"| {FIVE} | 7.0 | {micros}.00 | {micros}.0 | ≤ 60: {verdict} |" in table

"""Durations and sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from gateway.units import DurationMs, SizeBytes, format_duration_ms, parse_duration_ms, parse_size_bytes


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (0, 0),
        (5, 5_000),
        (1.5, 1_500),
        ("5", 5_000),
        ("250ms", 250),
        ("1m", 60_000),
        ("1h30m", 5_400_000),
        (" 2D ", 172_800_000),
        ("1m30s500ms", 90_500),
    ],
)
def test_a_duration_is_seconds_or_text(value, ms):
    assert parse_duration_ms(value) == ms


@pytest.mark.parametrize(
    "value", [True, "", "m", "1 m", "-1s", "1.5s", "1y", "1m!", None, [], float("inf"), float("nan"), "9" * 16, "١s", "1m\x00"]
)
def test_any_other_duration_is_refused(value):
    with pytest.raises(ValueError, match="duration"):
        parse_duration_ms(value)


@pytest.mark.parametrize(
    ("value", "size"), [(0, 0), (7, 7), ("7", 7), ("64KiB", 65_536), ("10MB", 10_000_000), ("1 gib", 1 << 30), ("3b", 3)]
)
def test_a_size_is_bytes_or_text(value, size):
    assert parse_size_bytes(value) == size


@pytest.mark.parametrize("value", [True, "", "KB", "1.5MB", "-1", "1TB", None, "1 0", "９MB"])
def test_any_other_size_is_refused(value):
    with pytest.raises(ValueError, match="size"):
        parse_size_bytes(value)


@given(st.integers(0, 10**12))
def test_a_written_duration_reads_back_the_same(ms):
    assert parse_duration_ms(format_duration_ms(ms)) == ms


@pytest.mark.parametrize(("ms", "text"), [(0, "0s"), (-5, "0s"), (60_000, "1m"), (90_000, "1m30s"), (86_400_001, "1d1ms")])
def test_a_duration_is_written_in_the_shortest_exact_way(ms, text):
    assert format_duration_ms(ms) == text


class Stored(BaseModel):
    wait: DurationMs = 0
    size: SizeBytes = 0


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_stored_document_reads_back_the_same(wait, size):
    stored = Stored(wait=f"{wait}ms", size=size)
    assert Stored.model_validate_json(stored.model_dump_json()) == stored

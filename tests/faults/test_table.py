"""The table itself: what is counted, and that a try which fails is not called survived."""

from __future__ import annotations

import pytest

from tests.faults.table import FaultRow, merged, printed


def test_a_try_that_fails_is_tried_and_not_survived():
    row = FaultRow("a fault")
    with row.one_try():
        row.answered(12.4)
    with pytest.raises(AssertionError), row.one_try():
        raise AssertionError

    assert (row.tried, row.survived, row.worst_ms, row.recovery_ms) == (2, 1, 12.4, None)


def test_rows_of_one_kind_are_added_up_and_keep_their_worst_times():
    one, other = FaultRow("kill", 3, 3, 5.0, 900.0), FaultRow("kill", 2, 1, 7.0, None)

    rows = merged([one.facts(), FaultRow("hang", 1, 1).facts(), other.facts()])

    assert rows == [FaultRow("hang", 1, 1), FaultRow("kill", 5, 4, 7.0, 900.0)]
    assert printed(rows).splitlines()[2:] == ["| hang | 1 | 1 | - | - |", "| kill | 5 | 4 | 7 | 900 |"]

"""Rules of names, as the package has them."""

import pytest
from genai_prices import types

from gateway.prices import provider as module


def test_a_clause_of_a_kind_that_is_not_known_is_an_error():
    with pytest.raises(AssertionError, match="unknown kind"):
        module._test(object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("clause", "fits", "others"),
    [
        (types.ClauseEndsWith(ends_with="-X"), "a-x", "x-a"),
        (types.ClauseContains(contains="B"), "abc", "ac"),
        (types.ClauseStartsWith(starts_with="A"), "ab", "ba"),
        (types.ClauseEquals(equals="A"), "a", "ab"),
        (types.ClauseRegex(regex="^a.$"), "ab", "abc"),
        (types.ClauseAnd(and_=[types.ClauseContains(contains="a"), types.ClauseContains(contains="b")]), "ab", "a"),
        (types.ClauseOr(or_=[types.ClauseContains(contains="a"), types.ClauseContains(contains="b")]), "b", "c"),
    ],
)
def test_a_rule_means_here_what_it_means_in_the_package(clause, fits, others):
    test = module._test(clause)
    assert (bool(test(fits)), bool(test(others))) == (clause.is_match(fits), clause.is_match(others)) == (True, False)

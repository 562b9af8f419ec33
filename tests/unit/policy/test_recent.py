"""The memory of compiled configurations."""

from gateway.policy import Recent


def test_what_was_not_used_for_longest_is_forgotten():
    recent: Recent[str, int] = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert [recent.get(name) for name in "abc"] == [1, None, 3]

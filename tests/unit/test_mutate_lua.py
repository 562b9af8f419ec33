"""scripts/lua_mutants.py, and what scripts/mutate_lua.py makes of its verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest
from lupa import lua51

from gateway.resources import lua_folder
from scripts.lua_mutants import Mutant, mutants_of, tokens_of
from scripts.mutate_lua import EQUIVALENTS, FAILED, OUT_OF_TIME, Suite, compiles, copied, explained, report, stages, time_limits

FILES = sorted(path.relative_to(lua_folder()).as_posix() for path in lua_folder().rglob("*.lua"))


def changes(line: str) -> set[str]:
    """What becomes of one line."""
    return {mutant.after for mutant in mutants_of("a.lua", line)}


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("return a < b", {"return a <= b"}),
        ("return a <= b", {"return a < b"}),
        ("return a > b", {"return a >= b"}),
        ("return a >= b", {"return a > b"}),
        ("return a == b", {"return a ~= b"}),
        ("return a ~= b", {"return a == b"}),
        ("return a + b", {"return a - b"}),
        ("return a - b", {"return a + b"}),
        ("return -a", {"return a"}),
        ("return a and b", {"return a or b"}),
        ("return a or true", {"return a and true", "return a or false"}),
        ("return not false", {"return not true"}),
        ("local a = 6000", {"local a = 5999", "local a = 6001"}),
        ("local a = 0", {"local a = 1"}),
        ("local a = '60'", {"local a = '59'", "local a = '61'"}),
        ("return a[1]", {"return a[0]", "return a[2]"}),
        ("return math.max(a, f(b, c))", {"return (a)", "return (f(b, c))"}),
        ("return math.min(a, b)", {"return (a)", "return (b)"}),
        ("redis.call('DEL', key)", {"(dropped)"}),
        ("push(key)", {"(dropped)"}),
        ("if a then b() end", {"if not (a) then b() end"}),
        ("while f(a) do b() end", {"while not (f(a)) do b() end"}),
        ("local a = redis.call('GET', key)", set()),
        ("return f(a)", set()),
        ("local a = 'x < 1 and true'", set()),
        ("-- a < 1 and true", set()),
        ("local a = b -- 1", set()),
    ],
)
def test_each_kind_of_change_is_made_and_nothing_in_texts_and_comments_is_touched(line: str, after: set[str]):
    assert changes(line) == after


def test_a_call_is_dropped_only_where_it_is_a_statement_of_its_own_with_all_its_lines():
    text = "local a =\n  f(b)\nif a then\n  redis.call(\n    'SET', g(a)\n  )\nend\nreturn {\n  f(a),\n  b\n}\n"
    dropped = [mutant for mutant in mutants_of("a.lua", text) if mutant.after == "(dropped)"]
    assert [(mutant.line, mutant.before) for mutant in dropped] == [(4, "redis.call(")]
    assert dropped[0].text == "local a =\n  f(b)\nif a then\n  \nend\nreturn {\n  f(a),\n  b\n}\n"


def test_what_is_no_lua_of_ours_is_refused_with_its_line():
    with pytest.raises(ValueError, match=r"line 2: unknown character '@'"):
        tokens_of("local a\n@")


@pytest.mark.parametrize("file", FILES)
def test_every_mutant_of_our_files_differs_and_compiles(file: str):
    text = (lua_folder() / file).read_text()
    mutants = list(mutants_of(file, text))
    texts = {mutant.text for mutant in mutants}
    assert len(texts) == len(mutants)
    assert text not in texts
    for mutant in mutants:
        lua51.LuaRuntime().compile(mutant.text)


def a_mutant(file: str, line: int) -> Mutant:
    return Mutant(file, line, f"a{line}", f"b{line}", "")


def test_the_report_counts_by_file_and_names_what_survives_unless_it_is_explained():
    verdicts = {
        a_mutant("x.lua", 9): "survived",
        a_mutant("x.lua", 1): "survived",
        a_mutant("x.lua", 2): "killed",
        a_mutant("x.lua", 3): "invalid",
        a_mutant("x.lua", 4): "survived",
        a_mutant("y.lua", 4): "timed out",
    }
    text, survivors = report(verdicts, {("x.lua", "a4", "b4"): "why", ("y.lua", "a9", "b9"): "why"})
    assert survivors == 2
    assert "| x.lua | 4 | 1 | 0 | 1 | 2 |\n| y.lua | 1 | 0 | 1 | 0 | 0 |\n" in text
    assert text.endswith("- x.lua:1: `a1` → `b1`\n- x.lua:9: `a9` → `b9`\n")


def test_every_explained_change_is_one_that_is_tried():
    reasons = explained(EQUIVALENTS.read_text().splitlines())
    tried = {
        (mutant.file, mutant.before, mutant.after)
        for file in {file for file, _, _ in reasons}
        for mutant in mutants_of(file, (lua_folder() / file).read_text())
    }
    assert set(reasons) <= tried
    assert all(reasons.values())


def test_a_tree_of_its_own_is_tested_and_not_this_one(tmp_path: Path):
    with Suite(copied(tmp_path)) as suite:
        asked = [*stages(suite.tree, "lib/limit_log.lua")[0], "-k", "exactly_as_old_as_the_window"]
        assert suite.status(asked) == 0
        path = suite.tree / "lua" / "lib" / "limit_log.lua"
        text = path.read_text()
        path.write_text(text.replace("log_live(key, length, now - window)", "log_live(key, length, now + window)"))
        assert compiles(suite.tree)
        assert suite.status(asked) == FAILED
        assert suite.status(asked, 0) == OUT_OF_TIME
        path.write_text(text.replace("local function log_live(", "local function log_live"))
        assert not compiles(suite.tree)


def test_every_file_is_tested_by_what_exists():
    root = lua_folder().parent
    for file in FILES:
        asked = [word for stage in stages(root, file) for word in stage if word.endswith(".py")]
        assert asked
        assert all((root / path).is_file() for path in asked)


def test_nothing_is_run_on_tests_that_fail_without_a_change(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scripts.mutate_lua.stages", lambda tree, file: [["--no-such-option"]])
    with pytest.raises(SystemExit, match="without any change these tests fail: --no-such-option"):
        time_limits(["lib/limit_log.lua"])

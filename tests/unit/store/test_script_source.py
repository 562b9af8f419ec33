"""The Lua files: how they are put together, and that each header tells the truth about its code."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer
from lupa import lua51

from gateway.errors import ConfigurationError
from gateway.models import RING_PARTS, LimitKind, LimitSpec
from gateway.resources import lua_folder
from gateway.store import Keyspace
from gateway.store.script_source import Script, read_scripts
from tests.gate import NOON, log

SCRIPTS = read_scripts(lua_folder())
HEADER = '-- {0}: a question?\n--\n-- Returns  {{"ok"}}\n-- Writes   nothing\n-- Flags    no-writes\n'


def write(folder: Path, **files: str) -> Path:
    """Files by name; ``lib_x`` is ``lib/x.lua``."""
    for name, text in files.items():
        path = folder / f"{name.replace('_', '/', 1)}.lua"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def body(folder: Path, name: str = "ask") -> str:
    return read_scripts(folder)[name].body


# Includes


def test_an_include_is_pasted_in_its_place(tmp_path: Path):
    write(tmp_path, ask=HEADER.format("ask") + '--- @include "lib/a"\nreturn a', lib_a="local a = 1")
    assert body(tmp_path) == HEADER.format("ask") + "local a = 1\nreturn a\n"


def test_a_file_is_pasted_once_before_the_first_that_needs_it(tmp_path: Path):
    write(
        tmp_path,
        ask=HEADER.format("ask") + '--- @include "lib/b"\n--- @include "lib/c"\n--- @include "lib/a"\nreturn 1',
        lib_a="-- a",
        lib_b='--- @include "lib/a"\n-- b',
        lib_c='--- @include "lib/a"\n--- @include "lib/b"\n-- c',
    )
    assert body(tmp_path).removeprefix(HEADER.format("ask")) == "-- a\n-- b\n-- c\nreturn 1\n"


def test_files_that_include_each_other_are_refused_with_the_whole_circle(tmp_path: Path):
    write(
        tmp_path,
        ask=HEADER.format("ask") + '--- @include "lib/a"',
        lib_a='--- @include "lib/b"',
        lib_b='--- @include "lib/a"',
    )
    with pytest.raises(ConfigurationError, match=r"ask\.lua -> lib/a\.lua -> lib/b\.lua -> lib/a\.lua"):
        read_scripts(tmp_path)


def test_a_missing_file_is_named_with_its_path_and_with_who_asked_for_it(tmp_path: Path):
    write(tmp_path, ask=HEADER.format("ask") + '--- @include "lib/gone"')
    with pytest.raises(ConfigurationError, match=rf"{re.escape(str(tmp_path))}/lib/gone\.lua: no such file.* ask\.lua"):
        read_scripts(tmp_path)


def test_functions_that_a_command_does_not_call_are_left_out_with_those_that_only_they_call(tmp_path: Path):
    called, caller, inner = ("local function {0}(a)\n  if {1} then\n    return a\n  end\nend\n",) * 3
    lib = (
        inner.format("inner", 1)
        + caller.format("caller", "inner(1)")
        + "-- caller\n"
        + called.format("called", 1)
        + "local b = 1"
    )
    write(tmp_path, ask=HEADER.format("ask") + '--- @include "lib/a"\nreturn called(b)', lib_a=lib)
    kept = "-- caller\n" + called.format("called", 1) + "local b = 1\nreturn called(b)\n"
    assert body(tmp_path) == HEADER.format("ask") + kept
    script = read_scripts(tmp_path)["ask"]
    assert script.origins[script.body.splitlines().index("local function called(a)")] == "lib/a.lua:12"


@pytest.mark.parametrize(
    "line", ["local function f() return 1 end", "local function f() -- of nothing", "local f = function()"]
)
def test_a_function_that_is_written_in_another_way_stays(tmp_path: Path, line: str):
    text = line if line.endswith(" end") else f"{line}\nend"
    write(tmp_path, ask=HEADER.format("ask") + f"{text}\nreturn 1")
    assert body(tmp_path) == HEADER.format("ask") + f"{text}\nreturn 1\n"


def test_a_folder_without_scripts_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="no Lua scripts"):
        read_scripts(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("return 1", "the header must begin with '-- ask: '"),
        (HEADER.format("other"), "the header must begin with '-- ask: '"),
        (HEADER.format("ask").replace("-- Flags    no-writes\n", ""), "the header lacks Flags"),
        (HEADER.format("ask").replace("Returns", "Gives").replace("Writes", "Puts"), "the header lacks Returns, Writes"),
        (HEADER.format("ask").replace("no-writes", "fast"), "Flags must be one of deny-oom, allow-oom, no-writes"),
    ],
)
def test_a_bad_header_is_refused_with_the_files_path(tmp_path: Path, text: str, complaint: str):
    write(tmp_path, ask=text)
    with pytest.raises(ConfigurationError, match=rf"ask\.lua: {complaint}"):
        read_scripts(tmp_path)


@pytest.mark.parametrize(
    ("flag", "line"), [("deny-oom", "#!lua"), ("allow-oom", "#!lua flags=allow-oom"), ("no-writes", "#!lua flags=no-writes")]
)
def test_the_shebang_carries_the_flags(tmp_path: Path, flag: str, line: str):
    write(tmp_path, ask=HEADER.format("ask").replace("no-writes", flag))
    plain = read_scripts(tmp_path)["ask"]
    assert plain.with_shebang().body == f"{line}\n{plain.body}"
    assert plain.with_shebang().sha != plain.sha


# Where an error comes from


@pytest.mark.parametrize("shebang", [False, True])
@pytest.mark.parametrize(
    "pattern", ["user_script:{}: bad", "Error running script (call to f_ab): @user_script:{}: bad", "on @user_script: {}."]
)
def test_a_line_of_the_pasted_script_is_traced_to_its_file(tmp_path: Path, pattern: str, shebang: bool):
    write(tmp_path, ask=HEADER.format("ask") + '--- @include "lib/a"\nerror()', lib_a="-- one\n-- two")
    script = read_scripts(tmp_path)["ask"]
    script = script.with_shebang() if shebang else script
    for text, origin in (("-- two", "lib/a.lua:2"), ("error()", "ask.lua:7")):
        number = script.body.splitlines().index(text) + 1
        assert origin in script.locate(pattern.format(number))
    assert "999" in script.locate(pattern.format(999))


def test_every_line_has_an_origin():
    for script in SCRIPTS.values():
        for line, origin in zip(script.body.splitlines(), script.origins, strict=True):
            name, number = origin.split(":")
            assert (lua_folder() / name).read_text().splitlines()[int(number) - 1] == line


# Headers and code agree


def header(name: str) -> str:
    lines = (lua_folder() / f"{name}.lua").read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return "\n".join(lines[:end])


def code(text: str) -> str:
    """Without comments."""
    return re.sub(r"--[^\n]*", "", text)


def declared(name: str, table: str) -> tuple[set[int], set[int]]:
    """Single numbers, and where an open range starts."""
    found = re.findall(rf"^-- {table}\[(\d+)(\+?)\] +\S", header(name), re.MULTILINE)
    assert len(found) == len({number for number, _ in found})
    return {int(number) for number, plus in found if not plus}, {int(number) for number, plus in found if plus}


def used(name: str, table: str) -> tuple[set[int], set[int]]:
    """The same as the code has it: directly, by a loop to the end, or as a first key or argument given to lib/limits."""
    text = code((lua_folder() / f"{name}.lua").read_text())
    for constant, value in re.findall(r"local ([A-Z_]+) = (\d+)", text):
        text = re.sub(rf"\b{constant}\b", value, text)
    singles = {int(number) for number in re.findall(rf"{table}\[(\d+)\]", text)}
    if table == "KEYS":
        opens = re.findall(r"for \w+ = (\d+), #KEYS", text) + re.findall(r"#KEYS >= (\d+)", text)
        opens += re.findall(r"peek_limits\((\d+), \d+,", text) + re.findall(r" = (\d+) \+ count\b", text)
    else:
        opens = re.findall(r"peek_limits\(\d+, (\d+),", text) + re.findall(r"local argument = (\d+)", text)
    starts = {int(number) for number in opens}
    if (name, table) == ("delete_tenant", "KEYS"):  # deletes all keys alike
        assert starts == {1}
        return {1, 2, 3}, {4}
    return {number for number in singles if not starts or number < min(starts)}, starts


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("table", ["KEYS", "ARGV"])
def test_every_key_and_argument_is_declared_and_used(name: str, table: str):
    singles, opens = declared(name, table)
    assert (singles, opens) == used(name, table)
    assert sorted(singles | opens) == list(range(1, len(singles) + len(opens) + 1))
    if opens:
        assert opens == {max(singles | opens)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_reply_in_the_code_is_in_the_header_and_the_other_way_round(name: str):
    told = re.search(r"^-- Returns  (.*?)^-- Writes", header(name), re.MULTILINE | re.DOTALL)
    assert told is not None
    words = re.findall(r"(?:\{|\] =|return) '([a-z_]+)(?:'|: ')", code(SCRIPTS[name].body))
    assert set(re.findall(r'"([a-z_]+)(?:"|: )', told[1])) == set(words)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_flag_agrees_with_what_the_header_says_of_writing(name: str):
    told = re.search(r"^-- Writes   (.*)$", header(name), re.MULTILINE)
    assert told is not None
    assert (SCRIPTS[name].flag == "no-writes") == (told[1] == "nothing")


# The portable subset


@pytest.mark.parametrize("name", SCRIPTS)
def test_only_what_every_server_has_is_used(name: str):
    text = code(SCRIPTS[name].body)
    for word in (
        "cjson",
        "cmsgpack",
        "struct",
        "bit",
        "loadstring",
        "goto",
        "sha1hex",
        "pairs",
        "replicate_commands",
    ):
        assert not re.search(rf"\b{word}\b", text), word
    assert not re.search(r"\bredis\.(?!call\b)", text)
    assert "#!" not in text
    assert text.isascii()


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_compiles_in_lua_5_1(name: str):
    lua51.LuaRuntime().compile(SCRIPTS[name].body)


def lint(text: str) -> str:
    command = ["luacheck", "--std", "none", "--codes", "--no-color", "--no-max-line-length", "--no-unused", "--read-globals"]
    allowed = ["redis.call", "KEYS", "ARGV", "tonumber", "string", "math", "error", "pcall", "tostring", "type", "unpack"]
    done = subprocess.run([*command, *allowed, "--", "-"], input=text, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout


@pytest.mark.skipif(shutil.which("luacheck") is None, reason="luacheck is not installed; the strict run below always runs")
class TestWithLuacheck:
    @pytest.mark.parametrize("name", SCRIPTS)
    def test_a_script_is_clean(self, name: str):
        assert lint(SCRIPTS[name].body) == ""

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_what_a_command_itself_defines_it_also_uses(self, name: str):
        text = (lua_folder() / f"{name}.lua").read_text()
        done = subprocess.run(
            ["luacheck", "--std", "lua51", "--no-color", "--no-global", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    @pytest.mark.parametrize("text", ["stray = 1", "return next(KEYS)", "return cjson", "KEYS = 1", "return redis.pcall()"])
    def test_the_linter_sees_what_it_is_for(self, text: str):
        assert lint(text)


# A run in which every global that is read or written by name raises

STRICT = """
function(chunk, call, keys, argv)
  local allowed = {
    redis = { call = call }, KEYS = keys, ARGV = argv,
    tonumber = tonumber, string = string, math = math, error = error,
    pcall = pcall, tostring = tostring, type = type, unpack = unpack,
  }
  local environment = setmetatable({}, {
    __index = function(_, name)
      if allowed[name] == nil then error('reads the global ' .. tostring(name), 2) end
      return allowed[name]
    end,
    __newindex = function(_, name) error('writes the global ' .. tostring(name), 2) end,
  })
  return setfenv(chunk, environment)()
end
"""


class Strict:
    """Runs scripts in plain Lua 5.1 over the commands of a fakeredis."""

    def __init__(self) -> None:
        self.client = FakeRedis(server=FakeServer())
        self.ran: set[str] = set()

    def __call__(self, name: str, keys: list[str], arguments: list[str]) -> list[Any]:
        self.ran.add(name)
        return self.run(SCRIPTS[name].body, keys, arguments)

    def run(self, text: str, keys: list[str], arguments: list[str]) -> list[Any]:
        lua = lua51.LuaRuntime(encoding=None)

        def call(*words: Any) -> Any:
            assert all(type(word) is bytes for word in words), f"{words}: numbers travel as decimal text"
            reply = self.client.execute_command(*words)
            pairs = [part for pair in reply.items() for part in pair] if isinstance(reply, dict) else reply
            return self.shape(lua, pairs)

        chunk = lua.compile(text.encode())
        tables = (lua.table_from([word.encode() for word in words]) for words in (keys, arguments))
        return list(lua.eval(STRICT.strip().encode())(chunk, call, *tables).values())

    def shape(self, lua: Any, reply: Any) -> Any:
        """As Redis hands a reply to Lua."""
        match reply:
            case None:
                return False
            case True:
                return 1
            case list() | tuple():
                return lua.table_from([str(part).encode() if type(part) is int else self.shape(lua, part) for part in reply])
            case str():
                return reply.encode()
        return reply


@pytest.fixture
def strict() -> Strict:
    return Strict()


def _scenario(run: Callable[[str, list[str], list[str]], list[Any]]) -> set[bytes]:
    """Calls of every script through most of their branches; returns the words of the replies."""
    words = set()

    def call(name: str, keys: list[str], arguments: list[str]) -> None:
        words.add(run(name, keys, arguments)[0])

    once = ["print", "answer", "1000"]
    none = ["", "", "1000"]
    create = ["t-1", "v1", "{}", "key_1", "d1", "r1", "", "{}"]
    call("lookup_tenant", ["t"], [])
    call("create_tenant", ["t", "i", "k1", "o"], [*create, *once])
    call("create_tenant", ["t", "i", "k1", "o"], [*create, *once])
    call("create_tenant", ["t", "i", "k1", "o"], [*create, "other", "answer", "1000"])
    call("create_tenant", ["t", "i", "k1", "o"], [*create, *none])
    call("lookup_tenant", ["t"], [])
    call("write_tenant", ["t"], ["v1", "v2", "active", "{}"])
    call("write_tenant", ["t"], ["v1", "v2", "active", "{}"])
    call("write_rule", ["t", "r", "o2"], ["v2", "v3", "rule_1", "{}", *none, "1", "99"])
    call("write_rule", ["t", "r", "o2"], ["v3", "v3", "rule_2", "{}", *none, "1", "99"])
    call("write_rule", ["t", "r", "o2"], ["v3", "v4", "rule_1", "", *once, "1", "99"])
    call("write_rule", ["t", "r", "o2"], ["v4", "v5", "rule_1", "{}", "other", "", "1000", "1", "99"])
    call("create_key", ["t", "i", "k2", "o3"], ["t-1", "key_2", "d2", "r2", "", "{}", *once])
    call("create_key", ["t", "i", "k2", "o3"], ["t-2", "key_2", "d2", "r2", "", "{}", *none])
    for grace in ("0", "5"):
        changed = ["key_2", "d2", "r2", "r3", "active", "", "{}", "d3 d2", grace, *none, str(NOON)]
        call("rotate_key", ["t", "i", "k3", "k2", "o4", "k0"], changed)
    call(
        "rotate_key", ["t", "i", "k4", "k3", "o4"], ["key_2", "d3 d2", "r3", "r4", "active", "", "{}", "d4 d3", "5", *none, ""]
    )
    call("write_key", ["t", "i", "k4", "k3"], ["key_2", "d4 d3", "r4", "r5", "active", "", "{}"])
    call("write_key", ["t", "i", "k4", "k3"], ["key_9", "d4 d3", "r4", "r5", "active", "", "{}"])
    call("validate_key", ["t", "r", "k4"], ["v4", "r5", ""])
    call("validate_key", ["t", "r", "k4"], ["v1", "r1", str(NOON)])
    call("validate_key", ["x", "r", "k4"], ["", "", str(NOON)])
    call("validate_key", ["t", "r", "k9"], ["", "", str(NOON)])
    limits = [
        ["log", "1", "2", "1000", "0", "0"],
        ["bucket", "1", "60", "1000", "3", "1"],
        ["budget", "1", "9", "day", "0", "0"],
        ["budget", "1", "1", "month", "0", "1"],
        ["ring", "1", "3", "1000", "0", "0"],
        ["concurrency", "1", "3", "0", "0", "0"],
        ["budget_charge", "1", "3", "day", "0", "0"],
        ["budget_release", "1", "3", f"week|-14400|{NOON}|-18000", "0", "0"],
    ]
    keys, arguments = ["l", "b", "d", "m", "r6", "f", "bc", "br"], [word for limit in limits for word in limit]
    admit = ["t", "r", "k4"]
    for number, now in enumerate(
        ["", str(NOON), str(NOON + 900), str(NOON + 950), str(NOON + 1_000), str(NOON), str(NOON + 60_000)]
    ):
        call("admit", [*admit, f"m{number}", "c", *keys], ["v4", "r5", "1000", f"m{number}", now, *arguments])
        call("rate_limit", ["c2", *(f"{key}-alone" for key in keys[:5])], [now, *arguments[:30]])
        call("peek", ["c", *keys], ["1000", now, *arguments])
    call("admit", [*admit, "m1", "c", *keys], ["v4", "r5", "1000", "m1", str(NOON), *arguments])
    call("admit", [*admit, "m1", "c"], ["v4", "", "1000", "m1", "", *arguments])
    for marker in ("m1", "m1", "m9"):
        if marker != "m9":
            call("renew", [marker, "c", *keys], ["1000", marker, str(NOON), str(NOON + 50_000), *arguments])
        alike = ["1", "1", "1", "2", "3", "4", "5", "8", *(word for place in range(1, 9) for word in (str(place), "3"))]
        settle = ["1000", str(NOON + 60_000), "1000", "1", "1", "9", "key_1:rule_1:", "a-model", *arguments]
        call("settle", ["c", marker, "u", "e", *keys], [*settle, *alike, marker, ""])
    for last in (["0", ""], ["1", "other"], ["1", "m1"], ["9", "m9"]):
        call("remove_receipts", ["e", "x"], [*last, "1"])
    call("admit", [*admit, "m9", "c", *keys], ["v4", "r5", "1000", "m9", str(NOON), *arguments])
    call("admit", [*admit, "m8", "c", "new"], ["v4", "r5", "1000", "m8", str(NOON), "budget", "1", "9", "day", "1", "0"])
    call("seed_budget", ["new", "new"], [str(NOON), "day", "3", "month", "4"])
    call("delete_tenant", ["t", "r", "i", "k3", "k4"], ["v1", "r5"])
    call("delete_tenant", ["t", "r", "i", "k3", "k4"], ["v4", "r5"])
    call("delete_tenant", ["t", "r", "i", "k3", "k4"], ["v4", "r5"])
    return words


def test_no_script_touches_a_global_that_not_every_server_has(strict: Strict):
    words = _scenario(strict)
    assert strict.ran == set(SCRIPTS)
    all_words = {word for name in SCRIPTS for word in re.findall(r"[{:|] ?\"([a-z_]+)\"", header(name))}
    assert {word.decode() for word in words} >= all_words - {"suspended", "limited"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stray = 1", "writes the global stray"),
        ("return cjson.encode({})", "reads the global cjson"),
        ("return next({})", "reads the global next"),
        ("local function f() return missing end return f()", "reads the global missing"),
    ],
)
def test_the_strict_run_sees_what_it_is_for(strict: Strict, text: str, complaint: str):
    with pytest.raises(lua51.LuaError, match=complaint):
        strict.run(text, [], [])


def test_a_script_knows_its_sha():
    script = Script("ask", "return 1", "", ())
    assert script.sha == "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"


def test_the_name_of_a_ring_tells_into_how_many_parts_it_is_divided():
    text = (lua_folder() / "lib" / "limit_ring.lua").read_text()
    assert f"local RING_PARTS = {RING_PARTS}\n" in text
    spec = LimitSpec("x", LimitKind.RING, 20_000, ("rule",), window_ms=1_000)
    assert f":limit:ring:1000/{RING_PARTS}:" in Keyspace("testcompany").limit("ten_1", "rule_1", spec)


def test_a_limit_has_as_many_arguments_as_the_scripts_take():
    text = (lua_folder() / "lib" / "limits.lua").read_text()
    assert f"local LIMIT_ARGUMENTS = {len(log(1).arguments(1))}\n" in text

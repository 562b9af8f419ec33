"""Lint every Lua command as it runs: with its includes pasted. luacheck where it is installed, and always a strict compile.

The rest finds syntax errors and names that are no locals: a global of one script breaks every later one of that server.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lupa import lua51

from gateway.resources import lua_folder
from gateway.store.script_source import Script, read_scripts

ALLOWED_GLOBALS = {"redis", "KEYS", "ARGV", "tonumber", "tostring", "string", "math", "error", "pcall", "type", "unpack"}
KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        "and break do else elseif end false for function if in local nil not or repeat return then true until while",
    )
)
_NOISE = re.compile(r"""--[^\n]*|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*\"""")
_NAMES = r"[A-Za-z_]\w*(?:\s*,\s*[A-Za-z_]\w*)*"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def compile_strictly(script: Script) -> list[str]:
    """Syntax errors, with file and line."""
    runtime = lua51.LuaRuntime(unpack_returned_tuples=True)
    try:
        runtime.compile(script.body)
    except lua51.LuaError as error:
        return [script.locate(f"user_script:{line[1]}") if (line := re.search(r":(\d+):", str(error))) else str(error)]
    return []


def unknown_globals(script: Script) -> list[str]:
    """Names that are read but never made local, by a scan of tokens outside strings and comments."""
    text = _NOISE.sub("''", script.body)
    declared = set(ALLOWED_GLOBALS)
    for names in re.findall(rf"\blocal\s+(?:function\s+)?({_NAMES})", text):
        declared.update(_NAME.findall(names))
    for names in re.findall(r"\bfunction\b[^(]*\(([^)]*)\)", text):
        declared.update(_NAME.findall(names))
    for names in re.findall(rf"\bfor\s+({_NAMES})\s*(?:=|\bin\b)", text):
        declared.update(_NAME.findall(names))
    used = {match[0] for match in re.finditer(r"(?<![\w.:])[A-Za-z_]\w*", text)}
    # names of table fields: `name =` inside a constructor
    fields = set(re.findall(r"[{,]\s*([A-Za-z_]\w*)\s*=[^=]", text))
    return sorted(used - declared - KEYWORDS - fields)


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    problems: list[str] = []
    scripts = read_scripts(lua_folder())
    for script in scripts.values():
        problems += compile_strictly(script)
        problems += [f"lua/{script.name}.lua: unknown global {name}" for name in unknown_globals(script)]
    if shutil.which("luacheck"):
        with tempfile.TemporaryDirectory() as folder:
            for script in scripts.values():
                Path(folder, f"{script.name}.lua").write_text(script.body, encoding="utf-8")
            # a pasted chunk may hold functions that a command does not call
            run = subprocess.run(
                ["luacheck", "--std", "lua51", "--read-globals", "redis", "KEYS", "ARGV", "--no-color", "--quiet",
                 "--ignore", "211", "--max-line-length", "130", "."],
                cwd=folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if run.returncode:
                problems.append(run.stdout)
    for problem in problems:
        print(problem)
    print(
        f"{len(scripts)} Lua commands, {len(problems)} problems" + ("" if shutil.which("luacheck") else " (without luacheck)")
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""Lua scripts as files: includes pasted, headers read, and line numbers traced back to the file they came from."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import ConfigurationError

_INCLUDE = re.compile(r'^ *--- @include "([a-z0-9_/]+)"$')
_HEADER_FIELD = re.compile(r"^-- (Returns|Writes|Flags)\s+(.+)$")
_ERROR_LINE = re.compile(r"(?:user_script|@user_script): ?(\d+)")
_TOLD_COMMAND = re.compile(r"run the '([^']+)' command")
_CALLED = re.compile(r"redis\.call[(,]\s*'([A-Z]+)'")
_FUNCTION = re.compile(r"^local function (\w+)\(.*\)$")
_NAME = re.compile(r"[A-Za-z_]\w*")
_FLAGS = {"deny-oom": "", "allow-oom": "allow-oom", "no-writes": "no-writes"}


@dataclass(frozen=True, slots=True)
class Script:
    """One command. ``origins`` names file and line of each line of ``body``."""

    name: str
    body: str
    flag: str
    origins: tuple[str, ...]

    @property
    def sha(self) -> str:
        """What Redis calls the script."""
        return hashlib.sha1(self.body.encode(), usedforsecurity=False).hexdigest()

    def with_shebang(self) -> Script:
        """For servers from version 7: undeclared keys are refused on a cluster, and memory is checked before the start."""
        flags = f" flags={self.flag}" if self.flag else ""
        return Script(self.name, f"#!lua{flags}\n{self.body}", self.flag, ("shebang", *self.origins))

    def locate(self, message: str) -> str:
        """A Redis error message with line numbers of the pasted script replaced by file and line."""

        def origin(match: re.Match[str]) -> str:
            line = int(match[1]) - 1
            return self.origins[line] if 0 <= line < len(self.origins) else match[0]

        return _ERROR_LINE.sub(origin, message)

    def command_at(self, message: str) -> str:
        """The command that a Redis error message is about: servers before Valkey tell its line only."""
        if told := _TOLD_COMMAND.search(message):
            return told[1].upper()
        line = _ERROR_LINE.search(message)
        called = line and _CALLED.search("".join(self.body.splitlines(keepends=True)[int(line[1]) - 1 :]))
        return called[1] if called else f"a command of lua/{self.name}.lua (ACL LOG names it)"


def read_scripts(folder: Path) -> dict[str, Script]:
    """Every command ``<name>.lua`` in the folder. Raises ConfigurationError for a missing include, a cycle or a bad header."""
    scripts = {path.stem: _read_script(path, folder) for path in sorted(folder.glob("*.lua"))}
    if not scripts:
        raise ConfigurationError(f"{folder}: no Lua scripts")
    return scripts


def _read_script(path: Path, folder: Path) -> Script:
    text = path.read_text(encoding="utf-8")
    if not text.startswith(f"-- {path.stem}: "):
        raise ConfigurationError(f"{path}: the header must begin with '-- {path.stem}: ' and the question it answers")
    fields = {match[1]: match[2].strip() for line in text.splitlines() if (match := _HEADER_FIELD.match(line))}
    missing = [name for name in ("Returns", "Writes", "Flags") if name not in fields]
    if missing:
        raise ConfigurationError(f"{path}: the header lacks {', '.join(missing)}")
    if fields["Flags"] not in _FLAGS:
        raise ConfigurationError(f"{path}: Flags must be one of {', '.join(_FLAGS)}")
    lines = _without_unused(_expand(path, folder, pasted=set(), open_files=()))
    return Script(
        path.stem,
        "".join(f"{line}\n" for line, _ in lines),
        _FLAGS[fields["Flags"]],
        tuple(origin for _, origin in lines),
    )


def _expand(path: Path, folder: Path, *, pasted: set[Path], open_files: tuple[Path, ...]) -> list[tuple[str, str]]:
    """The lines of a file with its includes, each file once, depth first, and where each line came from."""
    if path in open_files:
        chain = " -> ".join(file.relative_to(folder).as_posix() for file in (*open_files, path))
        raise ConfigurationError(f"Lua scripts include each other in a circle: {chain}")
    if not path.is_file():
        asked_by = open_files[-1].relative_to(folder) if open_files else folder
        raise ConfigurationError(f"{path}: no such file, included by {asked_by}")
    if path in pasted:
        return []
    pasted.add(path)
    name = path.relative_to(folder).as_posix()
    lines: list[tuple[str, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        include = _INCLUDE.match(line)
        if include is None:
            lines.append((line, f"{name}:{number}"))
        else:
            lines.extend(_expand(folder / f"{include[1]}.lua", folder, pasted=pasted, open_files=(*open_files, path)))
    return lines


def _without_unused(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without functions that no other line names: a server makes every function of a script anew at each call."""
    code = [line for line, _ in lines if not line.lstrip().startswith("--")]
    names = Counter(name for line in code for name in _NAME.findall(line))
    kept: list[tuple[str, str]] = []
    unused = False
    for line, origin in lines:
        if function := _FUNCTION.match(line):
            unused = names[function[1]] == 1
        if not unused:
            kept.append((line, origin))
        elif line == "end":
            unused = False
    return kept if len(kept) == len(lines) else _without_unused(kept)

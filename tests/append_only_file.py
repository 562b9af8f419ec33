"""What a Redis server has written down of a gateway's admissions: every write of every script, in order, each script as one.

The server must keep its file from the start: ``redis_server(..., persistent=True, options=KEEP_EVERYTHING)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis

KEEP_EVERYTHING: dict[str, str | int] = {"auto-aof-rewrite-percentage": 0, "aof-use-rdb-preamble": "no", "appendfsync": "no"}

Command = tuple[str, ...]

_MARKER = re.compile(r"gw:\{([^}]*)\}:req:(.*)")
_LIMIT = re.compile(r"gw:\{[^}]*\}:limit:(\w+):([^:]*):.*")


@dataclass
class Script:
    """The writes of one run of a script, or one command that was none."""

    commands: list[Command]

    @property
    def admissions(self) -> list[tuple[str, str, str, list[Command]]]:
        """Tenant, admission id and state of each admission whose marker was set, and the commands from there to the next one.

        What a settlement writes once for many, the clock and the ledger, stands behind the first and the last.
        """
        found: list[tuple[str, str, str, list[Command]]] = []
        for command in self.commands:
            if command[0] == "SET" and (name := _MARKER.fullmatch(command[1])):
                found.append((name[1], name[2], command[2], []))
            if found:
                found[-1][3].append(command)
        return found

    @property
    def recorded(self) -> int:
        """How many requests it added to the ledger."""
        return sum(int(command[3]) for command in self.commands if command[0] == "HINCRBY" and command[2].startswith("r:"))


@dataclass
class Charged:
    """An admission that was charged. ``ended``: empty while nobody has settled it, ``settled``, ``given back``, or ``late``:
    settled when the store remembered it no more. Each must be charged in a limit of kind log, whose entry goes when it is given
    back. ``charges`` are the last commands by the key of their limit.
    """

    tenant: str
    at_ms: int
    charges: dict[str, Command]
    order: int
    ended: str = ""
    ended_order: int = 0
    gave_back: dict[str, Command] = field(default_factory=dict)


def scripts(directory: Path) -> Iterator[Script]:
    """Everything that the server has written so far."""
    reader: Any = hiredis.Reader(encoding="utf-8", errors="replace")
    together: list[Command] | None = None
    for file in sorted(directory.glob("appendonlydir/*.incr.aof"), key=lambda path: int(path.name.split(".")[-3])):
        reader.feed(file.read_bytes())
        while words := reader.gets():
            command = (words[0].upper(), *words[1:])
            match command[0]:
                case "MULTI":
                    together = []
                case "EXEC":
                    yield Script(together or [])
                    together = None
                case _ if together is not None:
                    together.append(command)
                case _:
                    yield Script([command])


def admissions(directory: Path) -> dict[str, Charged]:
    """Every admission that was ever charged, by the gateway's own id of it."""
    found: dict[str, Charged] = {}
    for order, script in enumerate(scripts(directory)):
        ended = script.admissions
        # one that had nothing to give back and was not the first has written its marker and is in a sum
        all_settled = script.recorded == len(ended)
        for tenant, admission_id, state, commands in ended:
            limits = {command[1]: command for command in commands if _LIMIT.fullmatch(command[1]) and _charges(command)}
            if state.startswith("A ") and admission_id not in found:
                found[admission_id] = Charged(tenant, int(state.split()[1]), limits, order)
            elif state == "S" and admission_id in found:
                one = found[admission_id]
                gives_back = any(command[0] == "LREM" for command in commands)
                one.gave_back = limits if gives_back else {}
                settled = len(commands) > 1 or all_settled
                one.ended = "given back" if gives_back else "settled" if settled else "late"
                one.ended_order = order
    return found


def _charges(command: Command) -> bool:
    # what only tidies up or sets a time to live is none
    return command[0] in {"LPUSH", "LREM", "HSET", "HINCRBY", "SET", "ZADD", "ZREM"}


def limit_of_key(key: str) -> tuple[str, str]:
    """Kind and extent (window in ms, or period) of a limit, from the name of its key."""
    found = _LIMIT.fullmatch(key)
    assert found is not None, key
    return found[1], found[2]

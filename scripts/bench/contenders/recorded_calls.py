"""The script calls of one request, listened to at the store: what nginx + Lua has to send for the same work."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.bench.contenders.gateway import Caller, Callers, Running
from scripts.bench.load import ask_once
from scripts.bench.processes import HOST

_COMMAND = re.compile(r"^\+\d+\.\d+ \[(\d+) (?!lua)\S+\] (.*)$")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ID = re.compile(r"\b[0-9a-f]{32}\b")
ID, DIGEST, SUB, ADMITTED = "{id}", "{digest}", "{subdomain}", "{admitted}"


@dataclass(frozen=True)
class Recorded:
    """A call of a script. In its words stand `ID`, `DIGEST`, `SUB` and `ADMITTED` for what differs between requests."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class RecordedCalls:
    """The call that admits, and the one that settles afterwards, if there is one."""

    admit: Recorded
    settle: Recorded | None


@dataclass(frozen=True)
class Recordings:
    """Of both callers: a call names the version of its tenant's configuration."""

    json: RecordedCalls
    streams: RecordedCalls

    def of(self, streams: bool) -> RecordedCalls:
        return self.streams if streams else self.json


def record(gateway: Running, callers: Callers, redis_port: int, db: int) -> Recordings:
    """Raises RuntimeError where the gateway refuses or asks something else of the store."""
    return Recordings(*(_record(gateway, caller, redis_port, db) for caller in (callers.json, callers.streams)))


def _record(gateway: Running, caller: Caller, redis_port: int, db: int) -> RecordedCalls:
    """Send a request whose configuration the gateway knows already, and write down what it asks of the store."""
    for _ in range(3):
        _send(gateway, caller)
    time.sleep(0.5)
    with _monitor(redis_port) as lines:
        _send(gateway, caller)
        heard = [words for line in lines for words in _words(line, db)]
    return templates(heard, caller.subdomain, caller.secret)


def templates(heard: Sequence[Sequence[str]], subdomain: str, secret: str) -> RecordedCalls:
    """What to repeat of the commands that were heard. Raises RuntimeError if none admits."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    calls = [words for words in heard if words[0].upper() == "EVALSHA"]
    admits = [words for words in calls if any(digest in word for word in words)]
    if not admits:
        raise RuntimeError(f"no script call with the key's digest among {[words[:2] for words in heard]}")
    # the id of an admission is named in its own marker and stands alone as an argument
    admit = admits[0]
    markers = [word for word in admit if _ID.fullmatch(word) and any(word in other for other in admit if other != word)]
    if not markers:
        raise RuntimeError(f"no id in {admit}")
    settles = [words for words in calls if words is not admit and any(markers[0] in word for word in words)]
    known = {markers[0]: ID, digest: DIGEST, "{" + subdomain + "}": "{" + SUB + "}"}
    settle = Recorded(_template(settles[0], known, moments=True)) if settles else None
    return RecordedCalls(Recorded(_template(admit, known)), settle)


def _template(words: Sequence[str], known: dict[str, str], *, moments: bool = False) -> tuple[str, ...]:
    found = []
    for word in words:
        changed = word
        for value, name in known.items():
            changed = changed.replace(value, name)
        if moments and re.fullmatch(r"1\d{12}", word):
            changed = ADMITTED  # only the time of admission is a time
        found.append(changed)
    return tuple(found)


def _words(line: str, db: int) -> Iterator[list[str]]:
    command = _COMMAND.match(line)
    if command is not None and int(command[1]) == db:
        yield [word.replace('\\"', '"').replace("\\\\", "\\") for word in _WORD.findall(command[2])]


@contextlib.contextmanager
def _monitor(port: int, seconds: float = 1.0) -> Iterator[Iterator[str]]:
    """What the server is told, until so long after the last command."""
    with socket.create_connection((HOST, port)) as connection:
        connection.sendall(b"MONITOR\r\n")
        connection.settimeout(seconds)
        lines = connection.makefile("r", encoding="utf-8", errors="replace", newline="\r\n")
        next(lines)  # +OK

        def heard() -> Iterator[str]:
            with contextlib.suppress(TimeoutError):
                for line in lines:
                    yield line.rstrip("\r\n")

        yield heard()


def _send(gateway: Running, caller: Caller) -> None:
    status, body = ask_once(gateway.request(caller))
    if status != 200:
        raise RuntimeError(f"the gateway answers {status}: {body[:500]!r}")

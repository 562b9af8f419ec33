"""Break the Lua on purpose, a little each time, and see whether the tests of the store notice.

    python -m scripts.mutate_lua [--files lib/limit_log.lua ...] [--sample N --seed S] [--jobs N] [--report PATH]

Each mutant is one change of one token or statement. It is run in a copy of the tree against the tests of its own file on
fakeredis, then with those of admission and settlement, the model and all others of the store on Valkey; the first that fails
kills it.
A mutant that does not compile counts for nothing, one that runs out of time counts as seen. What survives is a test that is
missing, or a change that changes nothing: those are explained in mutate_lua.equivalents, one a line,
``file | line | the line as changed | reason``. Ends with status 1 if anything unexplained survives.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from lupa import lua51

from gateway.store.script_source import read_scripts
from scripts.lua_mutants import Mutant, mutants_of

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENTS = Path(__file__).with_suffix(".equivalents")
COPIED = ("gateway", "lua", "plugins", "tests", "pyproject.toml")
STORE = "tests/unit/store"
FAILED, OUT_OF_TIME = 1, -1  # what pytest ends with, and what stands for its end


def compiles(tree: Path) -> bool:
    """Whether every command still does."""
    try:
        for script in read_scripts(tree / "lua").values():
            lua51.LuaRuntime().compile(script.body)
    except lua51.LuaError:
        return False
    return True


_SERVE = """
import json, os, signal, sys, time
import cryptography.x509, fakeredis, hypothesis.stateful, lupa.lua51, pydantic_settings, pytest, pytest_asyncio, redis.asyncio
for line in sys.stdin:
    seconds, *words = json.loads(line)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        for stream in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        os._exit(pytest.main(words))
    os.setpgid(child, child)
    end, done = time.monotonic() + seconds, 0
    while not done and time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.02)
    if not done:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status) if done else -1, flush=True)
"""
_OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
_OWN_TESTS = {
    "admit": ("admit", "identity"),
    "clock": ("limits_log", "admit"),
    "integers": ("limits_bucket", "limits_ring"),
    "limits": ("admit", "settle", "renew"),
}


def stages(tree: Path, file: str) -> list[list[str]]:
    """What pytest is asked, one run after the other: the fewest tests that may notice first."""
    name = Path(file).stem
    wanted = _OWN_TESTS.get(name, (f"{name.replace('limit_', 'limits_')}*",))
    own = sorted({path.relative_to(tree).as_posix() for one in wanted for path in (tree / STORE).glob(f"test_{one}.py")})
    near = dict.fromkeys([*own, f"{STORE}/test_settle.py", f"{STORE}/test_admit.py"])
    # these two read the files instead of running them, or have nothing to do with scripts
    rest = ["--ignore", f"{STORE}/test_script_source.py", "--ignore", f"{STORE}/test_connect.py", STORE]
    valkey = ["-m", "real_store and not long", "-k", "valkey"]
    first = [["-m", "not real_store and not long", *own]] if own else []
    return [*first, [*valkey, *near], [*valkey, f"{STORE}/test_admission_model.py"], [*valkey, *rest]]


def verdict_on(suite: Suite, mutant: Mutant, limits: Limits) -> str:
    """killed, timed out, survived or invalid."""
    path = suite.tree / "lua" / mutant.file
    original = path.read_text(encoding="utf-8")
    path.write_text(mutant.text, encoding="utf-8")
    try:
        if not compiles(suite.tree):
            return "invalid"
        for asked in stages(suite.tree, mutant.file):
            status = suite.status(asked, limits[tuple(asked)])
            if status in {FAILED, OUT_OF_TIME}:
                return "killed" if status == FAILED else "timed out"
            if status:
                raise RuntimeError(f"pytest ended with status {status}: {mutant.title}")
        return "survived"
    finally:
        path.write_text(original, encoding="utf-8")


class Suite:
    """Runs pytest in a tree: forks a process that has imported what takes long, and has looked at nothing of the tree yet."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE], cwd=tree, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def status(self, asked: Sequence[str], seconds: float = 600) -> int:
        """The status of pytest; -1 when it did not end in time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([seconds, *_OPTIONS, *asked]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def copied(folder: Path) -> Path:
    """The part of the tree that the tests need, in a folder of its own."""
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


Limits = dict[tuple[str, ...], float]


def time_limits(files: Iterable[str]) -> Limits:
    """The most seconds for each run of tests, from how long it takes unchanged: a loop without end is not waited for.

    Raises SystemExit when tests fail anyway: nothing would be learnt from them.
    """
    limits = {}
    with tempfile.TemporaryDirectory(prefix="gw-mutants-") as folder, Suite(copied(Path(folder))) as suite:
        for asked in dict.fromkeys(tuple(asked) for file in files for asked in stages(suite.tree, file)):
            start = time.monotonic()
            if suite.status(asked):
                raise SystemExit(f"without any change these tests fail: {' '.join(asked)}")
            limits[asked] = 15 + 5 * (time.monotonic() - start)
    return limits


def run_all(mutants: Sequence[Mutant], limits: Limits, jobs: int) -> dict[Mutant, str]:
    """The verdict on each. Every job has a tree of its own."""
    todo: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        todo.put(mutant)
    verdicts: dict[Mutant, str] = {}

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="gw-mutants-") as folder, Suite(copied(Path(folder))) as suite:
            while True:
                try:
                    mutant = todo.get_nowait()
                except queue.Empty:
                    return
                start = time.monotonic()
                verdicts[mutant] = verdict = verdict_on(suite, mutant, limits)
                print(f"{len(verdicts)}/{len(mutants)} {verdict} {time.monotonic() - start:.0f} s {mutant.title}", flush=True)

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(verdicts) < len(mutants):
        raise SystemExit("not every mutant was tried, see above")
    return verdicts


def explained(lines: Iterable[str]) -> dict[tuple[str, str, str], str]:
    """The reasons why changes change nothing, by file, line and the line as changed."""
    found = {}
    for line in lines:
        if line.strip() and not line.startswith("#"):
            file, before, after, reason = (part.strip() for part in line.split(" | "))
            found[file, before, after] = reason
    return found


def report(verdicts: dict[Mutant, str], reasons: dict[tuple[str, str, str], str]) -> tuple[str, int]:
    """Markdown, and how many survive without a reason."""
    lines = ["| file | mutants | killed | timed out | explained | survived |", "|---|---:|---:|---:|---:|---:|"]
    left = [one for one, verdict in verdicts.items() if verdict == "survived"]
    unexplained = [one for one in left if (one.file, one.before, one.after) not in reasons]
    for file in sorted({mutant.file for mutant in verdicts}):
        counts = Counter(verdict for mutant, verdict in verdicts.items() if mutant.file == file)
        open_ones = sum(mutant.file == file for mutant in unexplained)
        numbers = (
            counts.total() - counts["invalid"],
            counts["killed"],
            counts["timed out"],
            counts["survived"] - open_ones,
            open_ones,
        )
        lines.append(f"| {file} | {' | '.join(map(str, numbers))} |")
    lines += ["", "Survivors:", ""] + [f"- {one.title}" for one in sorted(unexplained, key=lambda one: (one.file, one.line))]
    return "\n".join(lines) + "\n", len(unexplained)


def main() -> int:
    """Mutate, run, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", nargs="+", help="below lua/; all by default")
    parser.add_argument("--sample", type=int, help="only so many of the mutants, chosen at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--report", type=Path, help="where the report is written; it is printed as well")
    options = parser.parse_args()
    lua = ROOT / "lua"
    files = options.files or [path.relative_to(lua).as_posix() for path in sorted(lua.rglob("*.lua"))]
    mutants = [mutant for file in files for mutant in mutants_of(file, (lua / file).read_text(encoding="utf-8"))]
    if options.sample is not None and options.sample < len(mutants):
        mutants = random.Random(options.seed).sample(mutants, options.sample)
    reasons = explained(EQUIVALENTS.read_text(encoding="utf-8").splitlines())
    unknown = [mutant for mutant in mutants if (mutant.file, mutant.before, mutant.after) not in reasons]
    limits = time_limits(dict.fromkeys(mutant.file for mutant in unknown))
    verdicts = run_all(unknown, limits, options.jobs) | dict.fromkeys(set(mutants) - set(unknown), "survived")
    text, survivors = report(verdicts, reasons)
    print(text)
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

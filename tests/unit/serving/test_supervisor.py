"""The supervisor with processes that are no gateways: who is started, told and killed when."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.errors import ConfigurationError
from gateway.serving import Supervisor, WorkerProcess
from tests.unit.serving import worker_mains
from tests.wire import eventually


class Run:
    """A supervisor that runs; ``notes`` is what its workers wrote."""

    def __init__(self, main, notes, count=2, patience_s=20.0, silent_beats=30):
        self.leaving, self.stopping, self.ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.notes_file = notes
        self.died: list[int] = []

        async def start():
            return await WorkerProcess.start(main, str(notes), fds=[], environment={})

        events = {"leaving": self.leaving, "stopping": self.stopping}
        self.supervisor = Supervisor(count, start, **events, died=self.died.append, silent_beats=silent_beats)
        self.task = asyncio.create_task(self.supervisor.run(self.ready.set, patience_s))

    def notes(self, what):
        """The pids of those that noted it."""
        lines = self.notes_file.read_text().splitlines() if self.notes_file.exists() else []
        return [int(line.split()[0]) for line in lines if line.split()[1] == what]


@asynccontextmanager
async def supervised(main, tmp_path: Path, **how):
    run = Run(main, tmp_path / "notes", **how)
    try:
        yield run
    finally:
        run.leaving.set()
        run.stopping.set()
        await asyncio.gather(run.task, return_exceptions=True)


async def test_all_are_ready_before_it_says_so_and_all_are_told_to_leave_and_to_stop(tmp_path):
    async with supervised(worker_mains.obedient, tmp_path) as run:
        await run.ready.wait()
        assert len(run.notes("ready")) == 2
        run.leaving.set()
        await eventually(lambda: len(run.notes("leave")) == 2)
        assert run.notes("stop") == []
        run.stopping.set()
        await run.task
        assert sorted(run.notes("stop")) == sorted(run.notes("ready")) == sorted(run.died)


async def test_one_that_dies_is_replaced_and_the_other_goes_on(tmp_path, caplog):
    async with supervised(worker_mains.obedient, tmp_path) as run:
        await run.ready.wait()
        victim, other = run.notes("ready")
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: len(run.notes("ready")) == 3, 20)
        assert run.died == [victim]
        os.kill(other, 0)
    assert "ended unasked (exit code -9)" in caplog.text


async def test_it_gives_up_when_workers_never_become_ready(tmp_path):
    async with supervised(worker_mains.stillborn, tmp_path) as run:
        with pytest.raises(ConfigurationError, match=r"^worker \d does not start \(exit code 7\)"):
            await run.task
        assert not run.ready.is_set()


async def test_nobody_is_replaced_while_leaving(tmp_path):
    async with supervised(worker_mains.obedient, tmp_path) as run:
        await run.ready.wait()
        run.leaving.set()
        os.kill(run.notes("ready")[0], signal.SIGKILL)
        await eventually(lambda: run.died)
        run.stopping.set()
        await run.task
        assert len(run.notes("ready")) == 2


async def test_one_that_does_not_stop_is_killed(tmp_path, caplog):
    async with supervised(worker_mains.deaf, tmp_path, count=1, patience_s=0.3) as run:
        await run.ready.wait()
        run.leaving.set()
        run.stopping.set()
        async with asyncio.timeout(10):
            await run.task
    assert "1 workers have not ended in time and are killed" in caplog.text


async def test_one_whose_event_loop_hangs_is_killed_and_replaced(tmp_path, caplog):
    async with supervised(worker_mains.deaf, tmp_path, count=1, patience_s=0.3, silent_beats=2) as run:
        await eventually(lambda: len(run.notes("ready")) == 2, 20)
        assert run.died == run.notes("ready")[:1]
    assert f"worker 1 (pid {run.died[0]}) hangs: silent for 2 s; it is killed" in caplog.text


async def test_one_whose_event_loop_turns_is_left_alone(tmp_path):
    async with supervised(worker_mains.obedient, tmp_path, count=1, silent_beats=2) as run:
        await run.ready.wait()
        await asyncio.sleep(3.5)
        assert run.died == []


async def test_a_worker_ends_when_nobody_holds_its_pipe_any_more(tmp_path):
    worker = await WorkerProcess.start(worker_mains.obedient, str(tmp_path / "notes"), fds=[], environment={})
    assert await worker.is_ready()
    worker.let_go()
    async with asyncio.timeout(10):
        assert await worker.ended() == 0
    assert [line.split()[1] for line in (tmp_path / "notes").read_text().splitlines()] == ["ready", "leave", "stop"]

"""What worker processes of tests do."""

import asyncio
import os
import sys
import time
from pathlib import Path

from gateway.serving import WorkerLink


def obedient(ready_fd):
    """Is ready, notes what it hears in a file, and ends when it shall stop."""
    link = WorkerLink(ready_fd)

    def note(what):
        with Path(link.job).open("a") as file:
            file.write(f"{os.getpid()} {what}\n")

    async def live():
        stop = asyncio.Event()
        link.listen(lambda: note("leave"), stop.set)
        note("ready")
        link.ready()
        await stop.wait()
        note("stop")

    asyncio.run(live())


def stillborn(ready_fd):
    """Ends before it is ready."""
    sys.exit(7)


def deaf(ready_fd):
    """Is ready, and then its event loop hangs."""
    link = WorkerLink(ready_fd)

    async def live():
        link.ready()
        hang()

    def hang():
        with Path(link.job).open("a") as file:
            file.write(f"{os.getpid()} ready\n")
        while True:
            time.sleep(60)

    asyncio.run(live())

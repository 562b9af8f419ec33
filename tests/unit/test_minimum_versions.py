"""No release with a known hole comes in: neither by the bounds of pyproject.toml nor by what is locked and installed."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-test.lock")

# older ones have known holes: request smuggling, cookie leaks, floods of frames, replies that go to somebody else
LEAST = {
    "aiohttp": "3.14.5",
    "h11": "0.16",
    "h2": "4.4.1",
    "hpack": "4.2",
    "hypercorn": "0.18",
    "quart": "0.22",
    "redis": "8.1",
    "werkzeug": "3.1.9",
}


def number(text: str) -> tuple[int, ...]:
    """A release as something that can be compared; zeros at its end do not count."""
    parts = [int(part) for part in re.findall(r"\d+", text)]
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def bounds() -> dict[str, str]:
    """The lower bound of each dependency."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = (re.match(r"([A-Za-z0-9._-]+)(?:\[\w+\])?>=([0-9.]+)", text) for text in declared)
    return {match[1].lower(): match[2] for match in found if match}


def locked(name: str) -> dict[str, set[str]]:
    """What a lock file pins; more than one release where Python's version decides."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[\w,]+\])?==([0-9][\w.]*)", (ROOT / name).read_text(), re.MULTILINE)
    found: dict[str, set[str]] = {}
    for package, pinned in pins:
        found.setdefault(package.lower().replace("_", "-"), set()).add(pinned)
    return found


@pytest.mark.parametrize("package", LEAST)
def test_the_declared_bound_lets_in_nothing_older(package: str):
    assert number(bounds()[package]) >= number(LEAST[package])


@pytest.mark.parametrize("lock", LOCKS)
def test_what_is_locked_is_new_enough_for_every_bound(lock: str):
    pinned, least = locked(lock), bounds() | LEAST
    assert LEAST.keys() <= pinned.keys()
    too_old = [
        f"{name} {release}"
        for name, bound in least.items()
        for release in pinned.get(name, ())
        if number(release) < number(bound)
    ]
    assert not too_old


def test_both_locks_pin_the_same():
    run, test = (locked(name) for name in LOCKS)
    assert {name: test.get(name) for name in run} == run


@pytest.mark.parametrize("package", LEAST)
def test_what_is_installed_is_new_enough(package: str):
    assert number(version(package)) >= number(LEAST[package])


def test_releases_are_compared_by_number():
    assert number("3.14.10") > number("3.14.5")
    assert number("0.16.0") == number("0.16")
    assert number("4.10") > number("4.9.9")

"""The package as others install it: a wheel in an empty environment, run far from any checkout."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import ROOT, a_gateway, clean_environment, run
from tests.servers import short_directory

INSTALL_S = 150.0


@pytest.fixture(scope="module")
def wheel(clone: Path) -> Iterator[Path]:
    """Built from a clean clone with what the tests have installed."""
    with short_directory() as folder:
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
        code, _, errors = run(*pip, clone, env=clean_environment(folder), cwd=folder)
        assert (code, errors) == (0, "")
        (built,) = folder.glob("*.whl")
        yield built


@pytest.fixture
def environment(clone: Path, folder: Path) -> Path:
    """A new environment with what requirements.lock names and nothing else: copied, as installing it again takes long."""
    for step in ("scripts/setup.sh",), (sys.executable, "-m", "venv", "--without-pip", folder / "venv"):
        code, output, errors = run(*step, env=clean_environment(folder), cwd=clone, seconds=INSTALL_S)
        assert code == 0, output + errors
    (source,), (target,) = clone.glob(".venv/lib/python*/site-packages"), (folder / "venv").glob("lib/python*/site-packages")
    ours_or_pip = shutil.ignore_patterns("*ai_gateway*", "gateway", "pip*")
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=ours_or_pip)
    return folder / "venv"


def test_the_wheel_holds_scripts_and_plugins_inside_the_package(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    expected = {f"gateway/{path.relative_to(ROOT)}" for path in (ROOT / "lua").rglob("*.lua")}
    expected |= {f"gateway/plugins/{path.name}" for path in (ROOT / "plugins").glob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "gateway").rglob("*.py")}
    assert "gateway/lua/admit.lua" in expected
    assert "gateway/plugins/rate_limiter.py" in expected
    assert {name for name in names if name.endswith((".lua", ".py"))} == expected
    assert {name.partition("/")[0] for name in names} == {"gateway", wheel.name.partition("-py3")[0] + ".dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_runs_in_an_empty_environment(wheel: Path, environment: Path, folder: Path):
    env, elsewhere = clean_environment(folder), folder / "empty"
    elsewhere.mkdir()
    python = environment / "bin" / "python"
    show = (python, "-c", "import gateway; print(gateway.__file__)")
    code, _, errors = run(*show, env=env, cwd=elsewhere)
    assert (code, "ModuleNotFoundError" in errors) == (1, True)
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel)
    assert run(*pip, env=env, cwd=elsewhere)[0] == 0
    code, where, _ = run(*show, env=env, cwd=elsewhere)
    assert (code, Path(where.strip()).is_relative_to(environment)) == (0, True)
    with a_gateway(elsewhere, "--local", "--demo", command=(environment / "bin" / "gateway",)) as gateway:
        body = {"model": "demo-small", "messages": [{"role": "user", "content": "Hello"}]}
        answer = gateway.proxy("POST", "/v1/chat/completions", body, tenant="testcompany", key=gateway.demo_key())
        assert answer.status == 200
        assert answer.json["choices"][0]["message"]["content"]
        assert answer.headers["x-ratelimit-remaining-requests"] == "99"
        assert gateway.admin("GET", "/plugins").json["count"] == len(list((ROOT / "plugins").glob("[a-z]*.py")))

"""What the documentation promises to list, it lists completely."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

from gateway.export.exporter import line_of
from gateway.formats import Usage
from gateway.store import Receipt
from gateway.telemetry import AccessLog, Called, Metrics, Visit

ROOT = Path(__file__).resolve().parents[2]


def test_the_configuration_page_lists_every_key_as_the_settings_define_it():
    check = [sys.executable, str(ROOT / "scripts" / "document_configuration.py"), "--check"]
    run = subprocess.run(check, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_metric_has_its_line():
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    metrics = Metrics()
    metrics.observe(Visit("req", tenant="t", code="c", admission_ms=1, upstream_ms=1), 1)
    metrics.plugin_failed("p", "pre_request")
    text, _ = metrics.exposition()
    names = {line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE ")}
    assert len(names) >= 7
    for name in names:
        assert f"`{name}`" in page, name


def test_every_field_of_the_access_log_has_its_line():
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    stream = StringIO()
    AccessLog(stream).write(Visit("req", called=Called("m", Usage(), 0, is_estimate=False, is_priced=True)), 1)
    fields = json.loads(stream.getvalue())
    assert fields.keys() >= {field.name for field in dataclasses.fields(Visit)} - {"called"}
    for name in fields:
        assert f"`{name}`" in page, name


def test_every_field_of_an_exported_line_has_its_row():
    page = (ROOT / "docs" / "billing.md").read_text(encoding="utf-8")
    example = json.loads(next(line for line in page.splitlines() if line.startswith("{")))
    receipt = Receipt(41, "a", 1_773_144_000_412, 1_773_144_002_038, "k", "r", "m", 1, 2, 3, 4, 5)
    fields = json.loads(line_of("acme-0123456789ab", receipt))
    assert list(example) == list(fields)
    assert (example["admitted_at"], example["settled_at"]) == (fields["admitted_at"], fields["settled_at"])
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    for name in fields:
        assert f"`{name}`" in rows, name


def test_every_script_that_a_user_runs_is_named_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for script in ("run_local.sh", "test.sh", "test_tenant.sh", "test_rate_limiter.sh"):
        assert f"scripts/{script}" in readme
        assert (ROOT / "scripts" / script).stat().st_mode & 0o111, f"{script} cannot be run"


def test_a_built_in_plugin_imports_the_plugin_module_and_nothing_else_of_ours():
    for path in sorted((ROOT / "plugins").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        ours = {name for name in imported if name.partition(".")[0] in ("gateway", "plugins", "tests")}
        assert ours == {"gateway.plugin"}, path.name


def test_no_source_file_is_longer_than_three_hundred_lines():
    sources = [
        path
        for folder in ("gateway", "plugins", "lua")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".lua")
    ]
    long = {path.relative_to(ROOT).as_posix() for path in sources if len(path.read_text(encoding="utf-8").splitlines()) > 300}
    assert not long

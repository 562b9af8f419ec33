"""scripts/bench: what becomes of measurements: tables, charts, the page, and copies of a tenant."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gateway import virtual_key
from scripts.bench.contenders.gateway import Caller
from scripts.bench.document import END, PAGE, START, write_page
from scripts.bench.plots import Scale, svg, ticks
from scripts.bench.population import populate, write_senders
from scripts.bench.proxies import SECTIONS
from scripts.bench.results import Chart, Findings, Table, load, told_failures
from scripts.bench.sections.long import after_warm_up, pause_for
from scripts.bench.sections.streams import LONG, SHORT, a_chunk_us
from tests.servers import valkey_server


def findings(section: str = "cpu", **facts: str) -> Findings:
    table = Table("32 connections", ["proxy", "CPU µs/request", "failed"], [0, 1, 0])
    table.add("nginx-lua", 1234.56, told_failures(0))
    table.add("upstream", None, told_failures(3))
    chart = Chart(section, "CPU", "µs", bars=[("nginx-lua", 80.0), ("gateway <x>", 400.0)], logarithmic=True)
    return Findings(section, "CPU of a request", facts, [table], [chart], ["one\n  note"])


def test_a_table_shows_what_is_missing_as_nothing_and_marks_failures():
    assert findings().markdown() == (
        "**32 connections**\n\n"
        "| proxy | CPU µs/request | failed |\n|---|---:|---:|\n"
        "| nginx-lua | 1,234.6 | 0 |\n| upstream |  | **3 failed** |\n\n"
        "* one note"
    )


def test_what_is_kept_is_read_again_in_the_order_of_the_sections(tmp_path: Path):
    for section in ("cpu", "long"):
        findings(section, date="today").save(tmp_path)
    assert load(tmp_path, ["long", "streams", "cpu"]) == [findings("long", date="today"), findings("cpu", date="today")]


def test_the_page_keeps_its_words_and_names_a_machine_once(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    findings("cpu", date="today", load="1").save(tmp_path / "kept")
    findings("streams", date="today", load="2").save(tmp_path / "kept")
    findings("long", date="tomorrow").save(tmp_path / "kept")
    write_page(tmp_path / "kept", list(SECTIONS), page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("* date: today") == 1
    assert text.index("* date: today") < text.index("(performance/streams.svg)") < text.index("* date: tomorrow")
    assert (tmp_path / "performance" / "long.svg").exists()
    page.write_text("no place", encoding="utf-8")
    with pytest.raises(RuntimeError, match="no place"):
        write_page(tmp_path / "kept", list(SECTIONS), page)


def test_the_committed_page_shows_what_is_kept_of_it(tmp_path: Path):
    copy = tmp_path / "performance.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    kept = PAGE.parent / "performance"
    write_page(kept, list(SECTIONS), copy)
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
    for chart in (tmp_path / "performance").iterdir():
        assert (kept / chart.name).read_text(encoding="utf-8") == chart.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "expected"),
    [
        (0, 47, False, [0, 10, 20, 30, 40, 50]),
        (0, 0.8, False, [0, 0.2, 0.4, 0.6, 0.8]),
        (0, 0, False, [0]),
        (80, 400, True, [10, 100, 1000]),
        (500, 1_000_000, True, [100, 1000, 10_000, 100_000, 1_000_000]),
        (100, 100, True, [100, 1000]),
    ],
)
def test_marks_of_an_axis_are_round_and_cover_all(low: float, high: float, logarithmic: bool, expected: list[float]):
    assert ticks(low, high, logarithmic=logarithmic) == pytest.approx(expected)


def test_a_scale_puts_its_first_mark_at_its_start_and_its_last_at_its_end():
    scale = Scale([10, 100, 1000], 0, 200, logarithmic=True)
    assert [round(scale(value), 9) for value in (10, 100, 1000)] == [0, 100, 200]
    assert Scale([0, 5], 100, 0, logarithmic=False)(1) == 80


def test_charts_are_pictures():
    lines = Chart("growth", "by limits", "µs", lines={"a": [(0, 1.5), (5, 3.0)], "b": [(0, 1.0), (5, 1.0)]}, x_label="limits")
    for chart, shapes in ((findings().charts[0], {"rect": 2}), (lines, {"polyline": 2, "circle": 4})):
        picture = ElementTree.fromstring(svg(chart))
        for shape, count in shapes.items():
            assert len(picture.findall(f"{{http://www.w3.org/2000/svg}}{shape}")) >= count


def test_the_pause_makes_all_connections_together_as_fast_as_was_asked():
    assert pause_for(per_s=320, connections=32, latency_ms=20) == 80
    assert pause_for(per_s=1e6, connections=32, latency_ms=20) == 1


def test_memory_counts_from_the_end_of_the_warm_up():
    assert after_warm_up([(0, 50.0), (1, 60.0), (2, 70.0), (3, 71.0), (20, 72.0)]) == 70
    assert after_warm_up([(0, 50.0), (1, 60.0)]) == 60


def test_the_cost_of_a_chunk_leaves_the_request_out():
    assert a_chunk_us([1000, 1100, 5000], [1100 + 40 * (LONG - SHORT)]) == 40
    assert a_chunk_us([], [1]) is None
    assert a_chunk_us([50], [10]) == 0.1


@pytest.mark.real_store
def test_copies_of_a_tenant_differ_in_name_id_and_key_alone(tmp_path: Path):
    model = Caller("model-0123456789ab", virtual_key.new_secret(), "model")
    digest = hashlib.sha256(model.secret.encode()).hexdigest()
    rule = json.dumps({"id": "rule_1", "path": "/v1"})
    with valkey_server() as server, server.admin() as client:
        document = json.dumps({"id": model.tenant_id, "subdomain": "model", "name": "a model of others"}, separators=(",", ":"))
        client.hset("gw:{model}:tenant", mapping={"id": model.tenant_id, "version": "1", "document": document})
        client.hset("gw:{model}:rules", mapping={"rule_1": rule})
        client.hset("gw:{model}:keys", mapping={"key_1": digest})
        client.hset(f"gw:{{model}}:key:{digest}", mapping={"status": "active"})
        client.set(f"gw:index:key:{digest}", "model")
        client.hset("gw:{model}:usage:model-0123456789ab:2025-01-01", mapping={"a": 1})
        client.set("gw:{model}:clock", 5)
        callers = populate(client, model, 3)
        assert len({caller.secret for caller in callers}) == 3
        for caller in callers:
            own = hashlib.sha256(caller.secret.encode()).hexdigest()
            name = caller.subdomain
            assert {key.decode() for key in client.keys(f"gw:{{{name}}}:*")} == {
                *(f"gw:{{{name}}}:{kind}" for kind in ("tenant", "rules", "keys")),
                f"gw:{{{name}}}:key:{own}",
            }
            copied = json.loads(client.hget(f"gw:{{{name}}}:tenant", "document"))
            assert copied == {"id": caller.tenant_id, "subdomain": name, "name": "a model of others"}
            assert client.hget(f"gw:{{{name}}}:keys", "key_1").decode() == own
            assert client.hget(f"gw:{{{name}}}:rules", "rule_1").decode() == rule
            assert client.get(f"gw:index:key:{own}").decode() == name
    lines = write_senders(tmp_path / "senders", callers, 2).read_text().splitlines()
    assert len(lines) == 2
    assert set(lines) <= {f"{caller.subdomain}.example.com {caller.secret}" for caller in callers}

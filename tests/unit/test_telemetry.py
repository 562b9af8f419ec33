"""Metrics with closed labels, and log lines that nobody can forge."""

import asyncio
import io
import json
import logging

from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry import AUDIT, MAX_LINES, WHOLE_BYTES, AccessLog, JsonFormatter, Metrics, Visit, start_logging


@given(st.text(), st.text(), st.text())
def test_whatever_a_request_holds_its_log_line_is_one_line_of_ascii_json(path, method, client):
    stream = io.StringIO()
    AccessLog(stream).write(Visit("req_1", method, path, client), 1.0)
    line = stream.getvalue()
    assert line.isascii()
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert "\r" not in line
    assert json.loads(line)["path"] == path[:512]


def test_fields_are_bounded():
    stream = io.StringIO()
    AccessLog(stream).write(Visit("req_1", "M" * 30_000, "/" * 30_000), 1.0)
    assert len(stream.getvalue()) < 1_000


def test_a_line_tells_what_became_of_a_request():
    stream = io.StringIO()
    visit = Visit("req_1", "GET", "/x", "10.0.0.1", "acme", "rule_1", "key_1", 200, "", 5, 7, 1.23456, None)
    AccessLog(stream).write(visit, 9.87654)
    line = json.loads(stream.getvalue())
    assert line.pop("time")
    assert line == {
        "request_id": "req_1",
        "tenant": "acme",
        "rule": "rule_1",
        "key_id": "key_1",
        "client_ip": "10.0.0.1",
        "method": "GET",
        "path": "/x",
        "status": 200,
        "code": "",
        "bytes_in": 5,
        "bytes_out": 7,
        "admission_ms": 1.235,
        "upstream_ms": None,
        "total_ms": 9.877,
    }


class Writes(io.StringIO):
    """Keeps each write apart."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text):
        self.pieces.append(text)
        return len(text)


async def test_lines_are_gathered_and_written_in_pieces_that_a_pipe_takes_whole():
    stream = Writes()
    log = AccessLog(stream)
    log.start()
    for number in range(100):
        log.write(Visit(f"req_{number}", path="/" + "x" * (number * 7)), 1.0)
    assert stream.pieces == []
    await asyncio.sleep(0.3)
    lines = "".join(stream.pieces).splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [f"req_{number}" for number in range(100)]
    assert all(len(piece) <= WHOLE_BYTES and piece.endswith("\n") for piece in stream.pieces)
    assert len(stream.pieces) < 25
    log.write(Visit("last"), 1.0)
    await log.stop()
    log.write(Visit("late"), 1.0)
    assert ["last" in stream.pieces[-2], "late" in stream.pieces[-1]] == [True, True]


async def test_very_many_lines_are_not_kept_until_it_is_time():
    stream = Writes()
    log = AccessLog(stream)
    log.start()
    for number in range(MAX_LINES):
        log.write(Visit(f"req_{number}"), 1.0)
    assert len("".join(stream.pieces).splitlines()) == MAX_LINES
    await log.stop()


async def test_a_full_disk_costs_lines_and_neither_requests_nor_what_comes_after(caplog):
    class Full(Writes):
        is_full = True

        def write(self, text):
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Full()
    log = AccessLog(stream)
    log.start()
    log.write(Visit("lost"), 1.0)
    await asyncio.sleep(0.3)
    assert caplog.text.count("up to 1 lines of the access log are lost: [Errno 28] No space left on device") == 1
    stream.is_full = False
    log.write(Visit("kept"), 1.0)
    await asyncio.sleep(0.3)
    assert [json.loads(piece)["request_id"] for piece in stream.pieces] == ["kept"]
    await log.stop()


def test_without_a_stream_nothing_is_written():
    AccessLog(None).write(Visit("req_1"), 1.0)


def test_the_metrics_count_requests_refusals_and_times():
    metrics = Metrics()
    metrics.observe(Visit("r", tenant="acme", rule="rule_1", status=200, admission_ms=1.0, upstream_ms=2.0), 5.0)
    metrics.observe(Visit("r", tenant="acme", status=429, code="rate_limited"), 1.0)
    metrics.plugin_failed("p", "pre_request")
    text, kind = metrics.exposition()
    lines = text.decode().splitlines()
    assert kind.startswith("text/plain; version=0.0.4")
    for line in (
        'gateway_requests_total{rule="rule_1",status="200",tenant="acme"} 1.0',
        'gateway_requests_total{rule="",status="429",tenant="acme"} 1.0',
        'gateway_refusals_total{code="rate_limited",tenant="acme"} 1.0',
        'gateway_request_seconds_count{tenant="acme"} 2.0',
        'gateway_upstream_seconds_count{tenant="acme"} 1.0',
        "gateway_admission_seconds_count 1.0",
        'gateway_plugin_failures_total{plugin="p",stage="pre_request"} 1.0',
    ):
        assert line in lines
    assert "_created" not in text.decode()


def test_two_processes_parts_do_not_share_series():
    first, second = Metrics(), Metrics()
    first.observe(Visit("r", tenant="acme", status=200), 1.0)
    assert b"acme" not in second.exposition()[0]


def test_no_logged_text_can_pretend_to_be_another_line():
    record = logging.LogRecord("gateway", logging.WARNING, "f", 1, "%s", ('x\n{"level": "error"}\u2028é',), None)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert line.isascii()
    assert json.loads(line)["message"] == 'x\n{"level": "error"}\u2028é'


def test_a_traceback_is_a_field_of_the_line(capsys):
    before = logging.root.handlers[:], logging.root.level
    try:
        start_logging("warning")
        logging.getLogger("x").info("not shown")  # the gateway's own tell tests everything
        logging.getLogger(AUDIT).info("tenant.create done", extra={"audit": {"by": "operator"}})
        try:
            raise ZeroDivisionError("oh")
        except ZeroDivisionError:
            logging.getLogger("x").exception("failed")
    finally:
        logging.root.handlers[:], logging.root.level = before
        logging.getLogger(AUDIT).setLevel(logging.NOTSET)
    audited, line = capsys.readouterr().err.splitlines()
    assert json.loads(audited)["audit"] == {"by": "operator"}
    shown = json.loads(line)
    assert (shown["level"], shown["logger"], shown["message"]) == ("error", "x", "failed")
    assert shown["traceback"].splitlines()[-1] == "ZeroDivisionError"


def a_failure():
    """An error with a cause, a context and a group, each of which says what it must not."""
    try:
        try:
            try:
                raise KeyError("secret")
            except KeyError:
                raise ValueError("secret")  # noqa: B904
        except ValueError as error:
            raise ExceptionGroup("secret", [error, UnicodeDecodeError("utf-8", b"secret", 0, 1, "secret")]) from error
    except ExceptionGroup as error:
        return type(error), error, error.__traceback__


def test_what_exceptions_say_is_not_logged_unless_it_is_asked_for():
    record = logging.LogRecord("gateway", logging.ERROR, "f", 1, "failed", (), a_failure())
    traceback = json.loads(JsonFormatter().format(record))["traceback"]
    for kind in ("KeyError", "ValueError", "ExceptionGroup", "UnicodeDecodeError"):
        assert f"{kind}\n" in traceback
    assert "in a_failure" in traceback
    assert not [line for line in traceback.splitlines() if "secret" in line and "raise " not in line]
    assert "KeyError: 'secret'" in json.loads(JsonFormatter(exception_messages=True).format(record))["traceback"]

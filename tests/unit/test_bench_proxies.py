"""scripts/bench/proxies: its arithmetic and what it makes of recorded calls. Never how fast anything is."""

from __future__ import annotations

import hashlib
import json
import os
import re

from scripts.bench.contenders.nginx_lua import lua_arguments
from scripts.bench.contenders.recorded_calls import templates
from scripts.bench.load import Answers, Request, chat_body, script_of
from scripts.bench.processes import parse_stat
from scripts.bench.rounds import Sample, Series, ratios

SECRET = "gw_secret"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()
ID = "0123456789abcdef" * 2
LIMIT = "gw:{testcompany}:limit:ring:60000/60:" + "ab" * 16 + ":" + "cd" * 16
TENANT, KEY, MARKER = "gw:{testcompany}:tenant", f"gw:{{testcompany}}:key:{DIGEST}", f"gw:{{testcompany}}:req:{ID}"


def a_series(*rounds: tuple[int, float]) -> Series:
    """Requests and seconds of CPU of each round."""
    samples = [Sample(Answers(requests, 0, 0, 1.0, 1.0, 2.0), cpu_s, 0.5) for requests, cpu_s in rounds]
    return Series(dict(enumerate(samples)))


def test_cpu_time_counts_user_and_system_of_a_process_and_of_its_ended_children():
    tick = 1 / os.sysconf("SC_CLK_TCK")
    line = "7 (a) b) S 3 7 7 0 -1 0 11 12 13 14 100 20 3 4 20 0 1 0 99 1000 25 0\n"
    stat = parse_stat(line)
    assert stat.parent == 3
    assert round(stat.cpu_s / tick) == 127
    assert stat.rss_bytes == 25 * os.sysconf("SC_PAGE_SIZE")


def test_the_median_is_over_rounds_and_failures_add_up():
    series = a_series((1000, 0.1), (1000, 0.3), (500, 0.1))
    assert series.median("proxy_us") == 200
    assert series.median("redis_us") == 500
    assert series.median("per_s") == 1000
    series.samples[3] = Sample(Answers(1, 1, 2, 1.0, 1.0, 2.0), None, 0.0)
    series.samples[4] = Sample(Answers(1, 1, 0, 1.0, 1.0, 2.0), None, 0.0)
    assert series.failed == 4


def test_a_ratio_compares_within_a_round_and_not_across():
    base = a_series((1000, 0.1), (1000, 0.2), (1000, 0.4))
    other = a_series((1000, 0.2), (1000, 0.4), (1000, 0.8))
    assert ratios({"base": base, "other": other}, "proxy_us", "base") == {"base": 1, "other": 2}
    del base.samples[0], other.samples[1]
    assert ratios({"base": base, "other": other}, "proxy_us", "base") == {"base": 1, "other": 2}, "only round 2 has both"
    assert ratios({"other": other}, "proxy_us", "base") == {}


def test_a_recorded_call_keeps_its_words_but_for_what_differs_between_requests():
    admit = ["EVALSHA", "aa" * 20, "3", TENANT, KEY, MARKER, LIMIT, "cafe", "60000", ID, "", "1750000000000"]
    settle = ["EVALSHA", "bb" * 20, "1", MARKER, "60000", ID, "1750000000000", ""]
    other = ["EVALSHA", "cc" * 20, "1", "gw:{other}:tenant"]
    calls = templates([["GET", "x"], other, admit, settle], "testcompany", SECRET)
    assert calls.admit.words == (
        *admit[:3],
        "gw:{{subdomain}}:tenant",
        "gw:{{subdomain}}:key:{digest}",
        "gw:{{subdomain}}:req:{id}",
        LIMIT.replace("testcompany", "{subdomain}"),
        *("cafe", "60000", "{id}", "", "1750000000000"),
    )
    assert calls.settle is not None
    assert calls.settle.words[3:] == ("gw:{{subdomain}}:req:{id}", "60000", "{id}", "{admitted}", "")


def test_recorded_words_become_lua_expressions():
    calls = templates([["EVALSHA", "aa", "2", KEY, MARKER, ID, "", "x"]], "testcompany", SECRET)
    assert lua_arguments(calls.admit) == (
        "[==[aa]==], [==[2]==], [==[gw:{]==] .. subdomain .. [==[}:key:]==] .. digest,"
        ' [==[gw:{]==] .. subdomain .. [==[}:req:]==] .. id, id, "", [==[x]==]'
    )


def test_the_request_is_a_chat_request_of_the_size_that_was_asked():
    for size in (500, 4_000, 200_000):
        body = chat_body(size)
        assert abs(len(body) - size) <= 2
        assert json.loads(body)["messages"][1]["role"] == "user"
    script = script_of(Request(1, headers={"Host": "a.example.com"}, body=chat_body()), pause_ms=7)
    assert 'wrk.headers["Host"] = "a.example.com"' in script
    assert chat_body() in script
    assert re.search(r"function delay\(\) return 7 end", script)

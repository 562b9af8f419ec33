"""Proxies side by side: what a forwarded request costs each of them, on the same core, with the same store and upstream.

python -m scripts.bench.proxies --only upstream,nginx-lua,gateway [--rounds N] [--seconds N]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from scripts.bench.bed import Bed, a_bed
from scripts.bench.contenders.direct import Direct
from scripts.bench.contenders.gateway import Checkout, GatewayContender, a_gateway
from scripts.bench.contenders.nginx_lua import NginxLua
from scripts.bench.contenders.recorded_calls import record
from scripts.bench.rounds import Contender, Series, measure, ratios, started

ROOT = Path(__file__).resolve().parents[2]


def contenders_of(bed: Bed, checkouts: list[Checkout], engines: list[str], only: list[str]) -> list[Contender]:
    found: list[Contender] = []
    for index, checkout in enumerate(checkouts):
        with a_gateway(bed, checkout) as gateway:
            caller = gateway.create_tenant()
            gateway.create_rule(caller, bed.upstream_url)
            if index == 0:
                calls = record(gateway, caller, bed.redis_port, checkout.db)
                found += [Direct(), NginxLua(calls, caller), NginxLua(calls, caller, settles=True)]
        found += [GatewayContender(checkout, caller, engine) for engine in engines]
    return [one for one in found if any(one.name == name or one.name.startswith(f"{name} ") for name in only)]


def table(series: dict[str, Series], base: str) -> str:
    """Markdown."""
    lines = ["| proxy | CPU us/request | x nginx-lua | requests/s | p50 us | p99 us | Redis us/request | core busy | failed |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    against = ratios(series, "proxy_us", base) if base in series else {}
    for name, rounds in series.items():
        cells = [
            _number(rounds.median("proxy_us"), 1),
            _number(against.get(name), 2),
            _number(rounds.median("per_s"), 0),
            _number(rounds.median("p50_us"), 0),
            _number(rounds.median("p99_us"), 0),
            _number(rounds.median("redis_us"), 1),
            _number(rounds.median("busy"), 2),
            f"**{rounds.failed}**" if rounds.failed else "0",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="upstream,nginx-lua,nginx-lua+settle,gateway")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--engines", default="hypercorn,granian")
    parser.add_argument("--gateway-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--gateway-root", type=Path, default=ROOT)
    parser.add_argument("--also", action="append", default=[], metavar="NAME=ROOT")
    options = parser.parse_args()
    checkouts = [Checkout("gateway", options.gateway_python, options.gateway_root)]
    for number, also in enumerate(options.also, 1):
        name, _, root = also.partition("=")
        checkouts.append(Checkout(name, Path(root) / ".venv/bin/python", Path(root), number))
    only = [*options.only.split(","), *(checkout.name for checkout in checkouts[1:])]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, a_bed(Path(folder), Path(folder)) as bed:
        wanted = contenders_of(bed, checkouts, options.engines.split(","), only)
        with started(bed, wanted) as endpoints:
            series = measure(bed, endpoints, rounds=options.rounds, seconds=options.seconds, connections=options.connections)
        print(table(series, "nginx-lua"))
        for text in bed.notes:
            print(f"- {text}")


if __name__ == "__main__":
    main()

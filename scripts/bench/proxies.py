"""Proxies side by side: what a forwarded request costs each of them, on the same core, with the same store and upstream.

    python -m scripts.bench.proxies [--section cpu,streams,…] [--with litellm,traefik,…] [--out FOLDER] [--document]

Prints Markdown. With ``--out``, each section is kept there as soon as it has ended; with ``--document``, what is kept becomes
the generated part of docs/performance.md and its charts.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.bench import machine
from scripts.bench.bed import Bed, a_bed
from scripts.bench.contenders.gateway import Checkout
from scripts.bench.contenders.installing import default_folder
from scripts.bench.contenders.peers import PEERS
from scripts.bench.document import ROOT, write_page
from scripts.bench.line_up import LineUp, Wanted, assemble
from scripts.bench.results import Findings
from scripts.bench.rounds import note
from scripts.bench.sections.cpu import measure_cpu, measure_peers
from scripts.bench.sections.growth import measure_growth
from scripts.bench.sections.long import measure_long
from scripts.bench.sections.memory import measure_memory
from scripts.bench.sections.streams import measure_streams
from scripts.bench.sections.workers import measure_workers

Measure = Callable[[Bed, Wanted, LineUp, Findings], None]
SECTIONS: dict[str, tuple[str, Measure]] = {
    "cpu": ("CPU and latency of a forwarded request", measure_cpu),
    "streams": ("Streams", measure_streams),
    "memory": ("Memory", measure_memory),
    "growth": ("Growth with limits, rules, bodies and tenants", measure_growth),
    "workers": ("Workers", measure_workers),
    "peers": ("Other products", measure_peers),
    "long": ("A long run", measure_long),
}
DEFAULT = ("cpu",)
RESULTS = ROOT / "docs" / "performance"


def run(wanted: Wanted, sections: list[str], peers_folder: Path, out: Path | None) -> bool:
    """Measure and print; false if a section failed. What was measured before that is kept."""
    known = machine.facts(wanted.checkouts[0].root)
    print(f"{machine.markdown(known)}\n", flush=True)
    good = True
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, a_bed(Path(folder), peers_folder) as bed:
        line_up = assemble(bed, wanted)
        for section in sections:
            title, measure = SECTIONS[section]
            findings = Findings(section, title, known)
            before = len(bed.notes)
            try:
                measure(bed, wanted, line_up, findings)
            except Exception as error:
                good = False
                traceback.print_exc()
                note(bed, f"{section} ended early: {error!r}")
            finally:
                # what was noted before the first section began belongs to it
                findings.notes += bed.notes[before if section != sections[0] else 0 :]
                print(f"## {title}\n\n{findings.markdown()}\n", flush=True)
                if out is not None and findings.tables:
                    findings.save(out)
    return good


def main() -> None:
    """Parse, measure, and leave nothing behind, also when interrupted or terminated."""
    options = _parser().parse_args()
    sections = _names(options.section, SECTIONS)
    peers = _names(options.peers, PEERS)
    if peers and options.section == ",".join(DEFAULT):
        sections.append("peers")
    checkouts = [Checkout("gateway", options.gateway_python or _python_of(options.gateway_root), options.gateway_root)]
    for number, also in enumerate(options.also, 1):
        name, _, root = also.partition("=")
        checkouts.append(Checkout(name, _python_of(Path(root)), Path(root), number))
    wanted = Wanted(
        checkouts=checkouts,
        engines=options.engines.split(","),
        only=options.only.split(",") if options.only else [],
        peers=peers,
        rounds=options.rounds,
        seconds=options.seconds,
        connections=options.connections,
        streams=options.streams,
        tenants=options.tenants,
        minutes=options.minutes,
    )
    kept = options.out or (RESULTS if options.document or options.only_document else None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    good = True
    if not options.only_document:
        good = run(wanted, sections, options.peers_dir, kept)
    if kept is not None and (options.document or options.only_document):
        write_page(kept, list(SECTIONS))
    sys.exit(not good)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--section", default=",".join(DEFAULT), help=f"of {','.join(SECTIONS)}, or all (%(default)s)")
    add("--with", dest="peers", default="", help=f"other products, installed if need be: of {','.join(PEERS)}, or all")
    add("--only", default="", help="these contenders instead of all, by the names in the tables; gateway: on each engine")
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=4, help="of load on each contender in each round (%(default)s)")
    add("--connections", type=int, default=32, help="at saturating load (%(default)s)")
    add("--streams", type=int, default=5000, help="open at once, for the memory of a stream (%(default)s)")
    add("--tenants", type=int, default=100_000, help="most, for the growth with tenants (%(default)s)")
    add("--minutes", type=float, default=30, help="of the section long (%(default)s)")
    add("--engines", default="hypercorn,granian,uvicorn", help="of the gateway; what it refuses is left out (%(default)s)")
    add("--gateway-root", type=Path, default=ROOT, help="checkout to measure (this one)")
    add("--gateway-python", type=Path, help="its Python (.venv/bin/python in it)")
    add("--also", action="append", default=[], metavar="NAME=ROOT", help="a further checkout, in the same rounds; repeatable")
    add("--peers-dir", type=Path, default=default_folder(), help="where other products are installed (%(default)s)")
    add("--out", type=Path, help="folder that keeps the results of each section (docs/performance with --document)")
    add("--document", action="store_true", help="write docs/performance.md from what is kept")
    add("--only-document", action="store_true", help="the same without measuring")
    return parser


def _names(text: str, known: Mapping[str, object]) -> list[str]:
    names = list(known) if text == "all" else [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return names


def _python_of(root: Path) -> Path:
    found = root / ".venv" / "bin" / "python"
    return found if found.exists() else Path(sys.executable)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()

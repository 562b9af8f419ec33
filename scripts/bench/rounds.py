"""Measuring in turns: A B C A B C, and the median of each, so that a noisy moment is not one contender's alone."""

from __future__ import annotations

import contextlib
import http.client
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from scripts.bench.bed import Bed, Endpoint
from scripts.bench.load import Answers, ask_once
from scripts.bench.processes import DidNotStart

WARM_UP_S = 4.0
READY_S = 20.0


class Contender(Protocol):
    """Something that can be started and called."""

    @property
    def name(self) -> str: ...

    def start(self, bed: Bed, *, streams: bool = False) -> AbstractContextManager[Endpoint]: ...


@dataclass(frozen=True)
class Sample:
    """One contender in one round. The proxy's CPU is None where there is no proxy."""

    answers: Answers
    proxy_cpu_s: float | None
    redis_cpu_s: float

    @property
    def proxy_us(self) -> float | None:
        """CPU of the proxy for each request."""
        return None if self.proxy_cpu_s is None else self.proxy_cpu_s * 1e6 / max(1, self.answers.requests)

    @property
    def redis_us(self) -> float:
        return self.redis_cpu_s * 1e6 / max(1, self.answers.requests)

    def value(self, name: str) -> float | None:
        """An attribute of its own or of the answers."""
        found = getattr(self, name) if hasattr(self, name) else getattr(self.answers, name)
        return None if found is None else float(found)

    @property
    def busy(self) -> float | None:
        """How much of its core the proxy used."""
        return None if self.proxy_cpu_s is None else self.proxy_cpu_s / self.answers.seconds


@dataclass
class Series:
    """A contender's samples by the number of the round; a round that failed is missing."""

    samples: dict[int, Sample] = field(default_factory=dict)

    def median(self, name: str) -> float | None:
        """Of an attribute of the samples or of their answers."""
        values = [value for sample in self.samples.values() if (value := sample.value(name)) is not None]
        return statistics.median(values) if values else None

    @property
    def failed(self) -> int:
        return sum(sample.answers.failed for sample in self.samples.values())


def ratios(series: Mapping[str, Series], name: str, base: str) -> dict[str, float]:
    """Each contender's value as a multiple of the base's in the same round; the median of those."""
    if base not in series:
        return {}
    against = {number: value for number, sample in series[base].samples.items() if (value := sample.value(name))}
    found = {}
    for contender, rounds in series.items():
        pairs = [(sample.value(name), against.get(number)) for number, sample in rounds.samples.items()]
        values = [value / other for value, other in pairs if value is not None and other is not None]
        if values:
            found[contender] = statistics.median(values)
    return found


@contextlib.contextmanager
def started(bed: Bed, contenders: Sequence[Contender], *, streams: bool = False) -> Iterator[dict[str, Endpoint]]:
    """All that start, by name. The others are noted and left out."""
    with contextlib.ExitStack() as stack:
        endpoints = {}
        for contender in contenders:
            try:
                endpoint = stack.enter_context(contender.start(bed, streams=streams))
                wait_for_answer(endpoint)
                endpoints[contender.name] = endpoint
            except (DidNotStart, RuntimeError, OSError) as error:
                note(bed, f"{contender.name} was left out: {error}")
        yield endpoints


def wait_for_answer(endpoint: Endpoint) -> None:
    """Some accept before they know their routes. Raises DidNotStart if none of the answers is good."""
    end = time.monotonic() + READY_S
    while True:
        try:
            status, body = ask_once(endpoint.request)
        except (OSError, http.client.HTTPException) as error:
            status, body = 0, repr(error).encode()
        if status == 200:
            return
        if time.monotonic() > end:
            raise DidNotStart(f"it answers {status}: {body[:300]!r}")
        time.sleep(0.2)


def measure(bed: Bed, endpoints: Mapping[str, Endpoint], *, rounds: int, seconds: float, connections: int) -> dict[str, Series]:
    """So many rounds over all of them."""
    series = {name: Series() for name in endpoints}
    for number in range(rounds):
        for name, endpoint in endpoints.items():
            try:
                if number == 0:
                    bed.wrk.run(endpoint.request, connections, WARM_UP_S)
                sample = take(bed, endpoint, seconds, connections)
            except (RuntimeError, OSError) as error:
                note(bed, f"{name}, round {number + 1}: {error}")
                continue
            series[name].samples[number] = sample
            shown = "" if sample.proxy_us is None else f", {sample.proxy_us:.1f} us CPU a request"
            print(f"round {number + 1} {name}: {sample.answers.per_s:.0f} requests/s{shown}", file=sys.stderr, flush=True)
    return {name: found for name, found in series.items() if found.samples}


def take(bed: Bed, endpoint: Endpoint, seconds: float, connections: int) -> Sample:
    """One run of load, and what it cost."""
    program = endpoint.program
    before, store_before = (program.cpu_s() if program else 0.0), bed.redis.cpu_s()
    answers = bed.wrk.run(endpoint.request, connections, seconds)
    proxy = program.cpu_s() - before if program else None
    return Sample(answers, proxy, bed.redis.cpu_s() - store_before)


def note(bed: Bed, text: str) -> None:
    """Something that the reader of the results has to know."""
    bed.notes.append(text)
    print(f"NOTE {text}", file=sys.stderr, flush=True)

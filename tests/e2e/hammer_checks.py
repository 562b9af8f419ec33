"""What must hold after the hammer, over what was written down on all sides.

Four records are compared: the receipts of the clients, the access logs of the replicas, the store's own file of writes, and
what the target received. A limit of each rule counts by request id and is never reached: its key tells which admission in the
store belongs to which request.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gateway.store.keyspace import digest
from tests.append_only_file import Charged, Script, limit_of_key
from tests.e2e.load_client import Receipt
from tests.servers import Server

TRACED: Mapping[str, Any] = {"name": "traced", "limit": 1_000, "window": "20m", "per": ["header:x-request-id"]}
TRACE = ("log", "1200000")

ANSWERS = {
    (200, ""),
    (429, "rate_limited"),
    (429, "budget_exceeded"),
    (429, "too_many_concurrent"),
    (502, "upstream_unreachable"),  # the target ended some connections
    (503, "store_unavailable"),
    (503, "overloaded"),
}
REFUSED = (429, 503)
CLIENT_LEFT = 499


@dataclass
class Evidence:
    """All records of one run. ``limits`` by tenant, then by kind and extent; ``killed`` are ports of replicas and when."""

    receipts: dict[str, Receipt]
    access_log: dict[str, dict[str, Any]]
    charges: Mapping[str, Charged]
    scripts: Sequence[Script]
    received: Counter[str]
    most_at_once: Counter[str]
    limits: dict[str, dict[tuple[str, str], Mapping[str, Any]]]
    store: Server
    stopped_clients: Sequence[str]
    logged: str
    lease_s: float
    killed: list[tuple[int, float]] = field(default_factory=list)

    @cached_property
    def admitted(self) -> dict[str, list[Charged]]:
        """Every admission in the store, by request id; what was given back as well."""
        request_ids = {digest((request_id,)): request_id for request_id in self.receipts}
        found = defaultdict(list)
        for charged in self.charges.values():
            (traced,) = (key for key in charged.charges if limit_of_key(key) == TRACE)
            found[request_ids[traced.rpartition(":")[2]]].append(charged)
        return found

    @cached_property
    def paid(self) -> dict[str, Charged]:
        """Admissions that were not given back, by request id."""
        return {
            request_id: one for request_id, several in self.admitted.items() for one in several if one.ended != "given back"
        }

    def died_with_its_replica(self, request_id: str) -> bool:
        """Whether a replica that was killed may have had this request in its hands, or still to settle it."""
        one = self.receipts[request_id]
        return any(
            one.port == port and one.connecting_s <= at_s and (not one.ended_s or one.ended_s >= at_s - self.lease_s)
            for port, at_s in self.killed
        )

    def by_limit(self, kind: str) -> Iterator[tuple[str, Mapping[str, Any], list[Charged]]]:
        """Every key of this kind, what was declared, and what was charged there, in order; what was given back as well."""
        found = defaultdict(list)
        for one in self.charges.values():
            for key in one.charges:
                if limit_of_key(key)[0] == kind and limit_of_key(key) != TRACE:
                    found[key].append(one)
        for key, charges in found.items():
            yield key, self.limits[charges[0].tenant][limit_of_key(key)], charges


def the_gateway_never_repeats_a_request(evidence: Evidence) -> None:
    repeated = {request_id: count for request_id, count in evidence.received.items() if count > 1}
    assert not repeated, f"reached the target more than once: {repeated}"
    several = {request_id: len(found) for request_id, found in evidence.admitted.items() if len(found) > 1}
    assert not several, f"admitted more than once: {several}"


def every_success_reached_the_target(evidence: Evidence) -> None:
    lost = [
        request_id
        for request_id, receipt in evidence.receipts.items()
        if receipt.status in (200, 502) and request_id not in evidence.received
    ]
    assert not lost, f"answered, but the target never had them: {_some(lost)}"


def nothing_that_was_refused_reached_the_target(evidence: Evidence) -> None:
    leaked = [
        request_id
        for request_id in evidence.received
        if evidence.receipts[request_id].status in REFUSED
        or evidence.access_log.get(request_id, {}).get("status") in REFUSED  # also if the client did not hear it
    ]
    assert not leaked, f"refused, and forwarded all the same: {_some(leaked)}"


def a_fault_never_looks_like_the_clients_fault(evidence: Evidence) -> None:
    answers = Counter((one.status, one.code) for one in evidence.receipts.values() if one.outcome == "answered")
    assert answers.keys() <= ANSWERS, f"answers: {answers}"
    assert "traceback" not in evidence.logged.lower(), evidence.logged[-4_000:]


def every_request_is_answered(evidence: Evidence) -> None:
    unanswered = [
        request_id
        for request_id, receipt in evidence.receipts.items()
        if receipt.outcome == "broken"
        or (receipt.outcome == "sent" and request_id.partition("-")[0] in evidence.stopped_clients)
        if not evidence.died_with_its_replica(request_id)
    ]
    assert not unanswered, f"no answer, though client and replica lived: {_some(unanswered)}"


def only_what_was_admitted_reached_the_target(evidence: Evidence) -> None:
    unpaid = evidence.received.keys() - evidence.paid.keys()
    assert not unpaid, f"forwarded without a charge in the store, or given back afterwards: {_some(unpaid)}"


def whatever_was_charged_reached_the_target_or_lost_its_client(evidence: Evidence) -> None:
    """The only charges without a request at the target: clients that left before it was forwarded, and a killed replica."""
    unexplained = [
        (request_id, evidence.receipts[request_id], evidence.access_log.get(request_id), evidence.paid[request_id].ended)
        for request_id in evidence.paid.keys() - evidence.received.keys()
        if evidence.access_log.get(request_id, {}).get("status") != CLIENT_LEFT
        and not (evidence.died_with_its_replica(request_id) and not evidence.paid[request_id].ended)
    ]
    assert not unexplained, f"charged for nothing, {len(unexplained)} times: {unexplained[:3]}"


def every_admission_is_settled(evidence: Evidence) -> None:
    open_ended = [
        (request_id, one.ended)
        for request_id, one in evidence.paid.items()
        if one.ended != "settled" and not evidence.died_with_its_replica(request_id)
    ]
    assert not open_ended, f"ended and were never settled, or too late: {_some(open_ended)}"


def quotas_count_every_admission_once(evidence: Evidence) -> None:
    now_ms = int(evidence.store.command("TIME")[0]) * 1_000
    for key, limit, charges in evidence.by_limit("budget"):
        stored = {name.decode(): int(value) for name, value in evidence.store.command("HGETALL", key).items()}
        # midnight may have passed: what is stored is of the last day
        of_the_day = [one for one in charges if int(_after("start", one.charges[key])) == stored["start"]]
        on_lost = limit.get("on_lost")
        paid = sum(one.ended == "settled" or (not one.ended and on_lost != "release") for one in of_the_day)
        held = {name: units for name, units in stored.items() if name[0] in "cr"}
        assert all(int(name[1:]) <= now_ms for name in held), f"{key}: holds in flight, though nobody is: {held}"
        assert stored.get("held", 0) == sum(held.values()), f"{key}: its holds do not add up: {stored}"
        spent = stored["spent"] + sum(units for name, units in held.items() if name[0] == "c")
        assert spent == paid, f"{key}: the store counts {spent}, admitted and not given back are {paid}"
        assert paid <= limit["quota"]["daily"], f"{key}: {paid} admitted"


def the_ledger_counts_every_settled_admission_once(evidence: Evidence) -> None:
    recorded: Counter[str] = Counter()
    with evidence.store.admin() as client:
        for name in client.scan_iter("gw:{*}:usage:*"):
            for field_name, count in client.hgetall(name).items():
                metric, key_id, *_ = field_name.decode().split(":")
                recorded[key_id] += int(count) if metric == "r" else 0
    settled = {request_id: one for request_id, one in evidence.paid.items() if one.ended == "settled"}
    unlogged = settled.keys() - evidence.access_log.keys()  # a replica may die between the two
    lost = [request_id for request_id in unlogged if not evidence.died_with_its_replica(request_id)]
    assert not lost, f"settled, and not in the access log: {_some(lost)}"
    # which key it was is also told by the limits that were asked
    key_ids = {
        _asked(settled[request_id]): evidence.access_log[request_id]["key_id"] for request_id in settled.keys() - unlogged
    }
    counted = Counter(key_ids[_asked(one)] for one in settled.values())
    assert recorded == counted, f"by API key, the ledger has {dict(recorded)}, settled are {dict(counted)}"


def _asked(charged: Charged) -> frozenset[str]:
    return frozenset(key for key in charged.charges if limit_of_key(key) != TRACE)


def large_windows_count_every_admission_once(evidence: Evidence) -> None:
    for key, limit, charges in evidence.by_limit("ring"):
        paid = sum(one.ended != "given back" for one in charges)
        stored = int(evidence.store.command("HGET", key, "total"))
        assert stored == paid, f"{key}: the store counts {stored}, admitted and not given back are {paid}"
        assert paid <= limit["limit"]


def no_window_holds_more_than_its_limit(evidence: Evidence) -> None:
    """By the store's clock, over what was not given back: that was counted from its admission on, without a pause."""
    for key, limit, charges in evidence.by_limit("log"):
        window_ms = int(limit_of_key(key)[1])
        times = sorted(one.at_ms for one in charges if one.ended != "given back")
        for first, last in zip(times, times[limit["limit"] :], strict=False):
            assert last - first >= window_ms, f"{key}: {limit['limit'] + 1} admissions within {last - first} ms"


def no_interval_holds_more_than_a_bucket_gives(evidence: Evidence) -> None:
    for key, limit, charges in evidence.by_limit("bucket"):
        window_ms = int(limit_of_key(key)[1])
        capacity = level = limit["burst"] * window_ms
        at_ms = charges[0].at_ms
        events = [(one.order, one.at_ms, -1) for one in charges]
        events += [(one.ended_order, int(one.gave_back[key][2].split()[1]), 1) for one in charges if key in one.gave_back]
        for _, now_ms, units in sorted(events):
            level = min(capacity, level + (now_ms - at_ms) * limit["limit"] + max(0, units) * window_ms)
            at_ms = now_ms
            level -= window_ms * max(0, -units)
            assert level >= 0, f"{key}: admitted at {now_ms} with {level + window_ms} of {window_ms} parts of a unit"


def never_more_in_flight_than_allowed(evidence: Evidence) -> None:
    slots: dict[str, dict[str, int]] = defaultdict(dict)
    for script in evidence.scripts:
        for command in script.commands:
            match command:
                case ("ZADD", key, ends_ms, slot) if ":limit:concurrency:" in key:
                    slots[key][slot] = int(ends_ms)
                case ("ZREM", key, slot):
                    slots[key].pop(slot, None)
                case ("DEL" | "UNLINK", key):
                    slots.pop(key, None)
        for tenant, _, state, _ in script.admissions:
            if not state.startswith("A "):
                continue
            for key in {command[1] for command in script.commands if command[0] == "ZADD"}:
                live = sum(ends_ms > int(state.split()[1]) for ends_ms in slots[key].values())
                allowed = evidence.limits[tenant][limit_of_key(key)]["limit"]
                assert live <= allowed, f"{key}: {live} in flight in the store"
    for tenant, most in evidence.most_at_once.items():
        allowed = sum(limit["limit"] for limit in evidence.limits[tenant].values() if limit.get("unit") == "concurrency")
        assert most <= allowed, f"{tenant}: {most} at once at the target, allowed are {allowed}"


def nothing_is_held_after_a_lease(evidence: Evidence) -> None:
    with evidence.store.admin() as client:
        keys = [key.decode() for key in client.keys("gw:{*}:*")]
        now_ms = client.time()[0] * 1_000
        held = {key: client.zcount(key, now_ms, "+inf") for key in keys if ":limit:concurrency:" in key}
        assert not any(held.values()), f"in flight, though nobody is: {held}"
        markers = {key: client.get(key) for key in keys if ":req:" in key}
        # that of a killed replica stays for longer, and holds nothing
        in_flight = [key for key, state in markers.items() if state and state != b"S" and int(state.split()[2]) > now_ms]
        assert not in_flight, f"admissions that are in flight, though their lease has ended: {_some(in_flight)}"
        for_ever = [key for key in keys if (":limit:" in key or ":req:" in key) and client.pttl(key) == -1]
        assert not for_ever, f"never expire: {_some(for_ever)}"


CHECKS: Sequence[Callable[[Evidence], None]] = (
    the_gateway_never_repeats_a_request,
    every_success_reached_the_target,
    nothing_that_was_refused_reached_the_target,
    a_fault_never_looks_like_the_clients_fault,
    every_request_is_answered,
    only_what_was_admitted_reached_the_target,
    whatever_was_charged_reached_the_target_or_lost_its_client,
    every_admission_is_settled,
    quotas_count_every_admission_once,
    the_ledger_counts_every_settled_admission_once,
    large_windows_count_every_admission_once,
    no_window_holds_more_than_its_limit,
    no_interval_holds_more_than_a_bucket_gives,
    never_more_in_flight_than_allowed,
    nothing_is_held_after_a_lease,
)


def broken_promises(evidence: Evidence) -> list[str]:
    """Each check that fails, with what it found."""
    failed = []
    for check in CHECKS:
        try:
            check(evidence)
        except AssertionError as error:
            failed.append(f"{check.__name__}: {error}")
    return failed


def _after(name: str, command: Sequence[str]) -> str:
    return command[command.index(name) + 1]


def _some(found: Any) -> str:
    found = list(found)
    return f"{len(found)}, such as {found[:5]}"

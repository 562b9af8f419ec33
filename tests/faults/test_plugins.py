"""Plugins that misbehave: what clients are told, that nobody else is harmed, and that what was counted is right."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from tests.faults.hostile_plugins import HANGS, KINDS, STAGES, HostilePlugin, HostileReader, spelt
from tests.faults.table import FaultRow
from tests.gateways import ATenant, Gateway, running_proxy
from tests.servers import Server
from tests.traffic import left_in, limited, recorded_in
from tests.wire import Message, an_upstream, eventually, head_of

AT_ONCE = 8
DEADLINE_MS = 400
POLICIES, PLUGINS = ("deny", "skip"), ("hostile", "hostile_reader")


@dataclass(frozen=True)
class Case:
    """A deed in a stage, and the rule under which it is done."""

    deed: str
    stage: str
    policy: str
    plugin: str

    @property
    def path(self) -> str:
        return f"/{self.policy}/{self.plugin}/{self.stage}/{spelt(self.deed)}"

    @property
    def expected(self) -> tuple[int, str]:
        if self.policy == "skip" or self.stage == "post_response":
            return 200, ""
        return (500 if self.stage == "pre_request" else 502), "plugin_failed"


def cases(kind: str, number: int, parts: int) -> Iterator[Case]:
    """A part of all cases; tries share them out, so that a few see every deed in every stage, and many all rules of each."""
    rules = [*itertools.product(POLICIES, PLUGINS)]
    for index, (deed, stage) in enumerate(itertools.product(KINDS[kind], STAGES)):
        if index % parts == number % parts:
            yield Case(deed, stage, *rules[(index + index // 4 + number // parts) % len(rules)])


@contextlib.asynccontextmanager
async def hostile(server: Server) -> AsyncIterator[tuple[Gateway, ATenant]]:
    """A tenant with a rule for each plugin and policy, under every kind of limit that must be given back; and a plain one."""
    server.command("FLUSHALL")
    limits = {"plugin_timeout": f"{DEADLINE_MS}ms", "lease": "60s"}
    async with (
        running_proxy(server.url, plugins=[HostilePlugin, HostileReader], limits=limits) as gateway,
        an_upstream() as upstream,
    ):
        tenant = await gateway.new_tenant()
        limiter = limited(9_000)["plugin_chain"]
        await gateway.new_rule(tenant, upstream.url, "/plain")
        for policy, plugin in itertools.product(POLICIES, PLUGINS):
            chain = [*limiter, {"name": plugin, "on_error": policy}]
            await gateway.new_rule(tenant, upstream.url, f"/{policy}/{plugin}", plugin_chain=chain)
        yield gateway, tenant


async def asked(gateway: Gateway, tenant: ATenant, case: Case, row: FaultRow) -> tuple[Case, Message]:
    async with asyncio.timeout(30):
        with row.answer():
            return case, await gateway.ask("POST", case.path, key=tenant.secret, body=b'{"model":"m"}')


async def all_told(gateway: Gateway, tenant: ATenant, wanted: list[Case], row: FaultRow) -> list[tuple[Case, Message]]:
    told = []
    for first in range(0, len(wanted), AT_ONCE):
        some = (asked(gateway, tenant, case, row) for case in wanted[first : first + AT_ONCE])
        told += await asyncio.gather(*some)
        assert (await gateway.ask("GET", "/plain/x", key=tenant.secret)).status == 200
    return told


def failures(gateway: Gateway) -> Counter[tuple[str, str]]:
    """Counted failures by plugin and stage."""
    samples = next(iter(gateway.metrics.plugin_failures.collect())).samples
    counted = (
        (sample, (sample.labels["plugin"], sample.labels["stage"])) for sample in samples if sample.name.endswith("_total")
    )
    return Counter({labels: int(sample.value) for sample, labels in counted})


async def nothing_is_left(gateway: Gateway, server: Server, *, recorded: int) -> None:
    """No request, no lease and no hold; the ledger knows every request that was forwarded or answered."""
    await gateway.idle()
    await eventually(lambda: recorded_in(server) == recorded, seconds=20)
    left = left_in([server])
    assert (left.in_flight, left.holds, left.endless) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["raises", "leaves nonsense", "hangs"])
async def test_a_plugin_that_fails_is_told_as_documented_counted_and_named(
    valkey_store_server: Server, row: FaultRow, tries: int, kind: str, caplog: pytest.LogCaptureFixture
):
    row.kind = f"plugin {kind}"
    caplog.set_level(logging.ERROR)
    async with hostile(valkey_store_server) as (gateway, tenant):
        served = 0
        expected: Counter[tuple[str, str]] = Counter()
        for number in range(tries):
            with row.one_try():
                wanted = list(cases(kind, number, 3))
                told = await all_told(gateway, tenant, wanted, row)
                for case, reply in told:
                    assert (reply.status, reply.code if reply.status != 200 else "") == case.expected, case
                    assert "set-cookie" not in reply.names
                    assert reply.get("x-request-id")
                # a request that a plugin stopped before it was forwarded is none in the ledger
                served += sum(reply.status != 500 for _, reply in told) + -(-len(wanted) // AT_ONCE)
                expected.update((case.plugin, case.stage) for case in wanted)
                await eventually(lambda: failures(gateway) == expected, seconds=20)
                await nothing_is_left(gateway, valkey_store_server, recorded=served)
        for plugin, stage in expected:
            assert f"plugin {plugin} failed in {stage} of request req_" in caplog.text


async def test_what_is_odd_and_no_failure_is_served_as_far_as_it_can_be(valkey_store_server: Server, row: FaultRow, tries: int):
    row.kind = "plugin is odd"
    async with hostile(valkey_store_server) as (gateway, tenant):
        for number in range(tries):
            with row.one_try():
                told = await all_told(gateway, tenant, [*cases("is odd", number, 3)], row)
                assert {reply.status for _, reply in told} == {200}
        assert failures(gateway).total() == 0
        await gateway.idle()
        await eventually(lambda: not left_in([valkey_store_server]).in_flight)
        left = left_in([valkey_store_server])
        assert (left.holds, left.endless) == (0, 0)


async def test_a_plugin_that_blocks_delays_everybody_and_is_named(
    valkey_store_server: Server, row: FaultRow, tries: int, caplog: pytest.LogCaptureFixture
):
    row.kind = "plugin blocks"
    async with hostile(valkey_store_server) as (gateway, tenant):
        for number in range(tries):
            with row.one_try():
                case = Case("blocks", STAGES[number % len(STAGES)], "deny", "hostile")
                said = f"plugin hostile in {case.stage} of request"
                before = caplog.text.count(said)
                replies = await asyncio.gather(*(asked(gateway, tenant, case, row) for _ in range(3)))
                assert {reply.status for _, reply in replies} == {200}
                await eventually(lambda: caplog.text.count(said) > before)  # noqa: B023
        await gateway.idle()
        assert 'gateway_event_loop_stalls_total{plugin="hostile"}' in gateway.series()


async def test_a_client_that_leaves_while_a_plugin_swallows_its_cancellation_is_settled(
    valkey_store_server: Server, row: FaultRow, tries: int
):
    row.kind = "client leaves a plugin that hangs"
    async with hostile(valkey_store_server) as (gateway, tenant):
        wanted = [Case(deed, stage, "skip", "hostile") for deed in HANGS for stage in STAGES[:3]]
        for number in range(tries):
            with row.one_try():
                for case in wanted[number % 3 :: 3]:
                    async with gateway.connected() as wire:
                        await wire.send(head_of("GET", case.path, gateway.fields(key=tenant.secret)))
                        await eventually(lambda: gateway.in_flight() == 1)
                        wire.abort()
                    with row.recovery():
                        await eventually(lambda: not gateway.in_flight(), seconds=20)
                await eventually(lambda: not left_in([valkey_store_server]).in_flight, seconds=20)
                left = left_in([valkey_store_server])
                assert (left.holds, left.endless) == (0, 0)

"""A budget of one dollar under many parallel streams on two replicas: it is never exceeded, and it is used up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest

from gateway.policy.accounting import LEAST_BOUND
from tests.e2e.processes import Gateway, a_demo_upstream, a_gateway
from tests.servers import short_directory, valkey_server

pytestmark = pytest.mark.real_store

CLIENTS = 200
DOLLAR = 10**9
SETTINGS = {
    "REDIS__COMMAND_TIMEOUT": "20s",
    "REDIS__CONNECT_TIMEOUT": "20s",
    "REDIS__POOL_WAIT": "20s",
    "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
}
PRICES = {"*": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 200}}
INPUT, OUTPUT = 1_000, 200_000  # nano-USD a token
ASK = {"model": "demo-small", "messages": [{"role": "user", "content": "What is a gateway?"}], "stream": True}
SENT, WRITTEN = 9, 16  # tokens, as the demo counts them; no answer of it is shorter
COST = SENT * INPUT + WRITTEN * OUTPUT


async def asks_until_refused(session: aiohttp.ClientSession, url: str, body: Any) -> int:
    """What one client is told that its streams have cost, in nano-USD, until waiting would not help before the month ends."""
    spent = 0
    while True:
        async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
            told = await reply.read()
            if reply.status == 200:
                usage = next(json.loads(line[6:])["usage"] for line in told.splitlines() if b'"usage":{' in line)
                spent += usage["prompt_tokens"] * INPUT + usage["completion_tokens"] * OUTPUT
                continue
            assert (reply.status, json.loads(told)["error"]["code"]) == (429, "budget_exceeded"), told
            if "retry-after-ms" in reply.headers:
                return spent
        await asyncio.sleep(0.1)  # only what is in flight stands in the way


async def spend(replicas: Sequence[Gateway], key: str, **fields: Any) -> int:
    body = ASK | {"stream_options": {"include_usage": True}} | fields
    turns = itertools.cycle(f"http://127.0.0.1:{replica.proxy_port}" for replica in replicas)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers={"authorization": f"Bearer {key}"}) as session:
        return sum(await asyncio.gather(*(asks_until_refused(session, next(turns), body) for _ in range(CLIENTS))))


def settled(gateway: Gateway, tenant: Any) -> tuple[int, int]:
    """What the ledger says was spent, and the budget."""
    usage = gateway.admin("GET", f"/tenants/{tenant['id']}/usage", key=tenant["api_key"]).json
    (budget,) = usage["limits"]
    return usage["total"]["cost_nano_usd"], round(budget["used"] * DOLLAR)


async def test_a_dollar_is_spent_and_not_a_nano_more():
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(valkey_server())
        settings = {**SETTINGS, "REDIS__URL": store.url}
        replicas = [stack.enter_context(a_gateway(stack.enter_context(short_directory()), settings=settings)) for _ in range(2)]
        demo = stack.enter_context(a_demo_upstream(stack.enter_context(short_directory()), "--chunk-delay-ms", "5"))
        rule = {"path": "/", "target": f"http://127.0.0.1:{demo}", "prices": PRICES}
        for subdomain, fields in (("bounded", {"max_tokens": WRITTEN}), ("unbounded", {})):
            new = {"name": "A dollar", "subdomain": subdomain, "limits": [{"unit": "usd", "quota": {"monthly": 1}}]}
            tenant = replicas[0].admin("POST", "/tenants", new).json
            made = replicas[0].admin("POST", f"/tenants/{tenant['id']}/rules", rule, key=tenant["api_key"])
            assert made.status == 201, made
            told = await spend(replicas, tenant["api_key"], **fields)
            await asyncio.sleep(1)  # the last settlements are off the path of their requests
            in_ledger, in_budget = settled(replicas[1], tenant)
            assert told == in_ledger == in_budget <= DOLLAR
            if fields:
                perfect = DOLLAR // COST * COST
                assert in_budget >= perfect - COST
            else:  # what is left is too little for the shortest answer that is worth a bound
                assert DOLLAR - in_budget < 100 * INPUT + LEAST_BOUND * OUTPUT

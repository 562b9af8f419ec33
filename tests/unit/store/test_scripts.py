"""The runner: scripts are loaded everywhere, called once, and their errors traced to a file."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis

from gateway.errors import ConfigurationError, InternalError
from gateway.resources import lua_folder
from gateway.store import Connection, Stores
from gateway.store.script_source import Script, read_scripts
from gateway.store.scripts import ScriptRunner
from tests.gate import NOON, Gate, budget, log
from tests.servers import Server
from tests.stores import fake_connection, opened
from tests.unit.store.documents import a_key, created, is_good, secret

ASK = 'return {KEYS[1] or "", ARGV[1] or ""}'


def runner(connection: Connection, **bodies: str) -> ScriptRunner:
    scripts = {name: Script(name, body, "", tuple(f"{name}.lua:{n}" for n in range(1, 9))) for name, body in bodies.items()}
    return ScriptRunner(connection, scripts)


async def test_every_script_is_loaded_under_the_name_that_we_call_it_by(stores: Stores, any_server: Server | None):
    scripts = read_scripts(lua_folder())
    shas = [(script if any_server is None else script.with_shebang()).sha for script in scripts.values()]
    assert await stores.connection.client.script_exists(*shas) == [True] * len(scripts)


async def test_keys_and_arguments_arrive_as_they_were_given(stores: Stores):
    ask = runner(stores.connection, ask=ASK)
    await ask.start(shebang=False)
    assert await ask.call("ask", ["a key"], [b"\x00\xff"]) == [b"a key", b"\x00\xff"]
    assert await ask.call("ask", [], ["ä"]) == [b"", "ä".encode()]


async def test_a_server_that_names_a_script_otherwise_is_refused():
    class Misnaming(FakeAsyncRedis):
        async def execute_command(self, *args: Any, **options: Any) -> Any:
            reply = await super().execute_command(*args, **options)
            return b"0" * 40 if args[0] == "SCRIPT LOAD" else reply

    with pytest.raises(ConfigurationError, match=r"lua/ask\.lua: the server calls it 0{40}, we call it [0-9a-f]{40}"):
        await runner(Connection(Misnaming()), ask=ASK).start(shebang=False)


async def test_a_script_that_does_not_compile_is_refused_with_its_line(real_stores: Stores):
    for shebang in (False, True):
        if shebang and await real_stores.connection.server_version() < (7,):
            continue
        broken = runner(real_stores.connection, ask="local a = 1\nreturn end")
        with pytest.raises(ConfigurationError, match=r"lua/ask\.lua: .*ask\.lua:2"):
            await broken.start(shebang=shebang)


async def test_a_script_that_fails_is_an_internal_error_and_the_log_names_file_and_line(
    stores: Stores, any_server: Server | None, caplog: pytest.LogCaptureFixture
):
    failing = runner(stores.connection, ask="local a = 1\nerror('boom')")
    await failing.start(shebang=False)
    for _ in range(2):
        with caplog.at_level(logging.ERROR, "gateway.store"), pytest.raises(InternalError):
            await failing.call("ask", [], [])
        if any_server is not None:  # fakeredis has no line numbers
            assert "lua/ask.lua failed" in caplog.text
            assert "ask.lua:2" in caplog.text
        caplog.clear()
        await stores.connection.client.script_flush()  # the second time it is sent as a whole


async def test_a_reply_that_is_no_list_is_an_internal_error(stores: Stores):
    bad = runner(stores.connection, ask="return 1")
    await bad.start(shebang=False)
    with pytest.raises(InternalError):
        await bad.call("ask", [], [])


async def test_that_the_server_forgot_the_scripts_is_not_seen(stores: Stores):
    client = stores.connection.client
    gate = await Gate(stores).prepare()
    limits = [log(2), budget(9)]
    decisions = []
    for name in ("one", "two", "three"):
        await client.script_flush()
        decisions.append((await gate.admit(limits, NOON, admission=name)).word)
    await client.script_flush()
    assert await gate.cancel(limits, NOON, "one") == "settled"
    assert decisions == ["admitted", "admitted", "limited"]
    await client.script_flush()
    assert (await gate.admit(limits, NOON)).states[1].used == 2


async def test_every_write_survives_that_the_server_forgot_the_scripts(stores: Stores):
    flush = stores.connection.client.script_flush
    await flush()
    tenant = await created(stores, "forgetful")
    await flush()
    key = a_key()
    await stores.api_keys.create(tenant.id, key, secret("second"))
    await flush()
    assert await is_good(stores, tenant, "second")
    await flush()
    await stores.api_keys.rotate(tenant.id, key.id, lambda key: key, secret("third"), 1_000)
    await flush()
    await stores.tenants.update(tenant.id, lambda tenant: tenant.model_copy(update={"name": "New"}))
    await flush()
    await stores.tenants.delete(tenant.id)
    assert await stores.tenants.by_subdomain("forgetful") is None


async def test_a_script_the_server_forgot_is_sent_once_and_called_by_digest_again(real_server: Server):
    async with opened(real_server) as stores:
        gate = await Gate(stores).prepare()
        await stores.connection.client.script_flush()
        await stores.connection.client.config_resetstat()
        for _ in range(3):
            await gate.admit([log(9)], NOON)
        stats = await stores.connection.client.info("commandstats")
        assert (stats["cmdstat_eval"]["calls"], stats["cmdstat_evalsha"]["calls"]) == (1, 3)


async def test_a_call_runs_the_script_exactly_once(real_server: Server):
    async with opened(real_server) as stores:
        counter = runner(stores.connection, ask="redis.call('INCR', KEYS[1]) error('after the write')")
        await counter.start(shebang=False)
        with pytest.raises(InternalError):
            await counter.call("ask", ["n"], [])
        await stores.connection.client.script_flush()
        with pytest.raises(InternalError):
            await counter.call("ask", ["n"], [])
        assert await stores.connection.client.get("n") == b"2"


async def test_the_shebang_is_used_where_the_server_knows_it(real_stores: Stores):
    version = await real_stores.connection.server_version()
    script = read_scripts(lua_folder())["validate_key"]
    with_shebang, plain = await real_stores.connection.client.script_exists(script.with_shebang().sha, script.sha)
    assert with_shebang == (version >= (7, 0))
    assert not (plain and with_shebang)


async def test_a_script_that_promises_to_write_nothing_cannot(real_stores: Stores):
    script = dataclasses.replace(Script("ask", "return redis.call('SET', KEYS[1], '1')", "no-writes", ("ask.lua:1",)))
    lying = ScriptRunner(real_stores.connection, {"ask": script})
    await lying.start()
    with pytest.raises(InternalError):
        await lying.call("ask", ["k"], [])
    assert not await real_stores.connection.client.exists("k")


async def test_a_folder_of_scripts_can_be_run_as_it_is(tmp_path: Path):
    (tmp_path / "ask.lua").write_text(f"-- ask: what?\n-- Returns  a\n-- Writes   nothing\n-- Flags    no-writes\n{ASK}\n")
    connection = fake_connection()
    ask = ScriptRunner(connection, read_scripts(tmp_path))
    await ask.start(shebang=False)
    assert await ask.call("ask", ["k"], ["a"]) == [b"k", b"a"]
    await connection.close()

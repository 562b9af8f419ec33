"""The demo tenant: made once, and found again at every start."""

from pathlib import Path

import fakeredis

from gateway import virtual_key
from gateway.quick_start import KEY_FILE, SUBDOMAIN, seed_demo
from gateway.store import Connection, Stores, open_stores


async def opened() -> Stores:
    return await open_stores(Connection(fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())), 60_000, shebang=False)


async def test_the_second_start_keeps_key_and_rule_and_follows_the_port(tmp_path: Path):
    stores = await opened()
    await seed_demo(stores, tmp_path, 9000)
    key = (tmp_path / KEY_FILE).read_text(encoding="ascii")
    await seed_demo(stores, tmp_path, 9001)
    stored = await stores.tenants.by_subdomain(SUBDOMAIN)
    assert stored is not None
    assert (tmp_path / KEY_FILE).read_text(encoding="ascii") == key
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert [rule.target for rule in await stores.rules.all(stored.tenant.id)] == ["http://127.0.0.1:9001"]
    assert len(await stores.api_keys.all(stored.tenant.id)) == 1


async def test_a_suspended_demo_tenant_does_not_stop_the_next_start(tmp_path: Path):
    stores = await opened()
    await seed_demo(stores, tmp_path, 9000)
    key = (tmp_path / KEY_FILE).read_text(encoding="ascii")
    stored = await stores.tenants.by_subdomain(SUBDOMAIN)
    assert stored is not None
    await stores.tenants.update(stored.tenant.id, lambda tenant: tenant.model_copy(update={"status": "suspended"}))
    await seed_demo(stores, tmp_path, 9000)
    assert (tmp_path / KEY_FILE).read_text(encoding="ascii") == key


async def test_a_lost_demo_key_is_replaced(tmp_path: Path):
    stores = await opened()
    await seed_demo(stores, tmp_path, 9000)
    stored = await stores.tenants.by_subdomain(SUBDOMAIN)
    assert stored is not None
    (tmp_path / KEY_FILE).unlink()
    await seed_demo(stores, tmp_path, 9000)
    digest = virtual_key.digest((tmp_path / KEY_FILE).read_text(encoding="ascii").strip())
    assert await stores.api_keys.authenticate(stored.tenant.id, digest) is not None

"""What the usage page says of limits is what requests find."""

import pytest

from tests.gateways import MASTER_KEY, ATenant, Gateway
from tests.stores import dump
from tests.unit.admin.helpers import Admin, an_app
from tests.wire import Upstream, an_upstream


class Scene:
    """A proxy in front of an upstream, and the admin API over the same store."""

    def __init__(self, gateway: Gateway, upstream: Upstream) -> None:
        self.gateway, self.upstream = gateway, upstream

    async def prepare(self, **tenant) -> "Scene":
        self.tenant: ATenant = await self.gateway.new_tenant(**tenant)
        app = an_app(self.gateway.stores, master_key=MASTER_KEY, upstream={"allowed_networks": "127.0.0.0/8"})
        self.admin = Admin(app, self.gateway.stores.connection.client, self.gateway.stores, self.tenant.secret)
        return self

    async def asks(self, path, times=1, key=None):
        for _ in range(times):
            got = await self.gateway.ask("GET", path, key=key or self.tenant.secret)
            assert got.status == 200, got
        await self.gateway.idle()

    async def limits(self, query=""):
        before = await dump(self.gateway.stores.connection)
        got = await self.admin.call("GET", f"/tenants/{self.tenant.id}/usage?{query}")
        assert got.status == 200, got.raw
        assert await dump(self.gateway.stores.connection) == before
        return got.json["limits"]


@pytest.fixture
async def scene(gateway: Gateway):
    async with an_upstream() as upstream:
        yield Scene(gateway, upstream)


def named(name, **more):
    return {"name": name, "limit": 9, "window": "1h"} | more


async def test_requests_are_seen_where_they_count(scene: Scene):
    shared = [named("tenant"), named("each-rule", per=["rule"]), named("each-key", per=["api_key"])]
    await scene.prepare(required_plugins={"rate_limiter": {"settings": {"limits": shared}}})
    own = named("own", quota={"daily": 8}, per=["rule", "api_key"])
    chain, headers = [{"name": "rate_limiter", "settings": own}], {"x-api-key": "sealed"}
    first = await scene.gateway.new_rule(scene.tenant, scene.upstream.url, "/a", plugin_chain=chain, headers=headers)
    second = await scene.gateway.new_rule(scene.tenant, scene.upstream.url, "/b")
    other = await scene.gateway.new_key(scene.tenant, limits=[named("mine"), named("mine-by-rule", per=["rule"])])
    await scene.asks("/a", 3)
    await scene.asks("/a", 1, other)
    await scene.asks("/b", 2, other)
    found = await scene.limits()
    keys = {each.key.id for each in await scene.gateway.stores.api_keys.all(scene.tenant.id)}
    mine = next(each["api_key"] for each in found if each["name"] == "mine")
    (main,) = keys - {mine}
    assert {(each["name"], each["rule"], each["api_key"]): each["used"] for each in found} == {
        ("tenant", None, None): 6,
        ("each-rule", first, None): 4,
        ("each-rule", second, None): 2,
        ("each-key", None, main): 3,
        ("each-key", None, mine): 3,
        ("own", first, main): 3,
        ("own", first, mine): 1,
        ("own-per-day", first, main): 3,
        ("own-per-day", first, mine): 1,
        ("mine", None, mine): 3,
        ("mine-by-rule", first, mine): 1,
        ("mine-by-rule", second, mine): 2,
    }
    assert all(each["remaining"] == each["limit"] - each["used"] for each in found)
    assert all(0 < each["reset_ms"] <= 86_400_000 for each in found)


async def test_more_limits_than_one_call_takes_keep_their_order(scene: Scene):
    await scene.prepare()
    for number in range(4):
        limits = [{"name": f"n{number}-{index}", "limit": 1_000 + index, "window": "1h"} for index in range(16)]
        chain = [{"name": "rate_limiter", "settings": {"limits": limits}}]
        await scene.gateway.new_rule(scene.tenant, scene.upstream.url, f"/{number}", plugin_chain=chain)
    for number in range(4):
        await scene.asks(f"/{number}", number)
    found = {each["name"]: (each["limit"], each["used"]) for each in await scene.limits()}
    assert found == {f"n{number}-{index}": (1_000 + index, number) for number in range(4) for index in range(16)}

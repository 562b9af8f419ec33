"""Nothing that a key makes can do more than the key, whatever is asked for and in whatever order."""

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.admin.helpers import OPERATOR, an_admin

NOW = datetime.now(UTC)
MODELS, NETWORKS = (
    ["a", "b", "c"],
    ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "192.0.2.0/24", "::/0", "2001:db8::/32"],
)
LIMITS: list[dict[str, Any]] = [
    {"limit": 1, "window": "1m"},
    {"limit": 2, "window": "1m"},
    {"limit": 2, "window": "1m", "shadow": True},
]


def some(values):
    return st.none() | st.lists(st.sampled_from(values), max_size=3)


RULES = ["first", "second"]


def wishes():
    return st.fixed_dictionaries(
        {},
        optional={
            "scopes": st.lists(st.sampled_from(["admin", "proxy"]), min_size=1, max_size=2),
            "expires_at": st.none() | st.integers(1, 5).map(lambda days: (NOW + timedelta(days=days)).isoformat()),
            "limits": st.lists(st.sampled_from(LIMITS), max_size=3),
            "allowed_models": some(MODELS),
            "allowed_rules": some(RULES),
            "allowed_networks": some(NETWORKS),
            "name": st.just("n"),
        },
    )


def named(wish, rules):
    """With the ids of rules, which differ each time and so cannot be drawn."""
    ids = dict(zip(RULES, rules, strict=True))
    allowed = wish.get("allowed_rules")
    return wish if not allowed else wish | {"allowed_rules": [ids[name] for name in allowed]}


def may(key):
    """All that a key may do, as sets that can be compared, written a second time and without the code that grants."""
    networks = key["allowed_networks"]
    every: list[str] = ["10.1.2.3", "10.1.2.4", "10.2.0.0", "192.0.2.1", "8.8.8.8", "2001:db8::1", "2600::1"]
    reached = {
        address
        for address in every
        if networks is None
        or any(
            ipaddress.ip_address(address) in ipaddress.ip_network(network)
            for network in networks
            if ipaddress.ip_network(network).version == ipaddress.ip_address(address).version
        )
    }
    return {
        "scopes": set(key["scopes"]),
        "models": {*MODELS, "others"} if key["allowed_models"] is None else set(key["allowed_models"]),
        "rules": {"all"} | set(key["rules"]) if key["allowed_rules"] is None else set(key["allowed_rules"]),
        "addresses": reached,
        "until": datetime.max.replace(tzinfo=UTC) if key["expires_at"] is None else datetime.fromisoformat(key["expires_at"]),
        "free of": {
            str(limit)
            for limit in LIMITS
            if not any(
                given.items() >= limit.items() and given["shadow"] == limit.get("shadow", False) for given in key["limits"]
            )
        },
    }


def assert_within(one, other):
    for name, has in may(one).items():
        assert has <= may(other)[name], (name, one, other)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_what_a_key_makes_never_exceeds_it(data):
    admin = await an_admin(token=OPERATOR)
    tenant = await admin.tenant()
    rules = [(await admin.rule(tenant, path=f"/{number}"))["id"] for number in range(2)]
    path = f"/tenants/{tenant['id']}/api-keys"
    wish = named(data.draw(wishes()), rules) | {"scopes": ["admin", *data.draw(st.sampled_from([[], ["proxy"]]))]}
    # where the call comes from is not what this is about
    wish |= {"allowed_networks": data.draw(st.none() | st.just(["192.0.2.0/24", "10.1.0.0/16"]))}
    made = await admin.call("POST", path, wish)
    assert made.status == 201, made.raw
    maker = made.json | {"rules": rules}
    stronger = (await admin.call("POST", path, {"scopes": ["admin", "proxy"]})).json
    mine = maker["id"]
    for _ in range(data.draw(st.integers(1, 5))):
        which = data.draw(
            st.sampled_from(["make", "edit", "edit myself", "edit the stronger", "rotate the stronger", "rotate myself"])
        )
        asked = named(data.draw(wishes()), rules)
        if which == "make":
            got = await admin.call("POST", path, asked, key=maker["api_key"])
            if got.status == 201:
                assert_within(got.json | {"rules": rules}, maker)
                mine = got.json["id"]
        elif which.startswith("edit"):
            target = {"edit": mine, "edit myself": maker["id"], "edit the stronger": stronger["id"]}[which]
            before = (await admin.call("GET", f"{path}/{target}")).json
            got = await admin.call("PATCH", f"{path}/{target}", asked, key=maker["api_key"])
            if got.status == 200 and target == maker["id"]:
                assert_within(got.json | {"rules": rules}, maker)
                maker |= got.json
            elif got.status == 200:
                was, now, most = may(before | {"rules": rules}), may(got.json | {"rules": rules}), may(maker)
                assert all(now[name] == was[name] or now[name] <= most[name] for name in now), (before, got.json, maker)
        else:
            target = maker["id"] if which.endswith("myself") else stronger["id"]
            got = await admin.call("POST", f"{path}/{target}/rotate", {"grace": "1h"}, key=maker["api_key"])
            if got.status == 201:
                assert_within(got.json | {"rules": rules}, maker)
                if which.endswith("myself"):
                    maker["api_key"] = got.json["api_key"]  # a second rotation ends the first secret
        assert got.status in (200, 201, 400, 403), got.raw

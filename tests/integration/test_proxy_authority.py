"""Which tenant and which rule a request on the wire is taken for, however host, target and path are spelt, against a model."""

import asyncio
import contextlib
import os
import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.engines import ENGINE
from tests.gateways import running_proxy
from tests.wire import an_upstream, head_of

EXAMPLES = int(os.environ.get("GATEWAY_WIRE_EXAMPLES", "120"))
TENANTS = ("alpha", "beta")
many = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Scene:
    """Two tenants with a key and a target each; a rule for everything, and one for ``/v1/secret`` that leads elsewhere."""

    def __init__(self, run, gateway, keys, upstreams):
        self.run, self.gateway, self.keys, self.upstreams = run, gateway, keys, upstreams

    def ask(self, target, fields, method="GET"):
        """The status, and who was asked: ``alpha``, ``beta``, ``secret`` or nobody."""
        before = {name: len(found.requests) for name, found in self.upstreams.items()}

        async def exchange():
            async with self.gateway.connected() as wire:
                await wire.send(head_of(method, target, [*fields, ("connection", "close")]))
                try:
                    return (await wire.head()).status
                except asyncio.IncompleteReadError:
                    return 0

        status = self.run(exchange())
        asked = [name for name, found in self.upstreams.items() if len(found.requests) > before[name]]
        assert len(asked) <= 1
        assert bool(asked) == (status == 200)
        return status, asked[0] if asked else None


@pytest.fixture
def scene(valkey_store_server):
    valkey_store_server.command("FLUSHALL")
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()

        async def start():
            trusting = {"trusted_proxies": ["127.0.0.2/32"]}
            gateway = await stack.enter_async_context(running_proxy(valkey_store_server.url, server=trusting))
            upstreams = {name: await stack.enter_async_context(an_upstream()) for name in (*TENANTS, "secret")}
            keys = {}
            for name in TENANTS:
                tenant = await gateway.new_tenant(name)
                keys[name] = tenant.secret
                await gateway.new_rule(tenant, upstreams[name].url, "/")
                await gateway.new_rule(tenant, upstreams["secret"].url, "/v1/secret")
            return Scene(runner.run, gateway, keys, upstreams)

        yield runner.run(start())
        runner.run(stack.aclose())


# Hosts


def tenant_of(host):
    """The model: a name (RFC 9110 §7.2, an LDH name or an IP literal, perhaps a port) one label under a base domain."""
    match = re.fullmatch(r"(?i)(?:\[[0-9a-f:.%]+\]|([a-z0-9_-]+(?:\.[a-z0-9_-]+)*))\.?(?::[0-9]{1,5})?", host)
    if match is None:
        return "no host"
    labels = (match[1] or "").lower().split(".")
    for base in (["example", "com"], ["localhost"]):
        if labels[1:] == base:
            return labels[0]
    return None


hosts = st.lists(
    st.sampled_from(
        [
            "alpha",
            "beta",
            "ALPHA",
            "Beta",
            "gamma",
            ".",
            "..",
            "example.com",
            "EXAMPLE.com",
            "localhost",
            "example",
            "com",
            ":80",
            ":",
            ":http",
            ":0",
            ":99999",
            ":999999",
            "@",
            "user@",
            "user:pw@",
            "[::1]",
            "[",
            "]",
            "%61lpha",
            "%2e",
            "xn--lpha-poa",
            "\xe4lpha",
            "\xad",
            " ",
            "\t",
            "/",
            "\\",
            "#",
            "?",
            ",",
            ";",
            "_",
            "-",
            "127.0.0.1",
            "http://",
            "\xb7",
            "evil.net",
        ]
    ),
    min_size=1,
    max_size=6,
).map("".join)


@many
@given(host=hosts, caller=st.sampled_from(TENANTS))
@example("alpha.example.com", "alpha")
@example("alpha.example.com.:80", "alpha")
@example("alpha.example.com", "beta")
@example("alpha.beta.example.com", "beta")
@example("user@alpha.example.com", "alpha")
@example("alpha.example.com@evil.net", "alpha")
@example("[::1]:80", "alpha")
def test_the_host_names_the_tenant_and_a_key_opens_no_other(scene, host, caller):
    status, asked = scene.ask("/x", [("host", host), ("authorization", f"Bearer {scene.keys[caller]}")])
    named = tenant_of(host.strip(" \t"))
    if named in TENANTS:
        assert (status, asked) == ((200, caller) if named == caller else (401, None))
    elif named is None:  # a host that is no tenant's: the key alone says who calls
        assert (status, asked) == (200, caller)
    else:
        assert status in (400, 404)
        assert asked is None


@many
@given(first=hosts, second=hosts, absolute=hosts)
def test_no_second_authority_changes_who_is_asked(scene, first, second, absolute):
    key = ("authorization", f"Bearer {scene.keys['alpha']}")
    twice = scene.ask("/x", [("host", first), ("host", second), key])
    assert twice[1] is None
    assert twice[0] in (400, 0)
    honest = ("host", "alpha.example.com")
    # hearsay, since nobody trusts 127.0.0.1 here
    told = [("x-forwarded-host", second), ("forwarded", f"host={second}"), ("x-original-host", second)]
    status, asked = scene.ask(
        "/x", [honest, key, *[field for field in told if field[1].strip() == field[1] and "\t" not in field[1]]]
    )
    assert (status, asked) == (200, "alpha")
    status, asked = scene.ask(f"http://{absolute}/x".replace(" ", "").replace("\t", ""), [honest, key])
    if ENGINE == "granian":  # drops the authority of the target
        assert asked in (None, "alpha")
    else:
        assert (status, asked) == (400, None)


# Paths


pieces = st.sampled_from(
    [
        "/",
        "/",
        "//",
        "v1",
        "v1",
        "secret",
        "secret",
        "x",
        ".",
        "..",
        "%2e",
        "%2E%2e",
        "%2f",
        "%2F",
        "%5c",
        "\\",
        "%00",
        "%25",
        "%252e",
        "%252f",
        ";",
        ";x=1",
        "%3b",
        "%73ecret",
        "s%65cret",
        "SECRET",
        "?",
        "?a=b",
        "#",
        "%",
        "%zz",
        "%ff",
        "\xff",
        "%c0%af",
        "%e2%80%ae",
        ":",
        "@",
        "&",
        "%20",
        "+",
        "~",
        "'",
        "|",
        "{",
        "*",
    ]
)


def understood(path):
    """The model: the ways in which a target may read a path (RFC 3986 §5.2.4 and §6.2.2, and servers' habits), as segments."""
    once = unquote_to_bytes(path).decode("latin-1")
    for text in (once, re.sub(r";[^/]*", "", once)):
        segments: list[str] = []
        for segment in text.replace("\\", "/").split("/"):
            if segment == "..":
                segments = segments[:-1]
            elif segment not in ("", "."):
                segments.append(segment)
        yield segments


@many
@given(target=st.lists(pieces, min_size=1, max_size=9).map(lambda parts: "/" + "".join(parts)))
@example("/v1/secret")
@example("/v1/%73ecret/x")
@example("/v1//secret")
@example("/v1/x/../secret")
@example("/v1/x/%2e%2e/secret")
@example("/v1/x/..;/secret")
@example("/v1/x%2f..%2fsecret")
@example("/v1\\secret")
@example("/v1/./secret")
@example("//v1/secret")
def test_the_rule_that_matches_is_the_one_for_what_the_target_understands(scene, target):
    fields = [("host", "alpha.example.com"), ("authorization", f"Bearer {scene.keys['alpha']}")]
    status, asked = scene.ask(target, fields)
    if asked is None:
        assert status in (400, 404)
        return
    path = target.partition("#")[0].partition("?")[0]
    readings = list(understood(path))
    is_secret = [reading[:2] == ["v1", "secret"] for reading in readings]
    # a target that drops what follows a semicolon is the rule's own matter, where one stands in the rule's prefix
    assert is_secret[0] == (asked == "secret")
    got = scene.upstreams[asked].requests[-1].target
    assert got in (target.partition("#")[0], target.partition("#")[0].removesuffix("?"))
    assert not got.startswith("//")
    assert ".." not in readings[0]
    assert not re.search(r"(?i)(?:^|/)(?:\.|%2e){1,2}(?:[/;]|%3b|$)|%2f|%5c|%00|\\", path)

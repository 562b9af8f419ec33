"""Who and what security_validator lets in, and what it does to the headers of replies."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidField
from gateway.plugin import Reject, Stage
from tests.builders import a_plugin, a_reply, a_request, an_exchange


async def passes(settings, **facts):
    await a_plugin("security_validator", settings).pre_request(an_exchange(a_request(**facts)))


async def refused(settings, **facts):
    with pytest.raises(Reject) as caught:
        await passes(settings, **facts)
    return caught.value


async def tidied(reply, **settings):
    await a_plugin("security_validator", settings).pre_response(an_exchange(reply=reply))
    return dict(reply.headers)


def invalid(**settings):
    with pytest.raises(InvalidField) as caught:
        a_plugin("security_validator", settings)
    return str(caught.value.param).removeprefix("plugin.settings").lstrip("."), caught.value.message


# addresses


@pytest.mark.parametrize("client", ["10.1.2.3", "::ffff:10.1.2.3", "::ffff:0a01:0203"])
@pytest.mark.parametrize("network", ["10.0.0.0/8", "10.1.2.3", "::ffff:10.0.0.0/104", "::ffff:10.1.2.3"])
async def test_a_network_holds_however_client_and_network_are_written(client, network):
    await passes({"allowed_ips": [network]}, client_ip=client)
    error = await refused({"blocked_ips": [network]}, client_ip=client)
    assert (error.status, error.code) == (403, "ip_not_allowed")


@given(address=st.ip_addresses(), inside=st.ip_addresses(), prefix=st.integers(0, 32))
async def test_an_address_is_either_allowed_or_blocked_by_the_same_network(address, inside, prefix):
    network = str(ipaddress.ip_network((inside, prefix), strict=False))
    outcomes = []
    for name in ("allowed_ips", "blocked_ips"):
        try:
            await passes({name: [network]}, client_ip=str(address))
        except Reject:
            outcomes.append(name)
    assert len(outcomes) == 1


async def test_an_address_outside_the_allowed_networks_is_refused():
    assert (await refused({"allowed_ips": ["10.0.0.0/8", "2001:db8::/32"]}, client_ip="11.0.0.1")).status == 403
    await passes({"allowed_ips": ["10.0.0.0/8", "2001:db8::/32"]}, client_ip="2001:db8::1")


async def test_blocked_wins_over_allowed():
    assert (await refused({"allowed_ips": ["10.0.0.0/8"], "blocked_ips": ["10.0.0.1"]}, client_ip="10.0.0.1")).status == 403


@pytest.mark.parametrize("client", ["", "unix", "10.0.0.256"])
async def test_an_address_that_cannot_be_read_is_refused_where_addresses_matter(client):
    assert (await refused({"blocked_ips": ["10.0.0.0/8"]}, client_ip=client)).status == 403
    await passes({}, client_ip=client)


# methods


async def test_a_method_that_is_not_listed_is_told_which_are():
    error = await refused({"allowed_methods": ["get", "POST"]}, method="DELETE")
    assert (error.status, error.code, error.headers) == (405, "method_not_allowed", (("allow", "GET, POST"),))
    await passes({"allowed_methods": ["get"]}, method="GET")


# headers


async def test_a_missing_header_is_named():
    error = await refused({"required_headers": ["X-Team", "x-app"]}, headers={"x-team": "a"})
    assert (error.status, error.code, error.param) == (400, "missing_header", "x-app")
    await passes({"required_headers": ["X-Team"]}, headers={"x-team": ""})


@pytest.mark.parametrize("rule", ["blue", {"equals": "blue"}, {"pattern": "bl.e"}, {"pattern": "red|blue"}])
async def test_a_header_must_have_its_value_as_a_whole(rule):
    settings = {"required_headers": {"x-team": rule}}
    await passes(settings, headers={"x-team": "blue"})
    for value in ("blues", "a blue", "blue\tred", "BLUE", ""):
        error = await refused(settings, headers={"x-team": value})
        assert (error.status, error.code, error.param) == (400, "invalid_header", "x-team")


async def test_every_one_of_several_fields_must_fit():
    settings = {"required_headers": {"x-team": "blue"}}
    assert (await refused(settings, headers=[("x-team", "blue"), ("x-team", "red")])).code == "invalid_header"


async def test_a_value_beyond_what_patterns_are_tried_on_is_refused():
    settings = {"required_headers": {"x-team": {"pattern": "a*"}}}
    await passes(settings, headers={"x-team": "a" * 4_096})
    assert (await refused(settings, headers={"x-team": "a" * 4_097})).status == 400


async def test_the_header_block_may_be_as_large_as_the_limit():
    headers = {"host": "x", "x-a": "12345"}
    await passes({"max_header_bytes": 5 + 4 + 8 + 4}, headers=headers)
    error = await refused({"max_header_bytes": 5 + 4 + 8 + 3}, headers=headers)
    assert (error.status, error.code) == (431, "headers_too_large")


@pytest.mark.parametrize("agent", ["BadBot/1.0", "mozilla badBOT", "x" * 5_000])
async def test_a_blocked_user_agent_is_refused_in_any_case(agent):
    error = await refused({"blocked_user_agents": ["badbot", "^curl/"]}, headers={"user-agent": agent})
    assert (error.status, error.code) == (403, "user_agent_blocked")


@pytest.mark.parametrize("headers", [{}, {"user-agent": "libcurl/8"}, {"x-agent": "badbot"}])
async def test_other_user_agents_and_none_pass(headers):
    await passes({"blocked_user_agents": ["badbot", "^curl/"]}, headers=headers)


async def test_the_address_is_judged_first():
    settings = {"allowed_methods": ["GET"], "blocked_ips": ["10.0.0.1"], "required_headers": ["x-a"]}
    assert (await refused(settings, client_ip="10.0.0.1")).status == 403


# replies


async def test_replies_lose_what_tells_about_the_target_and_are_not_sniffed():
    reply = a_reply(headers={"Server": "nginx/1.2", "X-Powered-By": "PHP", "x-other": "1"})
    assert await tidied(reply) == {"content-type": "application/json", "x-other": "1", "x-content-type-options": "nosniff"}


async def test_configured_headers_replace_the_targets_own():
    reply = a_reply(headers=[("x-frame-options", "ALLOW"), ("x-frame-options", "b"), ("x-gone", "1"), ("server", "x")])
    headers = await tidied(reply, response_headers={"set": {"X-Frame-Options": "DENY"}, "remove": ["X-Gone"]})
    assert headers == {"content-type": "application/json", "server": "x", "x-frame-options": "DENY"}


def test_no_body_is_read():
    plugin = a_plugin("security_validator")
    assert (plugin.needs_request_body, plugin.needs_reply_body) == (False, False)
    assert type(plugin).stages() == (Stage.PRE_REQUEST, Stage.PRE_RESPONSE)


@pytest.mark.parametrize(
    ("settings", "param", "words"),
    [
        ({"required_headers": ["x y"]}, "required_headers", "not a header name"),
        ({"required_headers": {"x": {"patern": "a"}}}, "required_headers.x.patern", "did you mean pattern?"),
        ({"required_headers": {"x": {"pattern": "("}}}, "required_headers.x.pattern", "RE2"),
        ({"required_headers": {"x": {"pattern": r"\Qabc"}}}, "required_headers.x.pattern", "wrong"),
        ({"required_headers": {"x": {"pattern": "a)|(?:b"}}}, "required_headers.x.pattern", "RE2"),
        ({"blocked_ips": ["10.0.0.1/8"]}, "blocked_ips.0", "network"),
        ({"allowed_ips": []}, "allowed_ips", "at least 1"),
        ({"allowed_methods": ["GE T"]}, "allowed_methods.0", "HTTP method"),
        ({"max_header_bytes": 0}, "max_header_bytes", "greater"),
        ({"blocked_user_agents": ["(?=x)"]}, "blocked_user_agents.0", "RE2"),
        ({"response_headers": {"set": {"x-a": "1\r\nx-b: 2"}}}, "response_headers.set.x-a", "printable"),
        ({"response_headers": {"set": {"x-a\r\nx-b": "1"}}}, "response_headers.set.x-a\r\nx-b", "header name"),
        ({"response_headers": {"set": {"x-a": " 1"}}}, "response_headers.set.x-a", "white space"),
        (
            {"response_headers": {"set": {"Content-Length": "1"}}},
            "response_headers.set.Content-Length",
            "belongs to the gateway",
        ),
        ({"response_headers": {"remove": ["transfer-encoding"]}}, "response_headers.remove.0", "belongs to the gateway"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_written(settings, param, words):
    found, message = invalid(**settings)
    assert found == param
    assert words in message

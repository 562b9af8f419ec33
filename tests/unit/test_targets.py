"""Where a rule may point: the text of a target, and the addresses behind its name."""

import ipaddress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yarl import URL

from gateway.config import UpstreamSettings
from gateway.errors import InvalidField
from gateway.targets import AddressPolicy, is_metadata, is_public, parse_target

NOTHING_INNER = UpstreamSettings()
LOOPBACK = UpstreamSettings(allowed_networks="127.0.0.0/8,::1/128")
EVERYTHING = UpstreamSettings(allowed_networks="0.0.0.0/0,::/0")

METADATA = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd20:ce::254",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "2002:a9fe:a9fe::",
    "::169.254.169.254",
    "::ffff:0:169.254.169.254",
    "64:ff9b:1::169.254.169.254",
    "fe80::5efe:169.254.169.254",
    "2001:0:4136:e378:8000:63bf:5601:5601",
]
NOT_PUBLIC = [
    *METADATA,
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "169.254.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "192.88.99.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::1",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2001:20::1",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "4000::1",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_plainly_public_is_not(address):
    assert not is_public(ipaddress.ip_address(address))
    assert not AddressPolicy(()).is_allowed(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"]
)
def test_a_public_address_is(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", METADATA)
def test_metadata_services_are_refused_even_where_everything_is_allowed(address):
    parsed = ipaddress.ip_address(address)
    assert is_metadata(parsed)
    assert not AddressPolicy.of(EVERYTHING.allowed_networks).is_allowed(parsed)


def test_an_allowed_network_allows_its_mapped_addresses_and_no_others():
    policy = AddressPolicy.of(LOOPBACK.allowed_networks, public=False)
    assert policy.is_allowed(ipaddress.ip_address("127.0.0.9"))
    assert policy.is_allowed(ipaddress.ip_address("::ffff:127.0.0.9"))
    assert policy.is_allowed(ipaddress.ip_address("::1"))
    assert not policy.is_allowed(ipaddress.ip_address("10.0.0.1"))
    assert not policy.is_allowed(ipaddress.ip_address("8.8.8.8"))


@given(st.ip_addresses())
def test_ipv4_and_its_mapped_form_are_judged_alike(address):
    if address.version == 4:
        mapped = ipaddress.IPv6Address(f"::ffff:{address}")
        assert is_public(mapped) == is_public(address)
        assert is_metadata(mapped) == is_metadata(address)
    elif is_public(address) and address.ipv4_mapped is None:
        assert address in ipaddress.ip_network("2000::/3")


@given(st.ip_addresses(v=4), st.sampled_from(["64:ff9b::{}", "::{}", "::ffff:0:{}"]))
def test_no_ipv6_form_that_carries_an_ipv4_address_is_public(address, form):
    assert not is_public(ipaddress.ip_address(form.format(address)))


@pytest.mark.parametrize(
    ("text", "url", "inner"),
    [
        ("https://api.openai.com", "https://api.openai.com/", False),
        ("HTTPS://API.OpenAI.com:443/", "https://api.openai.com/", False),
        ("https://api.openai.com./v1/", "https://api.openai.com/v1", False),
        ("https://8.8.8.8", "https://8.8.8.8/", False),
        ("https://[2606:4700:0:0::1111]", "https://[2606:4700::1111]/", False),
        ("https://api.openai.com:80", "https://api.openai.com:80/", False),
        ("https://a.example/%20x;y=(1)", "https://a.example/%20x;y=(1)", False),
    ],
)
def test_https_to_the_internet_needs_no_permission(text, url, inner):
    target = parse_target(text, NOTHING_INNER)
    assert target.url("", "") == url
    assert target.inner == inner


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("http://127.0.0.1:9000", "127.0.0.1"),
        ("http://localhost:9000/base", "localhost"),
        ("https://[::1]:9000", "::1"),
        ("http://[::ffff:127.0.0.1]:9000", "127.0.0.1"),
        ("http://service.internal", "service.internal"),
        ("https://api.openai.com:8443", "api.openai.com"),
    ],
)
def test_plain_http_and_odd_ports_lead_only_into_allowed_networks(text, host):
    target = parse_target(text, LOOPBACK)
    assert (target.host, target.inner) == (host, True)
    with pytest.raises(InvalidField):
        parse_target(text, NOTHING_INNER)


BAD = [
    "",
    "api.openai.com",
    "//api.openai.com",
    "ftp://a.example",
    "file:///etc/passwd",
    "unix:///run/x",
    "gopher://a.example",
    "javascript:alert(1)",
    "https://",
    "https:///x",
    "https://user@a.example",
    "https://user:pw@a.example",
    "https://a.example@evil.example",
    "https://a.example?x",
    "https://a.example/?",
    "https://a.example#x",
    "https://a.example:0",
    "https://a.example:65536",
    "https://a.example:x",
    "https://a..example",
    "https://-a.example",
    "https://a.example/../x",
    "https://a.example/%2e%2e/x",
    "https://a.example//x",
    "https://a.example/%2Fx",
    "https://a.example/%5cx",
    "https://a.example/a b",
    "https://a.example\\@evil.example",
    "https://a.example\n",
    "https://\x00a.example",
    "https://exämple.com",
    "https://１２７.0.0.1",
    "https://[::1",
    "https://[::1]x",
    "https://127.0.0.1",
    "https://localhost",
    "https://LOCALHOST.",
    "https://x.localhost",
    "https://localhost.localdomain",
    "https://[::1]",
    "https://[::ffff:127.0.0.1]",
    "https://[64:ff9b::7f00:1]",
    "https://[fe80::1%25eth0]",
    "https://2130706433",
    "https://0x7f000001",
    "https://0x7f.1",
    "https://0177.0.0.1",
    "https://127.1",
    "https://127.0.1",
    "https://127.0.0.1.",
    "https://0",
    "https://017700000001",
    "https://10.0.0.1",
    "https://169.254.169.254",
    "https://1.2.3.4.5",
    "https://a.0x7f",
    "https://example.123",
]


@pytest.mark.parametrize("text", BAD)
def test_a_target_that_is_not_clearly_one_is_refused_and_the_error_names_the_field(text):
    with pytest.raises(InvalidField) as refused:
        parse_target(text, NOTHING_INNER, param="target")
    assert refused.value.param == "target"


def test_metadata_is_refused_as_target_even_inside_allowed_networks():
    with pytest.raises(InvalidField, match="metadata"):
        parse_target("http://169.254.169.254/latest", EVERYTHING)


octet = st.integers(0, 255)


@st.composite
def host_forms(draw):
    """Spellings of IPv4 addresses that some resolver or parser understands."""
    numbers = [draw(st.sampled_from([127, 10, 169, 192, 0, 172])), draw(octet), draw(octet), draw(octet)]
    value = int.from_bytes(bytes(numbers), "big")
    base = draw(st.sampled_from(["{}", "0x{:x}", "0{:o}", "0X{:X}", "0x0{:x}"]))
    short = [numbers[0], value & 0xFFFFFF]
    parts = draw(st.sampled_from([[value], short, [*numbers[:2], value & 0xFFFF], numbers]))
    text = ".".join(
        base.format(part) if draw(st.booleans()) or index == len(parts) - 1 else str(part) for index, part in enumerate(parts)
    )
    host = draw(
        st.sampled_from(
            [
                text,
                f"{text}.",
                f"[::ffff:{ipaddress.IPv4Address(value)}]",
                f"[64:ff9b::{ipaddress.IPv4Address(value)}]",
                f"[::{ipaddress.IPv4Address(value)}]",
                f"[2002:{value >> 16:x}:{value & 0xFFFF:x}::]",
                f"[::ffff:{value >> 16:x}:{value & 0xFFFF:x}]",
                str(ipaddress.IPv4Address(value)),
            ]
        )
    )
    return host, value


@settings(max_examples=1_000)
@given(host_forms(), st.sampled_from(["https://{}", "https://{}:443", "https://{}/v1", "http://{}", "https://{}:8443"]))
def test_no_spelling_of_an_inner_address_is_a_target(form, text):
    host, value = form
    address = ipaddress.IPv4Address(value)
    if is_public(address):
        return
    with pytest.raises(InvalidField):
        parse_target(text.format(host), NOTHING_INNER)


paths = st.text(st.sampled_from("/abAB09-._~!$&'()*+,;=:@%|^`\"<>[]{}"), max_size=30).map(
    lambda text: f"/{text}".replace("//", "/x")
)
queries = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=40)


@given(paths, queries, st.sampled_from(["https://a.example", "https://a.example/base", "https://[2606:4700::1111]/x"]))
@example("/a", "?", "https://a.example")
@example("/a%zz[|]", 'x=[1]&y={"a":"b"}&z=%', "https://a.example")
def test_the_url_has_the_bytes_of_path_and_query_and_the_target_s_origin(path, query, text):
    target = parse_target(text, NOTHING_INNER)
    url = target.url(path, query)
    assert url == f"{target.origin}{target.path}{path}" + (f"?{query}" if query else "")
    sent = URL(url, encoded=True)
    assert str(sent.origin()) == target.origin
    assert sent.raw_host == target.host
    assert sent.raw_path_qs == f"{target.path}{path}" + (f"?{query}" if query else "")


@given(st.text(max_size=40))
def test_no_text_makes_the_parser_fail_otherwise(text):
    for allowed in (NOTHING_INNER, LOOPBACK):
        for whole in (text, f"https://{text}"):
            try:
                target = parse_target(whole, allowed)
            except InvalidField:
                continue
            assert URL(target.url("/x", ""), encoded=True).raw_host == target.host

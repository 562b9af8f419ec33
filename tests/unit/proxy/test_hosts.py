"""Which tenant a Host header names."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import MissingHost
from gateway.proxy.hosts import TenantDomains

DOMAINS = ("eu.example.com", "example.com", "localhost")


@pytest.fixture(scope="module")
def domains():
    return TenantDomains(DOMAINS)


labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
ports = st.sampled_from(["", ":1", ":80", ":65535"])


@given(labels, st.sampled_from(DOMAINS), ports, st.sampled_from(["", "."]), st.booleans())
def test_one_label_under_a_base_domain_is_its_tenant_in_every_spelling(domains, label, domain, port, dot, upper):
    text = f"{label}.{domain}{dot}{port}"
    if f"{label}.{domain}" in DOMAINS:
        return
    assert domains.subdomain_of(text.upper() if upper else text) == label


@given(st.lists(labels, min_size=2, max_size=3), st.sampled_from(["example.com", "localhost"]), ports)
@example(["a", "b"], "example.com", "")
def test_two_labels_or_more_are_no_tenant(domains, found, domain, port):
    host = ".".join([*found, domain])
    if found[1:] == ["eu"] and domain == "example.com":
        return
    assert domains.subdomain_of(host + port) is None


def test_the_most_specific_base_domain_counts(domains):
    assert domains.subdomain_of("acme.eu.example.com") == "acme"
    assert domains.subdomain_of("eu.example.com") == "eu"


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "localhost",
        "acmeexample.com",
        "acme.example.com.evil.net",
        "example.com.acme",
        "acme.examplexcom",
        "-a.example.com",
        "a-.example.com",
        "a_b.example.com",
        "127.0.0.1",
        "[::1]",
        "[::1]:8081",
        "10.0.0.1:1",
        "acme.example.org",
        f"{'a' * 64}.example.com",
    ],
)
def test_any_other_host_names_nobody(domains, host):
    assert domains.subdomain_of(host) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        "acme.example.com ",
        "acme.example.com:",
        "acme.example.com:a",
        "acme.example.com:123456",
        "a@acme.example.com",
        "a/acme.example.com",
        "http://acme.example.com",
        "acme.example.com#",
        "acme.example.com?",
        "acme.example.com\\",
        "a,b",
        "[::1",
        "::1",
        "[x]",
        "acme.example.com..",
        ".example.com",
        "a..example.com",
        "acmé.example.com",
        "acme.example.com\x00",
        "%61cme.example.com",
        "acme.example.com\n",
        "\u017f.example.com",
        "\u212a.example.com",
        "a" * 300,
    ],
)
def test_what_is_no_authority_is_malformed(domains, text):
    with pytest.raises(MissingHost):
        domains.subdomain_of(text)


@given(
    st.text(max_size=40)
    | st.text(st.sampled_from(string.ascii_letters + "0123456789.-_:@[]%"), max_size=30).map(lambda text: f"{text}.example.com")
)
def test_whatever_is_sent_is_a_label_nobody_or_malformed(domains, text):
    try:
        found = domains.subdomain_of(text)
    except MissingHost:
        return
    assert found is None or (
        text.lower().startswith(f"{found}.") and set(found) <= set(string.ascii_lowercase + string.digits + "-")
    )

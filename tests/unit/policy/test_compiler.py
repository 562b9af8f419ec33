"""Configuration compiled without what serving needs."""

from __future__ import annotations

from typing import Any

from gateway.config import Config
from gateway.policy import CompiledRule, Compiler
from gateway.secrets import Vault
from gateway.store import Stale
from tests.builders import a_rule, a_tenant, built_in_plugins

VAULT = Vault(b"k" * 32)


def compiled(vault: Vault | None, **rule: Any) -> CompiledRule:
    compiler = Compiler(built_in_plugins(), vault, Config(), lambda *_: None)
    documents = (a_rule(path="/v1", **rule).model_dump_json().encode(),)
    stale = Stale("v", a_tenant().model_dump_json().encode(), documents, "r", None)
    return compiler.tenant(stale).matcher.match("GET", "/v1")


def added(rule):
    """The rule's own fields, which stand behind the four that tell where a request comes from."""
    fields = rule.forwarded.over([], client_ip="", scheme="", authority="", request_id="", length=None)
    return fields[4:]


def test_without_a_vault_sealed_headers_are_left_out_and_the_rule_is_good():
    headers = {"Authorization": VAULT.seal("s", "ten_1/rule_1/authorization", param="headers"), "accept": "text/plain"}
    with_vault, without = compiled(VAULT, headers=headers), compiled(None, headers=headers)
    assert added(with_vault) == [(b"authorization", b"s"), (b"accept", b"text/plain")]
    assert (added(without), without.fault) == ([(b"accept", b"text/plain")], None)


def test_a_rule_that_cannot_be_used_says_why_to_its_owner_and_not_to_clients():
    fault = compiled(VAULT, target="http://10.0.0.1").fault
    assert fault is not None
    assert "10.0.0.1" not in str(fault.body(""))
    assert fault.__notes__ == ["target is not a public address, and 10.0.0.1 is not in upstream.allowed_networks"]


def test_a_broken_seal_is_told_to_nobody():
    fault = compiled(VAULT, headers={"authorization": "sealed:v1:AAAA"}).fault
    assert fault is not None
    assert not hasattr(fault, "__notes__")

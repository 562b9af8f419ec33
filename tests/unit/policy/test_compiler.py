"""Configuration compiled without what serving needs."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config import Config
from gateway.errors import NoRoute
from gateway.policy import CompiledRule, Compiler
from gateway.proxy.configurations import Configurations
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


def a_stale(version: str, rules: list[dict[str, Any]], **tenant: Any) -> Stale:
    documents = tuple(a_rule(**{"id": rule["path"].strip("/"), **rule}).model_dump_json().encode() for rule in rules)
    return Stale(version, a_tenant(**tenant).model_dump_json().encode(), documents, "r", None)


def test_rules_that_have_not_changed_are_taken_over_and_no_others():
    compiler = Compiler(built_in_plugins(), VAULT, Config(), lambda *_: None)
    first = compiler.tenant(a_stale("v1", [{"path": "/a"}, {"path": "/b"}, {"path": "/c"}]))
    changed = compiler.tenant(a_stale("v2", [{"path": "/b"}, {"path": "/a", "retry_attempts": 3}, {"path": "/d"}]), first)

    def of(tenant, path):
        return tenant.matcher.match("GET", path)

    assert of(changed, "/b") is of(first, "/b")
    assert of(changed, "/a") is not of(first, "/a")
    assert of(changed, "/a").retries == 3
    assert of(changed, "/d").info.path == "/d"
    with pytest.raises(NoRoute):
        of(changed, "/c")
    limited = compiler.tenant(a_stale("v3", [{"path": "/b"}], limits=[{"limit": 1, "window": "1m"}]), first)
    assert of(limited, "/b") is not of(first, "/b")
    assert len(of(limited, "/b").limits) == 1


def test_a_rule_that_was_switched_off_matches_nothing_and_comes_back():
    compiler = Compiler(built_in_plugins(), VAULT, Config(), lambda *_: None)
    first = compiler.tenant(a_stale("v1", [{"path": "/a"}]))
    off = compiler.tenant(a_stale("v2", [{"path": "/a", "active": False}]), first)
    with pytest.raises(NoRoute):
        off.matcher.match("GET", "/a")
    assert compiler.tenant(a_stale("v3", [{"path": "/a"}]), off).matcher.match("GET", "/a").info.path == "/a"


def test_what_many_requests_are_told_at_once_is_compiled_once(monkeypatch):
    compiler = Compiler(built_in_plugins(), VAULT, Config(), lambda *_: None)
    made = []
    original = Compiler.tenant

    def counted(self, stale, last=None):
        made.append(stale.version)
        return original(self, stale, last)

    monkeypatch.setattr(Compiler, "tenant", counted)
    configurations = Configurations(compiler)
    for version in ("v1", "v1", "v2", "v2", "v1"):
        configurations.update("testcompany", "d", a_stale(version, [{"path": "/a"}]))
    assert made == ["v1", "v2", "v1"]

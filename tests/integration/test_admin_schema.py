"""Requests made from the OpenAPI document, good and bad: no answer is a bug, each is as documented, nobody else is touched.

``GATEWAY_ADMIN_FUZZ_EXAMPLES`` is the number of requests, half of them with a tenant's key and half with the operator's token.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urlencode

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core import NotSet

from tests.amounts import amount, figure
from tests.unit.admin.helpers import OPERATOR, Admin, an_admin

EXAMPLES = amount("GATEWAY_ADMIN_FUZZ_EXAMPLES", 2_000)
A_LIFE = 100
"""Requests to one store: some of them revoke the key that others are about."""

UNDECLARED = {404, 405}
"""What a path that is no route's is answered: some generated ids make one."""

OWN, OTHERS, MIXED, MADE_UP = "own", "another tenant's", "another's rule or key in one's own tenant", "made up"
whose = st.sampled_from([OWN] * 8 + [OTHERS, MIXED, MADE_UP])


class Scene:
    """Two tenants. One is at the mercy of the requests, nothing of the other may change."""

    async def prepare(self) -> Scene:
        self.admin: Admin = await an_admin(token=OPERATOR)
        self.caller = await self.admin.tenant("caller")
        self.other = await self.admin.tenant("other")
        self.ids = {OWN: await self._ids(self.caller), OTHERS: await self._ids(self.other)}
        self.ids[MIXED] = self.ids[OTHERS] | {"tenant_id": self.caller["id"]}
        self.before = await self.others()
        assert self.before
        return self

    async def _ids(self, tenant: Any) -> dict[str, str]:
        rule = await self.admin.rule(
            tenant, headers={"authorization": "secret"}, plugin_chain=[{"name": "rate_limiter", "settings": LIMIT}]
        )
        key = await self.admin.key(tenant, limits=[LIMIT])
        return {"tenant_id": tenant["id"], "rule_id": rule["id"], "key_id": key["id"], "name": "rate_limiter"}

    async def others(self) -> dict[str, bytes]:
        """Every key of the other tenant, byte for byte."""
        return {name: await self.admin.redis.dump(name) for name in sorted(await self.admin.redis.keys("gw:{other}:*"))}


LIMIT = {"limit": 3, "window": "1m"}


class Answers:
    """What the document says of them."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self._validators: dict[str, Any] = {}

    def check(self, method: str, path: str, got: Any) -> None:
        declared = self._document["paths"][path][method.lower()]["responses"]
        assert got.status < 500, (method, path, got.raw)
        if got.status in UNDECLARED and str(got.status) not in declared:
            return
        assert str(got.status) in declared, (method, path, got.status, got.raw)
        content = self._resolved(declared[str(got.status)]).get("content")
        if not content:
            assert got.raw == b"", (method, path)
            return
        kind = got.headers["content-type"].partition(";")[0]
        assert kind in content, (method, path, kind)
        if kind == "application/json" and "schema" in content[kind]:
            problem = next(self._validator(content[kind]["schema"]).iter_errors(got.json), None)
            assert problem is None, (method, path, got.status, problem and problem.message, got.raw)

    def _resolved(self, node: Any) -> Any:
        while "$ref" in node:
            place = self._document
            for step in node["$ref"].removeprefix("#/").split("/"):
                place = place[step]
            node = place
        return node

    def _validator(self, schema: Any) -> Any:
        name = repr(schema)
        if name not in self._validators:
            whole = {**schema, "components": self._document["components"]}
            self._validators[name] = jsonschema_rs.Draft202012Validator(whole)
        return self._validators[name]


@pytest.mark.timeout(300 + EXAMPLES)
@pytest.mark.parametrize("who", ["tenant", "operator"])
def test_no_request_is_answered_with_a_bug_or_reaches_another_tenant(who):
    with asyncio.Runner() as runner:
        scene = runner.run(Scene().prepare())
        document = runner.run(scene.admin.call("GET", "/openapi.json")).json
        answers = Answers(document)
        statuses: list[int] = []
        modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        found: Iterable[Any] = schemathesis.openapi.from_dict(document).get_all_operations()
        operations = [each.ok() for each in found]
        cases = st.one_of([operation.as_strategy(generation_mode=mode) for operation in operations for mode in modes])

        async def send(case: Any, about: str) -> None:
            nonlocal scene
            if statuses and len(statuses) % A_LIFE == 0:
                assert await scene.others() == scene.before
                scene = await Scene().prepare()
            if about == OTHERS and who == "operator":
                about = OWN  # the operator may change anybody
            path = case.path
            for name, value in {**(case.path_parameters or {}), **scene.ids.get(about, {})}.items():
                path = path.replace(f"{{{name}}}", value if about != MADE_UP else _in_path(value))
            query = _encoded(case.query)
            headers = {name: str(value) for name, value in (case.headers or {}).items() if name.lower() != "authorization"}
            key = OPERATOR if who == "operator" else scene.caller["api_key"]
            data = None
            if not isinstance(case.body, NotSet):  # null is a body too
                data = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
            headers = {name: value for name, value in headers.items() if value.isascii() and value.isprintable()}
            got = await scene.admin.call(case.method, path + query, data=data, key=key, more=headers)
            scene.admin.seen.clear()
            statuses.append(got.status)
            answers.check(case.method, case.path, got)
            if who == "tenant" and about == OTHERS and "{tenant_id}" in case.path:
                assert got.status in (400, 404), (case.method, path, got.raw)
            if about == MIXED and ("{rule_id}" in case.path or "{key_id}" in case.path):
                assert got.status in (400, 404, 409), (case.method, path, got.raw)  # 409: an idempotency key used before

        @settings(
            max_examples=EXAMPLES // 2,
            deadline=None,
            database=None,
            derandomize=EXAMPLES <= 2_000,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases, whose)
        def sent(case: Any, about: str) -> None:
            runner.run(send(case, about))

        sent()
        assert runner.run(scene.others()) == scene.before
        figure(f"{who}: {len(statuses)} calls, {dict(sorted(Counter(statuses).items()))}")
        if EXAMPLES >= 1_000:
            assert {200, 201, 400, 404} <= set(statuses)


def _in_path(value: Any) -> str:

    return quote(str(value), safe="") or "x"


def _encoded(query: Any) -> str:

    return "?" + urlencode({name: str(value) for name, value in query.items()}, errors="replace") if query else ""

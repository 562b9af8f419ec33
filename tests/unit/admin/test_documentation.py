"""The OpenAPI document, the page and ``docs/admin-api.md`` are complete, and what they say is what happens."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from gateway.errors import public_errors
from tests.ledger import used
from tests.unit.admin.helpers import API, LIMIT, OPERATOR, an_admin, routes

PAGE = (Path(__file__).parents[3] / "docs" / "admin-api.md").read_text(encoding="utf-8")
METHODS = {"get", "put", "post", "delete", "patch"}


async def the_document(**options) -> Any:
    admin = await an_admin(**options)
    return (await admin.call("GET", "/openapi.json")).json


def operations(document):
    for path, item in document["paths"].items():
        for method in METHODS & item.keys():
            yield path, method, item, item[method]


def as_openapi(path):
    return path.replace("<", "{").replace(">", "}")


async def test_every_route_is_in_the_document_and_nothing_else():
    admin = await an_admin()
    document = (await admin.call("GET", "/openapi.json")).json
    served = {(as_openapi(path), method.lower()) for method, path, _ in routes(admin.app)}
    assert {(path, method) for path, method, _, _ in operations(document)} == served


async def test_every_route_is_on_the_page():
    for method, path, _ in routes((await an_admin()).app):
        assert f"`{method} {as_openapi(path)}`" in PAGE, (method, path)


def test_every_error_code_is_on_the_page_with_its_status():
    for error in public_errors():
        assert f"| {error.status} | `{error.code}` |" in PAGE


async def test_the_page_names_no_route_that_does_not_exist():
    named = set(re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^`]*)`", PAGE))
    served = {f"{method} {as_openapi(path)}" for method, path, _ in routes((await an_admin()).app)}
    assert {
        each.replace("POST /tenants", f"POST {API}/tenants").replace("GET /tenants", f"GET {API}/tenants") for each in named
    } <= served


async def test_the_document_is_openapi_3_1():
    """What can be checked without the specification's own schema: structure, references, parameters and JSON Schemas."""
    document = await the_document()
    assert document["openapi"].startswith("3.1.")
    assert document["info"].keys() >= {"title", "version"}
    assert document.keys() <= {"openapi", "info", "servers", "paths", "components"}
    schemas = document["components"]["schemas"]
    names = []
    for path, _, item, operation in operations(document):
        names.append(operation["operationId"])
        assert path.startswith("/")
        assert operation["responses"]
        assert all(
            re.fullmatch(r"[1-5]\d\d", status) and reply["description"] for status, reply in operation["responses"].items()
        )
        declared = {each["name"] for each in item.get("parameters", []) if each["in"] == "path" and each["required"]}
        assert declared == set(re.findall(r"{(\w+)}", path))
        for requirement in operation["security"]:
            assert requirement.keys() <= document["components"]["securitySchemes"].keys()
    assert len(names) == len(set(names))
    for reference in re.findall(r'"\$ref": "([^"]*)"', json.dumps(document)):
        prefix, _, name = reference.rpartition("/")
        assert (prefix, name in schemas) == ("#/components/schemas", True), reference
    for name, schema in schemas.items():
        jsonschema_rs.meta.validate(schema)
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)


async def test_the_document_says_who_may_call():
    document, opened = await the_document(token=OPERATOR), await the_document()
    paths = document["paths"]
    assert paths["/health"]["get"]["security"] == []
    assert paths[f"{API}/tenants"]["post"]["security"] == [{"operator": []}]
    assert opened["paths"][f"{API}/tenants"]["post"]["security"] == [{"operator": []}, {}]
    for each in (document, opened):
        assert each["paths"][f"{API}/tenants/{{tenant_id}}"]["get"]["security"] == [{"operator": []}, {"tenant_key": []}]


def schema_of(document, name):
    schemas = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema_rs.validator_for(schemas)


async def test_every_answer_has_the_form_the_document_gives_it():
    admin = await an_admin()
    document = (await admin.call("GET", "/openapi.json")).json
    tenant = await admin.tenant(required_plugins={"rate_limiter": {"settings": LIMIT}})
    base = f"/tenants/{tenant['id']}"
    await used(admin.redis, "2026-01-31", key=tenant["api_key_id"], tenant_id=tenant["id"])
    chain = [{"name": "rate_limiter", "settings": LIMIT}]
    limits = [{"limit": 1, "window": "1m", "burst": 5, "quota": {"daily": 3}, "per": ["ip"]}]
    key = {"limits": limits, "allowed_networks": ["10.0.0.0/8"], "expires_at": "2999-01-01T00:00:00Z"}
    asked = [
        ("POST", "/tenants", "/tenants", {"name": "B", "subdomain": "b"}),
        ("GET", "/tenants", "/tenants?limit=1", None),
        ("GET", "/tenants/{tenant_id}", base, None),
        ("PATCH", "/tenants/{tenant_id}", base, {"name": "New"}),
        ("PUT", "/tenants/{tenant_id}", base, {"metadata": {"a": "b"}}),
        ("POST", "/tenants/{tenant_id}/api-keys", f"{base}/api-keys", key),
        ("GET", "/tenants/{tenant_id}/api-keys", f"{base}/api-keys", None),
        ("GET", "/tenants/{tenant_id}/api-keys/{key_id}", f"{base}/api-keys/{tenant['api_key_id']}", None),
        ("PATCH", "/tenants/{tenant_id}/api-keys/{key_id}", f"{base}/api-keys/{tenant['api_key_id']}", {"name": "x"}),
        (
            "POST",
            "/tenants/{tenant_id}/api-keys/{key_id}/rotate",
            f"{base}/api-keys/{tenant['api_key_id']}/rotate",
            {"grace": "1h"},
        ),
        (
            "POST",
            "/tenants/{tenant_id}/rules",
            f"{base}/rules",
            {"path": "/v1", "target": "https://a.example", "plugin_chain": chain},
        ),
        ("GET", "/tenants/{tenant_id}/rules", f"{base}/rules", None),
        ("GET", "/tenants/{tenant_id}/usage", f"{base}/usage?from=2026-01-01&to=2026-01-31&group_by=day,key,model", None),
        ("GET", "/tenants/{tenant_id}/usage", f"{base}/usage", None),
        ("GET", "/tenants/{tenant_id}/usage", f"{base}/usage?format=xml", None),
        ("POST", "/tenants/{tenant_id}/explain", f"{base}/explain", {"path": "/v1/x", "tokens": {"input": 1}}),
        ("POST", "/tenants/{tenant_id}/explain", f"{base}/explain", {"path": "/nowhere"}),
        ("GET", "/plugins", "/plugins", None),
        ("GET", "/plugins/{name}", "/plugins/rate_limiter", None),
        ("GET", "/tenants/{tenant_id}/rules/{rule_id}", f"{base}/rules/none", None),
        ("POST", "/tenants/{tenant_id}/rules", f"{base}/rules", {}),
        ("POST", "/tenants", "/tenants", {"name": "B", "subdomain": "b"}),
        ("DELETE", "/tenants/{tenant_id}", base, None),
    ]
    for method, path, url, body in asked:
        operation = document["paths"][API + path][method.lower()]
        if body:
            model = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            schema_of(document, model).validate(body)
        got = await admin.call(method, url, body)
        described = operation["responses"][str(got.status)]
        if got.status == 204:
            assert (got.raw, "content" in described) == (b"", False)
            continue
        model = described["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert model == "Error" or got.status < 300
        schema_of(document, model).validate(got.json)
        for header in described["headers"]:
            assert header in got.headers, (method, path, header)


async def test_an_answer_that_can_be_had_in_another_form_says_so():
    described = (await the_document())["paths"][f"{API}/tenants/{{tenant_id}}/usage"]["get"]["responses"]["200"]
    assert described["content"]["text/csv"] == {"schema": {"type": "string"}}
    assert described["content"].keys() == {"application/json", "text/csv"}


async def test_the_schemas_of_edits_neither_require_nor_promise_anything():
    document = await the_document()
    for name in ("TenantEdit", "KeyEdit", "RuleEdit"):
        schema = document["components"]["schemas"][name]
        assert "required" not in schema
        assert not [field for field, value in schema["properties"].items() if "default" in value]
        assert schema["properties"]["id"]["readOnly"] is True
        assert "readOnly" not in schema["properties"]["name"]


async def test_the_page_needs_nothing_from_elsewhere():
    admin = await an_admin()
    page = await admin.call("GET", "/api/v1/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.raw.decode()
    assert "<script>" not in page.raw.decode()
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    files = re.findall(r'(?:src|href)="([^"]+)"', page.raw.decode())
    assert len(files) == 4
    for name in files:
        got = await admin.call("GET", f"/api/v1/{name}")
        assert got.status == 200
        assert got.raw
        assert got.headers["content-security-policy"] == policy
    start = await admin.call("GET", "/api/v1/docs/start.js")
    assert 'url: "openapi.json"' in start.raw.decode()
    assert "//" not in start.raw.decode()
    assert (await admin.call("GET", "/docs")).headers["location"] == "/api/v1/docs"
    assert (await admin.call("GET", "/openapi.json")).json == (await admin.call("GET", "/api/v1/openapi.json")).json


@pytest.mark.parametrize("name", ["index.html", "swagger-ui.js", "..%2f__init__.py", "%2e%2e", "start.js.map"])
async def test_only_the_files_of_the_page_are_served(name):
    assert (await (await an_admin()).call("GET", f"/api/v1/docs/{name}")).status == 404


def curl_calls():
    """Every curl command of the page, in order."""
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL):
        for command in block.replace("\\\n", " ").split("\ncurl "):
            words = shlex.split(command.removeprefix("curl "))
            if words and "localhost:8080" in command:
                yield words


async def test_the_examples_of_the_page_work_as_they_stand():
    admin = await an_admin()
    known: dict[str, str] = {}
    deletions: list[list[str]] = []

    async def run(words):
        method, headers, data, url = "GET", {}, None, ""
        remaining = iter(words)
        for word in remaining:
            match word:
                case "-X":
                    method = next(remaining)
                case "-H":
                    name, _, value = next(remaining).partition(": ")
                    headers[name] = value
                case "-d":
                    data = next(remaining).encode()
                case _ if word.startswith("localhost:8080"):
                    url = word.removeprefix("localhost:8080")
        for name, value in sorted(known.items(), reverse=True):
            url = url.replace(f"${name}", value)
            headers = {field: text.replace(f"${name}", value) for field, text in headers.items()}
        assert "$" not in url, url
        fields = {name.replace("-", "_"): value for name, value in headers.items()}
        got = await admin.call(method, url, data=data, **fields)
        assert 200 <= got.status < 300, (words, got.raw)
        if url == f"{API}/tenants" and method == "POST":
            known.update(TENANT=got.json["id"], KEY=got.json["api_key"])
        elif url.endswith("/api-keys") and method == "POST":
            known["KEY_ID"] = got.json["id"]
        elif url.endswith("/rules") and method == "POST":
            known["RULE"] = got.json["id"]

    for words in curl_calls():
        if "DELETE" in words:  # in the order of the page nothing would be left to read
            deletions.insert(0, words)
        else:
            await run(words)
    assert len(deletions) == 3
    for words in deletions:
        await run(words)

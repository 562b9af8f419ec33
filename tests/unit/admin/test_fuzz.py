"""Whatever a body says, the answer is one of ours, and a refusal changes nothing."""

import string
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.admin.explaining import ExplainRequest
from gateway.models import MASK, NewKey, NewRule, NewTenant
from tests.unit.admin.helpers import an_admin

FIELDS = sorted(
    {
        *NewTenant.model_fields,
        *NewKey.model_fields,
        *NewRule.model_fields,
        *ExplainRequest.model_fields,
        "status",
        "id",
        "warnings",
        "grace",
    }
)
INNER = [
    "limit",
    "window",
    "quota",
    "daily",
    "per",
    "burst",
    "name",
    "settings",
    "stage",
    "rate_limiter",
    "content_validator",
    "a",
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.text(string.printable, max_size=20),
    st.sampled_from(
        ["1m", "*", MASK, "/v1", "https://a.example", "admin", "proxy", "active", "GET", "10.0.0.0/8", "2999-01-01T00:00:00Z"]
    ),
    st.sampled_from(
        ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", 10**30, -(2**63), 1e308, "::/0", "http://[::1", "/%2e"]
    ),
)
values: Any = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
good: Any = st.sampled_from(
    [
        {},
        {"name": "A", "subdomain": "other"},
        {"path": "/v1", "target": "https://a.example"},
        {"name": "k"},
        {"path": "/v1/x?y"},
    ]
)
bodies: Any = st.builds(lambda base, more: base | more, good, st.dictionaries(st.sampled_from(FIELDS), values, max_size=3))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_no_body_is_answered_with_a_bug(data):
    admin = await an_admin()
    tenant = await admin.tenant()
    rule = await admin.rule(tenant, headers={"x-key": "s"})
    base = f"/tenants/{tenant['id']}"
    for method, path in (
        ("POST", "/tenants"),
        ("PATCH", base),
        ("POST", f"{base}/api-keys"),
        ("PATCH", f"{base}/api-keys/{tenant['api_key_id']}"),
        ("POST", f"{base}/api-keys/{tenant['api_key_id']}/rotate"),
        ("POST", f"{base}/rules"),
        ("PUT", f"{base}/rules/{rule['id']}"),
        ("POST", f"{base}/explain"),
    ):
        body = data.draw(bodies)
        admin.token = tenant["api_key"]
        before = await admin.dump()
        got = await admin.call(method, path, body)
        assert got.status in (200, 201, 400, 401, 403, 409), (method, path, body, got.raw)
        if got.status >= 400 or path.endswith("/explain"):
            assert await admin.dump() == before, (method, path, body)
        for kind in ("", "/rules", "/api-keys"):
            read = await admin.call("GET", base + kind)
            assert read.status in (200, 401, 403), (method, path, body, read.raw)

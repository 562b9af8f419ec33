#!/usr/bin/env bash
# Drive running servers with curl: the life of a tenant, its keys and its rules. Exits non-zero on the first surprise.
# Usage: test_tenant.sh; $ADMIN and $PROXY_PORT say where the servers are, $ADMIN_TOKEN is the operator token if there is one,
# $TARGET is an upstream that the gateway may reach (default: the demo upstream of `run_local.sh --demo`).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

subdomain="tenant-$(date +%s)-$$"

say "create a tenant"
call POST "$ADMIN/api/v1/tenants" "{\"name\": \"Tenant test\", \"subdomain\": \"$subdomain\"}"
expect_status 201
id=$(field id)
key=$(field api_key)
clean_up() { KEY=${ADMIN_TOKEN:-$key} quietly DELETE "$ADMIN/api/v1/tenants/$id"; }
expect_field status active

say "the subdomain is taken now"
call POST "$ADMIN/api/v1/tenants" "{\"name\": \"Another\", \"subdomain\": \"$subdomain\"}"
expect_status 409
expect_field error.code subdomain_taken

say "bad input names the field"
call POST "$ADMIN/api/v1/tenants" '{"name": "Bad", "subdomain": "not a label"}'
expect_status 400
expect_field error.param subdomain
call POST "$ADMIN/api/v1/tenants" '{"name": "Bad", "subdomain": "fine", "teir": "pro"}'
expect_status 400
expect_field error.param teir

say "no rule yet: 404; no key: 401; nobody's host: 404"
proxy GET "$subdomain" /v1/models "$key"
expect_status 404
expect_field error.code no_route
proxy GET "$subdomain" /v1/models ""
expect_status 401
expect_field error.code invalid_api_key
proxy GET "nobody-$subdomain" /v1/models "$key"
expect_status 404
expect_field error.code unknown_tenant

say "a rule holds for the next request"
KEY=$key call POST "$ADMIN/api/v1/tenants/$id/rules" "{\"path\": \"/v1\", \"target\": \"$TARGET\", \"methods\": [\"GET\"]}"
expect_status 201
rule=$(field id)
proxy GET "$subdomain" /v1/models "$key"
expect_status 200
proxy POST "$subdomain" /v1/chat/completions "$key"
expect_status 405

say "a target inside the network is refused"
KEY=$key call POST "$ADMIN/api/v1/tenants/$id/rules" '{"path": "/x", "target": "http://169.254.169.254"}'
expect_status 400
expect_field error.param target

say "a second key works until it is revoked"
KEY=$key call POST "$ADMIN/api/v1/tenants/$id/api-keys" '{"name": "second"}'
expect_status 201
second=$(field api_key)
second_id=$(field id)
proxy GET "$subdomain" /v1/models "$second"
expect_status 200
KEY=$key call DELETE "$ADMIN/api/v1/tenants/$id/api-keys/$second_id"
expect_status 2..
proxy GET "$subdomain" /v1/models "$second"
expect_status 401

say "the other tenant's id does not exist for a key"
KEY=$key call GET "$ADMIN/api/v1/tenants/other-000000000000"
expect_status 404

say "a suspended tenant is answered 403 at once"
KEY=${ADMIN_TOKEN:-$key} call PATCH "$ADMIN/api/v1/tenants/$id" '{"status": "suspended"}'
expect_status 200
proxy GET "$subdomain" /v1/models "$key"
expect_status 403
expect_field error.code tenant_suspended
KEY=${ADMIN_TOKEN:-$key} call PATCH "$ADMIN/api/v1/tenants/$id" '{"status": "active"}'
expect_status 200

say "a deleted rule no longer matches, a deleted tenant no longer exists"
KEY=$key call DELETE "$ADMIN/api/v1/tenants/$id/rules/$rule"
expect_status 2..
proxy GET "$subdomain" /v1/models "$key"
expect_status 404
KEY=${ADMIN_TOKEN:-$key} call DELETE "$ADMIN/api/v1/tenants/$id"
expect_status 2..
proxy GET "$subdomain" /v1/models "$key"
expect_status 404
expect_field error.code unknown_tenant
echo "tenant: all as expected"

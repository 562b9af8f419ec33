#!/usr/bin/env bash
# Drive running servers with curl: limits are exact, refusals say when to come back. Exits non-zero on the first surprise.
# Usage: test_rate_limiter.sh; the same variables as test_tenant.sh.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

subdomain="limits-$(date +%s)-$$"
limit=5

say "a tenant with a rule of $limit requests in 2 seconds"
call POST "$ADMIN/api/v1/tenants" "{\"name\": \"Limit test\", \"subdomain\": \"$subdomain\"}"
expect_status 201
id=$(field id)
key=$(field api_key)
clean_up() { KEY=${ADMIN_TOKEN:-$key} quietly DELETE "$ADMIN/api/v1/tenants/$id"; }
KEY=$key call POST "$ADMIN/api/v1/tenants/$id/rules" "{\"path\": \"/v1\", \"target\": \"$TARGET\",
    \"plugin_chain\": [{\"name\": \"rate_limiter\", \"settings\": {\"limit\": $limit, \"window\": \"2s\"}}]}"
expect_status 201
rule=$(field id)

say "exactly $limit pass"
for remaining in 4 3 2 1 0; do
    proxy GET "$subdomain" /v1/models "$key"
    expect_status 200
    expect_header x-ratelimit-limit-requests "$limit"
    expect_header x-ratelimit-remaining-requests "$remaining"
done

say "the next one is refused and told when to come back"
proxy GET "$subdomain" /v1/models "$key"
expect_status 429
expect_field error.code rate_limited
expect_field error.limits.0.limit "$limit"
expect_field error.limits.0.remaining 0
wait_ms=$(header retry-after-ms)
[ "$wait_ms" -gt 0 ] && [ "$wait_ms" -le 2000 ] || surprise "retry-after-ms is $wait_ms"

say "after that time it passes"
sleep "$(printf '%d.%03d' $((wait_ms / 1000)) $((wait_ms % 1000)))"
proxy GET "$subdomain" /v1/models "$key"
expect_status 200

say "20 at once on a fresh limit: exactly $limit pass"
KEY=$key call PATCH "$ADMIN/api/v1/tenants/$id/rules/$rule" \
    "{\"plugin_chain\": [{\"name\": \"rate_limiter\", \"settings\": {\"limit\": $limit, \"window\": \"1h\"}}]}"
expect_status 200
passed=$(seq 20 | xargs -P 20 -I{} curl -s -o /dev/null -w '%{http_code}\n' \
    -H "Host: $subdomain.$DOMAIN" -H "Authorization: Bearer $key" "$PROXY/v1/models" | grep -c '^200$')
[ "$passed" = "$limit" ] || surprise "$passed of 20 passed"

say "a limit in the shadow refuses nothing"
KEY=$key call PATCH "$ADMIN/api/v1/tenants/$id/rules/$rule" \
    '{"plugin_chain": [{"name": "rate_limiter", "settings": {"limit": 1, "window": "10m", "shadow": true}}]}'
expect_status 200
for _ in 1 2 3; do
    proxy GET "$subdomain" /v1/models "$key"
    expect_status 200
done

say "bad settings are refused by name"
KEY=$key call PATCH "$ADMIN/api/v1/tenants/$id/rules/$rule" \
    '{"plugin_chain": [{"name": "rate_limiter", "settings": {"limit": 1, "window": "soon"}}]}'
expect_status 400
expect_field error.param plugin_chain.0.settings.window
echo "rate limiter: all as expected"

# shellcheck shell=bash
# Sourced by the scripts that drive running servers: calls, and what is expected of their answers.

ADMIN=${ADMIN:-http://127.0.0.1:8080}
PROXY=${PROXY:-http://127.0.0.1:${PROXY_PORT:-8081}}
DOMAIN=${DOMAIN:-example.com}
TARGET=${TARGET:-http://127.0.0.1:9000}

scratch=$(mktemp -d)
answer=$scratch/answer
headers=$scratch/headers
status=""
last=""

# what a script leaves behind; it overrides this
clean_up() { :; }
trap 'clean_up; rm -rf "$scratch"' EXIT

say() { printf -- '- %s\n' "$*"; }

surprise() {
    printf 'SURPRISE: %s\n  after: %s\n  status: %s\n  answer: %s\n' "$*" "$last" "$status" "$(cat "$answer")" >&2
    exit 1
}

# call METHOD URL [JSON]: an admin call with $KEY, else with $ADMIN_TOKEN if there is one
call() {
    local credential=${KEY:-${ADMIN_TOKEN:-}}
    local options=(-sS -o "$answer" -D "$headers" -w '%{http_code}' -X "$1")
    [ -n "$credential" ] && options+=(-H "Authorization: Bearer $credential")
    [ $# -ge 3 ] && options+=(-H "Content-Type: application/json" --data-binary "$3")
    last="$1 $2 ${3:-}"
    status=$(curl "${options[@]}" "$2")
}

# proxy METHOD SUBDOMAIN PATH KEY: a tenant's call
proxy() {
    local options=(-sS -o "$answer" -D "$headers" -w '%{http_code}' -X "$1" -H "Host: $2.$DOMAIN")
    [ -n "$4" ] && options+=(-H "Authorization: Bearer $4")
    last="$1 $3 at $2"
    status=$(curl "${options[@]}" "$PROXY$3")
}

quietly() { call "$@" >/dev/null 2>&1 || true; }

# field NAME[.NAME…]: a value of the last answer
field() {
    python3 - "$answer" "$1" <<'PYTHON'
import json, sys
value = json.load(open(sys.argv[1], encoding="utf-8"))
for step in sys.argv[2].split("."):
    value = value[int(step)] if isinstance(value, list) else value[step]
print(value)
PYTHON
}

header() { tr -d '\r' <"$headers" | awk -v name="$1:" 'tolower($1) == name { print $2 }'; }

# expect_status PATTERN: such as 201 or 2..
expect_status() { [[ $status =~ ^$1$ ]] || surprise "expected status $1"; }

expect_field() {
    local found
    found=$(field "$1") || surprise "the answer has no $1"
    [ "$found" = "$2" ] || surprise "expected $1 = $2, found $found"
}

expect_header() { [ "$(header "$1")" = "$2" ] || surprise "expected header $1: $2, found '$(header "$1")'"; }

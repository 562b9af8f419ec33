#!/usr/bin/env bash
# Make .venv with the locked dependencies and the gateway itself. Usage: setup.sh [test]; $PYTHON names another Python.
set -euo pipefail
cd "$(dirname "$0")/.."

lock=requirements.lock
[ "${1:-}" = test ] && lock=requirements-test.lock

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "setup.sh: needs Python 3.11 or newer (set PYTHON to name one)" >&2
    return 1
}

if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    echo "Making .venv with $("$python" --version)" >&2
    "$python" -m venv .venv
fi

# what was installed last; a run-time installation is contained in one for tests
wanted=$(cat requirements.lock requirements-test.lock pyproject.toml | cksum)
stamp=.venv/.installed
if [ "$(cat "$stamp-test" 2>/dev/null)" = "$wanted" ] || { [ "$lock" = requirements.lock ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; }; then
    exit 0
fi
rm -f "$stamp" "$stamp-test"
echo "Installing $lock" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
if [ "$lock" = requirements.lock ]; then echo "$wanted" >"$stamp"; else echo "$wanted" >"$stamp-test"; fi

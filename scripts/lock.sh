#!/usr/bin/env bash
# Resolve the dependencies of pyproject.toml anew: versions and hashes for every supported Python, run time and tests.
set -euo pipefail
cd "$(dirname "$0")/.."

lock() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
        --custom-compile-command scripts/lock.sh "$@"
}

command -v uv >/dev/null || { echo "lock.sh needs uv (pip install uv)" >&2; exit 1; }
upgrade=()
[ "${1:-}" = --upgrade ] && upgrade=(--upgrade)
lock "${upgrade[@]}" pyproject.toml --group install --output-file requirements.lock
lock "${upgrade[@]}" pyproject.toml --group install --group test --output-file requirements-test.lock

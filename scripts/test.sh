#!/usr/bin/env bash
# Check and test everything. Usage: test.sh [pytest options]; with options only those tests run.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh test
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
./scripts/check
# whole files to each process: what is expensive to start is shared within a file
exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile

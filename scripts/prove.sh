#!/usr/bin/env bash
# Run the long versions of the proofs: hours of virtual traffic against the model, minutes of real time. Usage: prove.sh [pytest options]
# torture.sh does that and more, with all its numbers.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh test
exec .venv/bin/python -m pytest -m long --timeout 7200 "$@"

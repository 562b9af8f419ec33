#!/usr/bin/env bash
# Run the gateway on this machine: admin API and proxy, with the Redis of config.yaml if one answers, else an embedded store.
# Usage: run_local.sh [--demo] [more options of `gateway run`]. Ctrl-C stops everything.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
"$here/scripts/setup.sh"
cd "$here"
exec .venv/bin/python -m gateway run --local "$@"

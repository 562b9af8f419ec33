#!/usr/bin/env bash
# Check and test everything. Usage: test.sh [--engine NAME] [pytest options]; with options only those tests run.
# --engine runs every test that starts a server on that HTTP engine, and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh test
if [ "${1:-}" = --engine ]; then
    export GATEWAY_TEST_ENGINE=$2
    shift 2
    [ $# -gt 0 ] || set -- --numprocesses 2 --dist loadfile tests/e2e tests/integration
fi
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
./scripts/check
# whole files to each process: what is expensive to start is shared within a file; in their order, so the long ones are not the last
.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
# what concerns the wire once more on the other engines
GATEWAY_TEST_ENGINE=granian .venv/bin/python -m pytest --numprocesses 2 --dist loadfile \
    tests/e2e/test_{bad_input,cli,readme,replicas,scripts}.py \
    tests/integration/test_{proxy_authority,proxy_forwarding,proxy_streams,proxy_security,sdks}.py
GATEWAY_TEST_ENGINE=uvicorn exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile \
    tests/e2e/test_bad_input.py tests/integration/test_proxy_streams.py

#!/usr/bin/env bash
# Prove what docs/reliability.md promises, in hours, and write the results into it. Usage: torture.sh [--short] [figure…]; --short takes minutes.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

form=full
if [ "${1:-}" = --short ]; then
    form=short
    shift
fi
only=" $* "
./scripts/setup.sh test || exit 1

logs=$(mktemp -d)
export GATEWAY_TEST_DEADLINE_S=36000 # no gateway ends because a test takes long
failed=0
: >"$logs/rows"

# amount FULL SHORT: the one of this form
amount() { if [ "$form" = full ]; then echo "$1"; else echo "$2"; fi; }

# figure NAME WANTED TEST… [-- NAME=VALUE…]: run tests, with these settings, and note how it went; what fails does not end the run
figure() {
    local name=$1 wanted=$2 tests=() settings=() began log got
    shift 2
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        tests+=("$1")
        shift
    done
    [ $# -gt 0 ] && shift && settings=("$@")
    [ "$only" = "  " ] || [[ $only == *" ${name// /-} "* ]] || return 0
    log=$logs/${name// /-}
    began=$SECONDS
    echo "-- $name: $wanted"
    : >"$log.figures"
    if env "${settings[@]}" GATEWAY_FIGURES="$log.figures" GATEWAY_FAULT_TABLE="$log.table" \
        .venv/bin/python -m pytest --quiet --timeout 36000 "${tests[@]}" >"$log" 2>&1; then
        got=$(awk 'NR > 1 { printf "; " } { printf "%s", $0 }' "$log.figures")
        [ -n "$got" ] || got=$(tail -n 1 "$log")
    else
        got="FAILED: $(tail -n 1 "$log")"
    fi
    if [[ $got == FAILED* ]]; then
        failed=1
        tail -n 60 "$log" 2>/dev/null
    fi
    echo "   $got"
    printf '| %s | %s | %s | %d min %d s |\n' "$name" "$wanted" "$got" $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) >>"$logs/rows"
}

marks=(-m "$(amount "long or not long" "not long")")
long=(-m "$(amount long "not long")")

requests=$(amount 1000000 100000) kills=$(amount 100 10)
conserved=tests/faults/test_kills.py::test_kills_under_load_lose_nothing_that_was_counted_and_leak_nothing_past_a_lease
figure "conservation" "$requests requests, $kills kills: clients = Redis = target, nothing held after a lease" \
    "$conserved" -- \
    GATEWAY_CONSERVED_REQUESTS="$requests" GATEWAY_KILLS="$kills" GATEWAY_KILL_LEASE_MS="$(amount 60000 3000)"
figure "hammer" "every request by its id, with lost replies and killed replicas" tests/e2e/test_hammer.py "${marks[@]}"
rounds=$(amount 200 20)
figure "exact limits" "$rounds times 100 of 500 parallel requests on 2 replicas" \
    tests/e2e/test_replicas.py -k lets_exactly -- GATEWAY_EXACT_ROUNDS="$rounds"
figure "model" "$(amount "1 000 000" "20 000") operations of the scripts as in the model, on each server" \
    tests/unit/store/test_traces.py tests/unit/store/test_admission_model.py "${long[@]}"
restarts=$(amount 50 2)
figure "rolling restarts" "$restarts of each kind of replica under load: no request lost" \
    tests/faults/test_rolling_restarts.py "${marks[@]}" -- GATEWAY_RESTARTS="$restarts"
tries=$(amount 20 3)
figure "faults" "each kind $tries times, none lets through what it must not" \
    tests/faults --ignore tests/faults/test_wire_fuzz.py --ignore tests/faults/test_rolling_restarts.py \
    --ignore tests/faults/test_soak.py --deselect "$conserved" "${marks[@]}" -- \
    GATEWAY_FAULT_TRIES="$tries" GATEWAY_STOPS="$tries" \
    GATEWAY_FAULT_ABORTS="$(amount 10000 120)" GATEWAY_STREAM_CUTS="$(amount 2000 60)"
forms=$(amount 2000000 50000)
figure "raw HTTP" "$forms mutated requests over all engines" tests/faults/test_wire_fuzz.py "${marks[@]}" -- GATEWAY_WIRE_FUZZ="$forms"
forms=$(amount 5000 1000)
figure "SSRF" "$forms forms of targets, no connection inside" tests/e2e/test_ssrf.py -- GATEWAY_SSRF_FORMS="$forms"
examples=$(amount 10000 120)
for engine in hypercorn granian uvicorn; do
    figure "hosts and paths on $engine" "$examples hosts, and as many paths, compared with a model" \
        tests/integration/test_proxy_authority.py -- GATEWAY_TEST_ENGINE="$engine" GATEWAY_WIRE_EXAMPLES="$examples"
done
examples=$(amount 50000 2000)
figure "admin API" "$examples generated calls: no 5xx, nothing across tenants" \
    tests/integration/test_admin_schema.py -- GATEWAY_ADMIN_FUZZ_EXAMPLES="$examples"
seconds=$(amount 3600 180)
figure "soak" "$seconds s of faults: memory, files and latency stay where they are" \
    tests/faults/test_soak.py -- GATEWAY_SOAK_S="$seconds"
figure "limits in real time" "steady traffic at every kind of limit" tests/integration/test_soak.py "${long[@]}"
[ "$form" = short ] || figure "long tests" "what else has a long form" tests/unit tests/integration "${long[@]}" \
    --ignore tests/unit/store/test_traces.py --ignore tests/unit/store/test_admission_model.py --ignore tests/integration/test_soak.py
figure "canaries" "no secret in answers, logs, metrics or traces" tests/e2e/test_canaries.py

python3 - "$form" "$logs" <<'PYTHON'
import pathlib, subprocess, sys, time

form, logs = sys.argv[1], pathlib.Path(sys.argv[2])
page = pathlib.Path("docs/reliability.md")
BEGIN, END = "<!-- torture: results -->\n", "<!-- torture: end -->"
FIGURES = "| figure | wanted | got | took | when |\n|---|---|---|--:|---|\n"
FAULTS = "| fault | tried | survived | worst answer ms | longest recovery ms |\n|---|--:|--:|--:|--:|\n"

def rows_of(text):
    """The rows of a table, by what stands in their first column."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return {line.split("|")[1].strip(): line for line in lines if not line.startswith(("| figure |", "| fault |"))}

before, _, rest = page.read_text().partition(BEGIN)
block, _, after = rest.partition(END)
old_figures, _, old_faults = block.partition(FAULTS)


def git(*words):
    return subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()


# this page changes with each run
commit = git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".", f":!{page}") else "")
when = f" {time.strftime('%Y-%m-%d', time.gmtime())}, {commit}, {form} |"
# what was not run this time stays as it was
figures = rows_of(old_figures) | {name: row + when for name, row in rows_of((logs / "rows").read_text()).items()}
faults = rows_of(old_faults)
for table in logs.glob("*.table"):
    faults |= rows_of(table.read_text())
text = "\n" + FIGURES + "".join(f"{row}\n" for row in figures.values())
text += "\n" + FAULTS + "".join(f"{faults[name]}\n" for name in sorted(faults)) + "\n"
print(text)
page.write_text(before + BEGIN + text + END + after)
PYTHON
echo "logs: $logs"
exit "$failed"

#!/bin/bash
# make bench [BENCH="name …"] [RUNS=rounds] [SECONDS=s] [QUICK=1] [README=1]: the benchmark suite, see bench/README.md.
#
# QUICK=1 only shows that every benchmark works: one short round of each, and no results are kept.
set -euo pipefail
SECONDS_EACH=${SECONDS_EACH:-4}
# shellcheck source=test/lib/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/../test/lib/env.sh"
exec </dev/null

RUNS=${RUNS:-7}
quick=()
if [ -n "${QUICK:-}" ]; then
	RUNS=1
	quick=(--quick)
fi
case $RUNS in '' | *[!0-9]* | 0*) die "RUNS is a whole number above 0, not \"$RUNS\"" ;; esac
case $SECONDS_EACH in '' | *[!0-9.]*) die "SECONDS is a number of seconds, not \"$SECONDS_EACH\"" ;; esac

make_base
install_packages "${BUILD_PACKAGES[@]}" make python3 python3-psycopg redis-server libpq-dev
choose_user
say "building subdispatch and the load generators"
build build || { cat "$BASE/build/build.log" >&2; die "the build failed"; }
use_build build
run_job 120 make -s -C "$SRC/bench/src" || die "the load generators could not be built"
"${AS[@]}" mkdir -p "$BASE/results"
start_server server || die "the server did not start"

rc=0
run_job 0 /usr/bin/python3 -u -B "$SRC/bench/suite.py" --bindir "$BINDIR" --source "$SRC" --results "$BASE/results" \
	--rounds "$RUNS" --seconds "$SECONDS_EACH" --bench "${BENCH:-}" "${quick[@]}" \
	--commit "$(git -C "$TOP" describe --always --dirty 2>/dev/null || true)" || rc=$?
stop_server || [ $rc -ne 0 ] || rc=1
if [ -z "${QUICK:-}" ]; then
	mkdir -p "$TOP/bench/results"
	find "$BASE/results" -type f -exec cp --no-preserve=all {} "$TOP/bench/results/" \;
	chown -R --reference="$TOP" "$TOP/bench/results"
	say "results are in bench/results"
fi
if [ -n "${README:-}" ] && [ $rc = 0 ]; then
	/usr/bin/python3 -B "$TOP/bench/readme.py" "$TOP"
	say "the README's figures are those of bench/results now"
fi
exit $rc

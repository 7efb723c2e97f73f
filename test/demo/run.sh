#!/bin/bash
# make demo [DURATION=seconds] [CLIENTS=n] [SCALE=n]: the main job on pgbench's own workload (see demo.py).
set -euo pipefail
# shellcheck source=test/lib/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/env.sh"
exec </dev/null

DURATION=${DURATION:-20}
CLIENTS=${CLIENTS:-8}
SCALE=${SCALE:-4}
for n in "$DURATION" "$CLIENTS" "$SCALE"; do
	case $n in '' | *[!0-9]* | 0*) die "DURATION, CLIENTS and SCALE are whole numbers above 0, not \"$n\"" ;; esac
done

make_base
install_packages "${BUILD_PACKAGES[@]}" python3 python3-psycopg2
choose_user
say "building subdispatch"
build build || { cat "$BASE/build/build.log" >&2; die "the build failed"; }
use_build build

# Commits wait for the disk, as they do in earnest. What is pending may grow far beyond the default limit: on a small machine
# pgbench and the consumer compete for the processor, and nothing may be dropped.
say "starting a server"
start_server server fsync=on "max_connections=$((CLIENTS + 30))" subdispatch.shared_memory_size=1GB \
	subdispatch.max_pending=500000 subdispatch.max_pending_bytes=256MB || die "the server did not start"

rc=0
# Debian's Python, which has Debian's psycopg2, whatever other Python comes first in the PATH.
run_job 0 /usr/bin/python3 -u -B "$SRC/test/demo/demo.py" --duration "$DURATION" --clients "$CLIENTS" --scale "$SCALE" || rc=$?
if ! stop_server || [ $rc -ne 0 ]; then
	printf '\nThe end of the server log:\n' >&2
	tail -n 30 "$SERVER_LOG" >&2
	[ $rc -ne 0 ] || rc=1
fi
exit $rc

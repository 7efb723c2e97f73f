#!/bin/bash
# How long locks are held while very many subscriptions come and go: see lock_holds.h.
#
#   test/holds/run.sh [N [LOCK [PART…]]]    N subscriptions (1000000); LOCK all (default), or registry, stream, ids, consumer,
#                                           order, history or database: only these, by processor time instead of the wall
#                                           clock; PART filters, sharing, names, expiry, drop (all of them)
#
# Prints for each step and lock the longest hold in microseconds, the longest that was surely not preempted, how many there
# were of 100 us or more (of which surely not preempted), how many of 20 us or more, and where the lock was taken and
# released. A single one that is much longer than all others of its kind is the machine's (first use of a page, an interrupt,
# a hypervisor's time); what is the code's own comes back.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=test/holds/steps.sh
. test/holds/steps.sh

n=${1:-1000000}
lock=${2:-all}
parts=("${@:3}")
[ ${#parts[@]} -gt 0 ] || parts=(filters sharing names expiry drop)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
chmod 755 "$out"

part_begin >"$out/steps.sql"
for part in "${parts[@]}"; do "part_$part" "$n"; done >>"$out/steps.sql"
cat >"$out/run" <<SH
#!/bin/bash
psql -X -f $out/steps.sql 2>&1 | grep -vE '^ *$'
cp "\$PGDATA/../server.log" $out/log/
SH
mkdir -m 777 "$out/log"
chmod 755 "$out/run"
chmod 644 "$out/steps.sql"
flags="-include test/holds/lock_holds.h"
[ "$lock" = all ] || flags+=" -DHOLD_TRANCHE=sd_tranche_$lock"
test/with_server.sh -m "PG_CFLAGS=$flags" \
	-c "subdispatch.max_subscriptions=$((n * 11 / 10 + 100000))" -c "subdispatch.shared_memory_size=$((n * 2 + 200000))kB" \
	-c subdispatch.max_subscriptions_per_connection=0 -c subdispatch.event_queue_size=2MB -c subdispatch.publish_timeout=60s \
	-c subdispatch.event_history_size=0 "$out/run"
awk -v least=0 -f test/holds/report.awk "$out/log/server.log" | sort -t "	" -k2,2 -k1,1rn

#!/bin/bash
# make demo [SERVERS=1|2] [DURATION=seconds] [CLIENTS=n] [SCALE=n] [IDLE_SUBSCRIPTIONS=n]: the main job on pgbench's own workload,
# on one server (see demo.py), if asked for beside many other subscriptions, or on two that have a Redis between them (see
# two_servers.py; CLIENTS is for each of them).
set -euo pipefail
# shellcheck source=test/lib/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/env.sh"
exec </dev/null

SERVERS=${SERVERS:-1}
case $SERVERS in 1 | 2) ;; *) die "SERVERS is 1 or 2, not \"$SERVERS\"" ;; esac
DURATION=${DURATION:-20}
CLIENTS=${CLIENTS:-$((8 / SERVERS))}
SCALE=${SCALE:-4}
IDLE_SUBSCRIPTIONS=${IDLE_SUBSCRIPTIONS:-0}
for n in "$DURATION" "$CLIENTS" "$SCALE"; do
	case $n in '' | *[!0-9]* | 0*) die "DURATION, CLIENTS and SCALE are whole numbers above 0, not \"$n\"" ;; esac
done
case $IDLE_SUBSCRIPTIONS in 0 | [1-9]*) ;; *) die "IDLE_SUBSCRIPTIONS is a whole number, not \"$IDLE_SUBSCRIPTIONS\"" ;; esac
case $IDLE_SUBSCRIPTIONS in *[!0-9]* | ????????*) die "IDLE_SUBSCRIPTIONS is a whole number of at most 7 digits, not \"$IDLE_SUBSCRIPTIONS\"" ;; esac
[ "$SERVERS" = 1 ] || [ "$IDLE_SUBSCRIPTIONS" = 0 ] || die "IDLE_SUBSCRIPTIONS is for one server"

# start_redis: a redis-server on a socket in a private directory; sets REDIS_SOCKET. It runs from a copy of the program,
# because cleanup (env.sh) ends whatever runs from this run's directory.
start_redis() {
	local dir=$BASE/redis program
	# Debian has the program in redis-tools, where it goes by another name, and redis-server with a service that would start.
	program=$("${AS[@]}" bash -c 'command -v redis-server || command -v redis-check-rdb') || die "there is no redis-server"
	"${AS[@]}" mkdir -m 700 "$dir"
	"${AS[@]}" cp -L "$program" "$dir/redis-server"
	REDIS_SOCKET=$dir/socket
	"${AS[@]}" "$dir/redis-server" --port 0 --unixsocket "$REDIS_SOCKET" --unixsocketperm 700 --dir "$dir" --save '' \
		--appendonly no --daemonize yes --pidfile "$dir/pid" --logfile "$dir/log" >"$BASE/redis.log" 2>&1 || return 1
	for _ in {1..100}; do
		if [ "$("${AS[@]}" redis-cli -s "$REDIS_SOCKET" PING 2>&1)" = PONG ]; then return 0; fi
		sleep 0.1
	done
	cat "$BASE/redis.log" "$dir/log" >&2
	return 1
}

packages=("${BUILD_PACKAGES[@]}" python3 python3-psycopg2)
# Commits wait for the disk, as they do in earnest. What is pending may grow far beyond the default limit: on a small machine
# pgbench and the consumer compete for the processor, and nothing may be dropped.
settings=(fsync=on "max_connections=$((CLIENTS + 30))" "subdispatch.shared_memory_size=$((1048576 + IDLE_SUBSCRIPTIONS * 2))kB"
	"subdispatch.max_subscriptions=$((10000 + IDLE_SUBSCRIPTIONS))" subdispatch.max_pending=500000 subdispatch.max_pending_bytes=256MB)
# The idle ones stay for as long as the demo runs.
[ "$IDLE_SUBSCRIPTIONS" = 0 ] || settings+=(subdispatch.subscription_idle_timeout=1d)
names=(server)
if [ "$SERVERS" = 2 ]; then
	names=(a b)
	packages+=(redis-tools)
	# two_servers.py reads times without a time zone
	settings+=(timezone=UTC)
fi

make_base
install_packages "${packages[@]}"
choose_user
say "building subdispatch"
build build || { cat "$BASE/build/build.log" >&2; die "the build failed"; }
use_build build

program=(demo.py --idle-subscriptions "$IDLE_SUBSCRIPTIONS")
if [ "$SERVERS" = 2 ]; then
	say "starting Redis"
	start_redis || die "Redis did not start"
	program=(two_servers.py "$BASE/a" "$BASE/b")
	settings+=(subdispatch.event_bus=redis "subdispatch.redis_url=unix://$REDIS_SOCKET"
		"subdispatch.bus_key=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')")
fi
declare -A datadirs logs
for name in "${names[@]}"; do
	say "starting a server"
	start_server "$name" "${settings[@]}" || die "the server did not start"
	datadirs[$name]=$DATADIR
	logs[$name]=$SERVER_LOG
done

rc=0
# Debian's Python, which has Debian's psycopg2, whatever other Python comes first in the PATH.
run_job 0 /usr/bin/python3 -u -B "$SRC/test/demo/${program[0]}" --duration "$DURATION" --clients "$CLIENTS" --scale "$SCALE" \
	"${program[@]:1}" || rc=$?
demo_failed=$rc
for name in "${names[@]}"; do
	DATADIR=${datadirs[$name]}
	SERVER_LOG=${logs[$name]}
	if ! stop_server || [ $demo_failed -ne 0 ]; then
		printf '\nThe end of the server log (%s):\n' "$name" >&2
		tail -n 30 "$SERVER_LOG" >&2
		[ $rc -ne 0 ] || rc=1
	fi
done
exit $rc

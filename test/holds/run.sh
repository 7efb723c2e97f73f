#!/bin/bash
# How long locks are held while very many subscriptions come and go: see lock_holds.h.
#
#   test/holds/run.sh [N [LOCK]]     N subscriptions (1000000); LOCK registry (default), stream, ids, consumer or order
#
# Prints for each step the longest holds, in microseconds of processor time, with where the lock was taken and released, and
# how many there were of 100 us or more, and of 20 us or more. A single one that is much longer than all others of its kind is
# the machine's (first use of a page, a hypervisor's time); what is the code's own comes back.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

n=${1:-1000000}
lock=${2:-registry}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
chmod 755 "$out"

cat >"$out/steps.sql" <<SQL
\set ON_ERROR_STOP on
\set QUIET on
\t on
SET client_min_messages = warning;
CREATE FUNCTION step(name text) RETURNS void LANGUAGE plpgsql AS \$\$ BEGIN RAISE LOG 'STEP %', name; END \$\$;
SELECT step('subscribe');
SELECT count(subdispatch.subscribe('own', filter => jsonb_build_object('n', i), id => 's' || i, consumer => 'g', connection_id => 'c' || i % 10)) FROM generate_series(1, $n) i;
SELECT step('publish to one of them');
SELECT count(subdispatch.publish('own', jsonb_build_object('n', i))) FROM generate_series(1, 1000) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT step('a gap for all');
SET subdispatch.on_queue_full = gap;
SELECT subdispatch.publish('own', jsonb_build_object('x', repeat(md5(i::text), 20000))) FROM generate_series(1, 20) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT pg_sleep(3);
SELECT step('poll');
SELECT count(*) FROM subdispatch.poll('g', 100000);
SELECT step('poll_shared');
SELECT count(*) FROM subdispatch.poll_shared('g', 100000);
SELECT step('await');
CALL subdispatch.await_responses('g', '1s');
SELECT step('views');
SELECT count(*) FROM subdispatch.subscriptions;
SELECT count(*) FROM subdispatch.consumers;
SELECT count(*) FROM subdispatch.channels;
SELECT step('unsubscribe');
SELECT count(subdispatch.unsubscribe('s' || i)) FROM generate_series(1, $n / 10) i;
SELECT step('complete');
SELECT count(subdispatch.complete('s' || i)) FROM generate_series($n / 10 + 1, $n / 5) i;
SELECT step('disconnect');
SELECT subdispatch.disconnect('c1'), subdispatch.disconnect('c2', 'g');
SELECT step('close_consumer');
SELECT subdispatch.close_consumer('g');
SELECT step('rollback');
BEGIN;
SELECT count(subdispatch.subscribe('own', filter => jsonb_build_object('n', i), id => 's' || i, consumer => 'g')) FROM generate_series(1, $n / 10) i;
ROLLBACK;
SELECT step('one stream');
SELECT count(subdispatch.subscribe('one', id => 's' || i, consumer => 'g' || i % 100, max_pending => 20, overflow => 'drop_newest')) FROM generate_series(1, $n / 10) i;
SELECT step('overflow of drop_newest');
SELECT count(subdispatch.publish('one', to_jsonb(i))) FROM generate_series(1, 50) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT step('poll_shared of one stream');
SELECT count(*) FROM generate_series(0, 9) c, LATERAL subdispatch.poll_shared('g' || c, 100000);
SELECT step('close_consumer with responses');
SELECT count(subdispatch.close_consumer('g' || c)) FROM generate_series(0, 99) c;
SELECT step('overflow = error');
SELECT count(subdispatch.subscribe('one', id => 's' || i, consumer => 'g', max_pending => 2, overflow => 'error')) FROM generate_series(1, $n / 10) i;
SELECT count(subdispatch.publish('one', to_jsonb(i))) FROM generate_series(1, 5) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT subdispatch.close_consumer('g');
SELECT step('responses left unread, streams of their own');
SELECT count(subdispatch.subscribe('full', response_key => 'k' || i, id => 's' || i, consumer => 'g')) FROM generate_series(1, 1000) i;
SELECT count(subdispatch.publish('full', to_jsonb(i))) FROM generate_series(1, 300) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT subdispatch.close_consumer('g');
SELECT step('expiry');
SELECT count(subdispatch.subscribe('own', filter => jsonb_build_object('n', i), id => 's' || i)) FROM generate_series(1, $n) i;
ALTER SYSTEM SET subdispatch.subscription_idle_timeout = '1s';
SELECT pg_reload_conf();
DO \$\$
BEGIN
	FOR i IN 1..600 LOOP
		EXIT WHEN (SELECT count(*) FROM subdispatch.subscriptions) = 0;
		PERFORM pg_sleep(0.5);
	END LOOP;
END \$\$;
SELECT 'left after expiry', count(*) FROM subdispatch.subscriptions;
ALTER SYSTEM RESET subdispatch.subscription_idle_timeout;
SELECT pg_reload_conf();
SELECT step('DROP EXTENSION');
SELECT count(subdispatch.subscribe('own', filter => jsonb_build_object('n', i), id => 's' || i, consumer => 'g')) FROM generate_series(1, $n) i;
DROP EXTENSION subdispatch;
CREATE EXTENSION subdispatch;
SELECT step('end');
SQL
cat >"$out/run" <<SH
#!/bin/bash
psql -X -f $out/steps.sql 2>&1 | grep -vE '^ *$'
cp "\$PGDATA/../server.log" $out/log/
SH
mkdir -m 777 "$out/log"
chmod 755 "$out/run"
chmod 644 "$out/steps.sql"
test/with_server.sh -m "PG_CFLAGS=-include test/holds/lock_holds.h -DHOLD_TRANCHE=sd_tranche_$lock" \
	-c "subdispatch.max_subscriptions=$((n * 11 / 10))" -c "subdispatch.shared_memory_size=$((n + 200000))kB" \
	-c subdispatch.max_subscriptions_per_connection=0 -c subdispatch.event_queue_size=2MB -c subdispatch.publish_timeout=60s \
	-c subdispatch.event_history_size=0 "$out/run"
awk '/ STEP / { step = $0; sub(/.* STEP /, "", step) }
	/^LOCK HELD/ { where = $5 " " $6 " " $7 " " $8; gsub("src/", "", where); key = step "\t" where
		n[key]++; if ($3 >= 100) long[key]++; if ($3 > max[key]) max[key] = $3 }
	END { for (key in max) printf "%8d us, %d of %d of 100 us or more\t%s\n", max[key], long[key], n[key], key }' "$out/log/server.log" | sort -t "	" -k2,2 -k1,1rn

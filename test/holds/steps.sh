# shellcheck shell=bash
# What test/holds/run.sh does with N subscriptions, as SQL for psql: part_NAME N prints a part. Parts may follow one another.

# Waits until what the sweep does is done.
wait_for_none() {
	cat <<SQL
DO \$\$
BEGIN
	FOR i IN 1..600 LOOP
		EXIT WHEN (SELECT count(*) FROM subdispatch.subscriptions) = 0;
		PERFORM pg_sleep(0.5);
	END LOOP;
END \$\$;
SELECT '$1: left', count(*) FROM subdispatch.subscriptions HAVING count(*) > 0;
SQL
}

part_begin() {
	cat <<SQL
\set ON_ERROR_STOP on
\set QUIET on
\t on
SET client_min_messages = error;
CREATE OR REPLACE FUNCTION step(name text) RETURNS void LANGUAGE plpgsql AS \$\$ BEGIN RAISE LOG 'STEP %', name; END \$\$;
SQL
}

# Streams of their own on one channel, found by an equality filter.
part_filters() {
	local n=$1
	cat <<SQL
SELECT step('subscribe');
SELECT count(subdispatch.subscribe('own', filter => jsonb_build_object('n', i), id => 's' || i, consumer => 'g', connection_id => 'c' || i % 10)) FROM generate_series(1, $n) i;
SELECT step('subscribe and unsubscribe, singly');
DO \$\$ BEGIN FOR i IN 1..2000 LOOP PERFORM subdispatch.subscribe('own', filter => jsonb_build_object('n', -i), id => 'x' || i, consumer => 'g', connection_id => 'x' || i); PERFORM subdispatch.unsubscribe('x' || i); END LOOP; END \$\$;
SELECT step('publish to one of them');
SELECT count(subdispatch.publish('own', jsonb_build_object('n', i))) FROM generate_series(1, 1000) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT step('a gap for all');
SET subdispatch.on_queue_full = gap;
SELECT count(subdispatch.publish('own', jsonb_build_object('x', repeat(md5(i::text), 20000)))) FROM generate_series(1, 20) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT pg_sleep(3);
SELECT step('poll');
SELECT count(*) FROM subdispatch.poll('g', 100000);
SELECT step('poll_shared');
SELECT count(*) FROM subdispatch.poll_shared('g', 100000);
SELECT step('poll with ack');
SELECT count(*) FROM subdispatch.poll('g', 20000, ack => 0);
SELECT count(*) FROM subdispatch.poll('g', 20000, ack => (SELECT batch FROM subdispatch.consumers WHERE consumer = 'g'));
SELECT count(*) FROM subdispatch.poll('g', 1, ack => (SELECT batch FROM subdispatch.consumers WHERE consumer = 'g'));
SELECT step('await');
CALL subdispatch.await_responses('g', '1s');
SELECT step('views');
SELECT count(*) FROM subdispatch.subscriptions;
SELECT count(*) FROM subdispatch.consumers;
SELECT count(*) FROM subdispatch.channels;
SELECT count(*) FROM subdispatch.subscriptions WHERE id = 's1';
SELECT step('metrics and health');
SELECT length(subdispatch.metrics()), subdispatch.health() IS NULL, (SELECT count(*) FROM subdispatch.stats), (SELECT count(*) FROM subdispatch.workers);
SELECT step('dispatchers start');
SELECT pg_terminate_backend(pid) FROM subdispatch.workers WHERE kind = 'dispatcher';
SELECT pg_sleep(2);
SELECT count(subdispatch.publish('own', jsonb_build_object('n', i))) FROM generate_series(1, 100) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT step('a right is revoked');
SELECT subdispatch.grant_channel('other', 'pg_monitor', 'subscribe');
SELECT subdispatch.revoke_channel('other', 'pg_monitor', 'subscribe');
SELECT subdispatch.publish('own', '{"n": 1}');
SELECT subdispatch.wait_dispatched('60s');
SELECT step('unsubscribe');
SELECT count(subdispatch.unsubscribe('s' || i)) FROM generate_series(1, $n / 10) i;
SELECT step('complete');
SELECT count(subdispatch.complete('s' || i)) FROM generate_series($n / 10 + 1, $n / 5) i;
SELECT step('pause and resume a connection');
SELECT subdispatch.pause('c3'), subdispatch.resume('c3');
SELECT step('disconnect');
SELECT subdispatch.disconnect('c1'), subdispatch.disconnect('c2', 'g');
SELECT step('close_consumer');
SELECT subdispatch.close_consumer('g');
SELECT step('rollback');
BEGIN;
SELECT count(subdispatch.subscribe('own', filter => jsonb_build_object('n', i), id => 's' || i, consumer => 'g')) FROM generate_series(1, $n / 10) i;
ROLLBACK;
SELECT step('a session that dies');
SELECT pg_backend_pid() AS pid \gset
\! psql -XqAtc "BEGIN" -c "SELECT count(subdispatch.subscribe('own', filter => jsonb_build_object('n', i), id => 'd' || i, consumer => 'g')) FROM generate_series(1, $n / 10) i" -c "SELECT pg_terminate_backend(pg_backend_pid())" >/dev/null 2>&1
$(wait_for_none 'a session that dies')
SQL
}

# Few streams with very many subscriptions, and responses that nobody reads.
part_sharing() {
	local n=$1
	cat <<SQL
SELECT step('one stream');
SELECT count(subdispatch.subscribe('one', id => 's' || i, consumer => 'g' || i % 100, max_pending => 20, overflow => 'drop_newest')) FROM generate_series(1, $n / 10) i;
SELECT step('overflow of drop_newest');
SELECT count(subdispatch.publish('one', to_jsonb(i))) FROM generate_series(1, 50) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT step('poll_shared of one stream');
SELECT count(*) FROM generate_series(0, 9) c, LATERAL subdispatch.poll_shared('g' || c, 100000);
SELECT step('poll_shared of one stream with ack');
SELECT count(*) FROM generate_series(10, 19) c, LATERAL subdispatch.poll_shared('g' || c, 100000, ack => 0);
SELECT step('poll_shared of one stream, very many, with ack');
SELECT count(subdispatch.subscribe('one', id => 'a' || i, consumer => 'ack')) FROM generate_series(1, $n / 10) i;
SELECT count(subdispatch.publish('one', to_jsonb(i))) FROM generate_series(1, 5) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT count(*), max(cardinality(subscription_ids)) FROM subdispatch.poll_shared('ack', 100000, ack => 0);
SELECT subdispatch.close_consumer('ack');
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
SELECT step('responses left unread, subscriptions of no consumer');
SELECT count(subdispatch.subscribe('full', id => 's' || i, connection_id => 'c')) FROM generate_series(1, 1000) i;
SELECT count(subdispatch.publish('full', to_jsonb(i))) FROM generate_series(1, 2000) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT count(*) FROM generate_series(1, 500) i, LATERAL subdispatch.next_responses('s' || i, 10);
SELECT subdispatch.disconnect('c');
SQL
}

# As many channels, identities, consumers and connections as subscriptions; then many consumers and streams that all share.
part_names() {
	local n=$1
	cat <<SQL
SELECT step('subscribe, names of their own');
SELECT count(subdispatch.subscribe('channel' || i, security_context => jsonb_build_object('user_id', i), id => 's' || i, consumer => 'g' || i, connection_id => 'c' || i)) FROM generate_series(1, $n) i;
SELECT step('subscribe and unsubscribe singly, names of their own');
DO \$\$ BEGIN FOR i IN 1..2000 LOOP PERFORM subdispatch.subscribe('x' || i, security_context => jsonb_build_object('user_id', -i), id => 'x' || i, consumer => 'x' || i, connection_id => 'x' || i); PERFORM subdispatch.unsubscribe('x' || i); PERFORM subdispatch.close_consumer('x' || i); END LOOP; END \$\$;
SELECT step('publish, names of their own');
SELECT count(subdispatch.publish('channel' || i, '{"user_id": 1}')) FROM generate_series(1, 1000) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT step('views, names of their own');
SELECT count(*) FROM subdispatch.subscriptions;
SELECT count(*) FROM subdispatch.consumers;
SELECT count(*) FROM subdispatch.channels;
SELECT length(subdispatch.metrics()), subdispatch.health() IS NULL;
SELECT step('poll, names of their own');
SELECT count(*) FROM generate_series(1, 1000) c, LATERAL subdispatch.poll('g' || c, 1000);
SELECT step('a gap, names of their own');
SET subdispatch.on_queue_full = gap;
SELECT count(subdispatch.publish('channel' || i, jsonb_build_object('x', repeat(md5(i::text), 20000)))) FROM generate_series(1, 20) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT step('close_consumer, names of their own');
SELECT count(subdispatch.close_consumer('g' || i)) FROM generate_series(1, $n) i;
SELECT step('$((n / 1000)) consumers of 10 streams each');
SELECT count(subdispatch.subscribe('one' || i % 10, id => 's' || i, consumer => 'g' || i / 10)) FROM generate_series(1, $n / 100) i;
SELECT step('publish to $((n / 1000)) consumers');
SELECT count(subdispatch.publish('one' || i % 10, to_jsonb(i))) FROM generate_series(1, 100) i;
SELECT subdispatch.wait_dispatched('60s');
SELECT step('poll $((n / 1000)) consumers');
SELECT count(*) FROM generate_series(0, $n / 1000) c, LATERAL subdispatch.poll('g' || c, 1000);
SELECT count(subdispatch.close_consumer('g' || i)) FROM generate_series(0, $n / 1000) i;
SELECT step('300 consumers of 300 streams');
SELECT count(subdispatch.subscribe('one', filter => jsonb_build_object('n', i % 300), id => 's' || i, consumer => 'g' || i / 300)) FROM generate_series(1, 90000) i;
SELECT count(subdispatch.close_consumer('g' || i)) FROM generate_series(0, 300) i;
SQL
}

part_expiry() {
	local n=$1
	cat <<SQL
SELECT step('expiry');
SELECT count(subdispatch.subscribe('own', filter => jsonb_build_object('n', i), id => 's' || i)) FROM generate_series(1, $n) i;
ALTER SYSTEM SET subdispatch.subscription_idle_timeout = '1s';
SELECT pg_reload_conf();
$(wait_for_none expiry)
ALTER SYSTEM RESET subdispatch.subscription_idle_timeout;
SELECT pg_reload_conf();
SQL
}

part_drop() {
	local n=$1
	cat <<SQL
SELECT step('DROP DATABASE');
CREATE DATABASE other;
\! psql -Xq -d other -c "CREATE EXTENSION subdispatch" -c "SELECT count(subdispatch.subscribe('own', filter => jsonb_build_object('n', i), id => 's' || i, consumer => 'g')) FROM generate_series(1, $n / 4) i" >/dev/null
DROP DATABASE other;
SELECT step('DROP EXTENSION');
SELECT count(subdispatch.subscribe('own', filter => jsonb_build_object('n', i), id => 's' || i, consumer => 'g')) FROM generate_series(1, $n / 4) i;
DROP EXTENSION subdispatch;
CREATE EXTENSION subdispatch;
SELECT step('end');
SQL
}

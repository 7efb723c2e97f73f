# Very many subscriptions: what they take of shared memory, that all of it comes back however they end, and a random
# comparison with a model while others come, go, expire and lose their dispatchers.
# SUBDISPATCH_MODEL_SECONDS says how long the comparison takes (10).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $seconds = $ENV{SUBDISPATCH_MODEL_SECONDS} || 10;

# ---- what a subscription takes ----

my $many = 20000;
my $node = start_node('memory', max_subscriptions => 100000, shared_memory_size => '32MB', event_history_size => 0, max_subscriptions_per_connection => 0,
	context_settings => 'app.user', listen_channels => '');
sub each_takes
{
	my ($what, $limit, $arguments) = @_;
	my $before = memory_in_use($node);
	is($node->safe_psql('postgres', "SELECT count(subdispatch.subscribe('c', id => 's' || n, consumer => 'g', $arguments)) FROM generate_series(1, $many) n"), $many, "$many $what");
	my $each = (memory_in_use($node) - $before) / $many;
	cmp_ok($each, '<=', $limit, sprintf('%s take %.0f bytes each', $what, $each));
	is($node->safe_psql('postgres', "SELECT subdispatch.close_consumer('g')"), $many, 'closing their consumer ends them');
	is(memory_in_use($node), $before, 'and gives back all of it');
	return;
}
each_takes('subscriptions of one stream', 230, "filter => '{}'");
each_takes('subscriptions of one stream with connections of 20', 240, "connection_id => 'connection' || n / 20");
each_takes('subscriptions with an equality filter each', 650, "filter => jsonb_build_object('n', n)");
each_takes('subscriptions with an identity each', 650, "settings => jsonb_build_object('app.user', n::text)");

# ---- full ----

my $empty = memory_in_use($node);
my ($out, $err) = try_sql($node, "SELECT count(subdispatch.subscribe('c', id => 's' || n, filter => jsonb_build_object('n', n), consumer => 'g' || n % 10, connection_id => 'c' || n)) FROM generate_series(1, 100000) n");
like($err, qr/out of shared memory.*subdispatch\.shared_memory_size/s, 'full: the error tells of the setting');
is($node->safe_psql('postgres', 'SELECT count(*) FROM subdispatch.subscriptions'), '0', 'nothing is left of the statement');
$node->safe_psql('postgres', "SELECT subdispatch.close_consumer('g' || n) FROM generate_series(0, 9) n");
is(memory_in_use($node), $empty, 'and all memory is back');
# One by one until it is full: those before stay, are usable and end.
my $fit = $node->safe_psql('postgres', <<'SQL');
CREATE PROCEDURE fill(INOUT n int) LANGUAGE plpgsql AS $$
DECLARE failed bool := false;
BEGIN
	WHILE NOT failed LOOP
		BEGIN
			PERFORM subdispatch.subscribe('c', id => 's' || n, filter => jsonb_build_object('n', n), consumer => 'g' || n % 10, connection_id => 'c' || n);
			n := n + 1;
		EXCEPTION WHEN out_of_memory THEN failed := true;
		END;
	END LOOP;
END $$;
CALL fill(0);
SQL
cmp_ok($fit, '>', 32 * 1024 * 1024 / 1300, "$fit fit into 32 MB");
is($node->safe_psql('postgres', 'SELECT count(*) FROM subdispatch.subscriptions'), $fit, 'those that fitted are there');
# They leave a reserve, so events still find room, and their responses; nothing of it goes to subscriptions meanwhile.
foreach my $round (1 .. 3)
{
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', jsonb_build_object('n', n, 'x', repeat('x', 3000))) FROM generate_series(0, 99) n");
	is($node->safe_psql('postgres', "SELECT subdispatch.wait_dispatched('60s')"), 't', 'events are dispatched when subscriptions have filled the memory');
	($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c', id => 'one more', filter => '{\"n\": -1}', variables => jsonb_build_object('x', repeat('x', 10000)))");
	like($err, qr/out of shared memory.*kB are kept for events.*subdispatch\.shared_memory_size/s, 'no subscription takes what was kept for them');
	is($node->safe_psql('postgres', "SELECT count(*) FILTER (WHERE dropped = 0 AND length(response) > 3000) FROM generate_series(0, 9) g, LATERAL subdispatch.poll('g' || g, 1000)"), '100', 'and read');
}
my $half = int($fit / 2);
is($node->safe_psql('postgres', "SELECT count(*) FILTER (WHERE subdispatch.unsubscribe('s' || n)) FROM generate_series(0, $half - 1) n"), $half, 'half of them go');
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', jsonb_build_object('n', $fit - 1))");
is(results($node, 's' . ($fit - 1)), '{"n": ' . ($fit - 1) . '}', 'the others work');
is($node->safe_psql('postgres', "SELECT sum(subdispatch.close_consumer('g' || n)) FROM generate_series(0, 9) n"), $fit - $half, 'all go');
is(memory_in_use($node), $empty, 'and all memory is back');

# ---- many consumers of a stream, many members of a connection ----

# More than are seen to while a lock is held once.
my $all_come = "SELECT count(*) || ' ' || count(DISTINCT subscription_id) FROM generate_series(0, 299) c, LATERAL subdispatch.poll('c' || c) WHERE dropped = 0";
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('m', id => 'm' || n, consumer => 'c' || n % 300, connection_id => 'ws') FROM generate_series(1, 600) n");
sub publish_m
{
	$node->safe_psql('postgres', "SELECT subdispatch.publish('m', '1')");
	return $node->safe_psql('postgres', "SELECT subdispatch.wait_dispatched('60s')");
}
foreach my $round (1 .. 3)
{
	publish_m();
	is($node->safe_psql('postgres', $all_come), '600 600', "every consumer is told, $round");
}
is($node->safe_psql('postgres', "SELECT sum(subdispatch.close_consumer('c' || n)) FROM generate_series(0, 99) n"), '200', 'some go');
$node->safe_psql('postgres', "SELECT subdispatch.open_consumer('c' || n) FROM generate_series(0, 99) n");
publish_m();
is($node->safe_psql('postgres', $all_come), '400 400', 'the others are told');
is($node->safe_psql('postgres', "SELECT subdispatch.pause('ws', 'c200')"), '2', 'a consumer of the connection is paused');
publish_m();
is($node->safe_psql('postgres', $all_come), '398 398', 'and gets nothing');
is($node->safe_psql('postgres', "SELECT subdispatch.pause('ws')"), '400', 'all of it is paused');
publish_m();
is($node->safe_psql('postgres', $all_come), '0 0', 'and nobody gets anything');
is($node->safe_psql('postgres', "SELECT subdispatch.resume('ws')"), '400', 'until it is resumed');
is($node->safe_psql('postgres', $all_come), '402 400', 'then all of it comes');
is($node->safe_psql('postgres', "SELECT subdispatch.disconnect('ws', 'c250')"), '2', 'disconnect() ends those of a consumer');
is($node->safe_psql('postgres', "SELECT subdispatch.disconnect('ws')"), '398', 'and all others');
$node->safe_psql('postgres', "SELECT subdispatch.close_consumer('c' || n) FROM generate_series(0, 299) n");
is(memory_in_use($node), $empty, 'and all memory is back');

# ---- all ways to end ----

my %ends = (
	'unsubscribe()' => "SELECT count(subdispatch.unsubscribe(id)) FROM subdispatch.subscriptions",
	'disconnect()' => "SELECT subdispatch.disconnect('ws ' || n) FROM generate_series(0, 9) n",
	'close_consumer()' => "SELECT subdispatch.close_consumer('g')",
	'complete() and reading' => "SELECT count(subdispatch.complete(id)) FROM subdispatch.subscriptions; SELECT count(*) FROM subdispatch.poll('g', 100000)",
	'complete() and closing' => "SELECT count(subdispatch.complete(id)) FROM subdispatch.subscriptions; SELECT subdispatch.close_consumer('g')",
	'open_consumer()' => "SELECT subdispatch.open_consumer('g')",
);
foreach my $overflow (qw(drop_oldest drop_newest error))
{
	foreach my $end (sort keys %ends)
	{
		$node->safe_psql('postgres', <<SQL);
SELECT subdispatch.subscribe('c', id => 's' || n, filter => jsonb_build_object('n', n % 50), consumer => 'g', connection_id => 'ws ' || n % 10, max_pending => 3, overflow => '$overflow', rate_limit => CASE WHEN n % 7 = 0 THEN 1000 END,
	security_context => CASE WHEN n % 5 = 0 THEN '{"user_id": 1}' ELSE '{}' END::jsonb, variables => jsonb_build_object('n', n)) FROM generate_series(1, 400) n;
SELECT subdispatch.publish('c', jsonb_build_object('n', n % 50, 'user_id', 1)) FROM generate_series(1, 300) n;
SELECT subdispatch.wait_dispatched('60s');
SELECT count(*) FROM subdispatch.poll('g', 100);
$ends{$end};
SELECT subdispatch.close_consumer('g');
SQL
		is($node->safe_psql('postgres', 'SELECT count(*) FROM subdispatch.subscriptions') . ' ' . memory_in_use($node), "0 $empty", "$overflow, $end: nothing is left");
	}
}
# A session that is killed in the middle of it takes what it has not committed with it.
my $h = background($node, "BEGIN; SELECT count(subdispatch.subscribe('c', id => 's' || n, filter => jsonb_build_object('n', n))) FROM generate_series(1, 5000) n; SELECT pg_sleep(600)");
poll_until($node, 'SELECT count(*) FROM subdispatch.subscriptions', '5000', 'a session subscribes');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()");
finish_background($h);
eventually('terminated, it leaves nothing behind', sub { my $m = memory_in_use($node); return ($m == $empty, "$m, before $empty") });
# Expiry.
$node->safe_psql('postgres', "SELECT count(subdispatch.subscribe('c', id => 's' || n, filter => jsonb_build_object('n', n), consumer => 'g' || n % 100)) FROM generate_series(1, 5000) n");
$node->append_conf('postgresql.conf', "subdispatch.subscription_idle_timeout = '1s'\n");
$node->reload;
eventually('expired, they leave nothing behind', sub { my $m = memory_in_use($node); return ($m == $empty, "$m, before $empty") });
$node->stop;

# ---- a comparison with a model ----

# Each client of pgbench has subscriptions of its own on a channel that all share, whose filters ask for the client and a
# number. After each event it polls, and compares what comes with what it knows it has. The channel's arrays and
# buckets are changed by all at the same time; others leave theirs to expire, and dispatchers are terminated. (Events may wait
# for their successors, so the time after which a client's own subscriptions expire must be longer.)
$node = start_node('model', max_subscriptions => 50000, shared_memory_size => '128MB', subscription_idle_timeout => '20s', event_history_size => 0, listen_channels => '', '.max_connections' => 40, '.fsync' => 'off',
	max_subscriptions_per_connection => 0);
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE model (client int, id text, n int, whole bool, PRIMARY KEY (client, id));
CREATE TABLE wrong (client int, step int, what text, at timestamptz DEFAULT clock_timestamp());
CREATE PROCEDURE check_event(client_no int, step int) LANGUAGE plpgsql AS $$
DECLARE
	k int := random() * 9;
	expected text;
	seen text;
BEGIN
	PERFORM subdispatch.publish('all', jsonb_build_object('client', client_no, 'n', k, 'step', step));
	COMMIT;
	IF NOT subdispatch.wait_dispatched('60s') THEN
		INSERT INTO wrong VALUES (client_no, step, 'not dispatched');
	END IF;
	SELECT string_agg(id, ' ' ORDER BY id) INTO expected FROM model WHERE client = client_no AND (n = k OR whole);
	SELECT string_agg(subscription_id || CASE WHEN response::jsonb #> '{payload,data,step}' = to_jsonb(step) AND dropped = 0 THEN '' ELSE ' ' || response END, ' ' ORDER BY subscription_id)
		INTO seen FROM subdispatch.poll('client ' || client_no, 100000);
	IF seen IS DISTINCT FROM expected THEN
		INSERT INTO wrong VALUES (client_no, step, format('expected %s, seen %s', expected, seen));
	END IF;
	COMMIT;
END $$;
CREATE PROCEDURE change(client_no int, step int) LANGUAGE plpgsql AS $$
DECLARE
	n_new int := random() * 30;
	dropped int;
	counted int;
BEGIN
	CASE (random() * 9)::int
	WHEN 0 THEN
		-- the subscriptions of a connection
		SELECT subdispatch.disconnect('ws 3', 'client ' || client_no) INTO dropped;
		WITH d AS (DELETE FROM model WHERE client = client_no AND id LIKE '%3' RETURNING 1) SELECT count(*) INTO counted FROM d;
		IF dropped <> counted THEN INSERT INTO wrong VALUES (client_no, step, format('disconnect: %s, not %s', dropped, counted)); END IF;
	WHEN 1 THEN
		SELECT subdispatch.open_consumer('client ' || client_no) INTO dropped;
		WITH d AS (DELETE FROM model WHERE client = client_no RETURNING 1) SELECT count(*) INTO counted FROM d;
		IF dropped <> counted THEN INSERT INTO wrong VALUES (client_no, step, format('open_consumer: %s, not %s', dropped, counted)); END IF;
	WHEN 2, 3, 4 THEN
		WITH d AS (DELETE FROM model WHERE client = client_no AND random() < 0.3 RETURNING id)
			SELECT count(*) FILTER (WHERE NOT subdispatch.unsubscribe('client ' || client_no || ' ' || id)) INTO counted FROM d;
		IF counted > 0 THEN INSERT INTO wrong VALUES (client_no, step, format('unsubscribe: %s were not there', counted)); END IF;
	WHEN 5 THEN
		-- undone
		BEGIN
			PERFORM subdispatch.subscribe('all', filter => jsonb_build_object('client', client_no, 'n', i % 10), id => 'client ' || client_no || ' undone ' || i, operation_id => 'undone', consumer => 'client ' || client_no) FROM generate_series(1, n_new) i;
			RAISE EXCEPTION 'undo';
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
	ELSE
		INSERT INTO model SELECT client_no, step || '.' || i || '.' || (i % 10), i % 10, i % 11 = 0 FROM generate_series(1, n_new) i;
		PERFORM subdispatch.subscribe('all', filter => CASE WHEN whole THEN jsonb_build_object('client', jsonb_build_object('in', jsonb_build_array(client_no))) ELSE jsonb_build_object('client', client_no, 'n', n) END,
				id => 'client ' || client_no || ' ' || id, consumer => 'client ' || client_no, connection_id => 'ws ' || right(id, 1), overflow => CASE WHEN n < 5 THEN 'drop_oldest' ELSE 'drop_newest' END)
			FROM model WHERE client = client_no AND id LIKE step || '.%';
	END CASE;
	COMMIT;
END $$;
CREATE SEQUENCE steps;
SQL
# poll shows whole ids: the model's are made so, too.
$node->safe_psql('postgres', <<'SQL');
CREATE OR REPLACE FUNCTION full_id(client_no int, id text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'client ' || client_no || ' ' || id $$;
SQL
my $source = $node->safe_psql('postgres', "SELECT pg_get_functiondef('check_event'::regproc)");
$source =~ s/string_agg\(id, ' ' ORDER BY id\)/string_agg(full_id(client_no, id), ' ' ORDER BY full_id(client_no, id))/ or die;
$node->safe_psql('postgres', $source);

my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/model.sql", <<'SQL');
SELECT nextval('steps') AS step \gset
CALL change(:client_id, :step);
CALL check_event(:client_id, :step);
SQL
append_to_file("$dir/expire.sql", <<'SQL');
SELECT count(subdispatch.subscribe('all', filter => jsonb_build_object('client', -1, 'n', n), connection_id => 'left behind')) FROM generate_series(1, 20) n;
\sleep 20 ms
SQL
$node->safe_psql('postgres', "SELECT subdispatch.open_consumer('client ' || n) FROM generate_series(0, 7) n");
($out, $err) = ('', '');
my $models = IPC::Run::start([ 'pgbench', '-n', '-c', 8, '-j', 2, '-T', $seconds, '-f', "$dir/model.sql", '-h', $node->host, '-p', $node->port, 'postgres' ], '>', \$out, '2>', \$err, IPC::Run::timeout($seconds + 300));
my ($out2, $err2) = ('', '');
my $leavers = IPC::Run::start([ 'pgbench', '-n', '-c', 1, '-T', $seconds, '-f', "$dir/expire.sql", '-h', $node->host, '-p', $node->port, 'postgres' ], '>', \$out2, '2>', \$err2, IPC::Run::timeout($seconds + 300));
my $end = time + $seconds - 1;
while (time < $end)
{
	sleep 3;
	terminate_dispatchers($node);
}
$models->finish;
$leavers->finish;
unlike("$err$err2", qr/ERROR|FATAL|aborted/, 'no client met an error');
note($out);
is($node->safe_psql('postgres', "SELECT string_agg(format('client %s, step %s: %s', client, step, left(what, 500)), E'\\n' ORDER BY at) FROM (SELECT * FROM wrong ORDER BY at LIMIT 5) x"), '', 'each client saw what its model says');
cmp_ok($node->safe_psql('postgres', "SELECT last_value FROM steps"), '>', 20, 'in many steps');
$node->safe_psql('postgres', "SELECT subdispatch.close_consumer('client ' || n) FROM generate_series(0, 7) n");
$node->append_conf('postgresql.conf', "subdispatch.subscription_idle_timeout = '1s'\n");
$node->reload;
poll_until($node, 'SELECT count(*) FROM subdispatch.subscriptions', '0', 'what was left behind expires');
eventually('and no memory is in use', sub { my $m = memory_in_use($node); return ($m == 0, $m) });
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash in the log');
$node->stop;

done_testing();

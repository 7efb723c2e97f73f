# pgbench with 16 clients: publishers, consumers and subscribers come and go, and every response is accounted for.
# SUBDISPATCH_STRESS_SECONDS says how long (60).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $seconds = $ENV{SUBDISPATCH_STRESS_SECONDS} || 60;

stress('stress', $seconds, 0);
# Shorter, with the dispatchers terminated again and again. They do not LISTEN: what was NOTIFYed while nobody listened
# would be told as a loss.
stress('termination', int($seconds / 4) + 5, 1);
done_testing();

sub stress
{
	my ($name, $seconds, $terminating) = @_;
	my $node = start_node($name, listen_channels => $terminating ? '' : '*', max_pending => 10000000, max_pending_bytes => '200MB', shared_memory_size => '512MB', publish_timeout => '100s', max_subscriptions_per_connection => 1000,
		max_subscriptions => 5000, '.max_connections' => 60, '.fsync' => 'off', '.deadlock_timeout' => '1s', '.log_lock_waits' => 'on');

	$node->safe_psql('postgres', <<'SQL');
CREATE TABLE item (id int PRIMARY KEY, version int NOT NULL);
INSERT INTO item SELECT n, 0 FROM generate_series(1, 50) n;
CREATE TRIGGER item AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('items');
-- The truth: what committed.
CREATE TABLE committed (item int, version int);
-- What came out. The id tells in which order.
CREATE TABLE received (subscription text, event_id bigint, item int, version int, dropped bigint, n bigserial);
CREATE FUNCTION as_small(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN jsonb_build_object('row', event->'data'->'row'); END $$;
SELECT subdispatch.open_consumer('gateway');
SQL
	my $before = memory_in_use($node);
	like($before, qr/^[0-9]+$/, 'health() tells the memory in use');
	$node->safe_psql('postgres', <<'SQL');
SELECT subdispatch.subscribe('items', id => 'all', consumer => 'gateway'), subdispatch.subscribe('items', id => 'all too', consumer => 'gateway'),
       subdispatch.subscribe('items', filter => '{"row.id": {"lte": 10}}', id => 'ten', consumer => 'gateway'), subdispatch.subscribe('items', filter => '{"row.id": 7}', id => 'seven', consumer => 'gateway'),
       subdispatch.subscribe('items', 'as_small', id => 'resolved', consumer => 'gateway');
SQL

	# Some transactions fail or roll back a savepoint: their versions never are.
	my %script = (
		publish => <<'SQL',
\set item random(1, 50)
BEGIN;
UPDATE item SET version = version + 1 WHERE id = :item RETURNING version \gset
INSERT INTO committed VALUES (:item, :version);
COMMIT;
SQL
		publish_and_undo => <<'SQL',
\set item random(1, 50)
BEGIN;
SAVEPOINT s;
UPDATE item SET version = version + 1000 WHERE id = :item;
ROLLBACK TO s;
UPDATE item SET version = version + 1 WHERE id = :item RETURNING version \gset
INSERT INTO committed VALUES (:item, :version);
SELECT subdispatch.publish('noise' || :item, '{"undone": false}');
COMMIT;
BEGIN;
UPDATE item SET version = version + 1000 WHERE id = :item;
ROLLBACK;
SQL
		consume => <<'SQL',
INSERT INTO received (subscription, event_id, item, version, dropped) SELECT subscription_id, event_id, (response::jsonb #>> '{payload,data,row,id}')::int, (response::jsonb #>> '{payload,data,row,version}')::int, dropped FROM subdispatch.poll('gateway', 500, '100ms') WHERE subscription_id IN ('all', 'all too', 'ten', 'seven', 'resolved');
SQL
		await => <<'SQL',
CALL subdispatch.await_responses('gateway', '50ms');
SQL
		churn => <<'SQL',
\set n random(1, 1000000)
SELECT subdispatch.subscribe('items', id => 'churn ' || :client_id || ' ' || :n, consumer => 'churn ' || :client_id);
SELECT count(*) FROM subdispatch.next_responses('churn ' || :client_id || ' ' || :n, 100, '20ms');
SELECT subdispatch.unsubscribe('churn ' || :client_id || ' ' || :n);
SQL
		churn_and_undo => <<'SQL',
\set n random(1, 1000000)
BEGIN;
SELECT subdispatch.subscribe('items', id => 'undone ' || :client_id || ' ' || :n, variables => jsonb_build_object('n', :n), connection_id => 'ws ' || :client_id);
SELECT subdispatch.subscribe('noise' || :n % 50, 'as_small', jsonb_build_object('n', :n), id => 'undone 2 ' || :client_id || ' ' || :n, connection_id => 'ws ' || :client_id);
ROLLBACK;
SQL
		gateway => <<'SQL',
SELECT subdispatch.open_consumer('run ' || :client_id);
SELECT subdispatch.subscribe('items', filter => jsonb_build_object('row.id', n), consumer => 'run ' || :client_id, connection_id => 'ws ' || n % 3) FROM generate_series(1, 20) n;
SELECT count(*) FROM subdispatch.poll_shared('run ' || :client_id, 1000, '50ms');
SELECT subdispatch.disconnect('ws 1', 'run ' || :client_id);
SELECT count(*) FROM subdispatch.poll('run ' || :client_id, 1000, '10ms');
SELECT subdispatch.close_consumer('run ' || :client_id);
SQL
	);
	my %weight = (publish => 40, publish_and_undo => 10, consume => 25, await => 2, churn => 10, churn_and_undo => 6, gateway => 7);
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my @files;
	foreach my $name (sort keys %script)
	{
		append_to_file("$dir/$name.sql", $script{$name});
		push @files, '-f', "$dir/$name.sql\@$weight{$name}";
	}
	my ($out, $err) = ('', '');
	my $pgbench = IPC::Run::start([ 'pgbench', '-n', '-c', 16, '-j', 4, '-T', $seconds, '-P', 10, @files, '-h', $node->host, '-p', $node->port, 'postgres' ],
		'>', \$out, '2>', \$err, IPC::Run::timeout($seconds + 300));
	if ($terminating)
	{
		my $end = time + $seconds;
		while (time < $end)
		{
			terminate_dispatchers($node);
			select undef, undef, undef, 0.3;
		}
	}
	my $run = $pgbench->finish;
	ok($run, "$name: no client of pgbench failed");
	unlike($err, qr/ERROR|FATAL|aborted/, 'nor met an error');
	note($out);

	# What is still queued.
	ok(dispatched($node), 'everything is dispatched');
	my $left = 1;
	$left = $node->safe_psql('postgres', "WITH r AS (INSERT INTO received (subscription, event_id, item, version, dropped) SELECT subscription_id, event_id, (response::jsonb #>> '{payload,data,row,id}')::int, (response::jsonb #>> '{payload,data,row,version}')::int, dropped FROM subdispatch.poll('gateway', 100000) RETURNING 1) SELECT count(*) FROM r") while $left;
	my $committed = $node->safe_psql('postgres', 'SELECT count(*) FROM committed');
	cmp_ok($committed, '>', 0, "$committed changes were committed");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM received WHERE coalesce(dropped, -1) <> 0'), '0', 'nothing was dropped');
	foreach my $check ([ 'all', 'true' ], [ 'all too', 'true' ], [ 'resolved', 'true' ], [ 'ten', 'item <= 10' ], [ 'seven', 'item = 7' ])
	{
		my ($id, $which) = @$check;
		is($node->safe_psql('postgres', "SELECT count(*), count(*) FILTER (WHERE r.item IS NULL), count(*) FILTER (WHERE c.item IS NULL) FROM (SELECT * FROM committed WHERE $which) c FULL JOIN (SELECT * FROM received WHERE subscription = '$id') r ON (c.item, c.version) = (r.item, r.version)"),
			$node->safe_psql('postgres', "SELECT count(*) || '|0|0' FROM committed WHERE $which"), "$id: every committed change, none else, each once");
		is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT version, lag(version) OVER (PARTITION BY item ORDER BY event_id) AS last FROM received WHERE subscription = '$id') x WHERE version <> last + 1"),
			'0', "$id: each row's changes in the order of their commits");
	}
	is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT count(DISTINCT event_id) FROM received WHERE subscription IN ('all', 'all too', 'resolved') GROUP BY item, version HAVING count(DISTINCT event_id) > 1) x"), '0', 'one event, one id for all');
	is($node->safe_psql('postgres', 'SELECT sum(deadlocks) FROM pg_stat_database'), '0', 'no deadlock');

	# Everything given back.
	$node->safe_psql('postgres', 'SELECT subdispatch.close_consumer(consumer) FROM subdispatch.consumers; SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM subdispatch.subscriptions'), '0', 'no subscription is left');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM subdispatch.channels'), '0', 'nor a channel');
	$node->safe_psql('postgres', "SELECT subdispatch.open_consumer('gateway')");
	eventually('the memory is back to where it was', sub { my $m = memory_in_use($node) // -1; return ($m <= $before, "$m, before $before") });
	unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6|deadlock detected/, 'no crash, no deadlock in the log');
	$node->stop;
	return;
}

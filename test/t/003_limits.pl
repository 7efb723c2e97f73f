# What is used up is an error that names the setting, or a counted gap, and comes back.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my ($out, $err);

# max_worker_processes: the launcher takes the only one.
my $node = start_node('workers', '.max_worker_processes' => 1, '.max_logical_replication_workers' => 0);
($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c', id => 's')");
like($err, qr/max_worker_processes/, 'max_worker_processes used up: the error names it');
is($node->safe_psql('postgres', 'SELECT count(*) FROM subdispatch.subscriptions'), '0', 'and no subscription is left behind');
($out, $err) = try_sql($node, "SELECT subdispatch.publish('c', '1')");
is($err, '', 'publishing for nobody works');
# One too few for all dispatchers of a database, and none for a second database.
$node->adjust_conf('postgresql.conf', 'max_worker_processes', '3');
$node->restart;
($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c', id => 's')");
is($err, '', 'with room for one database it works');
$node->safe_psql('postgres', 'CREATE DATABASE other');
install_extension($node, 'other');
($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c', id => 's')", dbname => 'other');
like($err, qr/max_worker_processes/, 'a second database is told');
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '1')");
is(results($node, 's'), '1', 'the first goes on');
$node->stop;

# max_subscriptions.
$node = start_node('subscriptions', max_subscriptions => 100);
($out, $err) = try_sql($node, "SELECT count(subdispatch.subscribe('c', id => 's' || n)) FROM generate_series(1, 100) n");
is($out, '100', 'max_subscriptions can be had') or diag($err);
($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c')");
like($err, qr/subdispatch\.max_subscriptions/, 'one more is refused, and names the setting');
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('s1')");
($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c', id => 'again')");
is($out, 'again', 'until one has gone') or diag($err);
$node->stop;

# Shared memory: as little as the settings allow.
$node = start_node('memory', resolver_timeout => '60s', dispatchers => 1);
my $minimum = sub { my ($s) = @_; $node->safe_psql('postgres', "SELECT min_val || CASE WHEN unit = '8kB' THEN '' ELSE coalesce(unit, '') END FROM pg_settings WHERE name = 'subdispatch.$s'") };
my %least = map { $_ => $minimum->($_) } ('shared_memory_size', 'event_queue_size');
note("least: $_ = $least{$_}") foreach sort keys %least;
$node->append_conf('postgresql.conf', "subdispatch.shared_memory_size = '$least{shared_memory_size}'\nsubdispatch.event_queue_size = '$least{event_queue_size}'\nsubdispatch.max_subscriptions = 100000\nsubdispatch.max_pending = 100000\nsubdispatch.max_pending_bytes = '1GB'\n");
$node->restart;
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 'first')");
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '1')");
is(results($node, 'first'), '1', 'and works');
my $before = memory_in_use($node);
like($before, qr/^[0-9]+$/, 'health() tells how much shared memory is used');
$before //= 0;

# Used up by subscriptions.
($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c', variables => jsonb_build_object('x', repeat('x', 10000), 'n', n), id => 'many' || n) FROM generate_series(1, 99000) n", );
like($err, qr/subdispatch\.(?:shared_memory_size|max_subscriptions)/, 'shared memory used up by subscriptions: the error names the setting');
is($node->safe_psql('postgres', 'SELECT count(*) FROM subdispatch.subscriptions'), '1', 'what the failed statement subscribed is undone');
eventually('and the memory is back', sub { my $m = memory_in_use($node) // 0; return ($m <= $before * 1.05 + 65536, "$m, before $before") });
# The same, one transaction each, until it is full; other subscriptions work on.
$node->safe_psql('postgres', <<'SQL');
DO $$
BEGIN
  FOR n IN 1..99000 LOOP
    PERFORM subdispatch.subscribe('c2', variables => jsonb_build_object('x', repeat('x', 10000), 'n', n), id => 'many' || n);
    COMMIT;
  END LOOP;
  RAISE EXCEPTION 'never full';
EXCEPTION WHEN OTHERS THEN
  IF SQLERRM = 'never full' THEN RAISE; END IF;
END $$;
SQL
pass('filled one by one');
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions WHERE id LIKE 'many%'");
eventually('the memory is back after the subscriptions ended', sub { my $m = memory_in_use($node) // 0; return ($m <= $before * 1.05 + 65536, "$m, before $before") });

# Used up by responses: a counted gap.
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('big', id => 'big', max_pending => 100000)");
my $published = 0;
foreach my $round (1 .. 40)
{
	($out, $err) = try_sql($node, "SELECT subdispatch.publish('big', jsonb_build_object('n', $round, 'x', repeat(md5('$round'), 3000))); SELECT subdispatch.wait_dispatched('60s')");
	$published++ if $err eq '';
}
is($published, 40, 'publishing does not fail because responses found no room');
my $told = $node->safe_psql('postgres', "SELECT count(*) FILTER (WHERE r::jsonb #>> '{payload,data}' IS NOT NULL) + coalesce(sum((r::jsonb #>> '{payload,extensions,subdispatch,dropped}')::int), 0) FROM subdispatch.next_responses('big', 100000) r");
my $rest = $node->safe_psql('postgres', "SELECT coalesce((subdispatch.next_response('big', '2s')::jsonb #>> '{payload,extensions,subdispatch,dropped}')::int, 0)");
is($told + $rest, 40, 'every response is delivered or told as dropped');
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '2')");
is(results($node, 'first'), '2', 'others go on');
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('big')");
eventually('the memory is back after the responses were read', sub { my $m = memory_in_use($node) // 0; return ($m <= $before * 1.05 + 65536, "$m, before $before") });
$node->stop;

# The queue of events.
$node = start_node('queue', resolver_timeout => '100s', dispatchers => 1, event_queue_size => $least{event_queue_size}, publish_timeout => '200ms', max_event_size => '16kB');
my $queue = $node->safe_psql('postgres', "SELECT pg_size_bytes(current_setting('subdispatch.event_queue_size'))");
my $event = "jsonb_build_object('x', repeat('x', 10000))";
my $fit = int($queue / 10000);
note("a queue of $queue bytes");
$node->safe_psql('postgres', waits_sql("event->'data'->'n'") . <<'SQL');
SELECT subdispatch.subscribe('slow', 'waits', id => 'slow');
SQL
# A transaction that could never fit fails at once, whatever the queue holds.
my $too_many = $fit * 2 + 10;
($out, $err) = try_sql($node, "SELECT count(subdispatch.publish('slow', $event)) FROM generate_series(1, $too_many)");
like($err, qr/subdispatch\.event_queue_size/, 'a transaction that could never fit: the error names the setting');
($out, $err) = try_sql($node, "SELECT subdispatch.publish('slow', jsonb_build_object('x', repeat('x', 20000)))");
like($err, qr/subdispatch\.max_event_size/, 'a smaller max_event_size holds');
# The dispatcher is busy, the queue fills up.
$node->safe_psql('postgres', "SELECT subdispatch.publish('slow', '{\"n\": 0}')");
my $n = 0;
while ($n < $too_many)
{
	($out, $err) = try_sql($node, "SELECT subdispatch.publish('slow', $event || '{\"n\": " . ($n + 1) . "}')");
	last if $err ne '';
	$n++;
}
like($err, qr/queue/i, 'the queue is full: the publisher fails after publish_timeout');
like($err, qr/subdispatch\.(?:event_queue_size|publish_timeout|on_queue_full)/, 'and the error names what can be done');
cmp_ok($n, '>', 0, "$n events had room");
($out, $err) = try_sql($node, "BEGIN; CREATE TABLE undone (); SELECT subdispatch.publish('slow', $event); COMMIT");
isnt($err, '', 'its transaction fails');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_class WHERE relname = 'undone'"), '0', 'as a whole');
# With nobody on the channel a publisher neither waits nor fails.
($out, $err) = try_sql($node, "SELECT count(subdispatch.publish('nobody', $event) IS NULL) FROM generate_series(1, $fit)");
is($err, '', 'nobody subscribes: nobody fails');
# on_queue_full = gap: it commits, and the gap is told.
($out, $err) = try_sql($node, "SET subdispatch.on_queue_full = gap; SELECT subdispatch.publish('slow', $event)");
is($err, '', 'on_queue_full = gap: it commits');
$node->safe_psql('postgres', 'INSERT INTO go VALUES (true)');
ok(dispatched($node), 'the queue drains');
my @got = split /\n/, $node->safe_psql('postgres', "SELECT coalesce(r::jsonb #>> '{payload,data}', 'no data') || coalesce(' dropped ' || (r::jsonb #> '{payload,extensions,subdispatch,dropped}')::text, '') FROM subdispatch.next_responses('slow', 100000) r");
my @data = map { /^([0-9]+)/ ? $1 : () } @got;
is_deeply(\@data, [ 0 .. $n ], 'every event that was committed into the queue arrives in order');
my $loss = join ' ', grep { /dropped/ } @got, $node->safe_psql('postgres', "SELECT subdispatch.next_response('slow', '3s')::jsonb #> '{payload,extensions,subdispatch,dropped}'") =~ /(.+)/ ? "dropped $1" : ();
like($loss, qr/dropped (?:1|null)/, 'and the gap is told');
# Room again.
($out, $err) = try_sql($node, "SELECT subdispatch.publish('slow', '{\"n\": \"again\"}')");
is($err, '', 'there is room again');
is(results($node, 'slow'), 'again', 'and events arrive');

# A resolver that publishes into a full queue gets the error at its call; the dispatcher never waits for itself.
$node->safe_psql('postgres', <<SQL);
CREATE FUNCTION floods(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS \$\$
BEGIN
  PERFORM subdispatch.publish('slow', $event) FROM generate_series(1, $too_many);
  RETURN '"published all"';
EXCEPTION WHEN OTHERS THEN RETURN '"refused"';
END \$\$;
SELECT subdispatch.subscribe('flood', 'floods', id => 'flood');
SELECT subdispatch.publish('flood', '1');
SQL
is(results($node, 'flood'), 'refused', 'a resolver that publishes into a full queue gets an error');
$node->stop;

done_testing();

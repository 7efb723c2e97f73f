# event_bus = notify: what goes by pg_notify, and what cannot.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('notify', event_bus => 'notify');
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION echo(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT event - ''id'' - ''timestamp''';
SELECT subdispatch.subscribe('c', id => 's'), subdispatch.subscribe('c', 'echo', id => 'event');
SQL
is($node->safe_psql('postgres', "SELECT DISTINCT bus FROM subdispatch.workers WHERE kind = 'dispatcher'"), 'notify', 'workers shows the bus');

# An event arrives with all it was given.
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '{\"a\": 18446744073709551617}', 'Type', 'corr', 'fed')");
is(results($node, 's'), '{"a": 18446744073709551617}', 'publish() goes by NOTIFY, exactly');
is_deeply([ split /\n/, $node->safe_psql('postgres', "SELECT e.key || '=' || e.value FROM subdispatch.next_response('event', '60s') r, jsonb_each(r::jsonb #> '{payload,data}') e ORDER BY 1") ],
	[ 'channel="c"', 'correlation_id="corr"', 'data={"a": 18446744073709551617}', 'event_type="Type"', 'federation_id="fed"', 'source="publish"' ], 'with its fields');
# Commit rules are NOTIFY's own.
$node->safe_psql('postgres', "BEGIN; SELECT subdispatch.publish('c', '\"lost\"'); ROLLBACK");
$node->safe_psql('postgres', "BEGIN; SELECT subdispatch.publish('c', '1'); SAVEPOINT s; SELECT subdispatch.publish('c', '\"lost\"'); ROLLBACK TO s; SELECT subdispatch.publish('c', '2'); COMMIT");
is(results($node, 's'), '1 2', 'what rolls back is not sent');
# NOTIFY folds equal messages of a transaction into one: events stay as many as they were.
$node->safe_psql('postgres', "BEGIN; SELECT subdispatch.publish('c', '3'), subdispatch.publish('c', '3'); SELECT subdispatch.publish('c', '3'); COMMIT");
is(results($node, 's'), '3 3 3', 'equal events of a transaction stay as many');
$node->safe_psql('postgres', "SELECT count(subdispatch.publish('c', to_jsonb(n)) IS NULL) FROM generate_series(1, 300) n");
is(results($node, 's'), join(' ', 1 .. 300), 'in their order');
# Plain NOTIFY next to it.
$node->safe_psql('postgres', "NOTIFY c, '\"plain\"'");
is(results($node, 's'), 'plain', 'a plain NOTIFY arrives as well');
results($node, 'event');
# Who NOTIFYs cannot forge a change or an envelope's source.
$node->safe_psql('postgres', "NOTIFY c, '{\"source\": \"change\", \"data\": {\"op\": \"INSERT\"}, \"channel\": \"c\"}'");
like(results($node, 'event'), qr/^$|"source": "(?:notify|publish)"/, 'a forged envelope is no change');
results($node, 's');

# The limits: clear errors, never a cut.
foreach my $case ([ "subdispatch.publish('c', to_jsonb(repeat('x', 8100)))", qr/8,?000/, 'a payload beyond 8000 bytes' ], [ "subdispatch.publish(repeat('c', 64), '1')", qr/63/, 'a channel beyond 63 bytes' ])
{
	my ($call, $pattern, $name) = @$case;
	my ($out, $err) = try_sql($node, "SELECT $call");
	like($err, $pattern, "$name: the error names the limit");
	like($err, qr/subdispatch\.event_bus/, "$name: and the setting");
}
my ($out, $err) = try_sql($node, "SELECT subdispatch.publish('c', to_jsonb(repeat('x', 7000)))");
is($err, '', '7000 bytes fit');
is(length(results($node, 's')), 7000, 'and arrive');
$node->safe_psql('postgres', "SELECT subdispatch.subscribe(repeat('c', 63), id => 'long')");
($out, $err) = try_sql($node, "SELECT subdispatch.publish(repeat('c', 63), '1')");
is($err, '', 'a channel of 63 bytes fits');
is(results($node, 'long'), '1', 'and arrives');
foreach my $call ("publish('', '1')", "publish('*', '1')", "publish(NULL, '1')", "publish('c', NULL)")
{
	($out, $err) = try_sql($node, "SELECT subdispatch.$call");
	isnt($err, '', "$call is refused as on the memory bus");
}

# Row images go by the memory bus whatever the setting: any role can LISTEN.
$node->safe_psql('postgres', "CREATE TABLE t (id int, secret text); CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('c')");
my $listener = session($node);
$listener->query_safe('LISTEN c');
$node->safe_psql('postgres', "INSERT INTO t VALUES (1, repeat('hidden', 5000))");
like(results($node, 's'), qr/"op": "INSERT"/, 'publish_change() works, also beyond 8000 bytes');
my $heard = $listener->query('SELECT 1');
unlike($heard, qr/hidden/, 'and nobody can listen to it');
$listener->quit;
# Nobody subscribes: no dispatcher is needed to publish. The first subscriber gets what comes later.
$node->safe_psql('postgres', "SELECT subdispatch.publish('nobody', '1')");
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('nobody', id => 'first'); SELECT subdispatch.publish('nobody', '2')");
is(results($node, 'first'), '2', 'a first subscription of a channel misses nothing after it');
# The star gets what the dispatchers see.
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('*', id => 'star'); SELECT subdispatch.publish('c', '4')");
is(results($node, 'star'), '4', 'the star hears the channels that are subscribed to');
# A dispatcher that died LISTENs again. What was sent in between is told as lost, or comes.
results($node, 's');
terminate_dispatchers($node);
poll_until($node, "SELECT count(*) FROM pg_stat_activity a JOIN subdispatch.workers w USING (pid) WHERE w.kind = 'dispatcher'", '2', 'dispatchers are back');
eventually('and LISTEN again', sub {
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '5')");
	my $got = results($node, 's');
	return (scalar($got =~ /5/), $got);
});
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
$node->stop;

done_testing();

# event_bus = redis: two independent servers of one group dispatch what either of them commits.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RedisTest;
use SubdispatchTest;
use Test::More;

my $redis = RedisTest->new;
my @bus = (max_pending => 100000, max_pending_bytes => '100MB', shared_memory_size => '256MB', event_bus => 'redis', redis_url => $redis->url, bus_key => 'a key that is long enough');
my $a = start_node('a', @bus);
my $b = start_node('b', @bus);

# Who publishes and subscribes nothing needs no subscription of its own.
$a->safe_psql('postgres', "SELECT subdispatch.publish('c', '\"before\"')");
ok(dispatched($a), 'what nobody subscribes to goes to Redis as well');
is($redis->cli('XLEN', 'subdispatch:{postgres}:events'), '1', 'and is there');

foreach my $node ($a, $b)
{
	$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION echo(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT event - ''timestamp''';
SELECT subdispatch.subscribe('c', id => 's'), subdispatch.subscribe('*', id => 'star'), subdispatch.subscribe('c', 'echo', id => 'event');
SQL
}
is($a->safe_psql('postgres', "SELECT state, bus FROM subdispatch.workers WHERE kind = 'bus'"), 'running|redis', 'workers shows the bus worker');
is($a->safe_psql('postgres', "SELECT subdispatch.health() #>> '{bus,state}'"), 'connected', 'health() shows how it stands');
is($a->safe_psql('postgres', "SELECT subdispatch.health() ->> 'status'"), 'ok', 'all is well');
is($a->safe_psql('postgres', "SELECT application_name, backend_type FROM pg_stat_activity WHERE backend_type = 'subdispatch bus'"),
	'subdispatch bus|subdispatch bus', 'pg_stat_activity, too');

# Between statements there is nothing to cancel: its connections stay.
my $connections = $a->safe_psql('postgres', "SELECT bus_connections FROM subdispatch.stats");
$a->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'subdispatch bus'");
$a->safe_psql('postgres', "SELECT subdispatch.publish('elsewhere', '1')");
ok(dispatched($a), 'a bus worker that was cancelled goes on');
is($a->safe_psql('postgres', "SELECT bus_connections, dispatch_errors FROM subdispatch.stats"), "$connections|0", 'as if nothing had been');
results($_, 'star') foreach $a, $b;

# An event, whole.
$a->safe_psql('postgres', "SELECT subdispatch.publish('c', '{\"a\": 18446744073709551617}', 'Type', 'corr', 'fed')");
is(results($a, 's'), '{"a": 18446744073709551617}', 'an event comes back to its own server, exactly');
is(results($b, 's'), '{"a": 18446744073709551617}', 'and reaches the other one');
results($_, 'star') foreach $a, $b;
my $whole = results($a, 'event');
like($whole, qr/"source": "publish"/, 'with its fields');
like($whole, qr/"event_type": "Type"/, 'its type');
like($whole, qr/"correlation_id": "corr"/, 'its correlation');
like($whole, qr/"federation_id": "fed"/, 'its federation');
is(results($b, 'event'), $whole, 'and the same id on both');

# Commit rules.
my $entries = $redis->cli('XLEN', 'subdispatch:{postgres}:events');
$a->safe_psql('postgres', "BEGIN; SELECT subdispatch.publish('c', '\"lost\"'); ROLLBACK");
$a->safe_psql('postgres', "BEGIN; SELECT subdispatch.publish('c', '1'); SAVEPOINT s; SELECT subdispatch.publish('c', '\"lost\"'); ROLLBACK TO s; SELECT subdispatch.publish('c', '2'); COMMIT");
$b->safe_psql('postgres', "SELECT subdispatch.publish('c', '3')");
dispatched($b);
is(results($_, 's'), '1 2 3', 'what rolls back is not sent; on ' . $_->name) foreach $a, $b;
is($redis->cli('XLEN', 'subdispatch:{postgres}:events') - $entries, 2, 'in Redis a transaction is an entry');
unlike($redis->cli('--raw', 'XRANGE', 'subdispatch:{postgres}:events', '-', '+'), qr/lost/, 'and what was rolled back is not there');

# Large ones, many in one transaction, and many small ones at the same time from both.
$a->safe_psql('postgres', "SELECT subdispatch.publish('c', to_jsonb(repeat('x', 1000000)))");
# which comes first when it is in Redis first
dispatched($a);
$b->safe_psql('postgres', "SELECT count(subdispatch.publish('c', to_jsonb(n)) IS NULL) FROM generate_series(1, 5000) n");
dispatched($_) foreach $b, $a;
is(results($_, 's') =~ s/x{50000}(x*)/large/r, join(' ', 'large', 1 .. 5000), 'large and many, on ' . $_->name) foreach $a, $b;

results($_, 'event') foreach $a, $b;
$_->safe_psql('postgres', "SELECT count(*) FROM subdispatch.next_responses('star', 100000)") foreach $a, $b;
my @load = map {
	my $node = $_;
	map { background($node, join("\n", map { "SELECT subdispatch.publish('c', '\"" . $node->name . "$_\"');" } 1 .. 200)) } 1 .. 3
} $a, $b;
foreach my $h (@load) { my (undef, $err) = finish_background($h); is($err, '', 'the load ran'); }
dispatched($_) foreach $a, $b;
my $of_a = $a->safe_psql('postgres', "SELECT count(*), count(DISTINCT r), md5(string_agg(r, ' ' ORDER BY n)) FROM (SELECT n, r::jsonb #>> '{payload,data}' r FROM subdispatch.next_responses('event', 100000) WITH ORDINALITY x(r, n)) y");
my $of_b = $b->safe_psql('postgres', "SELECT count(*), count(DISTINCT r), md5(string_agg(r, ' ' ORDER BY n)) FROM (SELECT n, r::jsonb #>> '{payload,data}' r FROM subdispatch.next_responses('event', 100000) WITH ORDINALITY x(r, n)) y");
like($of_a, qr/^1200\|1200\|/, 'all events, each once');
is($of_a, $of_b, 'in the same order with the same ids on both');

# Subscriptions of '*' see them, too, and NOTIFY stays where it is.
like(results($b, 'star'), qr/^(?:[ab]\d+ ){1199}[ab]\d+$/, 'the star sees all channels');
results($_, 's') foreach $a, $b;
$a->safe_psql('postgres', "NOTIFY c, '\"plain\"'");
is(results($a, 's'), 'plain', 'plain NOTIFY arrives');
is(results($b, 's'), 'plain', 'on the other server, too');
$b->safe_psql('postgres', "SELECT subdispatch.grant_channel('c', '-', 'subscribe')");
$a->safe_psql('postgres', "NOTIFY c, '\"not there\"'");
dispatched($a);		# what is published may overtake a notification
$a->safe_psql('postgres', "SELECT subdispatch.publish('c', '\"there\"')");
is(results($a, 's'), 'not there there', 'that another server has grants is nothing to this one');
like(results($b, 's'), qr/^(?:.* )?there$/, 'which it has');
is($b->safe_psql('postgres', "SELECT bad_envelopes FROM subdispatch.stats"), '1', 'and has counted');
$b->safe_psql('postgres', "SELECT subdispatch.revoke_channel('c', '-', 'subscribe')");

# Changes of rows.
foreach my $node ($a, $b)
{
	$node->safe_psql('postgres', "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric); CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('t')");
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('t', id => 't')");
}
$a->safe_psql('postgres', "INSERT INTO t VALUES (1, 'x', 1.50); UPDATE t SET v = 'y'; DELETE FROM t");
my $changes = results($a, 't');
like($changes, qr/^\{"op": "INSERT".*"n": 1\.50.*"op": "UPDATE".*"op": "DELETE"/, 'row images arrive');
is(results($b, 't'), $changes, 'and on the other server');

# The settings that it needs.
my ($out, $err) = try_sql($a, "SELECT subdispatch.publish('c', '1')");
is($err, '', 'publish works');
foreach my $missing ('redis_url', 'bus_key')
{
	$a->append_conf('postgresql.conf', "subdispatch.$missing = ''");
	$a->reload;
	eventually("publish() is refused without $missing", sub { ($out, $err) = try_sql($a, "SELECT subdispatch.publish('c', '1')"); return (scalar($err =~ /without subdispatch\.$missing/), $err) });
	($out, $err) = try_sql($a, "SELECT subdispatch.subscribe('c')");
	like($err, qr/without subdispatch\.$missing/, 'and so is subscribe()');
	like($a->safe_psql('postgres', "SELECT subdispatch.health()"), qr/"status": "degraded".*|without subdispatch\.$missing/, 'health() tells');
	$a->append_conf('postgresql.conf', $missing eq 'redis_url' ? "subdispatch.redis_url = '" . $redis->url . "'" : "subdispatch.bus_key = 'a key that is long enough'");
	$a->reload;
	eventually('and works again', sub { ($out, $err) = try_sql($a, "SELECT subdispatch.publish('c', '\"again $missing\"')"); return ($err eq '', $err) });
}
eventually('on the other server, too', sub { my $r = $b->safe_psql('postgres', "SELECT string_agg(r, ' ') FROM subdispatch.next_responses('s', 100000) r"); return (scalar($r =~ /again bus_key/), $r) });

foreach my $node ($a, $b)
{
	unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
	$node->stop;
}
done_testing();

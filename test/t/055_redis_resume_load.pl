# Resuming out of the stream in Redis under load: a client goes to and fro between two primaries and a standby, none of which
# keeps a history worth mentioning, while pgbench publishes on both primaries and workers are terminated. It gets what one
# gets that never left.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RedisTest;
use SubdispatchTest;
use Test::More;
use Time::HiRes qw(sleep time);

my $redis = RedisTest->new;
my $seconds = $ENV{RESUME_SECONDS} || 15;
my @bus = (max_subscriptions_per_connection => 0, max_pending => 200000, max_pending_bytes => '200MB', include_event_id => 'on', dispatchers => 2, shared_memory_size => '256MB',
	listen_channels => '', event_bus => 'redis', redis_url => $redis->url, bus_key => 'a key that is long enough', redis_resume_timeout => '100s', replay_wait_timeout => '100s', event_history_size => '0',
	'.wal_level' => 'replica', '.max_wal_senders' => 5, '.hot_standby' => 'on', '.max_connections' => 50, '.autovacuum' => 'off', '.wal_receiver_status_interval' => '100ms');
my $one = start_node('one', @bus);
$one->safe_psql('postgres', "CREATE TABLE rows (id int, client text); CREATE TRIGGER t AFTER INSERT ON rows FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('r')");
$one->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($one, 'b', has_streaming => 1);
$standby->start;
my $two = start_node('two', @bus, event_history_size => '64kB');
$two->safe_psql('postgres', "CREATE TABLE rows (id int, client text); CREATE TRIGGER t AFTER INSERT ON rows FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('r')");
my @nodes = ($one, $two, $standby);
my @channels = ('a', 'b', 'r', '*');
foreach my $n (@nodes) { $n->safe_psql('postgres', "SELECT subdispatch.subscribe('$_', id => 'stays $_', consumer => 'stays $_', operation_id => 'op')") foreach @channels; }

# What each has got, and the last event's id is where to go on.
my (%last, %texts, $returns);
my $columns = 'SELECT event_id, dropped, response FROM subdispatch.poll';
sub take
{
	my ($channel, $rows) = @_;
	push @{ $texts{$channel} }, split /\n/, $rows;
	my ($id) = ($texts{$channel} ? $texts{$channel}[-1] : '') =~ /^(\d+)\|/;
	BAIL_OUT("a response without an event: $texts{$channel}[-1]") if $rows ne '' && !defined $id;
	$last{$channel} = $id if defined $id;
	return length $rows;
}

my $script = PostgreSQL::Test::Utils::tempdir() . '/load.sql';
append_to_file($script, <<'SQL');
\set n random(1, 10)
\set which random(1, 3)
BEGIN;
SELECT count(subdispatch.publish(CASE :which WHEN 1 THEN 'b' WHEN 2 THEN 'nobody' ELSE 'a' END, to_jsonb(clock_timestamp()::text || ' ' || i)) IS NULL) FROM generate_series(1, :n) i;
INSERT INTO rows VALUES (:n, :client_id);
COMMIT;
SQL
my @load = map { my %h = (out => ''); $h{run} = IPC::Run::start([ 'pgbench', '-n', '-f', $script, '-c', '3', '-T', $seconds, '--rate', '60', '-d', $_->connstr('postgres') ], '<', \undef, '>', \$h{out}, '2>&1'); \%h } $one, $two;
foreach my $c (@channels)
{
	eventually("the first event of $c", sub {
		my $rows = $one->safe_psql('postgres', "SELECT count(*) FROM (SELECT subdispatch.subscribe('$c', id => 'goes $c', consumer => 'goes $c', operation_id => 'op')) x; $columns('goes $c', 1, '5s')") =~ s/^1\n?//r;
		return (scalar(take($c, $rows)), $rows);
	});
	$one->safe_psql('postgres', "SELECT subdispatch.close_consumer('goes $c')");
}
my $end = time + $seconds - 2;
my %turns;
my $sql_kill = "SELECT count(pg_terminate_backend(pid)) FROM subdispatch.workers WHERE kind IN ('dispatcher', 'bus') AND random() < 0.3";
while (time < $end)
{
	my $at = $nodes[ int rand @nodes ];
	my $c = $channels[ int rand @channels ];
	my $rows = $at->safe_psql('postgres', "SELECT subdispatch.subscribe('$c', id => 'goes', consumer => 'goes', operation_id => 'op', after_event => $last{$c}); "
		. ($turns{ $at->name }++ % 5 == 4 ? "$sql_kill; " : 'SELECT 0;')
		. join(' ', map { "$columns('goes', " . (1 + int rand 80) . ", '50ms');" } 1 .. 1 + int rand 4));
	take($c, $rows =~ s/^goes\n\d+\n?//r);
	$at->safe_psql('postgres', "SELECT subdispatch.close_consumer('goes')");
	$returns++;
}
foreach my $h (@load) { $h->{run}->finish; like($h->{out}, qr/number of failed transactions: 0 /, 'pgbench ran'); }
dispatched($_) foreach @nodes, @nodes;
foreach my $c (@channels)
{
	my $at = $nodes[ int rand @nodes ];
	$at->safe_psql('postgres', "SELECT subdispatch.subscribe('$c', id => 'goes $c', consumer => 'goes $c', operation_id => 'op', after_event => $last{$c})");
	eventually("$c: all of it is read", sub {
		my $state = $at->safe_psql('postgres', "SELECT state FROM subdispatch.subscriptions WHERE id = 'goes $c'");
		return (!take($c, $at->safe_psql('postgres', "$columns('goes $c', 100000, '100ms')")) && $state eq 'active', $state);
	});
	my @ref = map { $_->safe_psql('postgres', "$columns('stays $c', 1000000, '0', 1000000000)") } @nodes;
	is(scalar(grep { $_ ne $ref[0] } @ref), 0, "$c: all servers have the same events under the same ids");
	my @all = split /\n/, $ref[0];
	my @got = @{ $texts{$c} };
	shift @all while @all && $all[0] ne $got[0];
	cmp_ok(scalar @all, '>', 100, "$c: there was something to compare");
	my ($differ) = grep { ($got[$_] // 'nothing') ne ($all[$_] // 'nothing') } 0 .. ($#all > $#got ? $#all : $#got);
	is(defined $differ ? "at $differ: " . ($got[$differ] // 'nothing') . ', not ' . ($all[$differ] // 'nothing') : 'same', 'same', "$c: one who comes back gets what one gets that never left");
}
cmp_ok($returns, '>', 20, 'it came back often');
note("$returns returns");
cmp_ok($_->safe_psql('postgres', 'SELECT bus_reread FROM subdispatch.stats'), '>', 0, 'the stream was read again on ' . $_->name) foreach @nodes;
foreach my $n ($standby, $two, $one)
{
	unlike(slurp_file($n->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash on ' . $n->name);
	$n->stop;
}
done_testing();

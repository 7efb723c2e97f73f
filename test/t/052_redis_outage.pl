# event_bus = redis while Redis hangs, dies and comes back: what is committed waits, arrives once and in order, or is told as a gap.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RedisTest;
use SubdispatchTest;
use Test::More;
use Time::HiRes qw(sleep);

my $redis = RedisTest->new;
my @bus = (max_pending => 100000, max_pending_bytes => '100MB', event_bus => 'redis', redis_url => $redis->url,
	bus_key => 'a key that is long enough', redis_timeout => '500ms', event_queue_size => '1MB');
my $a = start_node('a', @bus);
my $b = start_node('b', @bus);
my @nodes = ($a, $b);
my $nload = 0;

foreach my $node (@nodes)
{
	$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION echo(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT jsonb_build_array(event->''id'', event->''data'')';
SELECT subdispatch.subscribe('c', 'echo', id => 's'), subdispatch.subscribe('other', id => 'other');
SQL
}

# Transactions of one to three events, a few ms apart, from two sessions on each server; returns what to pass to end_load().
sub begin_load
{
	my ($transactions) = @_;
	my %load = (number => ++$nload, events => [], handles => []);
	foreach my $node (@nodes)
	{
		foreach my $session (1, 2)
		{
			my ($sql, $n) = ('', 0);
			foreach my $t (1 .. $transactions)
			{
				my @names = map { sprintf '%d-%s%d-%04d', $load{number}, $node->name, $session, ++$n } 1 .. 1 + $t % 3;
				push @{ $load{events} }, @names;
				$sql .= 'SELECT ' . join(', ', map { "subdispatch.publish('c', '\"$_\"')" } @names) . ";\n";
				$sql .= "SELECT pg_sleep(0.005);\n";
			}
			push @{ $load{handles} }, background($node, $sql);
		}
	}
	return \%load;
}

# All that was read of "s" on a node since the last call: names in order, their ids, and whether a loss was told.
sub read_all
{
	my ($node) = @_;
	my (@names, @ids, $loss);
	foreach my $line (split /\n/, $node->safe_psql('postgres', "SELECT (r::jsonb #>> '{payload,data,1}'), (r::jsonb #>> '{payload,data,0}'), r::jsonb #> '{payload,extensions,subdispatch}' ? 'dropped' FROM subdispatch.next_responses('s', 100000) r"))
	{
		my ($name, $id, $lost) = split /\|/, $line;
		$loss = 1 if $lost eq 't';
		next if $name eq '';
		push @names, $name;
		push @ids, $id;
	}
	return { names => \@names, ids => \@ids, loss => $loss };
}

sub end_load
{
	my ($load, $what) = @_;
	foreach my $h (@{ $load->{handles} })
	{
		my (undef, $err) = finish_background($h);
		is($err, '', "$what: the publishers had no error");
	}
	# A first one sends what there is, the second finds what the other server sent.
	ok(dispatched($_), "$what: all is dispatched on " . $_->name) foreach @nodes, @nodes;
	return { map { $_->name => read_all($_) } @nodes };
}

# Each server's events of each session in their order, none twice.
sub check_order
{
	my ($got, $what) = @_;
	foreach my $name (sort keys %$got)
	{
		my (%last, %seen, @wrong);
		foreach my $event (@{ $got->{$name}{names} })
		{
			my ($session, $n) = $event =~ /^(.*)-(\d+)$/;
			push @wrong, $event if $seen{$event}++ || ($last{$session} // 0) >= $n;
			$last{$session} = $n;
		}
		is(join(' ', @wrong), '', "$what: in order, each once, on $name");
	}
}

sub check_complete
{
	my ($load, $got, $what) = @_;
	check_order($got, $what);
	foreach my $name (sort keys %$got)
	{
		is(join(' ', sort @{ $got->{$name}{names} }), join(' ', sort @{ $load->{events} }), "$what: complete on $name");
		ok(!$got->{$name}{loss}, "$what: no loss is told on $name");
	}
	is(join(' ', @{ $got->{a}{names} }), join(' ', @{ $got->{b}{names} }), "$what: in one order");
	is(join(' ', @{ $got->{a}{ids} }), join(' ', @{ $got->{b}{ids} }), "$what: with the same ids");
}

sub bus_pid { my ($node) = @_; return $node->safe_psql('postgres', "SELECT pid FROM subdispatch.workers WHERE kind = 'bus'"); }

sub wait_state
{
	my ($node, $state, $name) = @_;
	return poll_until($node, "SELECT subdispatch.health() #>> '{bus,state}'", $state, $name);
}

# ---- a hung Redis ----
my $load = begin_load(300);
sleep 0.3;
$redis->freeze;
wait_state($_, 'disconnected', 'health() shows that Redis hangs, on ' . $_->name) foreach @nodes;
like($a->safe_psql('postgres', "SELECT subdispatch.health() ->> 'problems'"), qr/Redis bus: no answer within/, 'and says what is wrong');
is($a->safe_psql('postgres', "SELECT state FROM subdispatch.workers WHERE kind = 'bus'"), 'disconnected', 'so does workers');
is($a->safe_psql('postgres', "SELECT subdispatch.publish('c', '\"1-x-0001\"'); SELECT subdispatch.wait_dispatched('100ms')"), "\nf", 'commits do not wait; wait_dispatched() does, and gives up');
push @{ $load->{events} }, '1-x-0001';
$redis->thaw;
check_complete($load, end_load($load, 'hung'), 'hung');
wait_state($a, 'connected', 'and it is connected again');
like(slurp_file($a->logfile), qr/connected again/, 'the log tells');

# ---- the worker dies ----
$load = begin_load(200);
foreach (1 .. 5)
{
	sleep 0.2;
	$_->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM subdispatch.workers WHERE kind = 'bus' AND pid IS NOT NULL") foreach @nodes;
}
check_complete($load, end_load($load, 'worker'), 'worker');

# ---- connections break ----
$load = begin_load(200);
foreach (1 .. 20)
{
	sleep 0.05;
	$redis->cli('CLIENT', 'KILL', 'TYPE', 'normal');
	$redis->cli('SCRIPT', 'FLUSH') if $_ % 4 == 0;
}
check_complete($load, end_load($load, 'connections'), 'connections');

# ---- Redis dies and has all it had ----
$redis->stop;
$redis->start(appendonly => 'yes', appendfsync => 'always');
dispatched($_) foreach @nodes;
read_all($_) foreach @nodes;
$load = begin_load(300);
foreach (1 .. 3)
{
	sleep 0.3;
	$redis->stop('KILL');
	sleep 0.3;
	$redis->start(appendonly => 'yes', appendfsync => 'always');
}
check_complete($load, end_load($load, 'persistent'), 'persistent');

# ---- Redis dies and has forgotten all ----
$redis->stop('KILL');
unlink glob("$redis->{dir}/*.rdb"), glob("$redis->{dir}/appendonlydir/*");
$redis->start;
dispatched($_) foreach @nodes;
read_all($_) foreach @nodes;
$load = begin_load(300);
foreach (1 .. 3)
{
	sleep 0.3;
	$redis->stop('KILL');
	$redis->start;
}
my $got = end_load($load, 'forgetful');
check_order($got, 'forgetful');
foreach my $name (sort keys %$got)
{
	my %there = map { $_ => 1 } @{ $got->{$name}{names} };
	my @missing = grep { !$there{$_} } @{ $load->{events} };
	ok(@missing == 0 || $got->{$name}{loss}, "forgetful: what is missing on $name (" . @missing . ') was told as a loss');
	my @ids = @{ $got->{$name}{ids} };
	is((grep { $ids[$_] <= $ids[ $_ - 1 ] } 1 .. $#ids), 0, "forgetful: ids rise on $name");
}

# ---- Redis dies and comes back with what it had some time ago ----
$redis->cli('SAVE');
$_->safe_psql('postgres', "SELECT subdispatch.publish('c', to_jsonb('6-' || current_setting('port') || '-' || to_char(n, 'FM0000'))) FROM generate_series(1, 5) n") foreach @nodes;
ok(dispatched($_), 'older data: what Redis will lose is dispatched on ' . $_->name) foreach @nodes;
read_all($_) foreach @nodes;
$redis->stop('KILL');
$redis->start;
$load = begin_load(20);
$got = end_load($load, 'older data');
check_order($got, 'older data');
foreach my $name (sort keys %$got)
{
	is(join(' ', sort @{ $got->{$name}{names} }), join(' ', sort @{ $load->{events} }), "older data: all that came later is there on $name");
	ok($got->{$name}{loss}, "older data: a loss is told on $name");
}
unlink glob("$redis->{dir}/*.rdb");

# ---- the stream is trimmed past a position ----
dispatched($_) foreach @nodes;
read_all($_) foreach @nodes;
foreach my $node (@nodes)
{
	$node->append_conf('postgresql.conf', 'subdispatch.redis_max_length = 1000');
	$node->reload;
}
my $pid = bus_pid($b);
kill 'STOP', $pid;
my $there = 0;
foreach my $from (map { 300 * $_ } 0 .. 9)
{
	$a->safe_psql('postgres', "SELECT subdispatch.publish('c', to_jsonb('9-t-' || to_char($from + n, 'FM0000'))) FROM generate_series(1, 300) n");
	dispatched($a);
	$got = read_all($a);
	$there += @{ $got->{names} } unless $got->{loss};
}
is($there, 3000, 'the other server goes on and misses nothing');
cmp_ok($redis->cli('XLEN', 'subdispatch:{postgres}:events'), '<', 1500, 'Redis has removed the older ones');
kill 'CONT', $pid;
ok(dispatched($b), 'the one that was held up goes on as well');
$got = read_all($b);
ok($got->{loss}, 'and tells that something is missing');
is($got->{names}[-1], '9-t-3000', 'up to the last one');
check_order({ b => $got }, 'trimmed');
cmp_ok($b->safe_psql('postgres', 'SELECT bus_gaps FROM subdispatch.stats'), '>', 0, 'the gap is counted');

# ---- the queue is full ----
$_->safe_psql('postgres', "SELECT count(*) FROM subdispatch.next_responses('other', 100000)") foreach @nodes;
$redis->freeze;
wait_state($a, 'disconnected', 'Redis hangs');
my ($out, $err) = try_sql($a, "SET subdispatch.publish_timeout = '10ms'; " . join(' ', map { "SELECT subdispatch.publish('c', to_jsonb('8-q-' || to_char($_, 'FM0000') || repeat('x', 90000)));" } 1 .. 20));
like($err, qr/event queue of database "postgres" is full/, 'when the queue is full a transaction fails');
like($err, qr/wait for Redis/, 'and the error says why');
($out, $err) = try_sql($a, "SET subdispatch.publish_timeout = '10ms'; SELECT subdispatch.publish('c', to_jsonb(repeat('x', 1000000))); ");
like($err, qr/is full/, 'so does the next one');
($out, $err) = try_sql($a, "SET subdispatch.on_queue_full = gap; BEGIN; SELECT subdispatch.publish('c', to_jsonb(repeat('x', 500000))); COMMIT; SELECT 'done'");
like($out, qr/done/, 'with on_queue_full = gap it commits');
like($a->safe_psql('postgres', "SELECT subdispatch.health() ->> 'problems'"), qr/nearly full/, 'health() tells that the queue is nearly full');
$redis->thaw;
dispatched($_) foreach @nodes, @nodes;
foreach my $node (@nodes)
{
	$got = read_all($node);
	cmp_ok(scalar @{ $got->{names} }, '>', 5, 'what was queued arrives on ' . $node->name);
	eventually('and the loss is told, on ' . $node->name, sub { $got = read_all($node) unless $got->{loss}; return ($got->{loss}, 'no loss') });
	is($node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.next_responses('other', 100000)"), '0', 'not to other channels');
}

# ---- nothing is blocked ----
$redis->freeze;
wait_state($a, 'disconnected', 'Redis hangs again');
$a->safe_psql('postgres', 'CREATE DATABASE second');
install_extension($a, 'second');
($out, $err) = try_sql($a, "SELECT subdispatch.subscribe('c', id => 'x')", dbname => 'second');
like($err, qr/WARNING:  Redis cannot be reached/, 'subscribe() works, with a warning');
$a->safe_psql('second', "SELECT subdispatch.publish('c', '1')");
$a->safe_psql('postgres', 'DROP DATABASE second');
pass('DROP DATABASE works');
$a->safe_psql('postgres', "SET subdispatch.event_bus = memory; SELECT subdispatch.publish('other', '\"memory\"')");
eventually('the memory bus goes on', sub { my $r = $a->safe_psql('postgres', "SELECT subdispatch.next_response('other')"); return (scalar($r =~ /memory/), $r) });
$a->safe_psql('postgres', "SELECT subdispatch.publish('c', '\"7-e-0001\"')");
$a->stop('fast');
pass('and so does a fast shutdown');
$b->stop('fast');

unlike(slurp_file($_->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash') foreach @nodes;
done_testing();

# event_bus is changed by reload under load, memory, redis, notify and back: every committed event is received once, or a loss is
# told; what one session publishes comes in its order as long as the bus is the same.

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
my @bus = (max_pending => 100000, max_pending_bytes => '100MB', redis_url => $redis->url, bus_key => 'a key that is long enough', listen_channels => 'c0, c1, c2, c3');
my $node = start_node('changing', @bus, event_bus => 'memory');
my $other = start_node('other', @bus, event_bus => 'redis');
my $channels = 4;
my $nload = 0;
my $at_other = 0;

sub set_bus
{
	my ($n, $bus) = @_;
	$n->append_conf('postgresql.conf', "subdispatch.event_bus = '$bus'");
	$n->reload;
	poll_until($n, 'SHOW subdispatch.event_bus', $bus, "the bus is $bus");
}

# Each session publishes on all channels: what, in which order, and by which bus is in the event.
sub begin_load
{
	my ($n, $transactions) = @_;
	$nload++;
	return map {
		my $session = $_;
		background($n, join '', map {
			my $i = sprintf '%06d', $_;
			"SELECT subdispatch.publish('c" . $_ % $channels . "', to_jsonb('$nload.$session ' || current_setting('subdispatch.event_bus') || ' $i')); SELECT pg_sleep(0.001);\n";
		} 1 .. $transactions)
	} 1 .. 3;
}

# How many events ever came to Redis.
sub sent_by_redis { return ($redis->cli('HGET', 'subdispatch:{postgres}:state', 'count') =~ /^(\d+) /)[0] // 0; }

# What was read of a channel since the last call, and whether a loss was told.
sub read_channel
{
	my ($n, $id) = @_;
	my @lines = split /\n/, drain($n, $id);
	my $loss = grep { /"dropped":/ } @lines;
	# one that was told less than a second ago puts the next one off
	return ([ map { /"data":"([^"]+)"/ ? $1 : () } @lines ], $loss > 0);
}

# Each event once; those of one session and bus in order. Returns how many came, and whether a loss was told.
sub check
{
	my ($n, $name, $expected) = @_;
	my ($came, $told, @star) = (0, 0);
	my (@twice, @disorder);
	foreach my $id (map({ "c$_" } 0 .. $channels - 1), 'star')
	{
		my ($events, $loss) = read_channel($n, $id);
		my (%seen, %last);
		foreach my $event (@$events)
		{
			my ($session, $bus, $i) = split / /, $event;
			push @twice, "$id: $event" if $seen{$session}{$i}++;
			# the star, too, has the order of each channel: NOTIFY is received by two dispatchers
			my $order = \$last{$session}{$bus}{ $i % $channels };
			push @disorder, "$id: $event" if ($$order // '') ge $i;
			$$order = $i;
		}
		$told ||= $loss;
		@star = @$events if $id eq 'star';
		$came += @$events if $id ne 'star';
	}
	is("@twice", '', "$name: none twice");
	is("@disorder", '', "$name: in order");
	is($came, $expected, "$name: all came") unless $told;
	is(scalar @star, $expected, "$name: to the star, too") unless $told;
	cmp_ok($came, '<=', $expected, "$name: none that was not published") if $told;
	note("$name: $came of $expected came" . ($told ? ', a loss was told' : ''));
	return ($came, $told);
}

foreach my $n ($node, $other)
{
	$n->safe_psql('postgres', join ', ', "SELECT subdispatch.subscribe('*', id => 'star')", map { "subdispatch.subscribe('c$_', id => 'c$_')" } 0 .. $channels - 1);
}

# ---- each change under load
foreach my $change ([ 'memory', 'redis' ], [ 'redis', 'notify' ], [ 'notify', 'memory' ], [ 'memory', 'redis' ], [ 'redis', 'memory' ], [ 'memory', 'notify' ], [ 'notify', 'redis' ])
{
	my ($from, $to) = @$change;
	my $name = "from $from to $to";
	is($node->safe_psql('postgres', 'SHOW subdispatch.event_bus'), $from, $name);
	my @load = begin_load($node, 600);
	poll_until($node, "SELECT sum(pending) > 300 FROM subdispatch.subscriptions WHERE id <> 'star'", 't', "$name: the load is under way");
	set_bus($node, $to);
	foreach my $h (@load) { my (undef, $err) = finish_background($h); is($err, '', "$name: the load ran"); }
	check($node, $name, 1800);
	# what was published by Redis is on the other server, the same for both
	dispatched($other);
	my $by_redis = sent_by_redis();
	check($other, "$name, on the other server", $by_redis - $at_other);
	$at_other = $by_redis;
}

# ---- what waits for Redis goes its way after the change
set_bus($node, 'redis');
dispatched($node);
check($node, 'before Redis is away', 0);
$redis->freeze;
$node->safe_psql('postgres', "SELECT subdispatch.publish('c' || n % 4, to_jsonb('9.1 redis ' || to_char(n, 'FM000000'))) FROM generate_series(1, 200) n");
set_bus($node, 'memory');
$node->safe_psql('postgres', "SELECT subdispatch.publish('c' || n % 4, to_jsonb('9.1 memory ' || to_char(n, 'FM000000'))) FROM generate_series(201, 300) n");
poll_until($node, "SELECT sum(pending) FROM subdispatch.subscriptions WHERE id <> 'star'", 100, 'by memory it goes on without Redis');
$redis->thaw;
eventually('what waited for Redis is there', sub { my $n = sent_by_redis(); return ($n == $at_other + 200, $n) });
check($node, 'queued for Redis', 300);
dispatched($other);
check($other, 'queued for Redis, on the other server', 200);

# ---- who publishes nothing himself: the change alone brings what others publish
my $quiet = start_node('quiet', @bus, event_bus => 'memory');
$quiet->safe_psql('postgres', "SELECT subdispatch.subscribe('c0', id => 's')");
set_bus($quiet, 'redis');
poll_until($quiet, "SELECT subdispatch.health() #>> '{bus,state}'", 'connected', 'a server that publishes nothing begins to read');
$other->safe_psql('postgres', "SELECT subdispatch.publish('c0', '\"9.2 redis 000001\"')");
dispatched($other);
eventually('and gets what others publish', sub { my $r = results($quiet, 's'); return (scalar($r =~ /9\.2 redis/), $r) });

foreach my $n ($node, $other, $quiet)
{
	unlike(slurp_file($n->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
	$n->stop;
}
done_testing();

# event_bus = redis: a bus worker that nobody needs ends, and is there again for the next event or subscription; nothing is
# lost on the way.

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
my @settings = (max_pending => 100000, event_bus => 'redis', redis_url => $redis->url, bus_key => 'a key that is long enough');
my $listener = start_node('listener', @settings);
my $node = start_node('idle', @settings);
if ($node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = 'subdispatch.debug_idle_end'") ne '1')
{
	$_->stop foreach $node, $listener;
	plan skip_all => 'needs subdispatch.debug_idle_end, compiled with -DUSE_ASSERT_CHECKING';
}
$node->append_conf('postgresql.conf', "subdispatch.debug_idle_end = '1s'");
$node->reload;

my $workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'subdispatch%' AND datname = 'postgres'";
sub ends { my ($name) = @_; return poll_until($node, $workers, 0, $name); }
sub worker { return $node->safe_psql('postgres', "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE backend_type = 'subdispatch bus'"); }

$listener->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 'all')");
is(worker(), '0', 'there is no bus worker before the first event');

# ---- where nobody subscribes

$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '1')");
ends('it ends when the event was sent and nobody needs it any more');
is(results($listener, 'all'), '1', 'the event is there');
is($node->safe_psql('postgres', "SELECT subdispatch.health() ->> 'status'"), 'ok', 'without it all is well');
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '2')");
eventually('it comes back for the next event', sub { my $r = $listener->safe_psql('postgres', "SELECT subdispatch.next_response('all', '1s')"); return (scalar($r =~ /"data":2/), $r) });
ends('and ends again');
ok(dispatched($node), 'wait_dispatched() does not wait for a worker that is not needed');

# Events that come just when it ends: one transaction each, a little apart, for as long as it takes to end a few times.
$node->safe_psql('postgres', <<'SQL');
CREATE PROCEDURE trickle(first int, n int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN first .. first + n - 1 LOOP
		PERFORM subdispatch.publish('c', to_jsonb(i));
		COMMIT;
		PERFORM pg_sleep(0.8 + 1.4 * random());
	END LOOP;
END
$$;
SQL
my $log = -s $node->logfile;
my $connections = $node->safe_psql('postgres', 'SELECT bus_connections FROM subdispatch.stats');
$node->safe_psql('postgres', "CALL trickle(3, 20)");
ends('it ends after a trickle of events');
is(results($listener, 'all'), join(' ', 3 .. 22), 'each of which has arrived, once and in order');
cmp_ok($node->safe_psql('postgres', 'SELECT bus_connections FROM subdispatch.stats'), '>', $connections + 2, 'though it ended more than twice meanwhile');

# What finds Redis away keeps it alive.
$redis->stop;
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '63')");
poll_until($node, "SELECT subdispatch.health() #>> '{bus,error}'", qr/could not connect/, 'Redis is away');
my $pid = worker();
$node->safe_psql('postgres', 'SELECT pg_sleep(3)');
is(worker(), $pid, 'with an event to send it does not end');
$redis->start;
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '64')");
eventually('and sends it', sub { my $r = $listener->safe_psql('postgres', "SELECT string_agg(r, ' ') FROM subdispatch.next_responses('all', timeout => '1s') r"); return (scalar($r =~ /"data":64/), $r) });
ends('then it ends');

# ---- with subscriptions

$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
$listener->safe_psql('postgres', "SELECT subdispatch.publish('c', '65')");
eventually('a subscription brings all workers back', sub { my $r = results($node, 's'); return ($r eq '65', $r) });
$pid = worker();
$node->safe_psql('postgres', 'SELECT pg_sleep(3)');
is(worker(), $pid, 'and keeps them');
$listener->safe_psql('postgres', "SELECT subdispatch.publish('c', '66')");
eventually('though no event comes for a while', sub { my $r = results($node, 's'); return ($r eq '66', $r) });
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('s')");
ends('they end with the last one');
$listener->safe_psql('postgres', "SELECT subdispatch.publish('c', '67')");
ok(dispatched($listener), 'what is published meanwhile');
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
$listener->safe_psql('postgres', "SELECT subdispatch.publish('c', '68')");
eventually('is for nobody there: the next subscription begins with what comes then', sub { my $r = results($node, 's'); return ($r eq '68', $r) });
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('s')");

# Subscriptions that come just when the workers end.
foreach my $round (1 .. 12)
{
	ends('the workers end') if $round == 1;
	my $wait = 0.2 + 0.15 * $round;
	my $got = $node->safe_psql('postgres', <<"SQL");
SELECT subdispatch.subscribe('d', id => 'r$round') \\g /dev/null
SELECT subdispatch.publish('d', '$round') \\g /dev/null
CALL subdispatch.await_response('r$round', '60s');
SELECT subdispatch.wait_dispatched('60s') \\g /dev/null
SELECT r::jsonb #>> '{payload,data}' FROM subdispatch.next_responses('r$round') r;
SELECT subdispatch.unsubscribe('r$round') \\g /dev/null
SELECT pg_sleep($wait) \\g /dev/null
SQL
	is($got =~ s/\s//gr, $round, "subscription $round gets its event");
}
unlike(slurp_file($node->logfile, $log), qr/PANIC|TRAP|ERROR|signal 11|signal 6/, 'no error, no crash');
$_->stop foreach $node, $listener;
done_testing();

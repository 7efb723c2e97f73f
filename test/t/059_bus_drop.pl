# event_bus = redis: DROP EXTENSION and DROP DATABASE are not held up by what waits for Redis. What can still be sent is sent;
# what cannot is lost, which whoever drops is told before the commit, the log, and, when there is somebody to tell it, the others.

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
my @settings = (max_pending => 100000, event_bus => 'redis', redis_url => $redis->url, bus_key => 'a key that is long enough', redis_timeout => '500ms');
my $listener = start_node('listener', @settings);
my $node = start_node('dropping', @settings);
# workers that nobody needs end a minute later; here they are to end because of the drop
if ($node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = 'subdispatch.debug_idle_end'") eq '1')
{
	$node->append_conf('postgresql.conf', "subdispatch.debug_idle_end = '1d'");
	$node->reload;
}
$listener->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 'all')");

sub workers_end
{
	my ($name) = @_;
	return poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('subdispatch bus', 'subdispatch dispatcher')", 0, $name);
}
sub publish
{
	my ($from, $to) = @_;
	return join '', map { "SELECT subdispatch.publish('c', '$_');" } $from .. $to;
}
sub arrive
{
	my ($expected, $name) = @_;
	my $got = '';
	return eventually($name, sub {
		my $more = $listener->safe_psql('postgres', "SELECT string_agg(coalesce(r::jsonb #>> '{payload,data}', 'gap'), ' ') FROM subdispatch.next_responses('all', 100000, '1s') r");
		$got .= " $more" if $more ne '';
		return (scalar($got =~ /^ $expected$/), $got) });
}
my $away = sub { $redis->stop; poll_until($node, "SELECT subdispatch.publish('c', '0'); SELECT subdispatch.health() #>> '{bus,error}'", qr/could not connect|closed/, 'Redis is away') };
my $number = 0;

# ---- DROP EXTENSION while Redis is there

my ($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c', id => 's') \\g /dev/null\n" . publish(1, 500) . 'DROP EXTENSION subdispatch');
is($err, '', 'DROP EXTENSION with events on their way');
workers_end('the workers end at once');
arrive(join(' ', 1 .. 500), 'every event was sent');

# a transaction that has published when the extension goes
install_extension($node, 'postgres');
my $session = session($node);
$session->query_safe("BEGIN; SELECT subdispatch.publish('c', '501')");
$node->safe_psql('postgres', 'DROP EXTENSION subdispatch');
$session->query_safe('COMMIT');
$session->quit;
arrive('501', 'what is committed after the drop is sent, too');
workers_end('by a worker that ends then');

# ---- while it is away

install_extension($node, 'postgres');
$node->safe_psql('postgres', publish(502, 502));
arrive('502', 'the extension is there again');
my $log = -s $node->logfile;
$away->();
$node->safe_psql('postgres', publish(503, 504));
my $unsent = $node->safe_psql('postgres', "SELECT backlog FROM subdispatch.workers WHERE kind = 'bus'");
($out, $err) = try_sql($node, "BEGIN;\nDROP EXTENSION subdispatch;\nROLLBACK");
like($err, qr/WARNING:  $unsent committed events have not been sent to Redis and will be lost with the extension/, 'who drops it is told');
is($node->safe_psql('postgres', "SELECT backlog FROM subdispatch.workers WHERE kind = 'bus'"), $unsent, 'and after a rollback nothing is lost');
$redis->start;
# Redis has lost its memory: a gap may be told with the first
arrive('(?:gap )?(?:0 )+503 504', 'they are sent when Redis is back');

$away->();
$node->safe_psql('postgres', publish(505, 507));
my $memory = memory_in_use($node);
($out, $err) = try_sql($node, 'DROP EXTENSION subdispatch');
like($err, qr/WARNING:  \d+ committed events have not been sent/, 'DROP EXTENSION with Redis away is not held up');
workers_end('the workers end');
like(slurp_file($node->logfile, $log), qr/LOG:  subdispatch's Redis bus: \d+ committed events were not sent before the extension was dropped/, 'the log tells what is lost');
# committed after that
install_extension($node, 'postgres');
$session = session($node);
$session->query_safe("BEGIN; SELECT subdispatch.publish('c', '508')");
$node->safe_psql('postgres', 'DROP EXTENSION subdispatch');
$session->query_safe('COMMIT');
$session->quit;
eventually('what is committed after the drop is lost, too', sub { my $text = slurp_file($node->logfile, $log); return (scalar($text =~ /bus: 1 committed events were not sent before/), $text) });
workers_end('with a worker that ends then');
install_extension($node, 'postgres');
cmp_ok(memory_in_use($node), '<', $memory, 'memory is given back');
$redis->start;
$node->safe_psql('postgres', publish(509, 510));
arrive('(?:gap )?509(?: gap)? 510(?: gap)?', 'others hear of the next events');
eventually('and of the gap', sub { my $n = $listener->safe_psql('postgres', 'SELECT bus_gaps FROM subdispatch.stats'); return ($n > 0, $n) });

# ---- while it hangs: events are under way

$redis->freeze;
$node->safe_psql('postgres', publish(511, 520));
($out, $err) = try_sql($node, 'DROP EXTENSION subdispatch');
is($err =~ s/^.*WARNING:  \d+ committed events .*$//mr, '', 'DROP EXTENSION with a Redis that hangs');
workers_end('the workers end with the time limit');
$redis->thaw;
install_extension($node, 'postgres');
# what was on the way arrives, once, or is told as missing
$node->safe_psql('postgres', publish(521, 521));
my $got = '';
eventually('then it goes on', sub {
	$got .= ' ' . $listener->safe_psql('postgres', "SELECT string_agg(coalesce(r::jsonb #>> '{payload,data}', 'gap'), ' ') FROM subdispatch.next_responses('all', 100000, '1s') r");
	return (scalar($got =~ / 521\b/), $got) });
my @numbers = grep { /^\d+$/ } split ' ', $got;
is(join(' ', @numbers), join(' ', grep { my $n = $_; grep { $_ == $n } @numbers } 511 .. 521), 'nothing comes twice or out of order');

# ---- DROP DATABASE

$node->safe_psql('postgres', "CREATE DATABASE doomed");
install_extension($node, 'doomed');
$listener->safe_psql('postgres', 'CREATE DATABASE doomed');
install_extension($listener, 'doomed');
$listener->safe_psql('doomed', "SELECT subdispatch.subscribe('c', id => 'all')");
$node->safe_psql('doomed', publish(1, 300));
($out, $err) = try_sql($node, 'DROP DATABASE doomed');
is($err, '', 'DROP DATABASE with events on their way');
is(results($listener, 'all', 'doomed'), join(' ', 1 .. 300), 'which have arrived');
$node->safe_psql('postgres', 'CREATE DATABASE doomed');
install_extension($node, 'doomed');
$away->();
$memory = memory_in_use($node);
$node->safe_psql('doomed', publish(1, 300));
($out, $err) = try_sql($node, 'DROP DATABASE doomed');
like($err, qr/^\S*\s*WARNING:  300 committed events have not been sent to Redis and will be lost with the database$/, 'DROP DATABASE with Redis away is not held up, and says what is lost') or diag($err);
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_database WHERE datname = 'doomed'"), '0', 'it is gone');
eventually('with what it had in memory', sub { my $now = memory_in_use($node); return ($now <= $memory, "$now of $memory") });

$_->stop foreach $node, $listener;
unlike(slurp_file($_->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash of ' . $_->name) foreach $node, $listener;
done_testing();

# event_bus = redis: a server that is shut down sends what Redis still takes, and is not held up by one that takes nothing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RedisTest;
use SubdispatchTest;
use Test::More;

my $redis = RedisTest->new;
my @settings = (max_pending => 100000, event_bus => 'redis', redis_url => $redis->url, bus_key => 'a key that is long enough');
my $listener = start_node('listener', @settings);
my $node = start_node('ending', @settings);
$listener->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 'all')");

my $got = '';
sub arrive
{
	my ($expected, $name) = @_;
	return eventually($name, sub {
		my $more = $listener->safe_psql('postgres', "SELECT string_agg(coalesce(r::jsonb #>> '{payload,data}', 'gap'), ' ') FROM subdispatch.next_responses('all', 100000, '1s') r");
		$got .= " $more" if $more ne '';
		return (scalar($got =~ /$expected$/), $got) });
}
sub publish { return join '', map { "SELECT subdispatch.publish('c', '$_');" } @_; }

foreach my $mode ('fast', 'smart')
{
	$node->safe_psql('postgres', publish(0));
	arrive(' 0', "before a shutdown that is $mode");
	$got = '';
	# so that all of it still waits when the server is told to end
	$redis->freeze;
	$node->safe_psql('postgres', publish(1 .. 300));
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		select undef, undef, undef, 0.2;
		$redis->thaw;
		POSIX::_exit(0);
	}
	$node->stop($mode);
	waitpid $pid, 0;
	arrive(' ' . join(' ', 1 .. 300), 'what was committed before it is sent');
	$node->start;
}

# Redis takes nothing any more
$node->safe_psql('postgres', publish(0));
arrive(' 0', 'before Redis hangs');
$redis->freeze;
$node->safe_psql('postgres', publish(1 .. 5));
my $log = -s $node->logfile;
$node->stop;
like(slurp_file($node->logfile, $log), qr/LOG:  subdispatch's Redis bus: the worker ends before 5 committed events were sent/, 'what is lost is told');
$redis->thaw;

# a worker that alone is ended leaves them to the next one
$node->start;
$node->safe_psql('postgres', publish(0));
arrive(' 0', 'there again');
$got = '';
$redis->freeze;
$node->safe_psql('postgres', publish(1 .. 5));
my $worker = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'subdispatch bus'");
is($node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, 60000)"), 't', 'a worker is ended while Redis hangs');
$redis->thaw;
arrive(' 1 2 3 4 5', 'and the next one sends what it had');
is($got =~ s/[^ ]+ ?/x/gr, ' xxxxx', 'once');

$_->stop foreach $node, $listener;
unlike(slurp_file($_->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash of ' . $_->name) foreach $node, $listener;
done_testing();

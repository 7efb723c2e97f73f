# event_bus = redis and a Redis cluster, of real nodes: the node that has the key serves as any Redis; what another one says is
# shown, and what was committed waits until the URL names the right one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IO::Socket::INET;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RedisTest;
use SubdispatchTest;
use Test::More;

sub free_port
{
	my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', Proto => 'tcp') // die "listen: $!";
	return $s->sockport;
}

sub cluster_node
{
	my $port = free_port();
	return RedisTest->new('port' => $port, 'bind' => '127.0.0.1', 'cluster-enabled' => 'yes', 'cluster-port' => free_port(), 'cluster-node-timeout' => 3000);
}

my @nodes = map { cluster_node() } 1 .. 3;
my $key = 'subdispatch:{postgres}:events';
my $slot = $nodes[0]->cli('CLUSTER', 'KEYSLOT', $key);
is($nodes[0]->cli('CLUSTER', 'KEYSLOT', 'subdispatch:{postgres}:state'), $slot, 'both keys of a database have one slot');
my %id = map { $_ => $_->cli('CLUSTER', 'MYID') } @nodes;

my $pg = start_node('a', max_pending => 100000, event_bus => 'redis', redis_url => $nodes[0]->url, bus_key => 'a key that is long enough',
	redis_timeout => '1s');
my $number = 0;
my @expected;

sub set_url { my ($url) = @_; $pg->append_conf('postgresql.conf', "subdispatch.redis_url = '$url'"); $pg->reload; return; }
sub publish { my $n = ++$number; $pg->safe_psql('postgres', "SELECT subdispatch.publish('c', '$n')"); push @expected, $n; return; }
sub tells
{
	my ($name, $pattern) = @_;
	return poll_until($pg, "SELECT subdispatch.health() #>> '{bus,error}'", $pattern, "$name: health() tells");
}
sub all_arrive
{
	my ($name) = @_;
	publish();
	my $got = results($pg, 's');
	is($got, join(' ', @expected), "$name: every event arrives, once and in order");
	@expected = ();
	return;
}
sub settle
{
	my ($name, $state) = @_;
	return eventually($name, sub { my $all = join ' ', map { $_->cli('CLUSTER', 'INFO') =~ /cluster_state:(\w+)/ ? $1 : '?' } @nodes; return (scalar($all =~ /^(?:$state ?)+$/), $all) });
}

# ---- one node without slots, then with all of them

tells('no slots', qr/^the Redis cluster is down: .*CLUSTERDOWN/) if try_sql($pg, "SELECT subdispatch.subscribe('c', id => 's')");
publish();
$nodes[0]->cli('CLUSTER', 'ADDSLOTSRANGE', 0, 16383);
eventually('one node has all slots', sub { my $i = $nodes[0]->cli('CLUSTER', 'INFO'); return (scalar($i =~ /cluster_state:ok/), $i) });
poll_until($pg, "SELECT state FROM subdispatch.workers WHERE kind = 'bus'", 'running', 'it is connected');
# it subscribed before the bus worker had a position: what it missed before is told
my $first = results($pg, 's');
like($first, qr/^(?:next )?1$/, 'a cluster of one node is as good as any Redis') or diag($first);
@expected = ();
all_arrive('one node');
set_url("unix://$nodes[0]{socket}?db=1");
tells('another database', qr/SELECT is not allowed in cluster mode/);
publish();
set_url($nodes[0]->url);
all_arrive('the database of a cluster');

# ---- three nodes

my ($other, $target) = @nodes[1, 2];
$nodes[0]->cli('CLUSTER', 'MEET', '127.0.0.1', $_->{options}{port}, $_->{options}{'cluster-port'}) foreach $other, $target;
settle('three nodes', 'ok');
all_arrive('three nodes');
set_url($other->url);
publish();
tells('not the key\'s node', qr/^this is a node of a Redis cluster that has the key elsewhere: MOVED $slot 127\.0\.0\.1:$nodes[0]{options}{port}/);
is($pg->safe_psql('postgres', "SELECT state FROM subdispatch.workers WHERE kind = 'bus'"), 'disconnected', 'so does workers');
is($pg->safe_psql('postgres', "SELECT subdispatch.health() ->> 'status' <> 'ok'"), 't', 'which is not ok');
like(slurp_file($pg->logfile), qr/subdispatch's Redis bus: this is a node of a Redis cluster that has the key elsewhere/, 'and the log');
set_url($nodes[0]->url);
all_arrive('the key\'s node');

# ---- the slot moves, under load

my $load = background($pg, join '', map { push @expected, ++$number; "SELECT subdispatch.publish('c', '$number'); SELECT pg_sleep(0.01);" } 1 .. 500);
$target->cli('CLUSTER', 'SETSLOT', $slot, 'IMPORTING', $id{$nodes[0]});
$nodes[0]->cli('CLUSTER', 'SETSLOT', $slot, 'MIGRATING', $id{$target});
$nodes[0]->cli('MIGRATE', '127.0.0.1', $target->{options}{port}, 'subdispatch:{postgres}:state', 0, 10000);
tells('half of it has moved', qr/^(?:the Redis cluster|this is a node of a Redis cluster that) (?:is moving|moves) the key: (?:TRYAGAIN|ASK)/);
$nodes[0]->cli('MIGRATE', '127.0.0.1', $target->{options}{port}, $key, 0, 10000);
tells('all of it has moved', qr/^this is a node of a Redis cluster that moves the key: ASK $slot/);
$_->cli('CLUSTER', 'SETSLOT', $slot, 'NODE', $id{$target}) foreach $target, $nodes[0], $other;
tells('it has a new node', qr/has the key elsewhere: MOVED $slot 127\.0\.0\.1:$target->{options}{port}/);
my (undef, $err) = finish_background($load);
is($err, '', 'nobody who published was held up');
set_url($target->url);
all_arrive('the new node');

# ---- a part of it is down

$nodes[0]->stop('KILL');
eventually('the others know', sub { my $i = $target->cli('CLUSTER', 'INFO'); return (scalar($i =~ /cluster_state:fail/), $i) });
publish();
tells('another node is down', qr/^the Redis cluster is down: .*CLUSTERDOWN/);
$nodes[0]->start;
settle('all are back', 'ok');
all_arrive('the cluster is back');
is($pg->safe_psql('postgres', 'SELECT bus_repeated FROM subdispatch.stats'), '0', 'nothing was sent twice');

$pg->stop('fast');
unlike(slurp_file($pg->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
done_testing();

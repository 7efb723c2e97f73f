# A dispatcher whose process gets no more memory: that costs events, which is told, and never more than that.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

plan skip_all => 'needs prlimit of util-linux' unless grep { -x "$_/prlimit" } split /:/, $ENV{PATH};

my $many = 20000;
my $node = start_node('memory', dispatchers => 1, listen_channels => '', max_subscriptions => 30000, shared_memory_size => '256MB', event_history_size => 0);
$node->safe_psql('postgres', <<"SQL");
CREATE FUNCTION plain(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT variables';
SELECT subdispatch.subscribe('few', 'plain', id => 'few');
SELECT count(subdispatch.subscribe('many', 'plain', jsonb_build_object('n', n), id => 'm' || n, consumer => 'all')) FROM generate_series(1, $many) n;
SELECT subdispatch.publish('few', '1');
SQL
is(results($node, 'few'), '{}', 'events are dispatched');
my ($pid) = dispatcher_pids($node);

# Resolvers of as many streams need some memory that the dispatcher has not had yet.
slurp_file("/proc/$pid/status") =~ /VmSize:\s+(\d+) kB/ or die 'no VmSize';
my $size = $1;
my $lost = 0;
# A little more each time: it runs short in one place after the other.
foreach my $more (map { $_ * 64 } 0 .. 12)
{
	my $bytes = ($size + $more) * 1024;
	system('prlimit', '--pid', $pid, "--as=$bytes:") == 0 or die 'prlimit failed';
	$node->safe_psql('postgres', "SELECT subdispatch.publish('many', '1')");
	ok(dispatched($node), "$more kB: the event is dealt with");
	my ($got, $told) = (0, 0);
	eventually("$more kB: each has it, or is told that something is missing", sub {
		my ($n, $losses) = split /\|/, $node->safe_psql('postgres', "SELECT count(event_id), count(*) FILTER (WHERE dropped IS NULL OR dropped > 0) FROM subdispatch.poll('all', 100000, max_bytes => 100000000)");
		$got += $n;
		$told += $losses;
		return ($got + $told >= $many, "$got have it, $told were told");
	});
	note("$more kB: $got have it, $told were told");
	$lost += $told > 0;
}
cmp_ok($lost, '>', 0, 'there was too little memory');
is(system('prlimit', '--pid', $pid, '--as=unlimited:'), 0, 'there is memory again');
$node->safe_psql('postgres', "SELECT subdispatch.publish('many', '2')");
ok(dispatched($node), 'dispatched');
is($node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.poll('all', 100000, max_bytes => 100000000) WHERE event_id IS NOT NULL"), $many, 'all have the next event');
is((dispatcher_pids($node))[0], $pid, 'by the same dispatcher');
unlike(slurp_file($node->logfile), qr/terminated by signal/, 'and no process has crashed');
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('few'), subdispatch.close_consumer('all')");
is(memory_in_use($node), 0, 'all memory is back');
$node->stop;
done_testing();

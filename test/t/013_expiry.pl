# subscription_idle_timeout and subscription_max_lifetime: who ends, who stays, and that the memory comes back.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('expiry', subscription_idle_timeout => '3s');
my $before = memory_in_use($node);
$node->safe_psql('postgres', <<'SQL');
SELECT subdispatch.subscribe('c', id => 'idle', operation_id => 'op');
SELECT subdispatch.subscribe('c', id => 'polled');
SELECT subdispatch.subscribe('c', id => 'of a consumer', consumer => 'polled');
SELECT subdispatch.subscribe('c', id => 'of an idle one', consumer => 'idle');
SELECT subdispatch.subscribe('c', id => 'waited on', consumer => 'waited on');
SELECT subdispatch.open_consumer('empty and idle');
SELECT subdispatch.publish('c', '1');
SQL
my $waiting = background($node, "CALL subdispatch.await_responses('waited on', '1h'); SELECT count(*) FROM subdispatch.poll('waited on'); CALL subdispatch.await_responses('waited on', '1h'); SELECT 'woken'");
# Polling keeps the one and its consumer's; 'idle' is looked at by nobody, while a view shows it.
my $alive = "SELECT string_agg(id, ',' ORDER BY id) FROM subdispatch.subscriptions WHERE state = (SELECT state FROM subdispatch.subscriptions WHERE id = 'polled')";
my ($seen, $ended) = ('', 0);
my $end = time + $SubdispatchTest::patience;
while (time < $end)
{
	$node->safe_psql('postgres', "SELECT subdispatch.next_response('polled'); SELECT count(*) FROM subdispatch.poll('polled')");
	$seen = $node->safe_psql('postgres', $alive);
	if ($seen eq 'of a consumer,polled,waited on') { $ended++; last if $ended > 10; }
	select undef, undef, undef, 0.3;
}
is($seen, 'of a consumer,polled,waited on', 'those that nobody polls end, the others stay, also where one only waits');
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '2')");
my ($out, $err) = finish_background($waiting);
like($out, qr/woken/, 'who waited for longer than the idle timeout is woken') or diag($err);
# What ended is told, or is gone when that long again has passed.
($out, $err) = try_sql($node, "\\set VERBOSITY sqlstate\nSELECT r::jsonb->>'type' FROM subdispatch.next_responses('idle') r");
ok($err =~ /42704/ || $out =~ /error$/, 'an expired subscription ends with an error as its last message, or is gone') or diag("$out $err");
foreach my $consumer ('idle', 'empty and idle')
{
	eventually("the consumer \"$consumer\" is gone", sub { ($out, $err) = try_sql($node, "\\set VERBOSITY sqlstate\nSELECT count(*) FROM subdispatch.consumers WHERE consumer = '$consumer'"); return ($out eq '0', $out) });
}
# Polled by nobody any more, all end, and the memory comes back.
poll_until($node, 'SELECT count(*) FROM subdispatch.subscriptions', '0', 'in the end nothing is left');
eventually('and the memory is back', sub { my $m = memory_in_use($node) // -1; return ($m <= $before, "$m, before $before") });
$node->stop;

# An ended one keeps its queue and last message, at most as long again: read at once, they are there.
$node = start_node('lifetime', subscription_max_lifetime => '3s', subscription_idle_timeout => '1h');
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's', operation_id => 'op', consumer => 'g'); SELECT subdispatch.publish('c', '1')");
my $said = $node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.next_response('s', '60s'); SELECT subdispatch.next_response('s', '100s')");
like($said, qr/\{"type":"error","id":"op","payload":\[\{.*"message".*"extensions":\s*\{.*"code"/, 'a subscription that is too old ends with an error, and a reader that waits is woken by it');
($out, $err) = try_sql($node, "\\set VERBOSITY sqlstate\nSELECT subdispatch.next_response('s')");
like($err, qr/42704/, 'then it is gone');
($out, $err) = try_sql($node, "SELECT count(*) FROM subdispatch.poll('g')");
is($out, '0', 'its consumer stays') or diag($err);
($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c', id => 's')");
is($out, 's', 'the id can be had again') or diag($err);
$node->stop;

done_testing();

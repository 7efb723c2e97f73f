# Waiting: without a snapshot, woken at once, cancelled, terminated.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('await');
# Far longer than this test may take: who is not woken fails it.
my $long = '10h';

sub wait_state
{
	my ($pid) = @_;
	return "SELECT state || ' ' || (wait_event IS NOT NULL AND wait_event_type <> 'Client') || ' ' || coalesce(backend_xmin::text, 'no xmin') || ' ' || coalesce(backend_xid::text, 'no xid') FROM pg_stat_activity WHERE pid = $pid";
}

$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's', consumer => 'g')");
foreach my $call ("subdispatch.await_response('s', '$long')", "subdispatch.await_responses('g', '$long')")
{
	my ($name) = $call =~ /(await_\w+)/;
	foreach my $begin ('', 'BEGIN; SELECT 1;', 'BEGIN; SELECT count(*) FROM pg_class;')
	{
		my $how = $begin ? "$name after $begin" : $name;
		my $s = session($node);
		my $pid = $s->query_safe('SELECT pg_backend_pid()');
		$s->query_until(qr/waiting/, "\\echo waiting\n$begin CALL $call;\n\\echo returned\n");
		poll_until($node, wait_state($pid), 'active true no xmin no xid', "$how waits with a wait event, without a snapshot");
		is($node->safe_psql('postgres', "SELECT waiting_pid FROM subdispatch.consumers WHERE consumer = 'g'"), $pid, "$how: consumers shows who waits") if $name eq 'await_responses';
		$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '1')");
		$s->query_until(qr/returned/, "\n");
		pass("$how: a commit wakes it");
		is($s->query_safe("SELECT subdispatch.next_response('s')::jsonb #> '{payload,data}'"), '1', "$how: then it reads, with timeout 0");
		$s->query_safe('COMMIT') if $begin;
		$s->quit;
	}

	# Vacuum is not held back meanwhile.
	my $s = session($node);
	my $pid = $s->query_safe('SELECT pg_backend_pid()');
	$s->query_until(qr/waiting/, "\\echo waiting\nCALL $call;\n");
	poll_until($node, wait_state($pid), 'active true no xmin no xid', "$name waits");
	$node->safe_psql('postgres', "CREATE TABLE IF NOT EXISTS vacuumed (id int); INSERT INTO vacuumed SELECT generate_series(1, 100); DELETE FROM vacuumed");
	my ($out, $err) = ('', '');
	$node->psql('postgres', 'VACUUM (VERBOSE) vacuumed', stdout => \$out, stderr => \$err);
	like($err, qr/100 removed, 0 remain|0 are dead but not yet removable/, "$name does not hold back vacuum");
	$node->safe_psql('postgres', 'DROP TABLE vacuumed');

	# Cancelled: an error, and the session goes on.
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	my ($answer) = $s->query('SELECT 2 + 3');
	like($answer, qr/5$/, "$name: cancelled, the session goes on");
	like($s->{stderr}, qr/cancel/, "$name: with an error");
	$s->{stderr} = '';
	is($s->query_safe("SELECT count(*) FROM pg_class WHERE relname = 'pg_class'"), '1', "$name: and can query");

	# A statement timeout counts.
	my ($err2) = (try_sql($node, "SET statement_timeout = '200ms'; CALL $call"))[1];
	like($err2, qr/statement timeout/, "$name: statement_timeout ends it");

	# Terminated: it ends with its backend, and nothing of it stays.
	$s->query_until(qr/waiting/, "\\echo waiting\nCALL $call;\n");
	poll_until($node, wait_state($pid), 'active true no xmin no xid', "$name waits again");
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", '0', "$name: ends with its backend");
	poll_until($node, "SELECT count(waiting_pid) FROM subdispatch.consumers", '0', "$name: consumers shows nobody any more");
	eval { $s->quit };
}

# The functions wait as well: woken at once, cancelled, ended by what ends the subscription.
foreach my $call ("next_response('s', '$long')", "next_responses('s', 1, '$long')", "poll('g', 1, '$long')", "poll_shared('g', 1, '$long')")
{
	my $h = background($node, "SELECT 'woken' FROM subdispatch.$call");
	poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%woken%' AND pid <> pg_backend_pid() AND wait_event IS NOT NULL AND wait_event_type <> 'Client'", '1', "$call waits");
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '1')");
	my ($out, $err) = finish_background($h);
	is($out, "woken\n", "$call is woken") or diag($err);

	$h = background($node, "SELECT 'cancelled' FROM subdispatch.$call");
	poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%cancelled%' AND pid <> pg_backend_pid() AND wait_event IS NOT NULL AND wait_event_type <> 'Client'", '1', "$call waits again");
	$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%cancelled%' AND pid <> pg_backend_pid()");
	($out, $err) = finish_background($h);
	like($err, qr/cancel/, "$call can be cancelled");
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '2')");
	is(results($node, 's'), '2', 'and took nothing with it');
}
# Two that wait take turns: each response goes to one of them, whether they read the consumer or the subscription.
foreach my $pair ([ "poll('g', 1, '$long')", "poll('g', 1, '$long')" ], [ "next_response('s', '$long')", "poll('g', 1, '$long')" ], [ "next_response('s', '$long')", "next_responses('s', 1, '$long')" ])
{
	my $names = join ' and ', map { /(\w+)/ } @$pair;
	my @readers = map { background($node, "SELECT 'waits: ' || x::text FROM subdispatch.$_ x") } @$pair;
	poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%waits: %' AND pid <> pg_backend_pid() AND wait_event IS NOT NULL AND wait_event_type <> 'Client'", '2', "$names wait");
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '\"first one\"')");
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '\"second one\"')");
	my @got = map { (finish_background($_))[0] } @readers;
	is(scalar(grep { /first one/ } @got), 1, "$names: one of them has the first");
	is(scalar(grep { /second one/ } @got), 1, "$names: one of them has the second");
	isnt($got[0], $got[1], "$names: not the same one");
	is(results($node, 's'), '', "$names: nothing is left");
}
foreach my $end ("unsubscribe('t')", "disconnect('ws')", "close_consumer('h')", "open_consumer('h')")
{
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('d', id => 't', consumer => 'h', connection_id => 'ws')");
	my $h = background($node, "\\set VERBOSITY sqlstate\nSELECT 'ended' FROM subdispatch.next_response('t', '$long')");
	poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%ended%' AND pid <> pg_backend_pid() AND wait_event IS NOT NULL AND wait_event_type <> 'Client'", '1', "one waits for $end");
	$node->safe_psql('postgres', "SELECT subdispatch.$end");
	my ($out, $err) = finish_background($h);
	like($err, qr/42704/, "$end ends the wait");
}
# Sessions that wait for something else sleep on. Places to wait are shared by chance, so one or another may wake.
SKIP:
{
	my ($idle, $busy, $events) = (40, 40, 20);
	skip 'no /proc to count wake-ups with', 1 unless -r '/proc/self/status';
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('idle', consumer => 'idle' || i, response_key => 'idle' || i) FROM generate_series(1, $idle) i");
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('busy', consumer => 'busy' || i, response_key => 'busy' || i) FROM generate_series(1, $busy) i");
	my @waiting = map { background($node, "CALL subdispatch.await_responses('idle$_', '$long')") } 1 .. $idle;
	my $who = "FROM subdispatch.consumers JOIN pg_stat_activity ON pid = waiting_pid AND wait_event_type = 'Extension' WHERE consumer LIKE 'idle%'";
	poll_until($node, "SELECT count(*) $who", $idle, "$idle sessions wait");
	my @pids = split /\n/, $node->safe_psql('postgres', "SELECT waiting_pid $who");
	my $sleeps = sub { return map { slurp_file("/proc/$_/status") =~ /^voluntary_ctxt_switches:\s*(\d+)/m ? $1 : 0 } @pids };
	my @before = $sleeps->();
	$node->safe_psql('postgres', "SELECT subdispatch.publish('busy', '1'); SELECT subdispatch.wait_dispatched('180s')") for 1 .. $events;
	my @after = $sleeps->();
	my $woken = grep { $after[$_] - $before[$_] >= $events } 0 .. $#pids;
	cmp_ok($woken, '<=', 5, "$woken of $idle waiting sessions were woken by events of $busy other consumers");
	$node->safe_psql('postgres', "SELECT subdispatch.publish('idle', '1')");
	finish_background($_) foreach @waiting;
	$node->safe_psql('postgres', "SELECT subdispatch.close_consumer(consumer) FROM subdispatch.consumers WHERE consumer ~ '^(idle|busy)'");
}
# wait_dispatched waits, too, and is cancelled. A resolver holds the dispatcher for its second.
my $h = background($node, "SELECT subdispatch.subscribe('d', id => 'u'); SELECT pg_sleep(600), 'sleeps'");
poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleeps%' AND pid <> pg_backend_pid() AND wait_event = 'PgSleep'", '1', 'a session sleeps');
is($node->safe_psql('postgres', "SELECT subdispatch.wait_dispatched('60s')"), 't', 'wait_dispatched does not wait for idle sessions');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%sleeps%' AND pid <> pg_backend_pid()");
finish_background($h);
$h = background($node, "BEGIN; SELECT subdispatch.publish('c', '3'); SELECT pg_sleep(600), 'open'");
poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%open%' AND pid <> pg_backend_pid() AND wait_event = 'PgSleep'", '1', 'a transaction with an event stays open');
is($node->safe_psql('postgres', "SELECT subdispatch.wait_dispatched('60s')"), 't', 'wait_dispatched does not wait for what is not committed');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%open%' AND pid <> pg_backend_pid()");
finish_background($h);
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
$node->stop;

done_testing();

# Reload, termination, every way of stopping, crashes: what the workers do, and what becomes of subscriptions.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('lifecycle', resolver_timeout => '5s', '.restart_after_crash' => 'on', '.autovacuum' => 'off');

# The dispatchers of a database that nobody subscribes in any more end after a minute: begun here, looked at in the end.
my $idle = start_node('idle');
$idle->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
isnt(scalar(dispatcher_pids($idle)), 0, 'a first subscribe() starts dispatchers');
$idle->safe_psql('postgres', "SELECT subdispatch.unsubscribe('s')");

# What every start must give.
sub works
{
	my ($name) = @_;
	my ($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c', id => 'fresh')");
	is($out, 'fresh', "$name: subscribe works") or diag($err);
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', to_jsonb(n)) FROM generate_series(1, 3) n");
	is(results($node, 'fresh'), '1 2 3', "$name: events arrive");
	$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('fresh')");
}

sub gone
{
	my ($id, $name) = @_;
	my ($out, $err) = try_sql($node, "\\set VERBOSITY sqlstate\nSELECT subdispatch.next_response('$id')");
	like($err, qr/42704/, "$name: its readers are told that the subscription is gone");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM subdispatch.subscriptions'), '0', "$name: no subscription is left");
}

is($node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.workers WHERE kind = 'dispatcher'"), '0', 'nothing runs before a first subscribe()');
works('first start');

# Reload: settings take effect, the workers stay.
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
my @pids = dispatcher_pids($node);
$node->safe_psql('postgres', 'ALTER SYSTEM SET subdispatch.omit_null_errors = on');
$node->reload;
eventually('a reload reaches the dispatchers', sub {
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '1')");
	my $r = $node->safe_psql('postgres', "SELECT subdispatch.next_response('s', '20s')");
	return ($r !~ /errors/, $r);
});
is_deeply([ dispatcher_pids($node) ], \@pids, 'and leaves them running');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET subdispatch.omit_null_errors');
$node->reload;

# Workers can be told apart from others, and what they wait for can be seen.
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity a JOIN subdispatch.workers w USING (pid) WHERE w.kind = 'dispatcher' AND (a.backend_type !~ 'subdispatch' OR a.datname IS NULL)"),
	'0', 'pg_stat_activity names the dispatchers');
poll_until($node, "SELECT bool_and(wait_event_type IS NOT NULL AND wait_event IS NOT NULL) FROM pg_stat_activity a JOIN subdispatch.workers w USING (pid)", 't',
	'workers that wait show a wait event');

# Terminate: another takes over, nothing is lost.
results($node, 's');
terminate_dispatchers($node);
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', to_jsonb(n)) FROM generate_series(1, 100) n");
is(results($node, 's'), join(' ', 1 .. 100), 'events published while dispatchers were terminated arrive, once and in order');
my @new_pids = dispatcher_pids($node);
is(scalar(@new_pids), scalar(@pids), 'as many dispatchers as before');
isnt("@new_pids", "@pids", 'and they are others');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM subdispatch.workers WHERE kind = 'launcher'");
poll_until($node, "SELECT count(*) FROM pg_stat_activity a JOIN subdispatch.workers w USING (pid) WHERE w.kind = 'launcher'", '1', 'the launcher is started again when it was terminated');
terminate_dispatchers($node);
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', to_jsonb(n)) FROM generate_series(1, 10) n");
is(results($node, 's'), join(' ', 1 .. 10), 'a launcher that was started again starts dispatchers again');

# A cancel is for a query; it ends no worker.
@pids = dispatcher_pids($node);
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM subdispatch.workers");
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '11')");
is(results($node, 's'), '11', 'a cancelled dispatcher goes on');

# Fast and immediate stop while one waits and a resolver runs.
my $sleeper = <<'SQL';
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS plpython3u;
CREATE OR REPLACE FUNCTION sleeps(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u AS $$
import time
time.sleep(60)
$$;
SQL
$node->safe_psql('postgres', $sleeper);
foreach my $mode ('fast', 'immediate')
{
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('slow', 'sleeps', id => 'slow'); SELECT subdispatch.subscribe('quiet', id => 'waiting'); SELECT subdispatch.publish('slow', '1')");
	my $waiting = background($node, "SELECT subdispatch.next_response('waiting', '1h')");
	poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%next_response(''waiting''%' AND pid <> pg_backend_pid() AND wait_event IS NOT NULL", '1', "$mode stop: one waits");
	ok($node->stop($mode, fail_ok => 1), "$mode stop ends the server while a resolver runs and one waits");
	my ($out, $err) = finish_background($waiting);
	like($err, qr/terminat|closed|crash|shut|lost/i, "$mode stop: who waits is told");
	$node->start;
	gone('s', "$mode stop");
	works("start after a $mode stop");
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
}
$node->restart;
works('start after a restart');

# kill -9 of a backend, and of a dispatcher: the server restarts by itself, the subscriptions are gone.
foreach my $victim ('a backend', 'a dispatcher')
{
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
	my $session = background($node, "SELECT 'victim', pg_sleep(600)");
	poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%victim%sleep%' AND pid <> pg_backend_pid()", '1', "kill -9 of $victim: a session is there");
	my $pid = $victim eq 'a backend'
	  ? $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE query LIKE '%victim%sleep%' AND pid <> pg_backend_pid()")
	  : (dispatcher_pids($node))[0];
	kill 'KILL', $pid;
	finish_background($session);
	eventually("kill -9 of $victim: the server comes back", sub { server_is_up($node) });
	gone('s', "kill -9 of $victim");
	eventually("kill -9 of $victim: subscribe works again", sub {
		my ($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c', id => 's')");
		return ($out eq 's', $err);
	});
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '1')");
	is(results($node, 's'), '1', "kill -9 of $victim: and events arrive");
	$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('s')");
}

# The postmaster's death ends every worker.
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
my @workers = split /\n/, $node->safe_psql('postgres', "SELECT pid FROM subdispatch.workers WHERE pid IS NOT NULL");
cmp_ok(scalar(@workers), '>=', 2, 'a launcher and dispatchers run');
$node->kill9;
eventually('they end with the postmaster', sub {
	my @alive = grep { kill 0, $_ } @workers;
	return (!@alive, "@alive");
});
$node->start;
gone('s', 'kill -9 of the postmaster');
works('start after the death of the postmaster');

# Nothing worse than what was provoked is in the log.
my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC|TRAP|segmentation|signal 11|signal 6/i, 'no crash but those that were asked for');

poll_until($idle, "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'subdispatch' AND datname = 'postgres'", '0', 'dispatchers end a minute after the last subscription');
$idle->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's'); SELECT subdispatch.publish('c', '1')");
is(results($idle, 's'), '1', 'and start again with the next');
$idle->stop;
$node->stop;

done_testing();

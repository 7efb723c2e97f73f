# Errors and deaths at every stage of an event: they cost who caused them, and nothing that was committed is lost.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

# Without LISTEN: what was NOTIFYed while no dispatcher listened is lost, and may be told as such.
my $node = start_node('errors', listen_channels => '', resolver_timeout => '5s', dispatchers => 2, max_pending => 100000, publish_timeout => '60s', '.log_min_messages' => 'info');
$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE EXTENSION plpython3u;
CREATE EXTENSION jsonb_plpython3u;
CREATE TABLE calls (n int);
CREATE FUNCTION noted(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.calls VALUES ((event->'data')::int);
  RETURN event->'data';
END $$;
SQL

# Dispatchers are terminated again and again while events are published: each event arrives once, in order, and each
# resolver's effect is committed once.
$node->safe_psql('postgres', <<'SQL');
SELECT subdispatch.subscribe('c', id => 'plain');
SELECT subdispatch.subscribe('c', 'noted', id => 'resolved');
SELECT subdispatch.subscribe('*', id => 'star');
SQL
my $events = 3000;
my $publisher = background($node, "DO \$\$ BEGIN FOR n IN 1..$events LOOP PERFORM subdispatch.publish('c', to_jsonb(n)); COMMIT; IF n % 10 = 0 THEN PERFORM pg_sleep(0.02); END IF; END LOOP; END \$\$;\nSELECT 'published';");
my $kills = 0;
my $done = 0;
my $published = 0;
while ($kills < 200)
{
	terminate_dispatchers($node);
	$kills++;
	$published ||= background_output($publisher) =~ /published/;
	last if $published && $kills > 10;
	# An event over which dispatchers die more than three times is given up, whoever ended them. On a busy machine a new one
	# may be at its first event for longer than this loop takes, so each is given the time for one.
	for (1 .. 200)
	{
		select undef, undef, undef, 0.05;
		my $now = $node->safe_psql('postgres', 'SELECT events_dispatched FROM subdispatch.stats');
		last if $now > $done || $published;
	}
	$done = $node->safe_psql('postgres', 'SELECT events_dispatched FROM subdispatch.stats');
}
my ($out, $err) = finish_background($publisher);
is($out, "published\n", 'the publisher never noticed') or diag($err);
note("dispatchers were terminated $kills times");
my $all = join ' ', 1 .. $events;
foreach my $id ('plain', 'resolved', 'star')
{
	my $got = results($node, $id);
	ok($got eq $all, "$id: all $events events, once and in order") or diag(difference($got));
}
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT n) FROM calls'), "$events|$events", 'each resolver call took effect once');
$node->safe_psql('postgres', "TRUNCATE calls; SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");

sub difference
{
	my ($got) = @_;
	my @got = split / /, $got;
	my %seen;
	$seen{$_}++ foreach @got;
	my @lost = grep { !$seen{$_} } 1 .. $events;
	my @twice = grep { $seen{$_} > 1 } sort keys %seen;
	return 'got ' . @got . ', lost ' . join(',', @lost[ 0 .. ($#lost < 9 ? $#lost : 9) ]) . ', twice ' . join(',', @twice[ 0 .. ($#twice < 9 ? $#twice : 9) ]);
}

# Terminated while a resolver runs.
$node->safe_psql('postgres', <<'SQL');
CREATE SEQUENCE attempts;
CREATE FUNCTION dies_once(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.calls VALUES ((event->'data')::int);
  -- A sequence is not undone by the death.
  IF (event->'data')::int = 2 AND nextval('public.attempts') = 1 THEN
    PERFORM pg_terminate_backend(pg_backend_pid());
    PERFORM pg_sleep(1);
  END IF;
  RETURN event->'data';
END $$;
SELECT subdispatch.subscribe('c', id => 'plain');
SELECT subdispatch.subscribe('c', 'dies_once', id => 'dies');
SELECT subdispatch.publish('c', to_jsonb(n)) FROM generate_series(1, 3) n;
SQL
is(results($node, 'dies'), '1 2 3', 'a dispatcher that dies in a resolver: the event is dispatched again');
is(results($node, 'plain'), '1 2 3', 'and no response was queued twice');
is($node->safe_psql('postgres', 'SELECT string_agg(n::text, $$ $$ ORDER BY n) FROM calls'), '1 2 3', 'and what it had written is there once');
$node->safe_psql('postgres', "TRUNCATE calls; SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");

# One that kills its dispatcher each time does not stop the others for ever.
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION dies(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF (event->'data')::int = 2 THEN
    PERFORM pg_terminate_backend(pg_backend_pid());
    PERFORM pg_sleep(1);
  END IF;
  RETURN event->'data';
END $$;
SELECT subdispatch.subscribe('c', id => 'plain');
SELECT subdispatch.subscribe('c', 'dies', id => 'dies');
SELECT subdispatch.publish('c', to_jsonb(n)) FROM generate_series(1, 4) n;
SQL
is(results($node, 'plain'), '1 2 3 4', 'a resolver that always kills its dispatcher holds up nobody for ever');
like(results($node, 'dies'), qr/^1( .*)? 4$/, 'and later events reach its own stream');
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");

# An error at each stage: only those who share it see it, the dispatcher stays the same.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE parent (id int PRIMARY KEY, other int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE locked (id int);
CREATE FUNCTION e_raises(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'raised'; END $$;
CREATE FUNCTION e_deferred(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.parent VALUES (1, 99); RETURN '1'; END $$;
CREATE FUNCTION e_huge(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN to_jsonb(repeat('x', 100000000)); END $$;
CREATE FUNCTION e_memory(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN to_jsonb(repeat('x', 1000000000) || repeat('y', 1000000000)); END $$;
CREATE FUNCTION e_ddl(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN CREATE TABLE public.made_by_resolver (); RAISE EXCEPTION 'after DDL'; END $$;
CREATE FUNCTION e_lock(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN LOCK TABLE public.locked; RETURN '1'; END $$;
CREATE FUNCTION e_commit(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN COMMIT; RETURN '1'; END $$;
CREATE FUNCTION e_settings(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN SET statement_timeout = 1; SET transaction_read_only = on; SET search_path = nowhere; SET role = nobody_at_all; RETURN '1'; END $$;
CREATE FUNCTION e_notify(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('x', repeat('x', 9000)); RETURN '1'; END $$;
CREATE FUNCTION e_recursion(a jsonb, b jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN public.e_recursion(a, b); END $$;
CREATE FUNCTION e_python(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
class Odd(Exception):
    def __str__(self):
        raise ValueError("no text")
raise Odd()
$$;
CREATE FUNCTION e_python_result(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
return float("nan")
$$;
CREATE FUNCTION fine(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN event->'data'; END $$;
SELECT subdispatch.subscribe('c', id => 'plain');
SELECT subdispatch.subscribe('c', 'fine', id => 'fine');
SQL
my @stages = qw(raises deferred ddl lock commit settings notify recursion python python_result huge memory);
my $locker = session($node);
$locker->query_safe('BEGIN; LOCK TABLE locked');
my @pids = dispatcher_pids($node);
foreach my $stage (@stages)
{
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', 'e_$stage', id => 'bad')");
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', to_jsonb(n)) FROM generate_series(1, 2) n");
	is(results($node, 'plain'), '1 2', "$stage: the stream without a resolver");
	is(results($node, 'fine'), '1 2', "$stage: the stream with another resolver");
	my ($bad, $bad_err) = try_sql($node, "SELECT left(r, 300) FROM subdispatch.next_responses('bad') r");
	note("$stage answers: $bad $bad_err");
	like($bad, qr/"errors":\s*\[|"dropped"|"type":"error"/, "$stage: an error, a loss or an end is told") unless $stage eq 'huge' || $stage eq 'python_result';
	$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('bad')");
}
$locker->query_safe('ROLLBACK');
$locker->quit;
is_deeply([ dispatcher_pids($node) ], \@pids, 'no error ended a dispatcher');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_class WHERE relname = 'made_by_resolver'"), '0', 'what failing resolvers did is undone');
is($node->safe_psql('postgres', 'SELECT count(*) FROM parent'), '0', 'also where a deferred constraint failed');

# The same where one call is all that an event that comes alone needs, which has no subtransaction: it is called once, and
# what it did is undone with the whole transaction. A sequence counts its calls, for it is not rolled back.
$node->safe_psql('postgres', <<'SQL');
SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions;
CREATE SEQUENCE lone_calls;
CREATE TABLE lone_tables (made_by text);
CREATE FUNCTION lone(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  result jsonb;
BEGIN
  PERFORM nextval('public.lone_calls');
  INSERT INTO public.lone_tables VALUES (variables->>'stage');
  PERFORM subdispatch.publish('nested', variables);
  PERFORM pg_advisory_lock(1), pg_advisory_xact_lock(2);
  PERFORM set_config('work_mem', '1MB', false);
  EXECUTE format('SELECT public.%I($1, $2)', variables->>'stage') INTO result USING event, variables;
  RETURN result;
END $$;
CREATE FUNCTION e_slow(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN '1'; END $$;
CREATE FUNCTION e_slow_python(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
with plpy.subtransaction():
    while True:
        pass
$$;
CREATE FUNCTION e_left_open(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u TRANSFORM FOR TYPE jsonb AS $$
plpy.subtransaction().__enter__()
plpy.execute("INSERT INTO public.lone_tables VALUES ('left open')")
raise Exception("left open")
$$;
SELECT subdispatch.subscribe('c', id => 'plain');
SELECT subdispatch.subscribe('nested', id => 'nested');
CREATE FUNCTION session_state(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RETURN jsonb_build_object('user', current_user, 'session', session_user, 'work_mem', current_setting('work_mem'),
    'locks', (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'), 'read_only', current_setting('transaction_read_only'));
END $$;
SQL
# on the same channel, for it to be the same dispatcher
my $state = q(SELECT subdispatch.subscribe('c', 'session_state', id => 's'); SELECT subdispatch.publish('c', '8'); SELECT subdispatch.wait_dispatched('180s');
  SELECT r::jsonb #> '{payload,data}' FROM subdispatch.next_response('s') r; SELECT subdispatch.unsubscribe('s'));
my $before = $node->safe_psql('postgres', $state);
is(results($node, 'plain'), '8', 'alone: what the session is like');
like($before, qr/"user": "postgres"/, 'alone: and its answer');
$locker = session($node);
$locker->query_safe('BEGIN; LOCK TABLE locked');
my $calls = 0;
$node->safe_psql('postgres', "ALTER SYSTEM SET subdispatch.resolver_timeout = '500ms'; SELECT pg_reload_conf()");
poll_until($node, 'SHOW subdispatch.resolver_timeout', '500ms', 'a short time limit');
foreach my $stage (qw(fine raises deferred ddl lock commit notify recursion python slow slow_python left_open memory))
{
	my $name = $stage eq 'fine' ? $stage : "e_$stage";
	$node->safe_psql('postgres', qq(SELECT subdispatch.subscribe('c', 'lone', id => 'lone', variables => '{"stage": "$name"}')));
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '7')");
	is(results($node, 'plain'), '7', "alone, $stage: the stream without a resolver");
	my $count = $node->safe_psql('postgres', "SELECT count(*) FROM (SELECT subdispatch.next_responses('lone', 10, '10s')) r");
	$calls++;
	is($count, 1, "alone, $stage: one response");
	is($node->safe_psql('postgres', 'SELECT last_value FROM lone_calls'), $calls, "alone, $stage: one call");
	$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('lone')");
	is($node->safe_psql('postgres', $state), $before, "alone, $stage: the session is as before");
	is(results($node, 'plain'), '8', "alone, $stage: and the next event is dispatched");
}
$locker->query_safe('ROLLBACK');
$locker->quit;
is($node->safe_psql('postgres', q(SELECT string_agg(made_by, ' ') FROM lone_tables)), 'fine', 'alone: only what succeeded left something');
is(results($node, 'nested'), '{"stage": "fine"}', 'alone: what failing resolvers published is forgotten');
is_deeply([ dispatcher_pids($node) ], \@pids, 'alone: no error ended a dispatcher');
$node->safe_psql('postgres', "ALTER SYSTEM RESET ALL; SELECT pg_reload_conf(); SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");
poll_until($node, 'SHOW subdispatch.resolver_timeout', '5s', 'the time limit is back');

# An ERROR that comes often does not flood the log.
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', 'e_raises', id => 'bad')");
my $offset = -s $node->logfile;
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', to_jsonb(n)) FROM generate_series(1, 2000) n");
is($node->safe_psql('postgres', "SELECT subdispatch.wait_dispatched('180s')"), 't', '2000 failing calls are through');
my $lines = () = substr(slurp_file($node->logfile), $offset) =~ /raised/g;
cmp_ok($lines, '>=', 1, 'an error is logged');
cmp_ok($lines, '<', 500, "without flooding the log ($lines lines for 2000 errors)");
cmp_ok($node->safe_psql('postgres', 'SELECT resolver_errors FROM subdispatch.stats'), '>=', 2000, 'all are counted');
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");

# A backend that dies with events published, subscriptions made and a read going on leaves nothing behind.
my $victim = session($node);
$victim->query_safe("BEGIN; SELECT subdispatch.publish('c', '\"never\"'); SELECT subdispatch.subscribe('c', id => 'never')");
my $pid = $victim->query_safe('SELECT pg_backend_pid()');
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 'plain')");
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", '0', 'a backend was terminated within its transaction');
eventually('its subscription is undone', sub { my $n = $node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.subscriptions WHERE id = 'never'"); return ($n eq '0', $n) });
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '1')");
is(results($node, 'plain'), '1', 'its event never arrives, and others are not held up by it');
eval { $victim->quit };

unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
$node->stop;

done_testing();

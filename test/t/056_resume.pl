# Resume: subscriptions that come back after an event they have seen, at random points, while events are published and
# dispatchers are terminated, get what one gets that never left: the same responses, in the same order, each once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;
use Time::HiRes qw(sleep time);

my $seconds = $ENV{RESUME_SECONDS} || 10;
my $node = start_node('resume', dispatchers => 2, listen_channels => '', event_history_size => '64MB', shared_memory_size => '512MB',
	max_subscriptions_per_connection => 0, max_pending => 1000000, max_pending_bytes => '1GB', include_event_id => 'on',
	resolver_timeout => '20s', resolver_max_timeouts => 1000000, publish_timeout => '100s');
my $assertions = $node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = 'subdispatch.debug_hold_commit'") eq '1';
my $before = memory_in_use($node);

$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE ROLE alice;
CREATE ROLE bob;
CREATE TABLE t (id int PRIMARY KEY, who text, v int);
ALTER TABLE t ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON t FOR SELECT USING (who = current_user);
GRANT SELECT ON t TO alice, bob;
CREATE TRIGGER changes AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('t');
SELECT subdispatch.grant_channel('t', 'alice', 'subscribe'), subdispatch.grant_channel('t', 'bob', 'subscribe');
CREATE FUNCTION doubled(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF (event #>> '{data,n}')::int % 10 = 0 THEN RETURN NULL; END IF;
  IF (event #>> '{data,n}')::int % 10 = 1 THEN RAISE EXCEPTION 'no %', event #>> '{data,n}'; END IF;
  RETURN to_jsonb((event #>> '{data,n}')::int * 2);
END $$;
CREATE TABLE spec (name text PRIMARY KEY, channel text, resolver regproc, filter jsonb DEFAULT '{}', run_as regrole, key text, context jsonb DEFAULT '{}');
INSERT INTO spec (name, channel, resolver, filter, run_as, key, context) VALUES
  ('plain', 'a', NULL, '{}', NULL, NULL, '{}'), ('even', 'a', NULL, '{"parity": 0}', NULL, NULL, '{}'), ('large', 'a', NULL, '{"n": {"gt": 500}}', NULL, NULL, '{}'),
  ('keyed', 'a', NULL, '{}', NULL, 'k', '{}'), ('resolved', 'a', 'doubled', '{}', NULL, NULL, '{}'), ('tenant', 'a', NULL, '{}', NULL, NULL, '{"tenant_id": 1}'),
  ('other', 'b', NULL, '{}', NULL, NULL, '{}'), ('third', 'c', 'doubled', '{"parity": 1}', NULL, NULL, '{}'), ('star', '*', NULL, '{}', NULL, NULL, '{}'),
  ('rows', 't', NULL, '{}', NULL, NULL, '{}'), ('alice', 't', NULL, '{}', 'alice', NULL, '{}'), ('bob', 't', NULL, '{"row.who": "bob"}', 'bob', NULL, '{}');
-- Joins the spec's subscription of a kind: "ref" never leaves, "one" comes and goes.
CREATE FUNCTION join_in(kind text, s spec, after bigint) RETURNS text LANGUAGE sql AS $$
  SELECT subdispatch.subscribe(s.channel, s.resolver, filter => s.filter, security_context => s.context, run_as => s.run_as, response_key => s.key,
    id => kind || ' ' || s.name, operation_id => 'op', consumer => kind || ' ' || s.name, after_event => after) $$;
CREATE TABLE got (spec text, kind text, seq bigint GENERATED ALWAYS AS IDENTITY, event_id bigint, dropped bigint, response text);
CREATE INDEX ON got (spec, kind, seq);
CREATE TABLE place (spec text, kind text, last bigint, PRIMARY KEY (spec, kind));
CREATE FUNCTION take(k text, s text, n int, wait interval) RETURNS int LANGUAGE plpgsql AS $$
DECLARE m int;
BEGIN
  INSERT INTO got (spec, kind, event_id, dropped, response) SELECT s, k, event_id, dropped, response FROM subdispatch.poll(k || ' ' || s, n, wait);
  GET DIAGNOSTICS m = ROW_COUNT;
  INSERT INTO place SELECT s, k, event_id FROM got WHERE spec = s AND kind = k AND event_id IS NOT NULL ORDER BY seq DESC LIMIT 1
    ON CONFLICT (spec, kind) DO UPDATE SET last = excluded.last;
  RETURN m;
END $$;
-- Comes, reads a little, goes.
CREATE PROCEDURE come_and_go(k text, names text[], seconds int) LANGUAGE plpgsql AS $$
DECLARE s spec; c text; until timestamptz := clock_timestamp() + make_interval(secs => seconds);
BEGIN
  WHILE clock_timestamp() < until LOOP
    FOREACH c IN ARRAY names LOOP
      SELECT * INTO s FROM spec WHERE name = c;
      PERFORM join_in(k, s, (SELECT last FROM place WHERE spec = c AND kind = k));
      COMMIT;
      FOR j IN 0 .. (random() * 3)::int LOOP
        PERFORM take(k, c, 1 + (random() * 60)::int, make_interval(secs => random() * 0.03));
        COMMIT;
      END LOOP;
      PERFORM subdispatch.unsubscribe(k || ' ' || c);
      COMMIT;
    END LOOP;
  END LOOP;
END $$;
CREATE PROCEDURE take_all(k text) LANGUAGE plpgsql AS $$
DECLARE c text; caught_up bool;
BEGIN
  FOR c IN SELECT name FROM spec LOOP
    LOOP
      -- Only what is missing after it has caught up does not come any more.
      caught_up := EXISTS (SELECT FROM subdispatch.subscriptions WHERE id = k || ' ' || c AND state = 'active');
      EXIT WHEN take(k, c, 1000000, '10ms') = 0 AND caught_up;
      COMMIT;
    END LOOP;
  END LOOP;
END $$;
CREATE SEQUENCE ids;
CREATE TABLE stop (yes bool);
CREATE PROCEDURE produce() LANGUAGE plpgsql AS $$
BEGIN
  WHILE NOT EXISTS (SELECT FROM stop) LOOP
    FOR i IN 1 .. 1 + (random() * random() * 40)::int LOOP
      PERFORM subdispatch.publish((ARRAY['a', 'a', 'b', 'c'])[1 + (random() * 3)::int], jsonb_build_object('n', n, 'parity', n % 2, 'tenant_id', n % 3)) FROM nextval('ids') n;
    END LOOP;
    INSERT INTO t SELECT nextval('ids'), (ARRAY['alice', 'bob', 'carol'])[1 + (random() * 2)::int], i FROM generate_series(1, (random() * 3)::int) i;
    UPDATE t SET who = CASE who WHEN 'alice' THEN 'bob' ELSE 'alice' END, v = v + 1 WHERE id IN (SELECT id FROM t ORDER BY random() LIMIT 2 FOR UPDATE SKIP LOCKED);
    DELETE FROM t WHERE id IN (SELECT id FROM t ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED);
    COMMIT;
    PERFORM pg_sleep(random() * 0.02);
  END LOOP;
END $$;
SQL

# Where the second differs from the first, if it does; and whether a loss was told.
my $compare = <<'SQL';
WITH ref AS (SELECT spec, row_number() OVER (PARTITION BY spec ORDER BY seq) AS n, event_id, response FROM got WHERE kind = 'ref'),
     one AS (SELECT spec, kind, row_number() OVER (PARTITION BY spec, kind ORDER BY seq) AS n, event_id, response FROM got WHERE kind = '%s')
SELECT coalesce(string_agg(format('%%s at %%s: %%s, not %%s', spec, n, one.response, ref.response), E'\n'), 'same') FROM (
  SELECT * FROM ref FULL JOIN one USING (spec, n) WHERE (ref.event_id, ref.response) IS DISTINCT FROM (one.event_id, one.response) ORDER BY spec, n LIMIT 3) x(spec, n, e1, response, kind, e2, r2),
  LATERAL (SELECT x.response) ref(response), LATERAL (SELECT x.r2) one(response)
SQL

sub catch_up
{
	my ($kind) = @_;
	dispatched($node);
	# What is missing comes within the timeout or not at all.
	$node->safe_psql('postgres', "SELECT join_in('$kind', spec, (SELECT last FROM place p WHERE p.spec = spec.name AND p.kind = '$kind')) FROM spec") if $kind ne 'ref';
	my $h = background($node, "CALL take_all('$kind')");
	my ($out, $err) = finish_background($h);
	is($err, '', "$kind has caught up");
	$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions WHERE id LIKE '$kind %'");
}

sub run_rounds
{
	my ($name, $kill) = @_;
	$node->safe_psql('postgres', "TRUNCATE got, place, stop, t; SELECT setval('ids', 1, false); SELECT join_in('ref', spec, NULL) FROM spec; SELECT join_in('one', spec, NULL), join_in('two', spec, NULL) FROM spec");
	# From here on both have nothing to come before what is published now.
	my @all = split /\n/, $node->safe_psql('postgres', 'SELECT name FROM spec');
	my $lists = join ',', map { "'$_'" } @all;
	my @producers = map { background($node, 'CALL produce()') } 1 .. 2;
	sleep 0.5;
	foreach my $kind ('one', 'two')
	{
		$node->safe_psql('postgres', "SELECT take('$kind', name, 1 + (random() * 5)::int, '${SubdispatchTest::patience}s') FROM spec WHERE name NOT IN ('large')");
		$node->safe_psql('postgres', "INSERT INTO place SELECT 'large', '$kind', min(last) FROM place WHERE kind = '$kind'");
		$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions WHERE id LIKE '$kind %'");
	}
	my @comers = map { my $kind = $_; background($node, "CALL come_and_go('$kind', ARRAY[$lists], $seconds)") } 'one', 'two';
	my $deaths = 0;
	my $was_ready = 0;
	my $end = time + $seconds;
	while (time < $end)
	{
		if ($kill)
		{
			# When they are back: who subscribes waits for both of them, a limited time.
			my $ready = $node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.workers WHERE kind = 'dispatcher' AND state = 'running'") eq '2';
			if ($ready && $was_ready) { terminate_dispatchers($node); $deaths++; }
			$was_ready = $ready && !$was_ready;
		}
		sleep 0.2;
	}
	$node->safe_psql('postgres', 'INSERT INTO stop VALUES (true)');
	foreach my $h (@comers, @producers)
	{
		my ($out, $err) = finish_background($h);
		is($err, '', "$name: no error");
	}
	catch_up($_) foreach 'one', 'two', 'ref';
	cmp_ok($node->safe_psql('postgres', "SELECT min(n) FROM (SELECT count(*) AS n FROM got WHERE kind = 'ref' GROUP BY spec) x"), '>', 50, "$name: there was something to compare");
	is($node->safe_psql('postgres', sprintf($compare, $_)), 'same', "$name: $_ got what one gets that never left") foreach 'one', 'two';
	is($node->safe_psql('postgres', "SELECT string_agg(format('%s %s %s', kind, spec, dropped), ', ') FROM got WHERE dropped IS DISTINCT FROM 0"), '', "$name: no loss is told");
	is($node->safe_psql('postgres', "SELECT count(*) FROM got WHERE response::jsonb #>> '{payload,extensions,subdispatch,eventId}' IS DISTINCT FROM event_id::text"), '0', "$name: each tells its event's id");
	cmp_ok($deaths, '>', 3, "$name: dispatchers died") if $kill;
}

run_rounds('quiet', 0);
cmp_ok($node->safe_psql('postgres', 'SELECT responses_replayed FROM subdispatch.stats'), '>', 1000, 'responses were replayed');
run_rounds('deaths', 1);

# A storm: many of one stream, with near places, share what is made for them.
$node->safe_psql('postgres', <<'SQL');
SELECT subdispatch.subscribe('a', 'doubled', id => 'first', consumer => 'first');
SELECT subdispatch.publish('a', jsonb_build_object('n', n * 10 + 2, 'parity', 0)) FROM generate_series(1, 200) n;
SELECT subdispatch.wait_dispatched();
CREATE TABLE seen AS SELECT row_number() OVER () AS n, event_id FROM subdispatch.poll('first');
SQL
my $calls = $node->safe_psql('postgres', 'SELECT resolver_calls FROM subdispatch.stats');
$node->safe_psql('postgres', "SELECT count(subdispatch.subscribe('a', 'doubled', id => 'storm ' || i, consumer => 'storm', after_event => (SELECT event_id FROM seen WHERE n = 1 + i % 20))) FROM generate_series(1, 500) i");
$node->safe_psql('postgres', 'CREATE TABLE storm (id text, event_id bigint, dropped bigint)');
poll_until($node, "INSERT INTO storm SELECT subscription_id, event_id, dropped FROM subdispatch.poll('storm', 100000); SELECT count(*) FROM storm", 500 * 200 - 25 * (20 * 21 / 2), 'everybody in a storm gets his responses');
is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT id FROM storm GROUP BY id HAVING count(*) <> (SELECT count(*) FROM seen WHERE event_id > (SELECT event_id FROM seen WHERE n = 1 + substr(id, 7)::int % 20)) OR count(DISTINCT event_id) <> count(*)) x"), '0', 'each from its place, once');
my $more = $node->safe_psql('postgres', 'SELECT resolver_calls FROM subdispatch.stats') - $calls;
cmp_ok($more, '<', 500 * 200 / 10, 'and the resolver was called for all of them together');
diag("a storm of 500 on 200 events: $more calls of the resolver");
$node->safe_psql('postgres', "SELECT subdispatch.close_consumer('storm')");

# A replay goes at its reader's pace, whatever max_pending and overflow say: nothing is lost.
foreach my $overflow ('drop_oldest', 'drop_newest', 'error')
{
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('a', id => 'slow', max_pending => 3, overflow => '$overflow', after_event => (SELECT min(event_id) FROM seen))");
	poll_until($node, "SELECT state, pending FROM subdispatch.subscriptions WHERE id = 'slow'", 'resuming|3', "$overflow: its queue is full and it waits");
	$node->safe_psql('postgres', "SELECT subdispatch.publish('a', '{\"n\": -1}') FROM generate_series(1, 20)");
	my $read = '';
	eventually("$overflow: all of it is read in the end", sub {
		$read .= $node->safe_psql('postgres', "SELECT coalesce(string_agg(r, E'\n'), '') FROM subdispatch.next_responses('slow', 100, '10ms') r") . "\n";
		return ((() = $read =~ /"n": -1\b/g) % 20 == 0 && scalar($read =~ /"n": -1\b/), $read);
	});
	unlike($read, qr/dropped/, "$overflow: without a loss");
	is($node->safe_psql('postgres', "SELECT dropped FROM subdispatch.subscriptions WHERE id = 'slow'"), '0', "$overflow: none is counted");
	$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('slow')");
}

# A rate limit makes a replay wait; it loses nothing.
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('a', id => 'limited', rate_limit => 100, burst => 5, after_event => (SELECT event_id FROM seen WHERE n = 150))");
my $limited = '';
eventually('a replay with a rate limit comes to its end', sub {
	$limited .= $node->safe_psql('postgres', "SELECT coalesce(string_agg(r, E'\n'), '') FROM subdispatch.next_responses('limited', 100, '10ms') r") . "\n";
	return ((() = $limited =~ /"n": -1\b/g) == 60, $limited);
});
is(scalar(() = $limited =~ /"parity": 0/g), 50, 'with every response');
unlike($limited, qr/dropped/, 'and no loss');
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('limited')");

# A transaction that rolls back leaves nothing; one that goes in the middle of its replay neither.
try_sql($node, "BEGIN; SELECT subdispatch.subscribe('a', id => 'rolled back', after_event => 0); ROLLBACK");
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('a', id => 'gone', max_pending => 2, after_event => 0); SELECT pg_sleep(0.05); SELECT subdispatch.unsubscribe('gone')");
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('a', id => 'done', max_pending => 2, after_event => (SELECT min(event_id) FROM seen))");
poll_until($node, "SELECT pending FROM subdispatch.subscriptions WHERE id = 'done'", '2', 'one has two responses');
$node->safe_psql('postgres', "SELECT subdispatch.complete('done')");
like($node->safe_psql('postgres', "SELECT string_agg(r, ' ') FROM subdispatch.next_responses('done') r"), qr/^\{"type":"next".*\{"type":"next".*\{"type":"complete","id":"done"\}$/s,
	'completed in the middle of its replay: what was queued, then the end');

# What an error or a death in the middle of a replay leaves: everything once.
SKIP:
{
	skip 'needs faults, compiled with -DUSE_ASSERT_CHECKING', 6 unless $assertions;
	foreach my $how ('error', 'fatal')
	{
		$node->safe_psql('postgres', "SELECT subdispatch.publish('f', jsonb_build_object('n', n, 'fault', CASE WHEN n = 5 THEN 'replayed $how' END)) FROM generate_series(1, 9) n")
			if $node->safe_psql('postgres', "SELECT subdispatch.subscribe('f', id => 'watch $how', consumer => 'watch $how')") ne '';
		dispatched($node);
		my $first = $node->safe_psql('postgres', "SELECT min(event_id) FROM subdispatch.poll('watch $how')");
		$node->safe_psql('postgres', "SELECT subdispatch.subscribe('f', id => 'plain $how', after_event => $first), subdispatch.subscribe('f', 'doubled', id => 'resolved $how', after_event => $first)");
		foreach my $id ("plain $how", "resolved $how")
		{
			my $read = '';
			eventually("a replay after a fault ($id)", sub {
				$read .= $node->safe_psql('postgres', "SELECT coalesce(string_agg(r, E'\n'), '') FROM subdispatch.next_responses('$id', 100, '10ms') r");
				return ((() = $read =~ /"next"/g) >= 8, $read);
			});
			is(join(' ', map { /"n": (\d+)/ ? $1 : /"data":(\d+)/ ? $1 / 2 : '?' } grep { /next/ } split /(?=\{"type")/, $read), '2 3 4 5 6 7 8 9', "has each event once ($id)");
		}
		$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions WHERE channel = 'f'");
	}
	like(slurp_file($node->logfile), qr/FATAL:  test of a fault: replayed fatal/, 'there was a death');
}

# A resolver that ends its process each time is given up: the event is a gap, the rest comes.
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION deadly(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF event #>> '{data,deadly}' = 'yes' AND current_setting('application_name') LIKE 'subdispatch%' THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); END IF;
  RETURN event #> '{data,n}';
END $$;
SELECT subdispatch.subscribe('e', id => 'watch', consumer => 'watch e');
SELECT subdispatch.publish('e', jsonb_build_object('n', n, 'deadly', CASE WHEN n = 3 THEN 'yes' END)) FROM generate_series(1, 5) n;
SELECT subdispatch.wait_dispatched();
CREATE TABLE e_first AS SELECT min(event_id) AS id FROM subdispatch.poll('watch e');
SELECT subdispatch.subscribe('e', 'deadly', id => 'deadly', after_event => (SELECT id FROM e_first)), subdispatch.subscribe('e', id => 'its neighbour', after_event => (SELECT id FROM e_first));
SQL
my $read = '';
eventually('a replay that kills the dispatcher comes to its end', sub {
	$read .= $node->safe_psql('postgres', "SELECT coalesce(string_agg(r, ''), '') FROM subdispatch.next_responses('deadly', 100, '10ms') r");
	return (scalar($read =~ /"data":5/), $read);
});
like($read, qr/"data":2\b.*"data":4\b[^{]*"extensions":\{"subdispatch":\{[^}]*"dropped":null\}.*"data":5\b/s, 'the event that killed it is told as a gap');
unlike($node->safe_psql('postgres', "SELECT string_agg(r, '') FROM subdispatch.next_responses('its neighbour', 100, '100ms') r"), qr/dropped/, 'its neighbour lost nothing');

# All is given back.
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions; SELECT subdispatch.close_consumer(consumer) FROM subdispatch.consumers");
dispatched($node);
eventually('the memory is back', sub { my $m = memory_in_use($node); return ($m <= $before, "$m, before $before") });
like($node->safe_psql('postgres', 'SELECT subdispatch.metrics()'), qr/subdispatch_shared_memory_bytes\{kind="history"\} [1-9]/, 'the history is still there');
$node->safe_psql('postgres', 'ALTER SYSTEM SET subdispatch.event_history_size = 0');
$node->reload;
poll_until($node, "SELECT (regexp_match(subdispatch.metrics(), 'kind=\"history\"} ([0-9]+)'))[1]", '0', 'without a history no memory is kept, nor does a channel linger');

$node->stop;
done_testing();

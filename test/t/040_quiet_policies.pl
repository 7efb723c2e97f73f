# Policies may look, and do nothing else: whatever they try, nothing is written, sent or left; whatever they raise costs their
# identity alone and does not flood the log; rights that a transaction changes hold for what it publishes itself.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('quiet', dispatchers => 1, context_settings => 'app.tenant', listen_channels => 'wire', resolver_timeout => '10s');
$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE ROLE victim LOGIN;
CREATE ROLE other LOGIN;
CREATE ROLE attacker LOGIN;
CREATE SCHEMA a;
GRANT USAGE, CREATE ON SCHEMA a TO victim, other, attacker;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA subdispatch TO victim, other, attacker;
SELECT subdispatch.grant_channel('*', '-', 'subscribe'), subdispatch.grant_channel('*', 'attacker', 'publish'), subdispatch.grant_channel('*', 'victim', 'publish');
CREATE TABLE a.kept (v text);
INSERT INTO a.kept VALUES ('untouched');
ALTER TABLE a.kept OWNER TO victim;
SET ROLE victim;
SELECT lo_from_bytea(4242, 'untouched'), lo_from_bytea(4243, 'untouched');
SELECT subdispatch.subscribe('trapped', id => 'victim'), subdispatch.subscribe('wanted', id => 'kept');
RESET ROLE;
SELECT subdispatch.subscribe('wire', id => 'wire'), subdispatch.subscribe('wanted', id => 'super');
SQL

# ---- every way to do something that a read-only transaction does not stop, or to leave it ----

$node->safe_psql('postgres', 'SET client_min_messages = warning; SET ROLE attacker;' . trap_sql('a.trap'));
my $listener = $node->background_psql('postgres', on_error_stop => 0);
$listener->query_safe('LISTEN wire; LISTEN other');
my $write = "UPDATE a.kept SET v = 'written'";
my @attacks = (
	"RESET transaction_read_only; $write", "SET transaction_read_only TO DEFAULT; $write", "SET LOCAL transaction_read_only TO DEFAULT; $write",
	"SELECT set_config('transaction_read_only', NULL, false); $write", "SELECT set_config('transaction_read_only', 'off', true); $write",
	"SET default_transaction_read_only = off; $write", "SET TRANSACTION READ WRITE; $write", "RESET ALL; $write",
	"SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; $write", "RESET transaction_isolation; $write", $write,
	"DO 'BEGIN RESET transaction_read_only; $write; END'" =~ s/'(written)'/''$1''/r,
	"RESET transaction_read_only; SELECT subdispatch.unsubscribe('kept')", "RESET transaction_read_only; SELECT subdispatch.complete('kept')",
	"RESET transaction_read_only; SELECT subdispatch.publish('wanted', '1')", "RESET transaction_read_only; SELECT subdispatch.close_consumer('x')",
	"SELECT pg_notify('wire', 'policy')", 'NOTIFY wire', "NOTIFY other, 'policy'", "DO 'BEGIN NOTIFY other; END'", "DO 'BEGIN PERFORM pg_notify(''other'', ''policy''); END'",
	'SELECT lo_unlink(4242)', "SELECT lo_put(4242, 0, 'written')", "SELECT lo_creat(-1)", 'SELECT lo_create(4244)', "SELECT lo_from_bytea(4245, 'x')",
	"SELECT lowrite(lo_open(4242, 131072), 'written')", 'SELECT lo_truncate(lo_open(4242, 131072), 0)', 'SELECT lo_truncate64(lo_open(4242, 131072), 0)',
	"SELECT pg_logical_emit_message(true, 'x', 'y')", "SELECT pg_logical_emit_message(false, 'x', 'y'::bytea)");
# Every function of the extension, but those that only tell, and those above and below that look at their arguments first.
push @attacks, split /\n/, $node->safe_psql('postgres', <<'SQL');
SELECT format('%s subdispatch.%I(%s)', CASE prokind WHEN 'p' THEN 'CALL' ELSE 'SELECT' END, proname,
  (SELECT string_agg('NULL::' || format_type(t, NULL), ', ' ORDER BY n) FROM unnest(proargtypes::oid[]) WITH ORDINALITY x(t, n)))
FROM pg_proc WHERE pronamespace = 'subdispatch'::regnamespace AND prorettype <> 'trigger'::regtype
  AND proname !~ '^(list_.*|show_.*|debug_.*|metrics|health|explain_delivery|subscription|publish|grant_channel|revoke_channel)$' ORDER BY 1
SQL
push @attacks, "SELECT subdispatch.publish('wanted', '1')", "SELECT subdispatch.grant_channel('x', 'victim', 'publish')", "SELECT subdispatch.revoke_channel('*', 'victim', 'publish')";
foreach my $attack (@attacks)
{
	my $quoted = $attack =~ s/'/''/gr;
	$node->safe_psql('postgres', "INSERT INTO a.trap VALUES (1, '$quoted')");
}
ok(dispatched($node), 'dispatched');
my $log = slurp_file($node->logfile);
my %result = $log =~ /trap "(.*)" as victim \(.*?\): (\w+)/g;
is(scalar(keys %result), scalar(@attacks), 'all of them ran');
is_deeply([ map { "$_: $result{$_}" } grep { $result{$_} ne '25006' && $result{$_} ne '25001' && $result{$_} !~ /^2500|^22023|^55000/ } sort keys %result ], [],
	'and each was refused as in a read-only transaction');
is($node->safe_psql('postgres', "SELECT v FROM a.kept"), 'untouched', 'nothing is written');
is($node->safe_psql('postgres', "SELECT string_agg(oid || convert_from(lo_get(oid), 'utf8'), ' ' ORDER BY oid) FROM pg_largeobject_metadata"),
	'4242untouched 4243untouched', 'no large object either');
is($node->safe_psql('postgres', "SET ROLE victim; SELECT state FROM subdispatch.subscriptions WHERE id = 'kept'"), 'active', 'no subscription is ended');
is(results($node, 'wire') . results($node, 'super'), '', 'nothing is published');

# pg_notify() in the expression itself, and in an expression that a language has prepared in the same transaction before.
$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE FUNCTION a.tells(x text) RETURNS bool LANGUAGE plpgsql AS $$
DECLARE r text;
BEGIN
  r := pg_notify('wire', 'policy ' || x);
  RETURN true;
END $$;
CREATE DOMAIN a.told AS text;
CREATE FUNCTION a.told_to_json(a.told) RETURNS json LANGUAGE plpgsql AS $$ BEGIN PERFORM a.tells('cast'); RETURN '1'; END $$;
CREATE TYPE a.cast_me AS (t text);
CREATE FUNCTION a.cast_me_to_json(a.cast_me) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
  BEGIN
    PERFORM a.tells('cast');
  EXCEPTION WHEN OTHERS THEN NULL;
  END;
  RETURN '1';
END $$;
CREATE CAST (a.cast_me AS json) WITH FUNCTION a.cast_me_to_json(a.cast_me);
CREATE FUNCTION a.resolver(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM a.tells('resolver'); RETURN '1'; END $$;
CREATE TABLE a.builtin (id int);
CREATE TABLE a.cast_first (id int, c a.cast_me);
GRANT SELECT ON a.builtin, a.cast_first TO PUBLIC;
ALTER TABLE a.builtin ENABLE ROW LEVEL SECURITY;
ALTER TABLE a.cast_first ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON a.builtin USING (pg_notify('wire', 'policy') IS NOT NULL);
CREATE POLICY p ON a.cast_first USING (a.tells('policy'));
CREATE TRIGGER t AFTER INSERT ON a.builtin FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('told');
CREATE TRIGGER t AFTER INSERT ON a.cast_first FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('told');
SET ROLE victim;
SELECT subdispatch.subscribe('told', id => 'told'), subdispatch.subscribe('resolved', 'a.resolver', id => 'resolved');
RESET ROLE;
SELECT subdispatch.subscribe('told', id => 'told super');
BEGIN;
SELECT subdispatch.publish('resolved', '1');
INSERT INTO a.builtin VALUES (1);
INSERT INTO a.cast_first VALUES (1, ROW('x'));
SELECT subdispatch.publish('resolved', '2');
INSERT INTO a.cast_first VALUES (2, ROW('x'));
COMMIT;
SQL
ok(dispatched($node), 'dispatched');
$node->safe_psql('postgres', 'INSERT INTO a.builtin VALUES (2); INSERT INTO a.cast_first VALUES (3, NULL)') foreach 1 .. 3;
is($node->safe_psql('postgres', "SET ROLE victim; SELECT subdispatch.wait_dispatched(); SELECT count(*) FROM subdispatch.next_responses('told')"), "t\n0",
	'a policy that notifies shows nothing');
is(scalar(() = results($node, 'told super') =~ /"op"/g), 9, 'whom it does not concern gets all');
my $heard = results($node, 'wire');
is($heard, 'policy resolver policy resolver', 'only what a resolver sends is sent');
$listener->query('SELECT 1');
unlike($listener->query('SELECT 1') . $listener->{stdout}, qr/policy"? received|"policy"|policy cast|policy policy/, 'a listener hears of nothing else');
$listener->quit;

# ---- policies that raise: each event, for many identities ----

$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
SELECT subdispatch.reset_stats();
CREATE TABLE a.failing (id int);
GRANT SELECT ON a.failing TO PUBLIC;
ALTER TABLE a.failing ENABLE ROW LEVEL SECURITY;
CREATE FUNCTION a.fails() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'told to nobody but the log: %', repeat('x', 100); END $$;
CREATE POLICY p ON a.failing TO victim USING (a.fails());
CREATE POLICY q ON a.failing TO other USING (true);
CREATE TRIGGER t AFTER INSERT ON a.failing FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('failing');
SET ROLE victim;
SELECT count(subdispatch.subscribe('failing', id => 'failing' || i, security_context => jsonb_build_object('match', jsonb_build_object('n', i)))) FROM generate_series(1, 20) i;
SELECT subdispatch.subscribe('failing', id => 'failing');
SET ROLE other;
SELECT subdispatch.subscribe('failing', id => 'passing');
SQL
my $before = () = slurp_file($node->logfile) =~ /\n/g;
foreach my $round (1 .. 10)
{
	$node->safe_psql('postgres', 'INSERT INTO a.failing SELECT generate_series(1, 50)');
}
ok(dispatched($node), 'dispatched');
my $after = () = slurp_file($node->logfile) =~ /\n/g;
cmp_ok($after - $before, '<', 400, '10,500 failures do not flood the log');
like(slurp_file($node->logfile), qr/told to nobody but the log/, 'though it tells of them');
like(slurp_file($node->logfile), qr/more failures were not logged/, 'and of how many it does not tell') if $after - $before > 60;
cmp_ok($node->safe_psql('postgres', 'SELECT policy_errors FROM subdispatch.stats'), '>=', 21 * 450, 'they are counted');
is($node->safe_psql('postgres', "SET ROLE other; SELECT count(*) FROM subdispatch.next_responses('passing', 1000)"), '500', 'they cost others nothing');
is($node->safe_psql('postgres', "SET ROLE victim; SELECT sum(n) FROM (SELECT pending + dropped + errors AS n FROM subdispatch.subscriptions WHERE id ~ '^failing') x"), '0',
	'and tell their own subscriptions nothing');
is($node->safe_psql('postgres', "SET ROLE other; SELECT policy_errors IS NULL AND denied_rls IS NULL AND events_dispatched IS NULL AND responses_queued IS NULL FROM subdispatch.stats"), 't',
	'counters are not for everybody');

# ---- a policy that ends its dispatcher is tried three times ----

$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE TABLE a.deadly (id int);
GRANT SELECT ON a.deadly TO PUBLIC;
ALTER TABLE a.deadly ENABLE ROW LEVEL SECURITY;
CREATE FUNCTION a.dies(id int) RETURNS bool SECURITY DEFINER LANGUAGE plpgsql AS $$
BEGIN
  RAISE LOG 'dying of row %', id;
  IF id = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); END IF;
  RETURN true;
END $$;
CREATE POLICY p ON a.deadly TO victim USING (a.dies(id));
CREATE POLICY q ON a.deadly TO other USING (true);
CREATE TRIGGER t AFTER INSERT ON a.deadly FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('deadly');
SET ROLE other;
SELECT subdispatch.subscribe('deadly', id => 'alive');
SET ROLE victim;
SELECT subdispatch.subscribe('deadly', id => 'dead');
RESET ROLE;
INSERT INTO a.deadly VALUES (1), (2);
INSERT INTO a.deadly VALUES (3);
SQL
ok(dispatched($node), 'the event is done with');
my $ids = "SELECT string_agg(r::jsonb #>> '{payload,data,row,id}', ' ' ORDER BY n) FROM subdispatch.next_responses('ID') WITH ORDINALITY x(r, n)";
is($node->safe_psql('postgres', 'SET ROLE other; ' . $ids =~ s/ID/alive/r), '1 2 3', 'others get it');
is($node->safe_psql('postgres', 'SET ROLE victim; ' . $ids =~ s/ID/dead/r), '2 3', 'the identity gets what its policy can tell of');
my $deaths = () = slurp_file($node->logfile) =~ /dying of row 1\b/g;
is($deaths, 3, 'three dispatchers died of it');
like(slurp_file($node->logfile), qr/the dispatcher ended each time the policy ran/, 'which is logged');

# ---- images that are the same to a policy are asked about once ----

$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE TABLE a.same (id int, note text);
GRANT SELECT ON a.same TO victim;
ALTER TABLE a.same ENABLE ROW LEVEL SECURITY;
CREATE FUNCTION a.counted(id int) RETURNS bool STABLE LANGUAGE plpgsql AS $$ BEGIN RAISE LOG 'asked about %', id; RETURN id > 0; END $$;
CREATE POLICY p ON a.same USING (a.counted(id));
CREATE TRIGGER t AFTER INSERT OR UPDATE ON a.same FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('same');
SET ROLE victim;
SELECT subdispatch.subscribe('same', id => 'same');
RESET ROLE;
SQL
my $asked = 0;
foreach my $case ([ "INSERT INTO a.same VALUES (1, 'a')", 1 ], [ "UPDATE a.same SET note = 'b'", 1 ], [ "UPDATE a.same SET note = 'c'", 1 ], [ 'UPDATE a.same SET id = 2', 2 ],
	[ "ALTER FUNCTION a.counted VOLATILE; UPDATE a.same SET note = 'd'", 2 ], [ "UPDATE a.same SET note = 'e'", 2 ],
	[ "ALTER FUNCTION a.counted STABLE; DROP POLICY p ON a.same; CREATE POLICY p ON a.same USING (a.counted(id) AND same IS NOT NULL); UPDATE a.same SET note = 'f'", 2 ],
	[ "DROP POLICY p ON a.same; CREATE POLICY p ON a.same USING ((SELECT bool_and(a.counted(i)) FROM generate_series(1, 1) i) AND id > 0); UPDATE a.same SET note = 'g'", 1 ],
	[ 'UPDATE a.same SET id = 3', 2 ])
{
	$node->safe_psql('postgres', $case->[0]);
	ok(dispatched($node), 'dispatched');
	my $now = () = slurp_file($node->logfile) =~ /LOG:  asked about/g;
	is($now - $asked, $case->[1], "$case->[0]: asked $case->[1] times");
	$asked = $now;
}
is($node->safe_psql('postgres', "SET ROLE victim; SELECT string_agg(r::jsonb #>> '{payload,data,op}', ' ' ORDER BY n) FROM subdispatch.next_responses('same') WITH ORDINALITY x(r, n)"),
	'INSERT' . ' UPDATE' x 8, 'with the same result');

# ---- what a transaction changes holds for its own events ----

SKIP:
{
	skip 'needs subdispatch.debug_hold_commit, compiled with -DUSE_ASSERT_CHECKING', 12
	  if $node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = 'subdispatch.debug_hold_commit'") ne '1';
	$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE TABLE a.own (id int PRIMARY KEY, tenant int);
GRANT SELECT ON a.own TO victim;
ALTER TABLE a.own ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON a.own USING (tenant = 1);
CREATE TRIGGER t AFTER INSERT ON a.own FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('own');
SET ROLE victim;
SELECT subdispatch.subscribe('own', id => 'own');
RESET ROLE;
INSERT INTO a.own VALUES (0, 1);
SQL
	my $id = 0;
	foreach my $case (
		[ 'REVOKE SELECT ON a.own FROM victim', 1, 0 ], [ 'GRANT SELECT ON a.own TO victim', 1, 1 ], [ 'ALTER POLICY p ON a.own USING (tenant = 2)', 1, 0 ],
		[ 'ALTER POLICY p ON a.own USING (tenant = 1)', 1, 1 ], [ 'DROP POLICY p ON a.own', 1, 0 ], [ 'CREATE POLICY p ON a.own USING (tenant = 1)', 1, 1 ],
		[ 'ALTER TABLE a.own DISABLE ROW LEVEL SECURITY', 2, 1 ], [ 'ALTER TABLE a.own ENABLE ROW LEVEL SECURITY', 2, 0 ], [ 'ALTER ROLE victim BYPASSRLS', 2, 1 ],
		[ 'ALTER ROLE victim NOBYPASSRLS', 2, 0 ], [ 'REVOKE USAGE ON SCHEMA a FROM victim', 1, 0 ], [ 'GRANT USAGE ON SCHEMA a TO victim', 1, 1 ])
	{
		my ($command, $tenant, $seen) = @$case;
		$id++;
		# Held up when the transaction is visible and its invalidations aren't sent yet.
		$node->safe_psql('postgres', "SET subdispatch.debug_hold_commit = 300; BEGIN; $command; INSERT INTO a.own VALUES ($id, $tenant); COMMIT");
		ok(dispatched($node), 'dispatched');
		my $got = $node->safe_psql('postgres', 'SET ROLE victim; ' . $ids =~ s/ID/own/r) =~ s/^0 ?//r;
		is($got, $seen ? $id : '', "$command: holds for what the same transaction changes");
	}
}

unlike(slurp_file($node->logfile), qr/terminated by signal|PANIC|TRAP:/, 'no process crashed');
$node->stop;
done_testing();

# Attacks: what runs in the dispatcher cannot become another role or leave anything to the next identity, nothing of
# others' can be found out or forged, and no input brings the server down.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

# One dispatcher, so that whatever one identity leaves behind would be found by the next.
my $node = start_node('attacks', dispatchers => 1, context_settings => 'app.tenant', listen_channels => 'wire',
	resolver_timeout => '10s');

my $grants = <<'SQL';
DO $$ BEGIN
  IF to_regprocedure('subdispatch.grant_channel(text,regrole,text,text[])') IS NOT NULL THEN
    EXECUTE $g$SELECT subdispatch.grant_channel('*', '-', 'subscribe')$g$;
    EXECUTE $g$SELECT subdispatch.grant_channel('*', 'a_user', 'publish')$g$;
    EXECUTE $g$SELECT subdispatch.grant_channel('*', 'a_owner', 'publish')$g$;
    EXECUTE $g$SELECT subdispatch.grant_channel('*', 'a_other', 'publish')$g$;
  END IF;
END $$;
SQL
$node->safe_psql('postgres', <<"SQL");
SET client_min_messages = warning;
CREATE ROLE a_user LOGIN;
CREATE ROLE a_other LOGIN;
CREATE ROLE a_owner LOGIN;
CREATE ROLE a_connect LOGIN;
CREATE EXTENSION plpython3u;
CREATE SCHEMA a;
GRANT USAGE, CREATE ON SCHEMA a TO a_user, a_other, a_owner;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA subdispatch TO a_user, a_other, a_owner;
$grants
CREATE TABLE a.secret (v text);
INSERT INTO a.secret VALUES ('secret');
SQL

# ---- a resolver that tries to become somebody else, or leaves something behind ----

my $state = <<'SQL';
jsonb_build_object('user', current_user, 'session', session_user, 'superuser', current_setting('is_superuser'),
  'role', current_setting('role'), 'tenant', current_setting('app.tenant', true), 'other', current_setting('app.other', true),
  'path', current_setting('search_path'), 'row_security', current_setting('row_security'),
  'read_only', current_setting('transaction_read_only'), 'timeout', current_setting('statement_timeout'),
  'temporary', (SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema()),
  'locks', (SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory'),
  'cursors', (SELECT count(*) FROM pg_catalog.pg_cursors WHERE name ~ 'attack'),
  'prepared', (SELECT count(*) FROM pg_catalog.pg_prepared_statements WHERE name ~ 'attack'))
SQL
$node->safe_psql('postgres', <<"SQL");
SET client_min_messages = warning;
CREATE FUNCTION a.probe(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS \$\$ BEGIN RETURN $state; END \$\$;
-- the error is caught, so that whatever was done before stays done
CREATE FUNCTION a.attack(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS \$\$
DECLARE r text := 'done';
BEGIN
  BEGIN
    EXECUTE event->'data'->>'sql';
  EXCEPTION WHEN OTHERS THEN r := SQLSTATE;
  END;
  RETURN jsonb_build_array(r, current_user, session_user, current_setting('is_superuser'));
END \$\$;
CREATE FUNCTION a.attack_bare(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS \$\$
BEGIN
  EXECUTE event->'data'->>'sql';
  RETURN jsonb_build_array('done', current_user, session_user, current_setting('is_superuser'));
END \$\$;
CREATE FUNCTION a.attack_python(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpython3u AS \$\$
import json
try:
    with plpy.subtransaction():
        plpy.execute(json.loads(event)["data"]["sql"])
    r = "done"
except plpy.SPIError as e:
    r = e.sqlstate
u = plpy.execute("SELECT current_user AS u, session_user AS s, current_setting('is_superuser') AS i")[0]
return json.dumps([r, u["u"], u["s"], u["i"]])
\$\$;
CREATE TABLE a.noted (who text, session text, superuser text);
GRANT INSERT ON a.noted TO PUBLIC;
CREATE TABLE a.users (n int);
ALTER TABLE a.users OWNER TO a_user;
CREATE FUNCTION a.note_who() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN
  INSERT INTO a.noted VALUES (current_user, session_user, current_setting('is_superuser')); RETURN NULL; END \$\$;
ALTER FUNCTION a.note_who OWNER TO a_user;
SET ROLE a_user;
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON a.users DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION a.note_who();
SELECT subdispatch.subscribe('attack', 'a.attack', id => 'attack', settings => '{"app.tenant": "1"}');
SELECT subdispatch.subscribe('attack', 'a.attack_bare', id => 'bare', settings => '{"app.tenant": "1"}');
SELECT subdispatch.subscribe('attack', 'a.attack_python', id => 'python', settings => '{"app.tenant": "1"}');
SET ROLE a_other;
SELECT subdispatch.subscribe('look', 'a.probe', id => 'probe', settings => '{"app.tenant": "2"}');
SELECT subdispatch.subscribe('look', 'a.probe', id => 'unset', settings => '{}');
RESET ROLE;
SELECT subdispatch.subscribe('look', 'a.probe', id => 'super', settings => '{}');
SQL

sub read_as
{
	my ($role, $id) = @_;
	dispatched($node);
	my ($out, $err) = try_sql($node, "SET ROLE $role; SELECT coalesce(string_agg(coalesce(r::jsonb #>> '{payload,data}', r::jsonb->>'type'), ' '), '')"
		. " FROM subdispatch.next_responses('$id', 1000) x(r)");
	return $out . $err;
}

sub probes
{
	$node->safe_psql('postgres', "SELECT subdispatch.publish('look', '{}')");
	# What was once set is empty and not NULL ever after, in any session of PostgreSQL's.
	return join "\n", map { s/"(tenant|other)": (null|"")/"$1": unset/gr }
	  read_as('a_other', 'probe'), read_as('a_other', 'unset'), read_as('postgres', 'super');
}

# Some are in order as such, and must only not outlive the call.
my @attacks = (
	'SET ROLE postgres', 'SET LOCAL ROLE postgres', 'SET ROLE a_other', 'RESET ROLE', 'SET ROLE NONE',
	'SET SESSION AUTHORIZATION postgres', 'SET SESSION AUTHORIZATION DEFAULT', 'RESET SESSION AUTHORIZATION',
	"SELECT set_config('role', 'postgres', false)", "SELECT set_config('role', 'none', true)",
	"SELECT set_config('session_authorization', 'postgres', false)", "SELECT set_config('is_superuser', 'on', false)",
	"UPDATE pg_settings SET setting = 'postgres' WHERE name = 'role'", 'RESET ALL', 'DISCARD ALL', 'DISCARD TEMP',
	"SELECT set_config('app.tenant', '666', false)", "SET app.tenant = '666'", "SET app.other = 'left behind'", 'RESET app.tenant',
	'SET search_path = a', "SELECT set_config('search_path', 'a', false)", 'SET row_security = off', 'SET statement_timeout = 12345',
	'CREATE TEMP TABLE attack (i int)', 'CREATE TEMP VIEW attack AS SELECT 1', 'CREATE TEMP SEQUENCE attack',
	'SELECT pg_advisory_lock(1)', 'SELECT pg_advisory_lock_shared(2)', 'SELECT pg_advisory_xact_lock(3)',
	'DECLARE attack CURSOR WITH HOLD FOR SELECT 1', 'DECLARE attack CURSOR FOR SELECT 1', 'PREPARE attack AS SELECT 1', 'LISTEN attack',
	'SELECT * FROM a.secret', 'UPDATE a.secret SET v = NULL', 'ALTER ROLE a_user SUPERUSER', 'GRANT postgres TO a_user',
	"SELECT pg_read_file('PG_VERSION')", "COPY a.noted FROM PROGRAM 'true'", 'COMMIT', 'ROLLBACK', 'SET TRANSACTION READ ONLY',
	"DO 'BEGIN SET ROLE postgres; END'", "DO 'BEGIN COMMIT; END'",
	"CREATE FUNCTION a.own() RETURNS int LANGUAGE sql SET role = 'postgres' AS 'SELECT 1'; SELECT a.own()",
	"CREATE FUNCTION a.own2() RETURNS int LANGUAGE sql SET session_authorization = 'postgres' AS 'SELECT 1'; SELECT a.own2()",
	"CREATE FUNCTION a.own3() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT set_config(\$\$role\$\$, \$\$postgres\$\$, false)'; SELECT a.own3()",
	'INSERT INTO a.users VALUES (1)', 'SET CONSTRAINTS ALL DEFERRED', "SELECT lo_import('/etc/passwd')",
	"SELECT pg_terminate_backend(pg_backend_pid()) WHERE current_user <> 'a_user'", 'LOCK a.secret',
	"SELECT subdispatch.next_response('attack', '1s')", "SELECT subdispatch.wait_dispatched('1s')", "SELECT subdispatch.subscribe('attack')");

my $baseline = probes();
like($baseline, qr/"user": "a_other".*"session": "a_other"|"session": "a_other".*"user": "a_other"/, 'session_user is run_as too');
is(scalar(() = $baseline =~ /"superuser": "off"/g), 2, 'is_superuser is that of run_as');
like($baseline, qr/"tenant": "2"/, 'settings are those of the identity');
is(scalar(() = $baseline =~ /"tenant": unset/g), 2, 'or unset');
my $untouched = $node->safe_psql('postgres', "SELECT string_agg(rolname || rolsuper, ' ' ORDER BY rolname) FROM pg_roles");
foreach my $attack (@attacks)
{
	# Twice the quotes: it goes into a JSON string in an SQL literal.
	my $quoted = $attack =~ s/(["\\])/\\$1/gr =~ s/'/''/gr;
	$node->safe_psql('postgres', "SELECT subdispatch.publish('attack', '{\"sql\": \"$quoted\"}')");
	my @got = map { read_as('a_user', $_) } 'attack', 'bare', 'python';
	# "next" without data: it failed.
	my @escaped = grep { !/^(next|\["\w+", "a_user", "a_user", "off"\])$/ } @got;
	is("@escaped", '', "$attack: still the same role");
	is(probes(), $baseline, "$attack: nothing is left to others");
}
is($node->safe_psql('postgres', "SELECT string_agg(rolname || rolsuper, ' ' ORDER BY rolname) FROM pg_roles"), $untouched, 'no role changed');
is($node->safe_psql('postgres', 'SELECT v FROM a.secret'), 'secret', 'nothing was written that they may not write');
is($node->safe_psql('postgres', "SELECT count(*) FROM a.noted WHERE (who, session, superuser) <> ('a_user', 'a_user', 'off')"), '0',
	'deferred constraint triggers run as their table\'s writer');
$node->safe_psql('postgres', "SET client_min_messages = warning; SET ROLE a_user; SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");

# ---- a policy on an attacker's table, which runs as those who subscribe ----

$node->safe_psql('postgres', <<'SQL' . trap_sql('a.trap') . <<'MORE');
SET client_min_messages = warning;
CREATE SEQUENCE a.counter;
CREATE TABLE a.victims (v text);
INSERT INTO a.victims VALUES ('untouched');
ALTER TABLE a.victims OWNER TO a_other;
ALTER SEQUENCE a.counter OWNER TO a_other;
SET ROLE a_owner;
SQL
CREATE FUNCTION a.bare_trap(cmd text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN EXECUTE cmd; RETURN true; END $$;
CREATE TABLE a.bare_trap (LIKE a.trap);
GRANT SELECT ON a.bare_trap TO PUBLIC;
ALTER TABLE a.bare_trap ENABLE ROW LEVEL SECURITY;
CREATE POLICY trap ON a.bare_trap USING (a.bare_trap(cmd));
CREATE TRIGGER changed AFTER INSERT ON a.bare_trap FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('trapped');
SET ROLE a_other;
SELECT subdispatch.subscribe('trapped', id => 'victim', settings => '{"app.tenant": "2"}');
SELECT subdispatch.subscribe('wanted', id => 'not ended');
SELECT subdispatch.subscribe('wanted', id => 'not completed');
SELECT subdispatch.subscribe('wanted', id => 'not read');
SELECT subdispatch.subscribe('forged', id => 'forged');
RESET ROLE;
SELECT subdispatch.subscribe('trapped', id => 'exempt');
SELECT subdispatch.publish('wanted', '"precious"');
MORE
my @writes = (
	"UPDATE a.victims SET v = 'written'", "INSERT INTO a.victims VALUES ('written')", 'DELETE FROM a.victims', 'TRUNCATE a.victims', 'DROP TABLE a.victims',
	"SELECT nextval('a.counter')", "SELECT setval('a.counter', 99)", 'CREATE TABLE a.made (i int)', 'GRANT a_other TO a_owner', 'GRANT ALL ON a.victims TO a_owner',
	'ALTER TABLE a.victims OWNER TO a_owner',
	"SET transaction_read_only = off; UPDATE a.victims SET v = 'written'",
	"SELECT set_config('transaction_read_only', 'off', true); UPDATE a.victims SET v = 'written'",
	"SET TRANSACTION READ WRITE; UPDATE a.victims SET v = 'written'", "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
	"SELECT subdispatch.unsubscribe('not ended')", "SELECT subdispatch.complete('not completed')", "SELECT subdispatch.next_responses('not read')",
	"SELECT subdispatch.publish('forged', '1')", "SELECT subdispatch.subscribe('wanted', id => 'implanted')", "SELECT pg_notify('wire', '1')");
foreach my $attack (@attacks, @writes)
{
	my $quoted = $attack =~ s/'/''/gr;
	$node->safe_psql('postgres', "INSERT INTO a.trap VALUES (1, '$quoted'); INSERT INTO a.bare_trap VALUES (1, '$quoted')");
	is(probes(), $baseline, "policy: $attack: nothing is left to others") if $attack !~ /UPDATE a.v|INSERT|DELETE/;
}
dispatched($node);
my $log = slurp_file($node->logfile);
my %as = map { $_ => 1 } $log =~ /trap ".*" as (\w+ \(.*?\)):/g;
is_deeply([ sort keys %as ], ['a_other (a_other, off)'], 'policies run as the subscriber, and never as another');
is($node->safe_psql('postgres', 'SELECT v FROM a.victims'), 'untouched', 'a policy writes nothing');
is($node->safe_psql('postgres', 'SELECT last_value, is_called FROM a.counter'), '1|f', 'nor counts up a sequence');
is($node->safe_psql('postgres', "SELECT to_regclass('a.made')"), '', 'nor makes a table');
is($node->safe_psql('postgres', "SELECT relowner::regrole || coalesce(relacl::text, '') FROM pg_class WHERE oid = 'a.victims'::regclass"), 'a_other', 'nor gives anything away');
is(read_as('a_other', $_), 'precious', "a policy that runs as a subscriber cannot touch its subscriptions: $_") foreach 'not ended', 'not completed', 'not read';
is($node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.subscriptions WHERE id = 'implanted'"), '0', 'nor makes any');
is(read_as('a_other', 'forged'), '', 'nor publishes in its name');
$node->safe_psql('postgres', "SET client_min_messages = warning; SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions; SET ROLE a_other; SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");

# ---- what a role with nothing but CONNECT can do, and forged row images ----

$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE TABLE a.rows (id int, pay int);
ALTER TABLE a.rows OWNER TO a_owner;
GRANT SELECT (id) ON a.rows TO a_other;
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON a.rows FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('wire');
CREATE FUNCTION a.source(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS
  $$ SELECT jsonb_build_array(event->'source', event->'data') $$;
SET ROLE a_other;
SELECT subdispatch.subscribe('wire', 'a.source', id => 'source');
SQL
my $listener = $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'a_connect' ]);
$listener->query_safe("LISTEN wire; LISTEN \"*\"; LISTEN subdispatch");
$node->safe_psql('postgres', 'INSERT INTO a.rows VALUES (1, 424242)');
is(read_as('a_other', 'source'), '["change", {"op": "INSERT", "row": {"id": 1}, "table": "rows", "schema": "a"}]', 'a row image');
my $forged = '{"op": "INSERT", "schema": "a", "table": "rows", "row": {"id": 2, "pay": 5}, "source": "change"}';
try_sql($node, "SELECT subdispatch.publish('wire', '$forged')");
like(read_as('a_other', 'source'), qr/^\["publish", .*"pay": 5/, 'one that was published is no change');
my ($out, $err) = try_sql($node, "SELECT pg_notify('wire', '$forged')", user => 'a_connect');
is($err, '', 'anybody can NOTIFY');
like(read_as('a_other', 'source'), qr/^\["notify", .*"pay": 5/, 'one that came by NOTIFY is no change');
my $envelope = '{"id": 1, "channel": "wire", "source": "change", "data": {"op": "DELETE", "row": {"id": 3}}, "old": "x"}';
try_sql($node, "SELECT pg_notify('wire', '$envelope')", user => 'a_connect');
like(read_as('a_other', 'source'), qr/^(\["notify", .*)?$/, 'nor is what looks like an event');
my $heard = $listener->query('SELECT 1');
unlike($heard, qr/424242/, 'who LISTENs hears of no row');
$listener->quit;
my @calls = ("publish('x', '1')", "subscribe('x')", "unsubscribe('source')", "complete('source')", "disconnect('x')", "open_consumer('x')",
	"close_consumer('x')", "next_response('source')", "next_responses('source')", "poll('x')", "poll_shared('x')", "wait_dispatched()",
	"explain_delivery('source', '1')", 'reset_stats()', 'metrics()', 'health()');
foreach my $call (@calls)
{
	($out, $err) = try_sql($node, "SELECT subdispatch.$call", user => 'a_connect');
	like($err, qr/permission denied for function/, "CONNECT alone: $call");
}

# ---- names that are guessed ----

$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
SET ROLE a_user;
SELECT subdispatch.subscribe('wire', id => 'mine', consumer => 'c_mine', connection_id => 'n_mine', filter => '{"private": 1}');
SQL
my $missing = 0;
foreach my $call ("unsubscribe('NAME')", "complete('NAME')", "disconnect('NAME')", "disconnect('NAME', 'NAME')", "close_consumer('NAME')",
	"next_response('NAME')", "next_responses('NAME')", "poll('NAME')", "poll_shared('NAME')", "explain_delivery('NAME', '1')",
	"next_response('NAME', '1s')", "await_response('NAME', '1s')", "await_responses('NAME', '1s')")
{
	my $command = $call =~ /^await/ ? 'CALL' : 'SELECT';
	foreach my $name ('mine', 'c_mine', 'n_mine')
	{
		my $none = 'x' x length $name;
		my @there = try_sql($node, "\\set VERBOSITY verbose\n$command subdispatch." . ($call =~ s/NAME/$name/gr), user => 'a_other');
		my @none = try_sql($node, "\\set VERBOSITY verbose\n$command subdispatch." . ($call =~ s/NAME/$none/gr), user => 'a_other');
		s/\b\Q$none\E\b/$name/g foreach @none;
		is("@there", "@none", "$call: another's $name is as one that is not there");
		$missing++ if $there[1] =~ /42704/;
		like("@there", qr/42704|^(f|0) $/, "$call: 42704, false or 0");
	}
}
cmp_ok($missing, '>', 10, '42704 where there is something to raise');

# ---- views ----

is($node->safe_psql('postgres', "SET ROLE a_other; SELECT string_agg(id, ' ') FROM subdispatch.subscriptions"), 'source', 'subscriptions: only one\'s own');
is($node->safe_psql('postgres', "SET ROLE a_other; SELECT count(*) FROM subdispatch.consumers"), '0', 'consumers: only one\'s own');
is($node->safe_psql('postgres', "SET ROLE a_connect; SELECT (SELECT count(*) FROM subdispatch.channels) + (SELECT count(*) FROM subdispatch.subscriptions)"), '0',
	'a role that owns nothing sees nothing');
$node->safe_psql('postgres', "CREATE FUNCTION a.leak(x text) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS \$\$ BEGIN RAISE WARNING 'leaked %', x; RETURN true; END \$\$;"
	. 'GRANT USAGE ON SCHEMA a TO a_connect');
foreach my $view ('subscriptions', 'consumers', 'channels')
{
	($out, $err) = try_sql($node, "SELECT * FROM subdispatch.$view v WHERE a.leak(v::text)", user => 'a_connect');
	is($out . $err, '', "$view: a function in a query sees no other row");
}
foreach my $query ('TABLE subdispatch.workers', 'SELECT subdispatch.metrics()', 'SELECT subdispatch.reset_stats()')
{
	($out, $err) = try_sql($node, "SET ROLE a_connect; $query");
	like($err, qr/permission denied/, "$query is not for everybody");
}

# ---- oracles on what is hidden ----

my $seen_stats = sub {
	return $node->safe_psql('postgres', "SET ROLE a_other; SELECT jsonb_object_agg(k, v) FROM subdispatch.stats s, jsonb_each(to_jsonb(s)) e(k, v) WHERE k ~ 'denied'");
};
my $before = $seen_stats->();
my @filters = map { qq({"row.pay": {"$_": 50}}) } qw(eq neq gt gte lt lte);
push @filters, '{"row.pay": {"in": [100, 50]}}', '{"row.pay": {"nin": [50]}}', '{"row.pay": {"exists": true}}', '{"row.pay": {"exists": false}}',
  '{"not": {"row.pay": {"gt": 50}}}', '{"or": [{"row.pay": {"gt": 50}}, {"old.pay": {"gt": 50}}]}';
$node->safe_psql('postgres', "SET client_min_messages = warning; SET ROLE a_other; SELECT subdispatch.unsubscribe('source');\n"
	. join '', map { "SELECT subdispatch.subscribe('wire', id => 'f$_', filter => '$filters[$_]');\n"
	  . "SELECT subdispatch.subscribe('fields', id => 'p$_', filter => '" . ($filters[$_] =~ s/(row|old)\.//gr) . "', security_context => '{\"fields\": [\"id\"]}');\n" } 0 .. $#filters);
my %answers;
foreach my $pay (1, 50, 1000)
{
	$node->safe_psql('postgres', "TRUNCATE a.rows; INSERT INTO a.rows VALUES (1, $pay); UPDATE a.rows SET pay = pay; DELETE FROM a.rows;"
		. " SELECT subdispatch.publish('fields', '{\"id\": 1, \"pay\": $pay}')");
	dispatched($node);
	$answers{ join '|', map { read_as('a_other', "f$_") . '/' . read_as('a_other', "p$_") } 0 .. $#filters } = 1;
}
is(scalar keys %answers, 1, 'what comes through a filter does not depend on what is hidden');
unlike((keys %answers)[0], qr/pay/, 'and does not show it');
like((keys %answers)[0], qr/^\/\|.*"id": 1/, 'eq lets nothing pass, neq everything');
$node->safe_psql('postgres', "SET client_min_messages = warning; SET ROLE a_other; SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions;"
	. " SELECT subdispatch.subscribe('wire', id => 'counted', security_context => '{\"tenant_id\": 1}')");
$node->safe_psql('postgres', 'INSERT INTO a.rows VALUES (1, 1)');
dispatched($node);
is($seen_stats->(), $before, 'denied events show in no counter of theirs');
is($node->safe_psql('postgres', "SET ROLE a_other; SELECT delivered + pending + dropped + rate_limited + errors FROM subdispatch.subscriptions WHERE id = 'counted'"), '0',
	'nor with the subscription');

# ---- a resolver that is wrongly labelled IMMUTABLE ----

$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE TABLE a.guarded (tenant text);
INSERT INTO a.guarded VALUES ('1'), ('2');
ALTER TABLE a.guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON a.guarded USING (tenant = current_setting('app.tenant', true) OR current_user = 'a_user');
GRANT SELECT ON a.guarded TO a_other, a_user;
CREATE FUNCTION a.labelled(event jsonb, variables jsonb) RETURNS jsonb IMMUTABLE LANGUAGE plpgsql AS
  $$ BEGIN RETURN (SELECT jsonb_agg(tenant ORDER BY tenant) FROM a.guarded); END $$;
SET ROLE a_other;
SELECT subdispatch.subscribe('label', 'a.labelled', id => 'one', settings => '{"app.tenant": "1"}');
SELECT subdispatch.subscribe('label', 'a.labelled', id => 'same', settings => '{"app.tenant": "1"}', security_context => '{"match": {"n": 1}}');
SELECT subdispatch.subscribe('label', 'a.labelled', id => 'two', settings => '{"app.tenant": "2"}');
SET ROLE a_user;
SELECT subdispatch.subscribe('label', 'a.labelled', id => 'both', settings => '{"app.tenant": "1"}');
RESET ROLE;
SELECT subdispatch.publish('label', '{"n": 1}');
SQL
is(read_as('a_other', 'one') . read_as('a_other', 'same') . read_as('a_other', 'two') . read_as('a_user', 'both'), '["1"]["1"]["2"]["1", "2"]',
	'an IMMUTABLE resolver that is none gives nobody what another role or setting sees');

# ---- search_path ----

# Everything of pg_catalog that an unqualified name could be meant to be, made to fail, in front of it.
$node->safe_psql('postgres', 'CREATE DATABASE hijack');
$node->safe_psql('hijack', <<'SQL');
SET client_min_messages = error;
CREATE SCHEMA evil;
DO $$
DECLARE r record;
BEGIN
  FOR r IN SELECT p.oid, p.proname, p.prorettype, pg_get_function_identity_arguments(p.oid) AS args, format_type(p.prorettype, NULL) AS result FROM pg_proc p
    WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND NOT proretset
      AND NOT EXISTS (SELECT FROM unnest(proargtypes::oid[] || prorettype) t(o) JOIN pg_type y ON y.oid = t.o WHERE y.typtype = 'p')
      AND proargmodes IS NULL
  LOOP
    BEGIN
      EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION ''hijacked %s''; END $f$', r.proname, r.args, r.result, r.proname);
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
  END LOOP;
  FOR r IN SELECT o.oprname, o.oprleft, o.oprright, o.oprcode, p.proname FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode
    WHERE oprnamespace = 'pg_catalog'::regnamespace AND o.oprleft <> 0 LOOP
    BEGIN
      EXECUTE format('CREATE OPERATOR evil.%s (FUNCTION = evil.%I, LEFTARG = %s, RIGHTARG = %s)', r.oprname, r.proname, r.oprleft::regtype, r.oprright::regtype);
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
  END LOOP;
  FOR r IN SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype = 'b' AND typname !~ '^_' LOOP
    EXECUTE format('CREATE DOMAIN evil.%I AS pg_catalog.bytea CHECK (false)', r.typname);
  END LOOP;
END $$;
CREATE TABLE evil.pg_class (hijacked int);
CREATE TABLE evil.pg_proc (hijacked int);
CREATE TABLE evil.pg_roles (hijacked int);
SQL
cmp_ok($node->safe_psql('hijack', "SELECT count(*) FROM pg_proc WHERE pronamespace = 'evil'::regnamespace"), '>', 1000, 'traps are laid');
my $path = "SET search_path = evil, pg_catalog;\n";
($out, $err) = try_sql($node, "$path SELECT lower('X'::pg_catalog.text)", dbname => 'hijack');
like($err, qr/hijacked/, 'and work');
my @victim = ('CREATE EXTENSION subdispatch', "SELECT subdispatch.subscribe('x', id => 'x', consumer => 'c', connection_id => 'n', filter => '{\"a\": {\"gt\": 0}}')",
	"SELECT subdispatch.publish('x', '{\"a\": 1}')", "SELECT subdispatch.wait_dispatched('60s')", "SELECT subdispatch.next_response('x', '1s')",
	"SELECT * FROM subdispatch.next_responses('x')", "SELECT * FROM subdispatch.poll('c')", "SELECT * FROM subdispatch.poll_shared('c')",
	"CALL subdispatch.await_response('x', '0s')", "CALL subdispatch.await_responses('c', '0s')",
	"SELECT * FROM subdispatch.explain_delivery('x', '{}')", 'TABLE subdispatch.subscriptions', 'TABLE subdispatch.consumers', 'TABLE subdispatch.channels',
	'TABLE subdispatch.stats', 'TABLE subdispatch.workers', 'SELECT subdispatch.metrics()', 'SELECT subdispatch.health()', 'SELECT subdispatch.reset_stats()',
	"SELECT subdispatch.complete('x')", "SELECT subdispatch.unsubscribe('x')", "SELECT subdispatch.open_consumer('c')", "SELECT subdispatch.disconnect('n')",
	"SELECT subdispatch.close_consumer('c')", 'CREATE TABLE public.t (i pg_catalog.int4)',
	"CREATE TRIGGER t AFTER INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('x')",
	"SELECT subdispatch.subscribe('x', id => 'y')", 'INSERT INTO public.t VALUES (1)', "SELECT subdispatch.next_response('y', '5s')",
	'DROP TABLE public.t', 'DROP EXTENSION subdispatch');
foreach my $statement (@victim)
{
	($out, $err) = try_sql($node, $path . $statement, dbname => 'hijack');
	is($err, '', "hijack: $statement");
	like($out, qr/"i": 1/, 'hijack: the row image') if $statement =~ /'y', '5s'/;
}

# ---- input of any size and shape ----

$node->safe_psql('postgres', "SET client_min_messages = warning; SELECT subdispatch.subscribe('fuzz', id => 'fuzz'); SELECT subdispatch.subscribe('fuzz', id => 'fuzz2', filter => '{\"a.b\": {\"contains\": 1}}')");
my %values = (
	'nested arrays' => "repeat('[', 6000) || repeat(']', 6000)",
	'nested objects' => "repeat('{\"a\":', 6000) || '1' || repeat('}', 6000)",
	'nested not' => "repeat('{\"not\":', 6000) || '{\"a\": 1}' || repeat('}', 6000)",
	'nested and' => "repeat('{\"and\":[', 6000) || '{\"a\": 1}' || repeat(']}', 6000)",
	'nested below the limit' => "'{\"a\":' || repeat('[', 1000) || repeat(']', 1000) || '}'",
	'\u0000' => q('{"a": "\\u0000"}'), 'surrogate' => q('{"a": "\\ud800"}'), 'control' => q('{"a": "\\u0001\\u001f\\u007f\\ufffe"}'),
	'key of zero bytes' => q('{"": {"": ""}}'), 'duplicate keys' => q('{"a": 1, "a": {"eq": 2}, "a": null}'),
	'huge exponent' => q('{"a": 1e100000}'), 'tiny' => q('{"a": 1e-16000}'), 'beyond numeric' => q('{"a": 1e1000000000}'),
	'many digits' => q('{"a": ' || repeat('9', 100000) || '}'), 'negative zero' => q('{"a": -0.0}'), 'NaN' => q('{"a": "NaN"}'),
	'long string' => q('{"a": "' || repeat('x', 20000000) || '"}'), 'long key' => q('{"' || repeat('k', 300000) || '": 1}'),
	'long path' => q('{"' || repeat('a.', 100000) || '": 1}'), 'many keys' => q((SELECT json_object_agg('k' || i, i) FROM generate_series(1, 50000) i)::text),
	'many elements' => q('{"a": {"in": [1' || repeat(',1', 200000) || ']}}'), 'scalar' => q('1'), 'string' => q('"x"'), 'null' => q('null'), 'array' => q('[1, null, {}]'),
	'wrong members' => q('{"user_id": {}, "match": [], "fields": {"a": 1}, "app.tenant": []}'), 'not JSON' => q('{'), 'nothing' => q(''), 'SQL NULL' => 'NULL',
);
my $crashes = qr/terminated by signal|PANIC|TRAP:/;
foreach my $value (sort keys %values)
{
	foreach my $argument ('publish', 'explain_delivery', 'variables', 'filter', 'security_context', 'settings')
	{
		my $json = "($values{$value})::jsonb";
		my $call = $argument eq 'publish' ? "publish('fuzz', $json)" : $argument eq 'explain_delivery' ? "explain_delivery('fuzz2', $json)"
		  : "subscribe('fuzz', id => 'new', $argument => $json)";
		($out, $err) = try_sql($node, "SELECT length((subdispatch.$call)::text)");
		# psql itself says so when it loses the server.
		unlike($err, qr/terminat|closed the connection|crash/, "$argument, $value: an answer");
		my ($up, $answer) = server_is_up($node);
		ok($up && dispatched($node), "$argument, $value: the server is up") or diag($answer);
		try_sql($node, "SELECT subdispatch.unsubscribe('new'); SELECT length(r) FROM subdispatch.next_responses('fuzz', 10) r");
	}
}
unlike(slurp_file($node->logfile), $crashes, 'no process crashed');

$node->stop;
done_testing();

# What cannot be found out, and what cannot be used up: explain_delivery(), limits and counters tell nothing of what is hidden; the
# notify bus gives a role with nothing but CONNECT no more than it has; input of every function that takes JSON.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('oracles', dispatchers => 1, max_subscriptions => 300, subscription_idle_timeout => 0, listen_channels => 'wire');
$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE ROLE ann LOGIN;
CREATE ROLE nobody LOGIN;
CREATE SCHEMA o;
GRANT USAGE ON SCHEMA o TO ann;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA subdispatch TO ann;
REVOKE EXECUTE ON ALL ROUTINES IN SCHEMA subdispatch FROM nobody;
SELECT subdispatch.grant_channel('c', 'ann', 'subscribe'), subdispatch.grant_channel('t', 'ann', 'subscribe'), subdispatch.grant_channel('wire', 'ann', 'subscribe');
CREATE TABLE o.calls (n int);
GRANT INSERT ON o.calls TO ann;
CREATE FUNCTION o.resolver(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN INSERT INTO o.calls VALUES (1); RETURN '1'; END $$;
CREATE TABLE o.t (id int PRIMARY KEY, owner text, pay int);
ALTER TABLE o.t ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON o.t USING (owner = current_user);
GRANT SELECT ON o.t TO ann;
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON o.t FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('t');
INSERT INTO o.t VALUES (1, 'ann', 1), (2, 'bob', 2);
SQL
sub as_ann { return $node->safe_psql('postgres', "SET ROLE ann; $_[0]"); }

# ---- explain_delivery() ----

as_ann("SELECT subdispatch.subscribe('c', 'o.resolver', id => 'explained', rate_limit => 0.000001, burst => 1,"
	. " security_context => '{\"user_id\": 7, \"fields\": [\"user_id\", \"a\"]}', filter => '{\"a\": {\"gt\": 0}}')");
as_ann("SELECT subdispatch.subscribe('t', id => 'rows')");
my $explain = "SELECT string_agg(step || '=' || coalesce(passed::text, '-'), ' ' ORDER BY n) FROM subdispatch.explain_delivery('explained', DATA) WITH ORDINALITY x(step, passed, detail, n)";
my $all = as_ann($explain =~ s/DATA/'{"user_id": 7, "a": 1}'/r);
is($all, 'channel=true role=true channel grant=true row-level security=true row filter=true tenant=true federation=true scope=true fields=true filter=true resolver=true limits=true',
	'all steps, in their order');
my $before = $node->safe_psql('postgres', "SELECT to_jsonb(s) - 'stats_reset' - 'shared_memory_used' FROM subdispatch.stats s");
is(as_ann($explain =~ s/DATA/'{"user_id": 7, "a": 1}'/r), $all, 'again, and no token is taken') foreach 1 .. 5;
like(as_ann($explain =~ s/DATA/'{"user_id": 8, "a": 1}'/r), qr/row filter=false tenant=- .*limits=-$/, 'nothing is told of the steps after the one that denies');
like(as_ann($explain =~ s/DATA/'{"user_id": 7, "a": 0}'/r), qr/filter=false resolver=- limits=-$/, 'the filter');
is($node->safe_psql('postgres', "SELECT to_jsonb(s) - 'stats_reset' - 'shared_memory_used' FROM subdispatch.stats s"), $before, 'no counter has moved');
is($node->safe_psql('postgres', 'SELECT count(*) FROM o.calls'), '0', 'the resolver is not called');
is(as_ann("SELECT pending + delivered + dropped + rate_limited FROM subdispatch.subscriptions WHERE id = 'explained'"), '0', 'nothing is delivered');
# It reads no table: what it says does not depend on which rows there are.
my $rows = "SELECT string_agg(step || coalesce(passed::text, '-') || coalesce(detail, ''), ' ') FROM subdispatch.explain_delivery('rows', '{\"op\": \"UPDATE\", \"schema\": \"o\", \"table\": \"t\", \"row\": {\"id\": 2, \"owner\": \"bob\", \"pay\": PAY}}')";
my %told = map { my $p = $_; as_ann($rows =~ s/PAY/$p/r) =~ s/"pay": \d+//r => 1 } 2, 3;
is(scalar keys %told, 1, 'data that look like a row are data');
unlike((keys %told)[0], qr/false/, 'which no policy is asked about');
my ($out, $err) = try_sql($node, "SET ROLE ann; SET default_transaction_read_only = on; SELECT count(*) FROM subdispatch.explain_delivery('rows', '1')");
is($out, '12', 'it writes nothing: it runs read-only');
my @foreign = map { (try_sql($node, "\\set VERBOSITY verbose\nSELECT * FROM subdispatch.explain_delivery('$_', '1')"))[1] =~ s/explained|missing12/ID/gr } 'explained', 'missing12';
is($foreign[0], $foreign[1], 'another\'s subscription is as one that is not there, to a superuser too');
# The tokens are all there yet.
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '{\"user_id\": 7, \"a\": 1}')");
dispatched($node);
is(as_ann("SELECT pending FROM subdispatch.subscriptions WHERE id = 'explained'"), '1', 'the bucket was full when it was asked');
like(as_ann($explain =~ s/DATA/'{"user_id": 7, "a": 1}'/r), qr/limits=false$/, 'and is empty now');
$node->safe_psql('postgres', "SELECT subdispatch.revoke_channel('c', 'ann', 'subscribe')");
like(as_ann($explain =~ s/DATA/'{"user_id": 7, "a": 1}'/r), qr/channel grant=false row-level security=- /, 'a revoked grant');
$node->safe_psql('postgres', "SELECT subdispatch.grant_channel('c', 'ann', 'subscribe')");

# ---- limits: what is hidden or not wanted takes nothing from a bucket ----

as_ann("SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");
as_ann("SELECT subdispatch.subscribe('t', id => 'limited', rate_limit => 0.000001, burst => 2, max_pending => 2, overflow => 'error', filter => '{\"row.pay\": {\"gt\": 10}}')");
$node->safe_psql('postgres', "INSERT INTO o.t SELECT i, 'bob', 100 FROM generate_series(100, 130) i; UPDATE o.t SET pay = 101 WHERE owner = 'bob'; INSERT INTO o.t SELECT i, 'ann', 5 FROM generate_series(200, 230) i; DELETE FROM o.t WHERE owner = 'bob'");
dispatched($node);
is(as_ann("SELECT pending, dropped, rate_limited, state FROM subdispatch.subscriptions WHERE id = 'limited'"), '0|0|0|active', 'hidden rows take no token and fill no queue');
$node->safe_psql('postgres', "INSERT INTO o.t SELECT i, 'ann', 100 FROM generate_series(300, 302) i");
dispatched($node);
is(as_ann("SELECT pending, dropped, rate_limited FROM subdispatch.subscriptions WHERE id = 'limited'"), '2|1|1', 'what is seen does');

# ---- a user's bucket and a stream's: both tokens are taken, or none ----

$node->safe_psql('postgres', "ALTER SYSTEM SET subdispatch.user_rate_limit = 0.000001; ALTER SYSTEM SET subdispatch.user_burst = 1");
$node->reload;
poll_until($node, 'SHOW subdispatch.user_burst', '1', 'reloaded');
as_ann("SELECT subdispatch.subscribe('c', 'o.resolver', '{\"n\": ' || i || '}', id => 'two' || i, rate_limit => 0.000001, burst => 2, security_context => '{\"user_id\": 1}') FROM (VALUES ('1'), ('2')) v(i)" =~ s/'\{"n": ' \|\| i \|\| '\}'/jsonb_build_object('n', i)/r);
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '{\"user_id\": 1}')");
dispatched($node);
is(as_ann("SELECT string_agg(pending || '/' || dropped || '/' || rate_limited, ' ' ORDER BY pending) FROM subdispatch.subscriptions WHERE id ~ '^two'"), '0/1/1 1/0/0',
	'the user has one token: one stream gets its response, the other is told that it was refused');
my $refused = as_ann("SELECT id FROM subdispatch.subscriptions WHERE id ~ '^two' AND pending = 0");
$node->safe_psql('postgres', 'ALTER SYSTEM RESET subdispatch.user_rate_limit');
$node->reload;
poll_until($node, 'SHOW subdispatch.user_rate_limit', '0', 'reloaded');
eventually('the stream that was refused has its two tokens still', sub {
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '{\"user_id\": 1}')");
	dispatched($node);
	my $n = as_ann("SELECT pending FROM subdispatch.subscriptions WHERE id = '$refused'");
	return ($n == 2, $n);
});
as_ann("SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");

# ---- consumers are as many as subscriptions may be ----

($out, $err) = try_sql($node, "SET ROLE ann; SELECT subdispatch.open_consumer('c' || i) FROM generate_series(1, 300) i");
is($err, '', '300 consumers');
($out, $err) = try_sql($node, "\\set VERBOSITY verbose\nSET ROLE ann; SELECT subdispatch.open_consumer('one more')");
like($err, qr/53400.*too many consumers.*300.*subdispatch\.max_subscriptions/s, 'and no more');
($out, $err) = try_sql($node, "\\set VERBOSITY verbose\nSET ROLE ann; SELECT subdispatch.subscribe('c', consumer => 'one more')");
like($err, qr/53400.*too many consumers/s, 'nor by subscribe()');
($out, $err) = try_sql($node, "SET ROLE ann; SELECT subdispatch.open_consumer('c1'), subdispatch.subscribe('c', consumer => 'c2')");
is($err, '', 'those that there are can be used');
as_ann("SELECT subdispatch.close_consumer('c1'); SELECT subdispatch.open_consumer('one more')");
is($node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.consumers"), '300', 'a place that became free is taken');
as_ann("SELECT count(subdispatch.close_consumer(consumer)) FROM subdispatch.consumers");

# ---- the notify bus, for a role with nothing but CONNECT ----

$node->append_conf('postgresql.conf', "subdispatch.event_bus = notify\n");
$node->reload;
poll_until($node, 'SHOW subdispatch.event_bus', 'notify', 'reloaded');
$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE FUNCTION o.told(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT event - 'id' - 'timestamp' $$;
SET ROLE ann;
SELECT subdispatch.subscribe('wire', 'o.told', id => 'told'), subdispatch.subscribe('c', 'o.told', id => 'granted'), subdispatch.subscribe('t', 'o.told', id => 'changes');
SQL
my $dboid = $node->safe_psql('postgres', "SELECT oid FROM pg_database WHERE datname = current_database()");
my $listener = $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'nobody' ]);
$listener->query_safe("LISTEN wire; LISTEN c; LISTEN t; LISTEN \"*\"; LISTEN subdispatch; LISTEN \"subdispatch.marker.$dboid.0\"");
($out, $err) = try_sql($node, "SELECT subdispatch.publish('c', '\"secret\"')");
like($err, qr/cannot be used on the notify bus/, 'a channel with grants does not go by NOTIFY unless it is named');
$node->safe_psql('postgres', "UPDATE o.t SET pay = 987654 WHERE id = 1");
dispatched($node);
is(as_ann("SELECT count(*) FROM subdispatch.next_responses('changes') r WHERE r ~ '987654'"), '1', 'a row image arrives');
my @forged = (
	'{"op": "INSERT", "schema": "o", "table": "t", "row": {"id": 2, "owner": "bob"}, "source": "change"}',
	"{\"subdispatch\":1,\"seq\":1,\"pid\":1,\"source\":\"change\",\"op\":0,\"relid\":1}\n{\"op\": \"DELETE\", \"row\": {\"id\": 3}}",
	"{\"subdispatch\":1,\"seq\":9223372036854775807,\"pid\":-1,\"id\":99,\"channel\":\"t\",\"data\":1}\n{\"forged\": true}",
	"{\"subdispatch\":1,\"seq\":1,\"pid\":1,\"event_type\":\"x\\u0000y\"}\n1", "{\"subdispatch\":1,\"seq\":1,\"pid\":1,\"timestamp\":\"infinity\"}\n1",
	"{\"subdispatch\":1,\"seq\":1,\"pid\":1,\"timestamp\":\"9999-01-01\"}\nnot json", "{\"subdispatch\":1,", '{"subdispatch":1}' . "\n", "\n", '[' x 7000, '"\ud800"', '1e1000000');
foreach my $channel ('wire', 'c', 't')
{
	foreach my $payload (@forged)
	{
		my $quoted = $payload =~ s/'/''/gr;
		($out, $err) = try_sql($node, "SELECT pg_notify('$channel', '$quoted')", user => 'nobody');
		is($err, '', "anybody can NOTIFY $channel");
	}
}
foreach my $payload ('1', '4294967295', '2147483647', '-1', 'x', '')
{
	try_sql($node, "SELECT pg_notify('subdispatch.marker.$dboid.0', '$payload')", user => 'nobody');
}
ok(dispatched($node), 'all of it is dispatched');
my @told = split /\n/, as_ann("SELECT r::jsonb #>> '{payload,data}' FROM subdispatch.next_responses('told', 1000) r");
cmp_ok(scalar(@told), '>=', 9, 'what is sent on a channel that is named arrives');
is_deeply([ grep { /"source": "change"[^}]*$/ || !/"source": "(?:notify|publish)"/ || !/"channel": "wire"/ } map { s/"data": (?:\{.*?\}\}?|"(?:\\.|[^"])*")//r } @told ], [], 'as no change, and on no other channel');
is(as_ann("SELECT count(*) FROM subdispatch.next_responses('granted', 1000)"), '0', 'on one with grants that is not named nothing does');
is(as_ann("SELECT count(*) FROM subdispatch.next_responses('changes', 1000)"), '0', 'so no row image can be forged');
unlike($listener->query('SELECT 1') . $listener->{stdout}, qr/987654/, 'who LISTENs hears of no row');
$listener->quit;
# Nor does anybody, a resolver included, make wait_dispatched() return too early.
$node->safe_psql('postgres', <<"SQL");
SET client_min_messages = warning;
CREATE FUNCTION o.ahead(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS \$\$ BEGIN PERFORM pg_notify('subdispatch.marker.$dboid.0', '2000000000'); RETURN '1'; END \$\$;
CREATE FUNCTION o.slow(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS \$\$ BEGIN PERFORM pg_sleep(0.7); RETURN '1'; END \$\$;
SELECT subdispatch.subscribe('wire', 'o.ahead', id => 'ahead');
SELECT subdispatch.publish('wire', '1');
SELECT subdispatch.wait_dispatched();
SELECT subdispatch.unsubscribe('ahead'), subdispatch.subscribe('wire', 'o.slow', id => 'slow');
SQL
is($node->safe_psql('postgres', "SELECT subdispatch.publish('wire', '2'); SELECT subdispatch.wait_dispatched('100s'); SELECT count(*) FROM subdispatch.next_responses('slow')"), "\nt\n1",
	'wait_dispatched() waits for what was sent, whatever a resolver sends to itself');
$node->append_conf('postgresql.conf', "subdispatch.event_bus = memory\n");
$node->reload;
poll_until($node, 'SHOW subdispatch.event_bus', 'memory', 'reloaded');

# ---- every JSON argument of every function, in UTF-8 and in a database that knows no encoding ----

$node->safe_psql('postgres', "CREATE DATABASE bytes ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
install_extension($node, 'bytes');
my %values = (
	'deep arrays' => "repeat('[', 3000) || repeat(']', 3000)", 'deep objects' => "repeat('{\"a\":', 3000) || '1' || repeat('}', 3000)",
	'nul' => q('{"a": "\\u0000"}'), 'duplicate keys' => q('{"a": 1, "a": {"eq": 2}, "a": null}'), 'half a surrogate' => q('{"a": "\\ud800"}'),
	'huge exponent' => q('{"a": 1e131071, "user_id": 1e131071}'), 'many digits' => q('{"user_id": ' || repeat('9', 100000) || '.' || repeat('9', 16383) || '}'),
	'a long string' => q('{"a": "' || repeat('x', 3000000) || '"}'), 'many keys' => q((SELECT json_object_agg('k' || i, i) FROM generate_series(1, 20000) i)::text),
	'bytes' => q('{"a": "' || E'\xff\xfe\x80' || '", "' || E'\xc3' || '": {"eq": "' || E'\xe2\x82' || '"}}'), 'scalar' => '\'1\'', 'null' => '\'null\'', 'SQL NULL' => 'NULL',
	'all keys' => q('{"user_id": {"a": []}, "tenant_id": [], "match": {"x": {}}, "fields": [1, null], "federation_id": 1}'));
my $functions = <<'SQL';
SELECT p.proname, a.name, (SELECT string_agg(CASE WHEN b.name = a.name THEN format('%s => VALUE', b.name)
    WHEN b.type = 'text'::regtype THEN format('%s => ''fuzz''', b.name) WHEN b.type = 'jsonb'::regtype THEN format('%s => ''{}''', b.name)
    WHEN b.type = 'jsonb[]'::regtype THEN format('%s => ''{}''', b.name) WHEN b.type = 'bigint'::regtype THEN format('%s => 1', b.name) ELSE format('%s => NULL', b.name) END, ', ' ORDER BY b.n)
  FROM (SELECT n, proargnames[n] AS name, t.t AS type FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY t(t, n)) b
  WHERE b.n <= p.pronargs - p.pronargdefaults OR b.name = a.name OR b.name = 'id')
FROM pg_proc p, LATERAL (SELECT proargnames[n] AS name, t.t AS type FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY t(t, n)) a
WHERE pronamespace = 'subdispatch'::regnamespace AND a.type IN ('jsonb'::regtype, 'json'::regtype) ORDER BY 1, 2
SQL
my @functions = map { [ split /\|/ ] } split /\n/, $node->safe_psql('postgres', $functions);
cmp_ok(scalar(@functions), '>=', 6, 'functions with JSON arguments: ' . join ' ', map { "$_->[0]($_->[1])" } @functions);
foreach my $db ('postgres', 'bytes')
{
	$node->safe_psql($db, "SET client_min_messages = warning; SELECT subdispatch.subscribe('fuzz', id => 'listening'), subdispatch.subscribe('fuzz', id => 'fuzz', filter => '{\"a\": {\"gt\": 1}}', security_context => '{\"fields\": [\"a\"]}')");
	foreach my $function (@functions)
	{
		my ($name, $argument, $arguments) = @$function;
		foreach my $value (sort keys %values)
		{
			my $call = $arguments =~ s/VALUE/($values{$value})::jsonb/r;
			$call =~ s/id => 'fuzz'/id => 'new'/ if $name eq 'subscribe';
			($out, $err) = try_sql($node, "SELECT length((subdispatch.$name($call))::text)", dbname => $db);
			unlike($err, qr/terminat|closed the connection|crash/, "$db: $name, $argument: $value: an answer");
			try_sql($node, "SELECT subdispatch.unsubscribe('new')", dbname => $db);
		}
	}
	ok(dispatched($node, $db), "$db: all is dispatched");
	($out, $err) = try_sql($node, "SELECT count(length(r)) > 0 FROM subdispatch.next_responses('listening', 1000) r", dbname => $db);
	is($out, 't', "$db: and can be read");
}
unlike(slurp_file($node->logfile), qr/terminated by signal|PANIC|TRAP:/, 'no process crashed');

$node->stop;
done_testing();

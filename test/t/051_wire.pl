# Events as they travel between servers. Each takes that way inside one server: subdispatch.debug_wire sends it through its
# text before it is dispatched, and a function shows what a server makes of any text. Both exist where the extension was
# compiled with -DUSE_ASSERT_CHECKING.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('wire', dispatchers => 1);
if ($node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = 'subdispatch.debug_wire'") ne '1')
{
	$node->stop;
	plan skip_all => 'needs subdispatch.debug_wire, compiled with -DUSE_ASSERT_CHECKING';
}
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION wire(bytea, authenticated boolean DEFAULT true) RETURNS text STRICT
	LANGUAGE c AS 'subdispatch', 'subdispatch_debug_wire_text';
CREATE FUNCTION wire(text, authenticated boolean DEFAULT true) RETURNS text STRICT
	LANGUAGE sql AS 'SELECT wire(convert_to($1, ''UTF8''), $2)';
CREATE FUNCTION event(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT event - 'id' - 'timestamp' $$;
CREATE FUNCTION event_time(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT event->'timestamp' $$;
SQL

# Runs SQL with and without the journey: what came must be the same, byte for byte. Subscriptions: id => the rest of the
# arguments of subscribe(), or a whole call.
sub same_both_ways
{
	my ($sql, $name, %subscriptions) = @_;
	%subscriptions = (data => '', event => ", 'event'") unless %subscriptions;
	my @came;
	foreach my $debug ('off', 'on')
	{
		$node->safe_psql('postgres', "ALTER SYSTEM SET subdispatch.debug_wire = $debug");
		$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
		# The dispatchers read the setting before the next event: the reload wakes them.
		poll_until($node, 'SHOW subdispatch.debug_wire', $debug, "debug_wire is $debug");
		$node->safe_psql('postgres', "SELECT subdispatch.subscribe('orders'$subscriptions{$_}, id => '$_')") foreach sort keys %subscriptions;
		$node->safe_psql('postgres', $sql);
		push @came, join("\n", map { "$_:\n" . drain($node, $_) } sort keys %subscriptions);
		$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('$_')") foreach keys %subscriptions;
	}
	cmp_ok(length $came[0], '>', 100, "$name: something came");
	is($came[1], $came[0], "$name: the same");
	return $came[0];
}

my $came = same_both_ways(<<'SQL', 'publish()');
SELECT subdispatch.publish('orders', '{"n": 1}');
SELECT subdispatch.publish('orders', 'null', '', 'ü "quoted" \ back', E'line\nfeed');
SELECT subdispatch.publish('orders', '[18446744073709551617, 1.50, 1e-400, -0.0, 12345678901234567890123456789.000]');
SELECT subdispatch.publish('orders', jsonb_build_object('data', ',"data":}', 'ctrl', chr(1) || chr(127) || '/'), 'type', 'corr', 'fed');
SELECT subdispatch.publish('orders', to_jsonb(repeat('x', 900000)));
SQL
like($came, qr/18446744073709551617, 1\.50/, 'numbers are exact');

sub wire { my ($text, @more) = @_; return $node->safe_psql('postgres', "SELECT wire(\$text\$$text\$text\$" . join('', map { ", $_" } @more) . ')'); }

my $good = '{"subdispatch":1,"encoding":"UTF8","channel":"c","source":"publish","timestamp":1700000000123456,"event_type":"t",'
  . '"correlation_id":"co","federation_id":"f","system":"18446744073709551615","timeline":7,"lsn":"16/B374D848","data":{"a": 1.10}}';
is(wire($good), $good, 'a text comes back as it was');
is(wire($good, 'false'), $good, 'an event of publish() need not be authenticated here');
(my $other = $good) =~ s/UTF8/LATIN1/;
is(wire($other), $good, 'ASCII is the same in every encoding');
(my $umlaut = $other) =~ s/"co"/"\x{c3}\x{bc}"/;

my %bad = (
	'no JSON' => [ 'x', 'it is not a JSON object as another server writes it' ],
	'another encoding' => [ $umlaut, 'it is in another encoding than this database' ],
	'no channel' => [ $good =~ s/"channel":"c"/"channel":""/r, 'its channel is none that can be published on' ],
	'all channels' => [ $good =~ s/"channel":"c"/"channel":"*"/r, 'its channel is none that can be published on' ],
	'a long channel' => [ $good =~ s/"channel":"c"/'"channel":"' . 'c' x 1025 . '"'/er, 'its channel is none that can be published on' ],
	'a time before time' => [ $good =~ s/1700000000123456/-9223372036854775808/r, 'its timestamp is out of range' ],
	'another source' => [ $good =~ s/"source":"publish"/"source":"rumour"/r, 'its source is not one that can be received' ],
	'a change with data' => [ $good =~ s/"source":"publish"/"source":"change"/r, 'its source is not one that can be received' ],
	'no LSN' => [ $good =~ s/16\/B374D848/16-B374D848/r, q(its commit's position is not one) ],
	'a long LSN' => [ $good =~ s/16\/B374D848/16\/1B374D848/r, q(its commit's position is not one) ],
	'no system' => [ $good =~ s/18446744073709551615/-1/r, q(its commit's position is not one) ],
	'a large system' => [ $good =~ s/18446744073709551615/18446744073709551616/r, q(its commit's position is not one) ],
	'broken data' => [ $good =~ s/1\.10/1.10.1/r, 'its data is not JSON that jsonb can hold' ],
	'two data' => [ $good =~ s/\}\}/},"data":1}/r, 'its data is not JSON that jsonb can hold' ],
	'a NUL in data' => [ $good =~ s/1\.10/"\\u0000"/r, 'its data is not JSON that jsonb can hold' ],
	'deep data' => [ $good =~ s/1\.10/'[' x 100000/er, 'its data is not JSON that jsonb can hold' ],
	'a large event' => [ $good =~ s/1\.10/'"' . 'x' x 1048576 . '"'/er, 'it is larger than subdispatch.max_event_size allows' ],
);
is(wire($bad{$_}[0]), $bad{$_}[1], $_) foreach sort keys %bad;
is($node->safe_psql('postgres', q{SELECT wire('\x7b22ff227d'), wire(convert_to($$} . $good . q{$$, 'UTF8') || '\x00'), wire(overlay(convert_to($$} . $good . q{$$, 'UTF8') placing '\xff' from 60))}),
	'it is not a JSON object as another server writes it|it is not a JSON object as another server writes it|it has bytes that are no character in this database\'s encoding',
	'bytes that are no text');
is($node->safe_psql('postgres', q{SELECT wire(convert_to(repeat('x', 8 * 1048576 + 1), 'UTF8'))}),
	'it is larger than subdispatch.max_event_size allows', 'a large text is not even read');

# Damage: whatever comes, there is an answer and no error.
sub fuzz
{
	my ($text, $rounds) = @_;
	return $node->safe_psql('postgres', <<"SQL");
SELECT setseed(0.5);
DO \$do\$
DECLARE
	good bytea := convert_to(\$text\$$text\$text\$, 'UTF8');
	bytes bytea := convert_to('{}[]",:\\0u ' || E'\\n' || 'd1e-', 'UTF8') || '\\xffc300';
	bad bytea;
	events int := 0;
BEGIN
	FOR i IN 1 .. $rounds LOOP
		bad := good;
		FOR j IN 0 .. (random() * 3)::int LOOP
			bad := set_byte(bad, (random() * (length(good) - 1))::int, get_byte(bytes, (random() * (length(bytes) - 1))::int));
		END LOOP;
		IF random() < 0.2 THEN
			bad := substr(bad, 1, (random() * length(bad))::int);
		END IF;
		IF wire(bad) ~ '^{"subdispatch"|^a row image' THEN
			events := events + 1;
		END IF;
	END LOOP;
	PERFORM set_config('x.events', events::text, false);
END
\$do\$;
SELECT current_setting('x.events')::int > $rounds / 100;
SQL
}
like(fuzz($good, 20000), qr/^t$/m, 'damaged texts are answered, and some are still events');

my $image = '{"subdispatch":1,"encoding":"UTF8","channel":"c","source":"change","timestamp":1700000000123456,'
  . '"op":"UPDATE","schema":"public","table":"t","columns":[["id","pg_catalog.int4"],["v","pg_catalog.text"]],'
  . '"row":["1",null],"old":["1","x"]}';
is(wire($image), 'a row image', 'a row image can be read');
is(wire($image, 'false'), 'row images are believed only of servers of the group', 'but not from just anybody');
is(wire($image =~ s/UPDATE/INSERT/r), 'its operation is none, or has other images', 'an INSERT with an old row');
is(wire($image =~ s/UPDATE/LEAVE/r), 'its operation is none, or has other images', 'an operation that is none');
is(wire($image =~ s/UPDATE/TRUNCATE/r), 'its operation is none, or has other images', 'a TRUNCATE with rows');
is(wire($image =~ s/"source":"change"/"source":"publish"/r), 'its source is not one that can be received', 'a row that was published');
like(fuzz($image, 20000), qr/^t$/m, 'damaged row images are answered');

# ---- row images: there and back, every kind of type

$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE SCHEMA "Own ""types""";
CREATE TYPE "Own ""types""".mood AS ENUM ('sad', 'so "so", fine', 'ok');
CREATE TYPE inner_row AS (a int, b text[], gone int);
ALTER TYPE inner_row DROP ATTRIBUTE gone;
CREATE TYPE outer_row AS (i inner_row, m "Own ""types""".mood, n numeric);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN short AS varchar(20);
CREATE DOMAIN row_domain AS inner_row CHECK ((VALUE).a IS DISTINCT FROM -1);
CREATE TYPE textrange AS RANGE (subtype = text, collation = "C");
CREATE TABLE everything (
	id int PRIMARY KEY, gone text, b bool, i2 int2, i8 int8, n numeric, n2 numeric(20, 10), f4 float4, f8 float8, m money,
	c "char", c1 char(8), vc varchar(10), t text, nm name, ba bytea, bi bit(7), vb varbit,
	d date, ti time(3), tz timetz, ts timestamp, tstz timestamptz, iv interval,
	u uuid, j json, jb jsonb, x xml, ip inet, ci cidr, mac macaddr, mac8 macaddr8,
	pt point, ls lseg, bx box, pa path, po polygon, ce circle, li line, tv tsvector, tq tsquery, jp jsonpath, lsn pg_lsn,
	ir int4range, nmr nummultirange, tr textrange, tm textmultirange, od oid, rc regclass, rt regtype, rp regprocedure,
	ia int[], ta text[], ba2 bytea[], oa outer_row[], md "Own ""types""".mood, mda "Own ""types""".mood[],
	po1 positive, sh short, poa positive[], rd row_domain, o outer_row, ct citext, hs hstore,
	"Spe""cial, Ünï" text, ge int GENERATED ALWAYS AS (id % 7) STORED, gt text GENERATED ALWAYS AS (upper(t)) STORED);
ALTER TABLE everything DROP COLUMN gone;
ALTER TABLE everything ADD COLUMN later text DEFAULT 'was not there';
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON everything FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('orders', 'changed');
CREATE TRIGGER tt AFTER TRUNCATE ON everything FOR EACH STATEMENT EXECUTE FUNCTION subdispatch.publish_change('orders');
SQL
my $types = <<'SQL';
INSERT INTO everything VALUES (1);
INSERT INTO everything VALUES (-2147483648, true, -32768, -9223372036854775808, 'NaN', -1234567890.0123456789, '-Infinity', '-0', '-$92,233,720,368,547,758.08',
	'"', 'pad', '  ', '', 'n', '\x', '0000000', '',
	'4713-01-01 BC', '24:00', '23:59:59.999999-15:59', '4714-11-24 00:00:00 BC', '4714-11-24 00:00:00+00 BC', '-178000000 years -11 mons -3 days -23:59:59.999999',
	'00000000-0000-0000-0000-000000000000', ' { "a" :1.0, "a": 2 }', '{"n": 1.0000000000000000000000000001}', '<a>text</a><b/>', '::1/64', '10/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05',
	'(1e-300,1e300)', '[(0,0),(1,1)]', '(1,1),(0,0)', '[(0,0),(1,1)]', '((0,0),(1,1))', '<(0,0),1>', '{1,-1,0}', $$'a':1A 'b c':2$$, 'a & !b', '$.a[*] ? (@ > 1)', '0/0',
	'empty', '{}', '["a""b","c,d")', '{}', 0, 'everything', '"Own ""types""".mood', 'pg_catalog.upper(text)',
	'{}', '{}', '{}', '{}', 'sad', '{}',
	1, '', '{}', '(1,)', NULL, '', '');
INSERT INTO everything VALUES (2147483647, false, 32767, 9223372036854775807, 1e-300, 0.1, 3.4028235e38, 5e-324, 0.01,
	E'\x7f', 'ümläut', 'x', E'tab\t nl\n bs\\ q" \x01', repeat('ü', 31), '\x00ff5c', '1010101', '1',
	'infinity', '00:00:00.001', '00:00:00+15:59', 'infinity', '294276-12-31 23:59:59.999999+00', '1 mon -1 day 00:00:00.000001',
	'ffffffff-ffff-ffff-ffff-ffffffffffff', 'null', '[1e10, 0.10, "ü\n"]', '', '1.2.3.4', '::/0', '00:00:00:00:00:00', '00:00:00:00:00:00:00:00',
	'(NaN,Infinity)', '[(-1,0.1),(1,1)]', '(1.1,1),(0,0)', '((0,0),(1,1))', '((0,0),(1,1),(2,0))', '<(0,0),0>', '{1.5,-1,0}', '', '', '$', 'FFFFFFFF/FFFFFFFF',
	'[1,5)', '{[1,2),(3,4]}', '(,)', '{[a,b),["",z]}', 4294967295, 'pg_catalog.pg_class', 'int4[]', NULL,
	'[0:1][2:3]={{1,NULL},{3,4}}', ARRAY['', 'NULL', NULL, 'a"b', 'c\d', '{x}'], ARRAY['\x5c22'::bytea, NULL], ARRAY[ROW(ROW(1, ARRAY['x,"y', NULL]), 'so "so", fine', 1.50)::outer_row, NULL], 'so "so", fine', '{"so \"so\", fine",ok}',
	2147483647, 'exactly twenty chars', '{1,2}', ROW(3, '{a}')::inner_row, ROW(ROW(NULL, '{}'), NULL, 'NaN'), 'CaSe', 'a=>"b c", d=>NULL', 'special');
UPDATE everything SET f8 = 0.1::float8 + 0.2, f4 = 1.1, n = 12345678901234567890.123456789012345678900, t = repeat('long ü ', 30000) WHERE id = 1;
UPDATE everything SET id = 3, t = 'x' WHERE id = 1;
DELETE FROM everything;
TRUNCATE everything;
SQL
$came = same_both_ways($types, 'every type');
like($came, qr/0\.30000000000000004/, 'floats are exact');
like($came, qr/12345678901234567890\.123456789012345678900/, 'numerics are exact');
my @lines = $came =~ /"op": "(\w+)"/g;
is(scalar @lines, 2 * 9, 'all changes came');
# As another server has it set up.
$node->safe_psql('postgres', <<'SQL');
ALTER SYSTEM SET lc_monetary = 'C';
ALTER SYSTEM SET datestyle = 'German';
ALTER SYSTEM SET timezone = 'Asia/Kathmandu';
ALTER SYSTEM SET intervalstyle = 'iso_8601';
ALTER SYSTEM SET bytea_output = 'escape';
ALTER SYSTEM SET extra_float_digits = -10;
ALTER SYSTEM SET xmloption = 'document';
ALTER SYSTEM SET quote_all_identifiers = 'on';
SQL
is(same_both_ways("SET datestyle = 'ISO'; SET xmloption = 'content'; $types", 'other settings') =~ s/"timestamp":\d+//gr, $came =~ s/"timestamp":\d+//gr, 'settings change nothing');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET ALL; SELECT pg_reload_conf()');

# A partitioned table whose partition has its columns in another order.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE parts (id int, gone int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
ALTER TABLE parts DROP COLUMN gone;
CREATE TABLE part1 (v text, x int, id int NOT NULL);
ALTER TABLE part1 DROP COLUMN x;
ALTER TABLE parts ATTACH PARTITION part1 FOR VALUES FROM (0) TO (100);
CREATE TABLE part2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON parts FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('orders');
CREATE TABLE nothing ();
CREATE TRIGGER t AFTER INSERT OR DELETE ON nothing FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('orders');
SQL
same_both_ways(<<'SQL', 'partitions, a table without columns');
INSERT INTO parts VALUES (1, 'one'), (150, NULL);
UPDATE parts SET v = 'two' WHERE id = 1;
UPDATE parts SET id = 151 WHERE id = 1;
DELETE FROM parts;
INSERT INTO nothing DEFAULT VALUES;
DELETE FROM nothing;
SQL

# ---- row-level security, column rights, LEAVE

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE alice;
CREATE ROLE bob;
CREATE ROLE nobody;
SELECT subdispatch.grant_channel('orders', '-', 'subscribe');
CREATE TABLE docs (id int PRIMARY KEY, owner text, secret text, body text, user_id int);
ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON docs FOR SELECT USING (owner = current_user);
GRANT SELECT ON docs TO alice;
GRANT SELECT (id, body, owner) ON docs TO bob;
GRANT EXECUTE ON FUNCTION event TO PUBLIC;
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON docs FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('orders');
CREATE TRIGGER tt AFTER TRUNCATE ON docs FOR EACH STATEMENT EXECUTE FUNCTION subdispatch.publish_change('orders');
SQL
my $docs = same_both_ways(<<'SQL', 'row-level security', map { my $r = $_; ($r => ", run_as => '$r'", "${r}_event" => ", 'event', run_as => '$r'", "${r}_context" => ", run_as => '$r', security_context => '{\"user_id\": 7, \"fields\": [\"id\", \"secret\"]}'") } qw(alice bob nobody));
INSERT INTO docs VALUES (1, 'alice', 's', 'b', 7), (2, 'bob', 's', 'b', 8);
UPDATE docs SET owner = 'bob' WHERE id = 1;
UPDATE docs SET body = 'new' WHERE id = 1;
UPDATE docs SET user_id = 9 WHERE id = 2;
DELETE FROM docs;
TRUNCATE docs;
SQL
like($docs, qr/LEAVE/, 'with rows that leave');
like($docs, qr/nobody:\n\nnobody_context:\n\nnobody_event:\n\z/, 'and nothing for who may not look');

# A policy that is asked by parts, for an event that is dispatched once more, to one who resumes: then it lies elsewhere.
$node->safe_psql('postgres', q(ALTER SYSTEM SET subdispatch.context_settings = 'app.owner'));
$node->safe_psql('postgres', 'ALTER SYSTEM SET subdispatch.debug_wire = on');
$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
poll_until($node, 'SHOW subdispatch.context_settings', 'app.owner', 'a setting that identities have');
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE reader;
CREATE TABLE notes (id int PRIMARY KEY, owner text);
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON notes FOR SELECT USING (owner = current_setting('app.owner', true));
GRANT SELECT ON notes TO reader;
CREATE TRIGGER t AFTER INSERT ON notes FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('notes');
SELECT subdispatch.grant_channel('notes', 'reader', 'subscribe');
SQL
sub follow_notes { my ($id, $owner, $more) = @_; return $node->safe_psql('postgres', "SELECT subdispatch.subscribe('notes', run_as => 'reader', settings => '{\"app.owner\": \"$owner\"}', id => '$id'$more)"); }
sub seen_notes { my ($id) = @_; return join(' ', map { /"id": (\d)/ ? $1 : /"data":"(x)/ ? $1 : $_ } split(/\n/, drain($node, $id))); }
follow_notes('ann', 'ann', '');
$node->safe_psql('postgres', "SELECT subdispatch.publish('notes', to_jsonb(repeat('x', 60000)))");
dispatched($node);
$node->safe_psql('postgres', "INSERT INTO notes VALUES (1, 'ann')");
is(seen_notes('ann'), 'x 1', 'a note comes');
follow_notes('ann again', 'ann', ', after_event => 0');
follow_notes('bob', 'bob', ', after_event => 0');
poll_until($node, "SELECT count(*) FROM subdispatch.subscriptions WHERE state = 'resuming'", '0', 'they have caught up');
is(seen_notes('ann again'), 'x 1', 'and comes again');
is(seen_notes('bob'), 'x', 'to whom it may');

# ---- what is denied

$node->safe_psql('postgres', 'ALTER SYSTEM SET subdispatch.debug_wire = on');
$node->safe_psql('postgres', q(ALTER SYSTEM SET subdispatch.resolver_timeout = '1min'));
$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE owner;
CREATE DOMAIN checked AS int;
CREATE TYPE in_row AS (c checked);
CREATE TABLE own (id int, c checked, ca checked[], v in_row);
CREATE TRIGGER t AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('orders');
SELECT subdispatch.subscribe('orders', id => 's');
CREATE TABLE gate (open int);
CREATE FUNCTION wait_for_gate(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM public.gate) LOOP
		PERFORM pg_sleep(0.01);
	END LOOP;
	RETURN NULL;
END
$$;
SELECT subdispatch.subscribe('slow', 'wait_for_gate', id => 'slow');
SQL
sub denied { return $node->safe_psql('postgres', 'SELECT denied_image FROM subdispatch.stats'); }
# An INSERT and a change of the table while the dispatcher is held up, so that it finds what the table has become.
sub insert_and
{
	my ($change) = @_;
	my $before = denied();
	$node->safe_psql('postgres', "TRUNCATE gate; SELECT subdispatch.publish('slow', '1')");
	poll_until($node, "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'subdispatch dispatcher'", 'PgSleep', 'the dispatcher is held up');
	$node->safe_psql('postgres', "INSERT INTO own (id, c, ca, v) VALUES (1, -1, '{-1}', '(-1)')");
	$node->safe_psql('postgres', $change);
	$node->safe_psql('postgres', 'INSERT INTO gate VALUES (1)');
	my $came = drain($node, 's');
	return ($came, denied() - $before);
}
my ($out, $n) = insert_and('SELECT');
like($out, qr/"id": 1/, 'an image is read');
is($n, 0, 'and not denied');
($out, $n) = insert_and('ALTER DOMAIN checked ADD CONSTRAINT c CHECK (VALUE < 0) NOT VALID');
like($out, qr/"ca": \[-1\]/, 'checks that hold');
$node->safe_psql('postgres', 'ALTER DOMAIN checked DROP CONSTRAINT c');
$node->safe_psql('postgres', 'ALTER TABLE own ADD COLUMN boom checked');
foreach my $case (
	[ 'ALTER TABLE own RENAME id TO id2', 'ALTER TABLE own RENAME id2 TO id', 'the table has other columns here' ],
	[ 'ALTER TABLE own ADD COLUMN x int', 'ALTER TABLE own DROP COLUMN x', 'the table has other columns here' ],
	[ 'ALTER TABLE own RENAME TO own2', 'ALTER TABLE own2 RENAME TO own', 'there is no such table here' ],
	[ 'ALTER TABLE own OWNER TO owner', 'ALTER TABLE own OWNER TO CURRENT_USER', 'owner may not publish on the channel here' ],
	[ 'ALTER DOMAIN checked ADD CONSTRAINT c CHECK (VALUE > 0) NOT VALID', 'ALTER DOMAIN checked DROP CONSTRAINT c', 'violates check constraint' ],
	[ 'ALTER DOMAIN checked RENAME TO checked2', 'ALTER DOMAIN checked2 RENAME TO checked', undef ],
)
{
	my ($change, $back, $why) = @$case;
	my $log = -s $node->logfile;
	($out, $n) = insert_and($change);
	if (defined $why)
	{
		is($n, 1, "denied: $change");
		# a notice comes a second after the one before at the earliest
		eventually('something came', sub { $out = drain($node, 's') if $out eq ''; return ($out ne '', $out) });
		like($out, qr/^\{"type":"next","id":"s","payload":\{"data":null,.*"dropped":null/, 'and told as a loss');
		unlike($out, qr/"id":? 1/, 'without the row');
		like(slurp_file($node->logfile, $log), qr/a change of table "public\.own" on another server is denied: .*\Q$why\E/, 'the log says why');
	}
	else
	{
		is($n, 0, "not denied: $change");
		like($out, qr/"id": 1/, 'the row came');
	}
	$node->safe_psql('postgres', $back);
	($out, $n) = insert_and('SELECT 1');
	like($out, qr/"id": 1/, 'and goes on as before');
}

# Checks are somebody's code: as the table's owner, within the time limit, and not for ever if they end the process.
$node->safe_psql('postgres', <<'SQL');
ALTER SYSTEM SET subdispatch.resolver_timeout = '500ms';
SELECT pg_reload_conf();
SELECT subdispatch.grant_channel('orders', 'owner', 'publish');
ALTER TABLE own OWNER TO owner;
CREATE FUNCTION in_dispatcher() RETURNS boolean LANGUAGE sql AS $$ SELECT current_setting('application_name') LIKE 'subdispatch dispatcher%' $$;
CREATE FUNCTION check_role(int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN IF public.in_dispatcher() THEN RAISE EXCEPTION 'checked as % (%)', current_user, session_user; END IF; RETURN true; END $$;
CREATE FUNCTION check_slow(int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN IF public.in_dispatcher() THEN PERFORM pg_sleep(600); END IF; RETURN true; END $$;
CREATE FUNCTION check_death(int) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN IF public.in_dispatcher() THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); END IF; RETURN true; END $$;
SQL
foreach my $case ([ 'check_role', qr/is denied: checked as owner \(owner\)/ ], [ 'check_slow', qr/is denied: .*time/ ], [ 'check_death', qr/the dispatcher ended each time/ ])
{
	my ($check, $why) = @$case;
	my $log = -s $node->logfile;
	$node->safe_psql('postgres', "ALTER DOMAIN checked ADD CONSTRAINT c CHECK ($check(VALUE)) NOT VALID");
	# the column's own check is not run, that of the array's elements is
	$node->safe_psql('postgres', "INSERT INTO own (id, c) VALUES (1, 1)");
	like(drain($node, 's'), qr/"id": 1/, "a column's own $check is not run");
	$node->safe_psql('postgres', "INSERT INTO own (id, ca) VALUES (1, '{1}')");
	dispatched($node);
	# a second notice is put off for a second
	poll_until($node, "SELECT subdispatch.next_response('s')", qr/^\{"type":"next","id":"s","payload":\{"data":null,.*"dropped":null/, "$check costs the event");
	like(slurp_file($node->logfile, $log), $why, 'and the log says why');
	$node->safe_psql('postgres', 'ALTER DOMAIN checked DROP CONSTRAINT c');
	$node->safe_psql('postgres', "INSERT INTO own (id, ca) VALUES (2, '{1}')");
	like(drain($node, 's'), qr/"id": 2/, 'the next is read');
}

$node->stop;
done_testing();

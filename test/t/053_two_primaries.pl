# Row images between two independent primaries of a group: the same table has other OIDs on each, and need not be the same.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RedisTest;
use SubdispatchTest;
use Test::More;

my $redis = RedisTest->new;
my @bus = (event_bus => 'redis', redis_url => $redis->url, bus_key => 'a key that is long enough', '.lc_monetary' => 'C');
my $a = start_node('a', @bus);
my $b = start_node('b', @bus, '.datestyle' => 'SQL, DMY', '.timezone' => 'America/New_York', '.extra_float_digits' => 0, '.bytea_output' => 'escape');
$b->safe_psql('postgres', 'CREATE TYPE junk AS ENUM (\'x\'); CREATE TABLE junk_table (j junk, k int); DROP TABLE junk_table');

my $ddl = <<'SQL';
CREATE ROLE alice;
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE TYPE app.address AS (street text, zip int);
CREATE DOMAIN app.positive AS int CHECK (VALUE > 0);
CREATE TABLE app.t (id int PRIMARY KEY, owner name, m app.mood, ms app.mood[], a app.address, p app.positive, f float8, ts timestamptz, ba bytea, secret text);
ALTER TABLE app.t ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON app.t FOR SELECT USING (owner = current_user);
GRANT USAGE ON SCHEMA app TO alice;
GRANT SELECT (id, owner, m, ms, a, p, f, ts, ba) ON app.t TO alice;
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON app.t FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('t');
CREATE TRIGGER tt AFTER TRUNCATE ON app.t FOR EACH STATEMENT EXECUTE FUNCTION subdispatch.publish_change('t');
CREATE FUNCTION whole(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT event';
GRANT EXECUTE ON FUNCTION whole TO alice;
SELECT subdispatch.grant_channel('t', 'alice', 'subscribe');
SELECT subdispatch.subscribe('t', 'whole', id => 'all'), subdispatch.subscribe('t', 'whole', id => 'alice', run_as => 'alice'),
	subdispatch.subscribe('t', id => 'filtered', filter => '{"row.m": "ok"}');
SQL
# in another order, so that the OIDs differ
$a->safe_psql('postgres', $ddl);
$b->safe_psql('postgres', $ddl);
isnt($a->safe_psql('postgres', "SELECT 'app.mood'::regtype::oid"), $b->safe_psql('postgres', "SELECT 'app.mood'::regtype::oid"), 'the types have other OIDs');

my $changes = <<'SQL';
INSERT INTO app.t VALUES (1, 'alice', 'sad', '{ok,NULL,sad}', '("a, ""b""",7)', 1, 0.1::float8 + 0.2, '2024-02-29 12:00:00.123456+05:45', '\x00ff', 'hidden');
INSERT INTO app.t (id) VALUES (2);
UPDATE app.t SET m = 'ok', f = 'NaN' WHERE id = 1;
UPDATE app.t SET owner = 'bob' WHERE id = 1;
DELETE FROM app.t WHERE id = 1;
TRUNCATE app.t;
SQL
foreach my $writer ($a, $b)
{
	$writer->safe_psql('postgres', $changes);
	dispatched($_) foreach $writer, $a, $b;
	my ($of_a, $of_b);
	foreach my $id ('all', 'alice', 'filtered')
	{
		($of_a, $of_b) = map { drain($_, $id) } $a, $b;
		is($of_b, $of_a, "$id: the same on both, with the same ids");
		# which is for those who may see every column
		like($of_a, $id eq 'alice' ? qr/LEAVE/ : qr/"op": "TRUNCATE"/, 'to the end');
		like($of_a, qr/"source": "change"/, 'as a change') unless $id eq 'filtered';
		unlike($of_a, qr/hidden/, 'without what may not be seen') if $id eq 'alice';
		like($of_a, qr/0\.30000000000000004/, 'exactly') if $id eq 'all';
		like($of_a, qr/2024-02-29T06:15:00\.123456\+00:00/, 'in UTC') if $id eq 'all';
	}
}

# What only looks like a change is none.
$a->safe_psql('postgres', q{SELECT subdispatch.publish('t', '{"op": "INSERT", "schema": "app", "table": "t", "row": {"id": 99, "owner": "alice"}}')});
foreach my $node ($a, $b)
{
	like(drain($node, 'alice'), qr/"source": "publish"/, 'a change that was published is a publication');
	drain($node, $_) foreach 'all', 'filtered';
}

# ---- another table there

sub denied { return $b->safe_psql('postgres', 'SELECT denied_image FROM subdispatch.stats'); }
my $id = 100;
foreach my $case (
	[ 'ALTER TABLE app.t RENAME TO t2', 'ALTER TABLE app.t2 RENAME TO t', 'there is no such table here' ],
	[ 'ALTER SCHEMA app RENAME TO app2', 'ALTER SCHEMA app2 RENAME TO app', 'there is no such table here' ],
	[ 'ALTER TABLE app.t RENAME TO t2; CREATE VIEW app.t AS SELECT * FROM app.t2', 'DROP VIEW app.t; ALTER TABLE app.t2 RENAME TO t', 'is no table whose changes can be published' ],
	[ 'ALTER TABLE app.t ADD COLUMN more int', 'ALTER TABLE app.t DROP COLUMN more', 'the table has other columns here' ],
	[ 'ALTER TABLE app.t RENAME COLUMN f TO g', 'ALTER TABLE app.t RENAME COLUMN g TO f', 'the table has other columns here' ],
	[ 'ALTER TABLE app.t ALTER COLUMN f TYPE float4', 'ALTER TABLE app.t ALTER COLUMN f TYPE float8', 'the table has other columns here' ],
	[ 'ALTER TYPE app.address RENAME ATTRIBUTE zip TO code', 'ALTER TYPE app.address RENAME ATTRIBUTE code TO zip', 'the table has other columns here' ],
	[ 'ALTER TYPE app.mood RENAME VALUE \'ok\' TO \'fine\'', 'ALTER TYPE app.mood RENAME VALUE \'fine\' TO \'ok\'', 'invalid input value for enum app.mood: "ok"' ],
	[ 'ALTER TABLE app.t OWNER TO alice', 'ALTER TABLE app.t OWNER TO CURRENT_USER', 'owner may not publish on the channel here' ],
	[ 'ALTER TABLE app.t ALTER COLUMN owner SET STORAGE PLAIN; ALTER TABLE app.t ADD COLUMN x int; ALTER TABLE app.t DROP COLUMN x', 'SELECT 1', undef ],
	[ 'ALTER DOMAIN app.positive DROP CONSTRAINT positive_check; ALTER DOMAIN app.positive ADD CHECK (VALUE < 0) NOT VALID', 'SELECT 1', undef ],
)
{
	my ($change, $back, $why) = @$case;
	my $log = -s $b->logfile;
	my $before = denied();
	$id++;
	$b->safe_psql('postgres', $change);
	$a->safe_psql('postgres', "INSERT INTO app.t (id, owner, m, p) VALUES ($id, 'alice', 'ok', 1)");
	dispatched($_) foreach $a, $b;
	like(drain($a, 'all'), qr/"id": $id/, 'where it was made it is seen');
	if (defined $why)
	{
		is(denied(), $before + 1, "denied: $change");
		poll_until($b, "SELECT subdispatch.next_response('all')", qr/"data":null.*"dropped":null/, 'and told as missing');
		unlike(drain($b, 'alice'), qr/"id": $id/, 'nobody sees the row');
		like(slurp_file($b->logfile, $log), qr/a change of table "app\.t" on another server is denied: .*\Q$why\E/, 'the log says why');
	}
	else
	{
		is(denied(), $before, "not denied: $change");
		like(drain($b, 'all'), qr/"id": $id/, 'the row is seen');
	}
	$b->safe_psql('postgres', $back);
	$a->safe_psql('postgres', "UPDATE app.t SET f = 1 WHERE id = $id");
	dispatched($_) foreach $a, $b;
	like(drain($b, 'all'), qr/"op": "UPDATE".*"id": $id/, 'the next one is seen again');
	drain($_, 'all') foreach $a, $b;
}

# A server that has no memory for what another one sends passes over it, tells of the loss, and goes on.
my $c = start_node('c', @bus, shared_memory_size => '8MB', max_event_size => '10MB');
$c->safe_psql('postgres', "SELECT subdispatch.subscribe('large', id => 'large'), subdispatch.subscribe('small', id => 'small')");
$a->safe_psql('postgres', "SET subdispatch.max_event_size = '10MB'; SELECT subdispatch.publish('large', to_jsonb(repeat('x', 9000000)))");
$a->safe_psql('postgres', "SELECT subdispatch.publish('small', '1')");
poll_until($c, "SELECT subdispatch.next_response('small')", qr/"data":1,/, 'what comes after an event that is too large for the memory is not held up');
poll_until($c, "SELECT subdispatch.next_response('large')", qr/"data":null.*"dropped":null/, 'which is told as missing');
like(slurp_file($c->logfile), qr/there is no shared memory for it/, 'and the log says why');
unlike(slurp_file($c->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash of c');
$c->stop;

# One that nobody could have sent who does not know the key is tested in 050; it is not believed, whatever it says.
foreach my $node ($a, $b)
{
	unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash of ' . $node->name);
	$node->stop;
}
done_testing();

# Read replicas: a standby of the primary that publishes, with event_bus = redis. Redis is faster than replication; what
# resolvers and policies see on the standby must be what the event is about all the same.

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
my @settings = (max_pending => 100000, max_pending_bytes => '100MB', shared_memory_size => '128MB', event_bus => 'redis',
	redis_url => $redis->url, bus_key => 'a key that is long enough',
	'.wal_level' => 'replica', '.max_wal_senders' => 5, '.hot_standby' => 'on', '.max_connections' => 50, '.autovacuum' => 'off',
	'.wal_receiver_status_interval' => '100ms');
my $primary = start_node('primary', @settings);
$primary->safe_psql('postgres', <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
-- what the row is when the event is dispatched
CREATE FUNCTION look(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS
	$$ SELECT to_jsonb(coalesce((SELECT v FROM public.t WHERE id = (event #>> '{data,id}')::int), 'NOT THERE')) $$;
CREATE FUNCTION look_slowly(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE result jsonb;
BEGIN
	PERFORM count(*) FROM public.t;
	IF (event #>> '{data,slow}') IS NOT NULL THEN
		PERFORM pg_sleep(0.5);
	END IF;
	RETURN public.look(event, variables);
END
$$;
CREATE TABLE docs (id int PRIMARY KEY, owner text);
ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
CREATE TABLE members (role name, doc int);
CREATE POLICY members ON docs FOR SELECT USING (EXISTS (SELECT FROM members m WHERE m.role = current_user AND m.doc = docs.id));
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON docs FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('docs');
CREATE ROLE alice;
GRANT SELECT ON docs, members TO alice;
SELECT subdispatch.grant_channel('docs', 'alice', 'subscribe');
CREATE DATABASE dropped;
CREATE DATABASE extless;
SQL
install_extension($primary, $_) foreach 'dropped', 'extless';
$primary->safe_psql('dropped', "CREATE FUNCTION busy(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(pg_sleep(9)::text)'");
$primary->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'b', has_streaming => 1);
$standby->append_conf('postgresql.conf', "max_standby_streaming_delay = 60s\nsubdispatch.resolver_timeout = 10s");
$standby->start;

# one that follows the standby
my $cascade = PostgreSQL::Test::Cluster->new('cascade');
$cascade->init_from_backup($primary, 'b');
$cascade->enable_streaming($standby);
$cascade->start;
$cascade->safe_psql('postgres', "SELECT subdispatch.subscribe('c', 'look', id => 'look')");

sub set
{
	my (%to) = @_;
	$standby->append_conf('postgresql.conf', "$_ = '$to{$_}'") foreach keys %to;
	$standby->reload;
	poll_until($standby, "SHOW $_", $to{$_}, "$_ is $to{$_} on the standby") foreach keys %to;
}
sub stat_of { my ($name) = @_; return $standby->safe_psql('postgres', "SELECT $name FROM subdispatch.stats"); }
# Also what transactions without an id have written, which nobody waits for.
sub all_replayed
{
	my ($name) = @_;
	my ($lsn) = $primary->safe_psql('postgres', 'SELECT txid_current(); SELECT pg_current_wal_flush_lsn()') =~ /([0-9A-F]+\/[0-9A-F]+)/;
	return poll_until($standby, "SELECT pg_last_wal_replay_lsn() >= '$lsn'", 't', "$name: all is replayed");
}
my $next = 1;
# Each its own transaction: a row, and an event about it. Returns what resolvers have to see.
sub insert_rows
{
	my ($n) = @_;
	my @ids = $next .. $next + $n - 1;
	$next += $n;
	$primary->safe_psql('postgres', join '', map { "BEGIN; INSERT INTO t VALUES ($_, 'v$_'); SELECT subdispatch.publish('c', '{\"id\": $_}'); COMMIT;" } @ids);
	return join ' ', map { "v$_" } @ids;
}

# ---- what is refused

my ($out, $err) = try_sql($standby, "SELECT subdispatch.publish('c', '1')");
like($err, qr/cannot publish on a server that is in recovery/, 'publish() is refused on a standby');
like($err, qr/HINT:  Publish on the primary/, 'and says where');
($out, $err) = try_sql($standby, "\\set VERBOSITY verbose\nSELECT subdispatch.publish('c', '1')");
like($err, qr/25006/, 'as a write');
($out, $err) = try_sql($standby, "SELECT subdispatch.grant_channel('c', 'alice', 'subscribe')");
like($err, qr/read-only transaction/, 'so are grants');
foreach my $bus ('memory', 'notify')
{
	set('subdispatch.event_bus' => $bus);
	($out, $err) = try_sql($standby, "SELECT subdispatch.subscribe('c')");
	like($err, qr/cannot subscribe on a server that is in recovery/, "with the $bus bus there is nothing to subscribe to");
	like($err, qr/subdispatch\.event_bus is $bus/, 'which names the setting');
}
set('subdispatch.event_bus' => 'redis');

# ---- what works

$standby->safe_psql('postgres', "SELECT subdispatch.subscribe('c', 'look', id => 'look'), subdispatch.subscribe('c', id => 'data')");
is(insert_rows(200), results($standby, 'look'), 'a resolver on the standby sees every row');
like(results($standby, 'data'), qr/^\{"id": 1\} .*\{"id": 200\}$/, 'and data comes');
like(results($cascade, 'look'), qr/^v1 v2 .* v200$/, 'as does one on a standby of the standby');
$standby->safe_psql('postgres', "SELECT subdispatch.subscribe('c', 'look', id => 'polled', consumer => 'gateway')");
my $expected = insert_rows(3);
dispatched($standby);
is($standby->safe_psql('postgres', "SELECT string_agg(response::jsonb #>> '{payload,data}', ' ' ORDER BY event_id) FROM subdispatch.poll('gateway')"), $expected, 'poll() works');
is($standby->safe_psql('postgres', "SELECT subdispatch.health() ->> 'status'"), 'ok', 'health() is fine');
is($standby->safe_psql('postgres', "SELECT string_agg(DISTINCT kind || ' ' || state, ', ' ORDER BY kind || ' ' || state) FROM subdispatch.workers"), 'bus running, dispatcher running, launcher running', 'the workers run');
is($standby->safe_psql('postgres', "SELECT subdispatch.unsubscribe('polled'), subdispatch.close_consumer('gateway')"), 't|0', 'unsubscribe()');
results($standby, $_) foreach 'look', 'data';

# ---- replay is behind

set('recovery_min_apply_delay' => '1s');
my $waits = stat_of('replay_waits');
is(insert_rows(50), results($standby, 'look'), 'with replay a second behind it still sees every row');
cmp_ok(stat_of('replay_waits'), '>', $waits, 'which it waited for');
is(stat_of('replay_timeouts'), 0, 'and got');
# a transaction without an id: what it has read is there
$primary->safe_psql('postgres', "INSERT INTO t VALUES (100000, 'read by another')");
$primary->safe_psql('postgres', "SELECT subdispatch.publish('c', jsonb_build_object('id', id)) FROM t WHERE id = 100000");
is(results($standby, 'look'), 'read by another', 'nor is a publisher that only reads ahead of what it read');

# nor is a notification, which the primary LISTENs to
$primary->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 'listens')");
$primary->safe_psql('postgres', "BEGIN; INSERT INTO t VALUES (100001, 'notified'); NOTIFY c, '{\"id\": 100001}'; COMMIT");
eventually('nor is a notification', sub { my ($r) = try_sql($standby, "SELECT r::jsonb #>> '{payload,data}' FROM subdispatch.next_responses('look', timeout => '1s') r"); return ($r eq 'notified', $r) });
$primary->safe_psql('postgres', "SELECT subdispatch.unsubscribe('listens')");

# Policies, too: alice becomes a member in the transaction that the event is of.
$standby->safe_psql('postgres', "SELECT subdispatch.subscribe('docs', id => 'docs', run_as => 'alice')");
$primary->safe_psql('postgres', "BEGIN; INSERT INTO members VALUES ('alice', 1); INSERT INTO docs VALUES (1, 'x'); COMMIT");
$primary->safe_psql('postgres', "INSERT INTO docs VALUES (2, 'x')");
$primary->safe_psql('postgres', "BEGIN; DELETE FROM members; UPDATE docs SET owner = 'y'; COMMIT");
my $docs = results($standby, 'docs');
like($docs, qr/^\{"op": "INSERT", "row": \{"id": 1, "owner": "x"\}, "table": "docs", "schema": "public"\}$/, 'policies see the state after the event') or diag($docs);
set('recovery_min_apply_delay' => '0');

# Grants that are revoked on the primary are revoked here, for the next event.
$primary->safe_psql('postgres', "SELECT subdispatch.revoke_channel('docs', 'alice', 'subscribe')");
$primary->safe_psql('postgres', "BEGIN; INSERT INTO members VALUES ('alice', 3); INSERT INTO docs VALUES (3, 'x'); COMMIT");
like(results($standby, 'docs'), qr/^error$/, 'a grant that was revoked on the primary is none any more');

# ---- replay stands still

set('subdispatch.replay_wait_timeout' => '500ms');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
poll_until($standby, 'SELECT pg_get_wal_replay_pause_state()', 'paused', 'replay is paused');
insert_rows(3);
dispatched($standby);
poll_until($standby, 'SELECT replay_timeouts FROM subdispatch.stats', 3, 'what is not replayed in time is counted');
poll_until($standby, "SELECT subdispatch.next_response('look')", qr/"data":null.*"dropped":null/, 'and told as missing');
poll_until($standby, "SELECT subdispatch.next_response('data')", qr/"dropped":null|"id"/, 'also to those without a resolver');
like(slurp_file($standby->logfile), qr/an event on channel "c" cannot be dispatched: its commit was not replayed within subdispatch\.replay_wait_timeout/, 'the log says why');
# Who subscribes after that, and before the rows are there, misses them as well.
$standby->safe_psql('postgres', <<'SQL');
SELECT subdispatch.subscribe('c', id => 'new stream', operation_id => '1', response_key => 'k'), subdispatch.subscribe('c', id => 'data 2'),
	subdispatch.subscribe('never heard of', id => 'of a consumer', consumer => 'g'), subdispatch.subscribe('*', id => 'the star')
SQL
results($standby, 'data');
my $missing = qr/"data":null.*"dropped":null/;
like($standby->safe_psql('postgres', "SELECT subdispatch.next_response('$_')"), $missing, "who subscribes then is told so: $_")
	foreach 'new stream', 'data 2', 'the star';
is($standby->safe_psql('postgres', "SELECT subdispatch.next_response('data 2', '1500ms')"), '', 'once');
is($standby->safe_psql('postgres', "SELECT dropped IS NULL, response LIKE '%\"dropped\":null%' FROM subdispatch.poll('g', timeout => '10s')"), 't|t', 'by poll(), too');
is($standby->safe_psql('postgres', "SELECT subdispatch.next_response('data', '1500ms')"), '', 'who was told already is not told again');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
results($standby, 'look');
poll_until($standby, "SELECT count(*) FROM t WHERE id = " . ($next - 1), 1, 'the rows are replayed');
is($standby->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 'late') \\g /dev/null\nSELECT subdispatch.next_response('late', '500ms')"), '', 'who subscribes after that has missed nothing');
set('subdispatch.replay_wait_timeout' => '5s');
is(insert_rows(3), results($standby, 'look'), 'then it goes on');
like(results($standby, 'data 2'), qr/^(\{"id": \d+\} ?){3}$/, 'also for those who were told');
$standby->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM unnest('{new stream,data 2,the star,of a consumer,late}'::text[]) id; SELECT subdispatch.close_consumer('g')");

# What will not come at all is told by Redis, before the rows are there: who subscribes then misses it as well. Once it is events
# that found no room on the primary, once an entry that the stream has lost.
set('subdispatch.replay_wait_timeout' => '1min');
my $bus_worker = $standby->safe_psql('postgres', "SELECT pid FROM subdispatch.workers WHERE kind = 'bus' AND database = 'postgres'");
foreach my $lost (
	[ 'full', 100010, sub { $primary->safe_psql('postgres', "SET subdispatch.on_queue_full = gap; BEGIN; INSERT INTO t VALUES (100010, 'lost'); SELECT count(subdispatch.publish('full', to_jsonb(repeat('x', 900000))) IS NULL) FROM generate_series(1, 20); COMMIT") } ],
	[ 'broken', 100011, sub {
		kill 'STOP', $bus_worker;
		# Redis has one entry for it already
		$primary->safe_psql('postgres', "SELECT subdispatch.publish('broken', '0')");
		dispatched($primary);
		$primary->safe_psql('postgres', "BEGIN; INSERT INTO t VALUES (100011, 'lost'); SELECT subdispatch.publish('broken', '1'); COMMIT");
		dispatched($primary);
		my ($entry) = split /\n/, $redis->cli('XREVRANGE', 'subdispatch:{postgres}:events', '+', '-', 'COUNT', 1);
		$primary->safe_psql('postgres', "SELECT subdispatch.publish('broken', '2')");
		dispatched($primary);
		is($redis->cli('XDEL', 'subdispatch:{postgres}:events', $entry), '1', 'an entry is removed from the stream');
		kill 'CONT', $bus_worker; } ])
{
	my ($channel, $row, $lose) = @$lost;
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
	poll_until($standby, 'SELECT pg_get_wal_replay_pause_state()', 'paused', "$channel: replay is paused");
	my $gaps = stat_of('bus_gaps');
	$lose->();
	poll_until($standby, "SELECT bus_gaps > $gaps FROM subdispatch.stats", 't', "$channel: the gap was read from Redis");
	is($standby->safe_psql('postgres', "SELECT subdispatch.subscribe('$channel', id => 'blind') \\g /dev/null\nSELECT count(*) FROM t WHERE id = $row"), '0', "$channel: who subscribes then does not see the row");
	like($standby->safe_psql('postgres', "SELECT subdispatch.next_response('blind', '10s')"), $missing, "$channel: and is told that something is missing");
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
	poll_until($standby, "SELECT count(*) FROM t WHERE id = $row", 1, "$channel: the row is replayed");
	all_replayed($channel);
	is($standby->safe_psql('postgres', "SELECT subdispatch.subscribe('$channel', id => 'seeing') \\g /dev/null\nSELECT subdispatch.next_response('seeing', '500ms')"), '', "$channel: who subscribes after that is told nothing");
	$standby->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM unnest('{blind,seeing}'::text[]) id");
	results($standby, $_) foreach 'look', 'data';
}

# Who subscribes before an event's commit has been replayed cannot see the row, so the event has to come, though nobody
# subscribed to its channel when it was read from Redis.
set('subdispatch.replay_wait_timeout' => '1min');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
poll_until($standby, 'SELECT pg_get_wal_replay_pause_state()', 'paused', 'replay is paused again');
my $received = stat_of('bus_received');
$primary->safe_psql('postgres', "BEGIN; INSERT INTO t VALUES (100002, 'before'); SELECT subdispatch.publish('fresh', '{\"id\": 100002}'); COMMIT");
poll_until($standby, "SELECT bus_received > $received FROM subdispatch.stats", 't', 'an event was read from Redis');
is($standby->safe_psql('postgres', <<'SQL'), '0', 'who subscribes then does not see the row');
SELECT subdispatch.subscribe('fresh', 'look', id => 'fresh'), subdispatch.subscribe('*', 'look', id => 'star') \g /dev/null
SELECT count(*) FROM t WHERE id = 100002
SQL
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
is(results($standby, 'fresh'), 'before', 'but gets the event');
is(results($standby, 'star'), 'before', 'as does the star');
# what has been replayed is left to those who subscribe
$primary->safe_psql('postgres', "BEGIN; INSERT INTO t VALUES (100003, 'seen'); SELECT subdispatch.publish('other', '{\"id\": 100003}'); COMMIT");
dispatched($standby);
poll_until($standby, 'SELECT count(*) FROM t WHERE id = 100003', '1', 'a row is replayed');
is($standby->safe_psql('postgres', "SELECT subdispatch.subscribe('other', 'look', id => 'other') IS NOT NULL"), 't', 'who subscribes after it sees it');
is(results($standby, 'other'), '', 'and does not get the event');
$standby->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM unnest('{fresh,star,other}'::text[]) id");
set('subdispatch.replay_wait_timeout' => '5s');

# Nor did anybody subscribe to anything when the first one does: the bus worker looks back.
$primary->safe_psql('postgres', 'CREATE DATABASE later');
install_extension($primary, 'later');
$primary->safe_psql('later', "CREATE TABLE t (id int); INSERT INTO t VALUES (1); SELECT subdispatch.publish('c', '1')");
dispatched($primary, 'later');
poll_until($standby, 'SELECT count(*) FROM t', '1', 'a database without subscriptions is replayed', 'later');
all_replayed('later');
set('subdispatch.replay_wait_timeout' => '1min');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
poll_until($standby, 'SELECT pg_get_wal_replay_pause_state()', 'paused', 'replay is paused once more');
$primary->safe_psql('later', "BEGIN; INSERT INTO t VALUES (2); SELECT subdispatch.publish('c', '2'); COMMIT");
dispatched($primary, 'later');
is($standby->safe_psql('later', <<'SQL'), '1', 'who subscribes first sees what was replayed only');
SELECT subdispatch.subscribe('c', id => 'first') \g /dev/null
SELECT count(*) FROM t
SQL
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
is(results($standby, 'first', 'later'), '2', 'and gets what was not, and no more');
$primary->safe_psql('later', "SELECT subdispatch.publish('c', '3')");
is(results($standby, 'first', 'later'), '3', 'then it goes on');
$standby->safe_psql('later', "SELECT subdispatch.unsubscribe('first')");

# But not further than replay_wait_timeout: what is before that and not replayed is told as missing.
$primary->safe_psql('postgres', 'CREATE DATABASE older');
install_extension($primary, 'older');
poll_until($standby, "SELECT count(*) FROM pg_extension WHERE extname = 'subdispatch'", '1', 'another database', 'older');
set('subdispatch.replay_wait_timeout' => '0');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
poll_until($standby, 'SELECT pg_get_wal_replay_pause_state()', 'paused', 'replay is paused for the last time');
$primary->safe_psql('older', "BEGIN; CREATE TABLE t (); SELECT subdispatch.publish('c', '1'); COMMIT");
dispatched($primary, 'older');
like($standby->safe_psql('older', "SELECT subdispatch.subscribe('c', id => 'blind') \\g /dev/null\nSELECT subdispatch.next_response('blind', '10s')"), $missing, 'who subscribes first is told of what the bus worker does not look back for');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
poll_until($standby, "SELECT count(*) FROM pg_class WHERE relname = 't'", '1', 'it is replayed', 'older');
is($standby->safe_psql('older', "SELECT subdispatch.subscribe('c', id => 'seeing') \\g /dev/null\nSELECT subdispatch.next_response('seeing', '500ms')"), '', 'who subscribes afterwards is not');
$standby->safe_psql('older', "SELECT subdispatch.unsubscribe(id) FROM unnest('{blind,seeing}'::text[]) id");
set('subdispatch.replay_wait_timeout' => '5s');

# ---- in recovery's way

set('max_standby_streaming_delay' => '100ms');
$standby->safe_psql('postgres', "SELECT subdispatch.subscribe('c', 'look_slowly', id => 'slow')");
results($standby, 'slow');
my $conflicts = 0;
# where the machine is busy, there may be none at first
for (my $tries = 0; $tries < 5 && $conflicts == 0; $tries++)
{
	my @slow;
	foreach my $round (1 .. 3)
	{
		my $id = $next++;
		push @slow, "v$id";
		$primary->safe_psql('postgres', "BEGIN; INSERT INTO t VALUES ($id, 'v$id'); SELECT subdispatch.publish('c', '{\"id\": $id, \"slow\": true}'); COMMIT; DELETE FROM t WHERE id < $id - 2 AND id < 100000; VACUUM t;");
	}
	# readers are sessions as others, and may be in the way, too
	my $slow = '';
	eventually('a dispatcher that stood in the way of recovery does its work again', sub {
		my ($r) = try_sql($standby, "SELECT r::jsonb #>> '{payload,data}' FROM subdispatch.next_responses('slow', 100) r");
		$slow .= ' ' . join(' ', split /\n/, $r) if $r ne '';
		return ($slow eq ' ' . join(' ', @slow), $slow) });
	$conflicts = $standby->safe_psql('postgres', "SELECT sum(confl_snapshot + confl_lock) FROM pg_stat_database_conflicts WHERE datname = 'postgres'");
}
cmp_ok($conflicts, '>', 0, 'it did stand in the way');
# a dispatcher that waits holds no snapshot
poll_until($standby, "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'subdispatch%' AND backend_xmin IS NOT NULL", 0, 'one that waits does not');
$standby->safe_psql('postgres', "SELECT subdispatch.unsubscribe('slow')");

# ---- DROP DATABASE, DROP EXTENSION on the primary

foreach my $db ('dropped', 'extless')
{
	$standby->safe_psql($db, "SELECT subdispatch.subscribe('c', id => 's')");
	$primary->safe_psql($db, "SELECT subdispatch.publish('c', '1')");
	is(results($standby, 's', $db), '1', "$db has subscriptions on the standby");
}
# one of them is at work, and would be for a while
$standby->safe_psql('dropped', "SELECT subdispatch.subscribe('busy', 'busy', id => 'busy')");
$primary->safe_psql('dropped', "SELECT subdispatch.publish('busy', '1')");
poll_until($standby, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'subdispatch dispatcher' AND datname = 'dropped' AND wait_event = 'PgSleep'", 1, 'a dispatcher is at work');
my $memory = memory_in_use($standby);
set('max_standby_streaming_delay' => '1min');
$primary->safe_psql('postgres', 'DROP DATABASE dropped WITH (FORCE)');
poll_until($standby, "SELECT count(*) FROM pg_database WHERE datname = 'dropped'", 0, 'DROP DATABASE goes through on the standby');
poll_until($standby, "SELECT count(*) FROM subdispatch.workers WHERE kind <> 'launcher' AND database IS DISTINCT FROM 'postgres' AND database IS DISTINCT FROM 'extless'", 0, 'its workers are gone');
eventually('and so is what they had', sub { my $now = memory_in_use($standby); return ($now < $memory, "$now of $memory") });

$primary->safe_psql('extless', 'DROP EXTENSION subdispatch CASCADE');
poll_until($standby, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'subdispatch dispatcher' AND datname = 'extless'", 0, 'DROP EXTENSION ends the dispatchers on the standby');
install_extension($primary, 'extless');
poll_until($standby, "SELECT count(*) FROM pg_extension WHERE extname = 'subdispatch'", 1, 'the extension is there again', 'extless');
is($standby->safe_psql('extless', 'SELECT count(*) FROM subdispatch.subscriptions'), 0, 'without the subscriptions that were');
$standby->safe_psql('extless', "SELECT subdispatch.subscribe('c', id => 's')");
$primary->safe_psql('extless', "SELECT subdispatch.publish('c', '2')");
is(results($standby, 's', 'extless'), '2', 'new ones work');

# A database that is renamed: the stream is that of its name.
$standby->safe_psql('extless', "SELECT subdispatch.unsubscribe('s')");
$primary->safe_psql('postgres', 'ALTER DATABASE extless RENAME TO renamed');
poll_until($standby, "SELECT count(*) FROM pg_database WHERE datname = 'renamed'", 1, 'a rename goes through');
$standby->safe_psql('renamed', "SELECT subdispatch.subscribe('c', id => 'r')");
eventually('events come under the new name', sub {
	$primary->safe_psql('renamed', "SELECT subdispatch.publish('c', '3')");
	my $r = $standby->safe_psql('renamed', "SELECT subdispatch.next_response('r', '1s')");
	return (scalar($r =~ /"data":3/), $r) });

# ---- promotion under load

$standby->safe_psql('postgres', "SELECT subdispatch.subscribe('load', id => 'load'), subdispatch.subscribe('quiet', id => 'quiet'), subdispatch.subscribe('covered', id => 'covered')");
$primary->safe_psql('postgres', "SELECT subdispatch.grant_channel('covered', 'alice', 'subscribe')");
$primary->safe_psql('postgres', "SELECT subdispatch.subscribe('load', id => 'load'); CREATE TABLE load (id text PRIMARY KEY)");
my @load = map {
	my $client = $_;
	background($primary, join("\n", map { "BEGIN; INSERT INTO load VALUES ('$client.$_'); SELECT subdispatch.publish('load', '\"$client.$_\"'); COMMIT;" } 1 .. 3000))
} 1 .. 3;
poll_until($standby, 'SELECT count(*) > 500 FROM load', 't', 'the load is under way');
$standby->promote;
foreach my $h (@load) { my (undef, $e) = finish_background($h); is($e, '', 'the load ran to its end'); }
my @of_primary = split / /, results($primary, 'load');
is(scalar @of_primary, 9000, 'the old primary has every event');
my $came = drain($standby, 'load');
my %rows = map { $_ => 1 } split /\n/, $standby->safe_psql('postgres', 'SELECT id FROM load');
my @of_standby = grep { defined } map { /"payload":\{"data":"([\d.]+)"/ ? $1 : undef } split /\n/, $came;
cmp_ok(scalar keys %rows, '<', 9000, 'the promotion has left commits out');
is(scalar(grep { !$rows{$_} } @of_standby), 0, 'no event is dispatched whose row is not there');
is(scalar @of_standby, scalar keys %rows, 'and every event whose row is there');
is(scalar(@of_standby), scalar(keys %{ { map { $_ => 1 } @of_standby } }), 'once');
like($came, qr/"dropped":null/, 'that the others are missing is told');
is(join(' ', @of_standby), join(' ', grep { $rows{$_} } @of_primary), 'in the same order');

eventually('the new primary publishes', sub { ($out, $err) = try_sql($standby, "SELECT subdispatch.publish('load', '\"promoted\"')"); return ($err eq '', $err) });
is(results($standby, 'load'), 'promoted', 'to its own subscriptions');
poll_until($standby, "SELECT listening FROM subdispatch.channels WHERE channel = 'load'", 't', 'and LISTENs');
like($standby->safe_psql('postgres', "SELECT subdispatch.next_response('quiet', '30s')"), $missing, 'and tells who subscribed before that a notification may be missing');
is($standby->safe_psql('postgres', "SELECT subdispatch.next_response('quiet', '1500ms')"), '', 'once');
is($standby->safe_psql('postgres', "SELECT subdispatch.next_response('covered', '0')"), '', 'but not on a channel that it does not LISTEN on');
is($standby->safe_psql('postgres', "SELECT subdispatch.subscribe('quieter', id => 'quieter') \\g /dev/null\nSELECT subdispatch.next_response('quieter', '500ms')"), '', 'nor who subscribes afterwards');
$standby->safe_psql('postgres', "NOTIFY load, '\"notified\"'");
is(results($standby, 'load'), 'notified', 'so that NOTIFY arrives');
$standby->safe_psql('postgres', "SELECT subdispatch.grant_channel('load', 'alice', 'subscribe'); INSERT INTO load VALUES ('x'); SELECT subdispatch.publish('load', '\"own\"')");
is(results($standby, 'load'), 'own', 'events of the new timeline are its own');

# The standby of the standby follows it to the new timeline, and waits for it.
results($cascade, 'look');
$standby->safe_psql('postgres', "BEGIN; INSERT INTO t VALUES (200000, 'of the new timeline'); SELECT subdispatch.publish('c', '{\"id\": 200000}'); COMMIT");
is(results($cascade, 'look'), 'of the new timeline', 'a standby of the new primary sees its rows');
is($cascade->safe_psql('postgres', 'SELECT replay_timeouts FROM subdispatch.stats'), 0, 'without having lost any event of its channel');

foreach my $node ($primary, $standby, $cascade)
{
	unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash of the ' . $node->name);
}
$_->stop foreach $cascade, $standby, $primary;
done_testing();

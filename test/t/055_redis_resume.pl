# Resuming out of the stream in Redis: with event_bus = redis a subscription goes on after an event that the server's own
# history does not reach back to, or that is of before its start, or that another server dispatched. Who comes back is
# compared with one that never left; what the stream has lost is told.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RedisTest;
use SubdispatchTest;
use Test::More;
use Time::HiRes qw(sleep time);

my $stream = 'subdispatch:{postgres}:events';
my $redis = RedisTest->new;
my @bus = (max_pending => 100000, max_pending_bytes => '100MB', max_subscriptions_per_connection => 0, include_event_id => 'on', dispatchers => 2, shared_memory_size => '128MB',
	event_history_size => '0', listen_channels => '', event_bus => 'redis', redis_url => $redis->url, bus_key => 'a key that is long enough', resolver_timeout => '20s', redis_resume_timeout => '60s', '.restart_after_crash' => 'on');

my $setup = <<'SQL';
SET client_min_messages = warning;
CREATE FUNCTION echo(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT event -> ''data'' || jsonb_build_object(''by'', ''echo'')';
CREATE TABLE docs (id int, who text);
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON docs FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('docs');
ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON docs FOR SELECT USING (who = current_user);
CREATE TABLE kinds (kind text PRIMARY KEY, channel text, resolver regproc, filter jsonb DEFAULT '{}', run_as regrole);
INSERT INTO kinds (kind, channel, resolver, filter, run_as) VALUES ('plain', 'a', NULL, '{}', NULL), ('even', 'a', NULL, '{"even": true}', NULL), ('echo', 'a', 'echo', '{}', NULL), ('other', 'b', NULL, '{}', NULL),
	('star', '*', NULL, '{}', NULL), ('docs', 'docs', NULL, '{}', NULL), ('alice', 'docs', NULL, '{}', 'alice');
-- What the one got who never left, and what those got who came back after "after".
CREATE TABLE seen (kind text, event_id bigint, response text);
CREATE INDEX ON seen (kind, event_id);
CREATE TABLE asked (kind text, after bigint);
CREATE TABLE got (seq bigint GENERATED ALWAYS AS IDENTITY, kind text, after bigint, event_id bigint, dropped bigint, response text);
CREATE FUNCTION stay() RETURNS void LANGUAGE sql AS
	$$ SELECT count(subdispatch.subscribe(channel, resolver, filter => filter, run_as => run_as, id => 'stays ' || kind, operation_id => 'op', consumer => 'stays')) FROM kinds $$;
CREATE FUNCTION note() RETURNS void LANGUAGE sql AS
	$$ INSERT INTO seen SELECT substr(subscription_id, 7), event_id, response FROM subdispatch.poll('stays', 1000000, '0', 1000000000) WHERE event_id IS NOT NULL $$;
CREATE FUNCTION come_back(consumer text) RETURNS bigint LANGUAGE sql AS
	$$ SELECT count(subdispatch.subscribe(channel, resolver, filter => filter, run_as => run_as, id => kind || ' ' || after, operation_id => 'op', consumer => consumer, after_event => after))
	   FROM asked JOIN kinds USING (kind) $$;
CREATE FUNCTION take(consumer text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE n bigint;
BEGIN
  INSERT INTO got (kind, after, event_id, dropped, response) SELECT split_part(subscription_id, ' ', 1), split_part(subscription_id, ' ', 2)::bigint, event_id, dropped, response
    FROM subdispatch.poll(consumer, 100000, '0', 1000000000);
  GET DIAGNOSTICS n = ROW_COUNT;
  RETURN n;
END $$;
-- Of those who came back: what each misses, where he was told that something is missing, what came wrongly.
CREATE VIEW look AS
  SELECT kind, after, (SELECT count(*) FROM seen s WHERE s.kind = a.kind AND event_id > after) - count(g.event_id) AS missing, count(*) FILTER (WHERE seq IS NOT NULL AND dropped IS NULL) AS told,
    coalesce((array_agg(dropped ORDER BY seq))[1], -1) AS first, count(g.event_id) - count(DISTINCT g.event_id) AS doubles,
    count(g.event_id) FILTER (WHERE g.event_id <= after OR NOT EXISTS (SELECT FROM seen s WHERE (s.kind, s.event_id) = (a.kind, g.event_id)
      AND (dropped IS NULL OR s.response = g.response))) AS strange,
    coalesce(array_agg(g.event_id ORDER BY seq) FILTER (WHERE g.event_id IS NOT NULL) <> array_agg(g.event_id ORDER BY g.event_id) FILTER (WHERE g.event_id IS NOT NULL), false) AS disorder
  FROM asked a LEFT JOIN got g USING (kind, after) GROUP BY kind, after;
CREATE TABLE outcome AS SELECT * FROM look LIMIT 0;
CREATE FUNCTION publish_some(n int) RETURNS void LANGUAGE sql AS $$
  SELECT count(subdispatch.publish((ARRAY['a', 'a', 'b', 'nobody'])[1 + i % 4], jsonb_build_object('n', i, 'even', i % 8 < 4)) IS NULL) FROM generate_series(1, n) i;
  INSERT INTO docs SELECT i, CASE i / 20 % 2 WHEN 0 THEN 'alice' ELSE 'bob' END FROM generate_series(1, n, 20) i;
$$;
SQL

sub prepare
{
	my ($node) = @_;
	$node->safe_psql('postgres', "CREATE ROLE alice; $setup; GRANT SELECT ON docs TO alice; SELECT subdispatch.grant_channel('docs', 'alice', 'subscribe')");
}

# Reads all that there is for those who came back.
sub read_all
{
	my ($node, $name, $consumer) = @_;
	eventually("$name: they catch up", sub {
		my $resuming = $node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.subscriptions WHERE consumer = '$consumer' AND state = 'resuming'");
		my $n = $node->safe_psql('postgres', "SELECT take('$consumer')");
		return ($resuming eq '0' && $n eq '0', "$resuming resuming, $n read");
	});
}

sub ask_after { my ($node, $after) = @_; $node->safe_psql('postgres', "TRUNCATE got, asked; INSERT INTO asked $after"); }

sub leave { my ($node) = @_; $node->safe_psql('postgres', "SELECT subdispatch.close_consumer('back'); ANALYZE got, asked, seen; TRUNCATE outcome; INSERT INTO outcome SELECT * FROM look"); }

# Comes back after each of the events (a query of kind and id), reads all that there is, and goes.
sub come_back
{
	my ($node, $name, $after) = @_;
	ask_after($node, $after);
	$node->safe_psql('postgres', "SELECT come_back('back')");
	read_all($node, $name, 'back');
	leave($node);
}

sub check_outcome
{
	my ($node, $name, $least_told, $least_whole) = @_;
	is($node->safe_psql('postgres', "SELECT string_agg(outcome::text, ' ') FROM (SELECT * FROM outcome WHERE (missing > 0) <> (told > 0) OR told > 1 LIMIT 10) outcome"), '',
		"$name: a gap is told to those who miss something, once, and to nobody else");
	is($node->safe_psql('postgres', "SELECT string_agg(outcome::text, ' ') FROM (SELECT * FROM outcome WHERE doubles > 0 OR strange > 0 OR disorder LIMIT 10) outcome"), '', "$name: each comes once, in order, as it came to one who never left");
	my ($told, $whole) = split /\|/, $node->safe_psql('postgres', 'SELECT count(*) FILTER (WHERE told > 0), count(*) FILTER (WHERE told = 0) FROM outcome');
	cmp_ok($told, '>=', $least_told, "$name: some were told of a gap") if $least_told > 0;
	is($told, 0, "$name: nobody was told of a gap") if $least_told == 0;
	cmp_ok($whole, '>=', $least_whole, "$name: some have it all") if $least_whole > 0;
}

sub note_seen { my ($node) = @_; dispatched($node); $node->safe_psql('postgres', 'SELECT note()'); }
sub stat_of { my ($node, $name) = @_; return $node->safe_psql('postgres', "SELECT $name FROM subdispatch.stats"); }
# Some of the events that were seen, of each kind, and its first and last ones.
my $some = "SELECT kind, event_id FROM (SELECT *, row_number() OVER (PARTITION BY kind ORDER BY event_id) AS n, row_number() OVER (PARTITION BY kind ORDER BY event_id DESC) AS m FROM seen) x WHERE n <= 2 OR m <= 2 OR n % 47 = 1";
sub copy_seen { my ($from, $to) = @_; my $rows = $from->safe_psql('postgres', 'COPY seen TO STDOUT'); $to->safe_psql('postgres', "TRUNCATE seen; COPY seen FROM STDIN;\n$rows\n\\.\n"); }

# ---- no history at all
my $a = start_node('a', @bus);
prepare($a);
$a->safe_psql('postgres', "SELECT stay(); SELECT publish_some(400)");
$a->safe_psql('postgres', "SELECT publish_some(20)") foreach 1 .. 10;
note_seen($a);
is($a->safe_psql('postgres', 'SELECT count(DISTINCT kind) FROM seen'), '7', 'each kind got something');
come_back($a, 'no history', $some);
check_outcome($a, 'no history', 0, 50);
come_back($a, 'from the beginning', 'SELECT kind, 0 FROM kinds');
check_outcome($a, 'from the beginning', 0, 7);
come_back($a, 'with the ids of other channels', "SELECT kind, event_id FROM kinds, (SELECT event_id FROM seen WHERE kind = 'star' ORDER BY random() LIMIT 20) x");
check_outcome($a, 'with the ids of other channels', 0, 100);
come_back($a, 'ids that are none', "SELECT kind, event_id - 1 FROM seen WHERE event_id - 1 NOT IN (SELECT event_id FROM seen) UNION ALL SELECT kind, 5 FROM kinds");
is($a->safe_psql('postgres', 'SELECT count(*) FROM outcome WHERE told <> 1 OR missing <> 0 OR doubles + strange > 0 OR disorder'), '0', 'an id that is none of an event: a gap is told, and all that there is comes');
like((try_sql($a, "SELECT subdispatch.subscribe('a', after_event => (extract(epoch FROM now() + interval '1 hour') * 1000000)::bigint)"))[1], qr/is not the id of an event/, 'an id of the future is refused');

# ---- a restart of the server: subscriptions are gone, what is published meanwhile elsewhere is in the stream
my $b = start_node('b', @bus);
prepare($b);
$b->safe_psql('postgres', 'SELECT stay()');
copy_seen($a, $b);
$a->stop;
$b->safe_psql('postgres', "SELECT publish_some(100)");
note_seen($b);
$a->start;
copy_seen($b, $a);
come_back($a, 'after a restart', $some);
check_outcome($a, 'after a restart', 0, 50);

# ---- another server, that was not there
my $c = start_node('c', @bus);
prepare($c);
copy_seen($b, $c);
come_back($c, 'a new server', $some);
check_outcome($c, 'a new server', 0, 50);

# ---- many at once: one reading of the stream serves them all
ask_after($c, "SELECT 'plain', event_id FROM seen WHERE kind = 'star' ORDER BY event_id LIMIT 150");
my $before = stat_of($c, 'bus_reread');
my $events = $c->safe_psql('postgres', "SELECT count(*) FROM seen WHERE kind = 'star'");
$c->safe_psql('postgres', "SELECT come_back('back')");
read_all($c, 'many at once', 'back');
leave($c);
check_outcome($c, 'many at once', 0, 150);
my $reread = stat_of($c, 'bus_reread') - $before;
cmp_ok($reread, '<', 5 * $events, "150 at once do not read the stream 150 times ($reread of $events events)");
$c->stop;

# ---- workers that end in the middle: slow readers, who need many windows
my $many = "SELECT kind, event_id FROM (SELECT *, row_number() OVER (PARTITION BY kind ORDER BY event_id) AS n FROM seen) x WHERE n % 97 = 1";
foreach my $victim ('dispatcher', 'bus')
{
	ask_after($a, $many);
	$a->safe_psql('postgres', "SELECT come_back('back')");
	for my $i (1 .. 8)
	{
		$a->safe_psql('postgres', "SELECT take('back'); SELECT count(pg_terminate_backend(pid)) FROM subdispatch.workers WHERE kind = '$victim'");
		sleep 0.05;
	}
	read_all($a, "the $victim is terminated", 'back');
	leave($a);
	check_outcome($a, "the $victim is terminated", 0, 20);
}
# one that is killed takes the server's shared memory along: who comes back then goes on all the same
foreach my $victim ('dispatcher', 'bus')
{
	ask_after($a, $many);
	$a->safe_psql('postgres', "SELECT come_back('back')");
	my $pid = $a->safe_psql('postgres', "SELECT take('back'); SELECT pid FROM subdispatch.workers WHERE kind = '$victim' AND pid IS NOT NULL LIMIT 1") =~ s/.*\n//sr;
	kill 'KILL', $pid;
	eventually("the $victim is killed: the server is back", sub { my ($n) = try_sql($a, "SELECT count(*) FROM subdispatch.subscriptions"); return ($n eq '0', $n) });
	come_back($a, "the $victim is killed", $some);
	check_outcome($a, "the $victim is killed", 0, 50);
}

# ---- ended in the middle: nothing is left
ask_after($a, $some);
$a->safe_psql('postgres', "SELECT come_back('back')");
$a->safe_psql('postgres', "SELECT take('back')");
$a->safe_psql('postgres', "SELECT count(subdispatch.unsubscribe(id)) FROM subdispatch.subscriptions");
eventually('ended in the middle: no memory is left', sub { my $n = $a->safe_psql('postgres', q~SELECT string_agg(m[1], ' ') FROM regexp_matches(subdispatch.metrics(), 'kind="(?:history|response)"} ([0-9]+)', 'g') m~); return ($n eq '0 0', $n) });

# ---- DROP EXTENSION in the middle
$a->safe_psql('postgres', 'CREATE DATABASE dropped');
install_extension($a, 'dropped');
$a->safe_psql('dropped', "SELECT subdispatch.publish('a', to_jsonb(n)) FROM generate_series(1, 3000) n");
$a->safe_psql('dropped', 'SELECT subdispatch.wait_dispatched()');
$a->safe_psql('dropped', "SELECT subdispatch.subscribe('a', after_event => 0)");
$a->safe_psql('dropped', 'DROP EXTENSION subdispatch; CREATE EXTENSION subdispatch');
$a->safe_psql('dropped', "SELECT subdispatch.subscribe('a', id => 's', after_event => 0)");
$a->safe_psql('postgres', 'DROP DATABASE dropped');
eventually('DROP EXTENSION and DROP DATABASE in the middle: no memory is left', sub { my $n = $a->safe_psql('postgres', q~SELECT string_agg(m[1], ' ') FROM regexp_matches(subdispatch.metrics(), 'kind="(?:history|response)"} ([0-9]+)', 'g') m~); return ($n eq '0 0', $n) });

# ---- Redis hangs in the middle: who resumes waits, and goes on when it is back
sub set_on { my ($node, $name, $value) = @_; $node->safe_psql('postgres', "ALTER SYSTEM SET subdispatch.$name = '$value'"); $node->reload; poll_until($node, "SHOW subdispatch.$name", $value, "$name is $value"); }
set_on($a, 'redis_timeout', '1s');
$a->safe_psql('postgres', "SELECT subdispatch.subscribe('a', id => 'keeps the bus')");
ask_after($a, $many);
$a->safe_psql('postgres', "SELECT come_back('back')");
$a->safe_psql('postgres', "SELECT take('back')");
$redis->freeze;
for (1 .. 6) { $a->safe_psql('postgres', "SELECT take('back')"); sleep 0.2; }
my $resuming = "SELECT count(*) FROM subdispatch.subscriptions WHERE consumer = 'back' AND state = 'resuming'";
cmp_ok($a->safe_psql('postgres', $resuming), '>', 0, 'Redis hangs: they wait');
is($a->safe_psql('postgres', 'SELECT count(*) FROM got WHERE dropped IS NULL'), '0', 'and are told of no gap yet');
$redis->thaw;
read_all($a, 'Redis is back', 'back');
leave($a);
check_outcome($a, 'Redis is back', 0, 20);

# ---- it stays away: a gap is told when the time is over
set_on($a, 'redis_resume_timeout', '500ms');
ask_after($a, $many);
$redis->freeze;
$a->safe_psql('postgres', "SET client_min_messages = error; SELECT come_back('back')");
read_all($a, 'Redis stays away', 'back');
$redis->thaw;
leave($a);
check_outcome($a, 'Redis stays away', 10, 0);
set_on($a, 'redis_resume_timeout', 0);
come_back($a, 'not to be asked', $many);
check_outcome($a, 'not to be asked', 20, 0);
set_on($a, 'redis_resume_timeout', '1min');

# ---- a resolver that fails, entries that are not ours, entries that are taken away
my @ids = split /\n/, $a->safe_psql('postgres', "SELECT event_id FROM seen WHERE kind = 'star' ORDER BY 1");
# Entries have the id of their last event, and name the one before their first.
sub entry_from { my ($id) = @_; my @lines = split /\n/, $redis->cli('XRANGE', $stream, $id, '+', 'COUNT', 1); return ($lines[0] =~ s/-0$//r, $lines[2]); }
$redis->cli('EVAL', "for i = 1, 300 do redis.call('XADD', KEYS[1], '*', 'nonsense', i) end", 1, $stream);
is($redis->cli('XINFO', 'STREAM', $stream) =~ /last-generated-id\s+\d+-(\d+)/ ? $1 : 'none', '300', 'there are entries that are not ours');
come_back($a, 'what is not ours', $some);
check_outcome($a, 'what is not ours', 0, 50);
my ($gone) = entry_from("$ids[300]-0");
is($redis->cli('XDEL', $stream, "$gone-0"), '1', 'an entry is where the id of its events says');
come_back($a, 'one was removed', "SELECT kind, event_id FROM seen WHERE event_id BETWEEN $ids[250] AND $ids[350]");
is($a->safe_psql('postgres', "SELECT string_agg(outcome::text, ' ') FROM outcome WHERE after <> $gone AND (told <> CASE WHEN after < $gone THEN 1 ELSE 0 END OR doubles + strange > 0 OR disorder OR (told = 0 AND missing > 0))"), '', 'whoever was before it is told of a gap');
$redis->cli('XTRIM', $stream, 'MINID', "$ids[400]-0");
my (undef, $before_first) = entry_from('-');
cmp_ok($before_first, '>', $ids[300], 'the stream is trimmed');
come_back($a, 'trimmed', $some);
is($a->safe_psql('postgres', "SELECT string_agg(outcome::text, ' ') FROM outcome WHERE told <> CASE WHEN after < $before_first THEN 1 ELSE 0 END OR (told > 0 AND first <> -1) OR doubles + strange > 0 OR disorder"), '', 'trimmed: whoever was there before is told with what comes first');

# ---- all of it is gone
$redis->cli('FLUSHALL');
$b->safe_psql('postgres', "TRUNCATE seen; SELECT count(*) FROM subdispatch.poll('stays', 100000); SELECT publish_some(40)");
note_seen($b);
dispatched($a);
my $old = $a->safe_psql('postgres', "SELECT event_id FROM seen WHERE kind = 'star' ORDER BY event_id DESC LIMIT 1");
copy_seen($b, $a);
come_back($a, 'flushed', "SELECT kind, event_id FROM seen UNION ALL SELECT kind, $old FROM kinds UNION ALL SELECT kind, 0 FROM kinds");
is($a->safe_psql('postgres', "SELECT string_agg(outcome::text, ' ') FROM outcome WHERE told <> CASE WHEN after IN ($old, 0) THEN 1 ELSE 0 END OR missing <> 0 OR doubles + strange > 0 OR disorder"), '', 'flushed: an id of before is told of a gap, and what there is comes');
foreach my $n ($a, $b)
{
	unlike(slurp_file($n->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
	$n->stop;
}
done_testing();

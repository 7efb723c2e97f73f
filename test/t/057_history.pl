# The history that subscriptions resume out of: what is given up of it, by its size or when memory is short, is told to
# those who miss it, and to nobody else; and the same through Redis, on whichever server a client comes back, as long as Redis
# is not asked for what it has itself.

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

my $setup = <<'SQL';
SET client_min_messages = warning;
-- Each event a transaction of its own, so that each can be given up by itself.
CREATE PROCEDURE produce(channel text, n int, bytes int, name text DEFAULT '') LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. n LOOP
    PERFORM subdispatch.publish(channel, jsonb_build_object('n', name || i, 'text', repeat('x', bytes)));
    COMMIT;
  END LOOP;
END $$;
-- What one got who never left, and what those got who came back after "after".
CREATE TABLE seen (event_id bigint);
CREATE TABLE asked (after bigint);
CREATE TABLE got (seq bigint GENERATED ALWAYS AS IDENTITY, after bigint, event_id bigint, dropped bigint);
CREATE FUNCTION take() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE n bigint;
BEGIN
  INSERT INTO got (after, event_id, dropped) SELECT subscription_id::bigint, event_id, dropped FROM subdispatch.poll('back', 100000);
  GET DIAGNOSTICS n = ROW_COUNT;
  RETURN n;
END $$;
-- Of those who came back: what each misses, and where he was told that something is missing.
CREATE VIEW outcome AS SELECT after, (SELECT count(*) FROM seen WHERE event_id > after) - count(event_id) AS missing, count(*) FILTER (WHERE seq IS NOT NULL AND dropped IS NULL) AS told,
    coalesce((array_agg(dropped ORDER BY seq))[1], -1) AS first, count(event_id) - count(DISTINCT event_id) AS doubles,
    count(event_id) FILTER (WHERE event_id <= after OR event_id NOT IN (SELECT event_id FROM seen)) AS strange
  FROM asked LEFT JOIN got USING (after) GROUP BY after;
SQL

# Comes back to the channel after each of the events (a query), reads all that there is, and goes.
sub come_back
{
	my ($node, $channel, $after, $name) = @_;
	$node->safe_psql('postgres', "TRUNCATE got, asked; INSERT INTO asked $after; SELECT count(subdispatch.subscribe('$channel', id => after::text, consumer => 'back', after_event => after)) FROM asked");
	eventually("$name: they catch up", sub {
		my $resuming = $node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.subscriptions WHERE consumer = 'back' AND state = 'resuming'");
		my $n = $node->safe_psql('postgres', 'SELECT take()');
		return ($resuming eq '0' && $n eq '0', "$resuming, $n");
	});
	$node->safe_psql('postgres', "SELECT subdispatch.close_consumer('back')");
}

sub check_outcome
{
	my ($node, $name, $least_told, $least_whole) = @_;
	is($node->safe_psql('postgres', "SELECT string_agg(outcome::text, ' ') FROM outcome WHERE (missing > 0) <> (told > 0) OR told > 1 OR (told > 0 AND first <> -1)"), '',
		"$name: a gap is told to those who miss something, once, with what comes first, and to nobody else");
	is($node->safe_psql('postgres', "SELECT string_agg(outcome::text, ' ') FROM outcome WHERE doubles > 0 OR strange > 0"), '', "$name: nothing comes twice, nor from before");
	my ($told, $whole) = split /\|/, $node->safe_psql('postgres', 'SELECT count(*) FILTER (WHERE told > 0), count(*) FILTER (WHERE told = 0) FROM outcome');
	cmp_ok($told, '>=', $least_told, "$name: some were told of a gap");
	cmp_ok($whole, '>=', $least_whole, "$name: some have it all");
}

# What the one who stays has got is what others are compared with.
sub note_seen
{
	my ($node) = @_;
	dispatched($node);
	$node->safe_psql('postgres', "INSERT INTO seen SELECT event_id FROM subdispatch.poll('stays', 100000) WHERE event_id IS NOT NULL");
}

sub kept_bytes { my ($node) = @_; return $node->safe_psql('postgres', q~SELECT (regexp_match(subdispatch.metrics(), 'kind="history"} ([0-9]+)'))[1]~); }

my @limits = (max_subscriptions_per_connection => 0, max_pending => 100000, max_pending_bytes => '100MB', include_event_id => 'on');

# ---- trimmed by its size ----

my $node = start_node('history', dispatchers => 1, event_history_size => '128kB', @limits);
$node->safe_psql('postgres', $setup);
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('a', id => 'stays', consumer => 'stays'), subdispatch.subscribe('b', id => 'b', consumer => 'b')");
$node->safe_psql('postgres', "CALL produce('b', 3, 10); CALL produce('a', 300, 1000)");
note_seen($node);
cmp_ok(kept_bytes($node), '<', 2 * 128 * 1024, 'no more is kept than event_history_size says');
come_back($node, 'a', 'SELECT event_id FROM seen UNION ALL SELECT 0', 'trimmed');
check_outcome($node, 'trimmed', 50, 20);

# The other channel's events are gone as well; who has seen the last of them misses nothing, whatever else is gone.
$node->safe_psql('postgres', "TRUNCATE seen; INSERT INTO seen SELECT event_id FROM subdispatch.poll('b', 100)");
come_back($node, 'b', 'SELECT event_id FROM seen', 'the other channel');
check_outcome($node, 'the other channel', 2, 1);

# Channels that nobody subscribes to any more are kept within the same limit.
$node->safe_psql('postgres', q~DO $$ BEGIN FOR i IN 1 .. 1000 LOOP PERFORM subdispatch.subscribe(i || repeat('x', 1000), id => 'x'), subdispatch.unsubscribe('x'); END LOOP; END $$~);
my $lingering = $node->safe_psql('postgres', q~SELECT (regexp_match(subdispatch.metrics(), 'lingering_channels{[^}]*} ([0-9]+)'))[1]~);
cmp_ok($lingering, '>', 50, 'channels linger');
cmp_ok($lingering, '<', 128, 'but not as many as anybody likes');
cmp_ok(kept_bytes($node), '<', 4 * 128 * 1024, 'nor their memory');

# ---- none at all ----

$node->safe_psql('postgres', 'ALTER SYSTEM SET subdispatch.event_history_size = 0');
$node->reload;
eventually('event_history_size = 0: what is kept goes', sub { my $n = kept_bytes($node); return ($n eq '0', $n) });
$node->safe_psql('postgres', "TRUNCATE seen; CALL produce('a', 20, 1000)");
note_seen($node);
is(kept_bytes($node), '0', 'and nothing new is kept');
come_back($node, 'a', 'SELECT event_id FROM seen', 'without a history');
check_outcome($node, 'without a history', 19, 1);
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('a', id => 'next', after_event => (SELECT max(event_id) FROM seen))");
$node->safe_psql('postgres', "SELECT subdispatch.publish('a', '\"new\"')");
dispatched($node);
like($node->safe_psql('postgres', "SELECT string_agg(r, '') FROM subdispatch.next_responses('next') r"), qr/^(?!.*dropped).*"new"/, 'who has seen the last one goes on with what is new');
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('next'), subdispatch.unsubscribe('stays')");
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('a', id => 'alone', after_event => (SELECT max(event_id) FROM seen))");
eventually('nobody is there in between: a gap is told', sub {
	my $r = $node->safe_psql('postgres', "SELECT string_agg(r, '') FROM subdispatch.next_responses('alone', 10, '1s') r");
	return (scalar($r =~ /"dropped":null/), $r);
});
$node->stop;

# ---- given up when memory is short ----

$node = start_node('memory', dispatchers => 2, shared_memory_size => '8MB', event_queue_size => '1MB', event_history_size => '64MB', @limits);
$node->safe_psql('postgres', $setup);
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('a', id => 'stays', consumer => 'stays', max_pending => 50), subdispatch.subscribe('b', id => 'b', max_pending => 10)");
my @load = map { background($node, "CALL produce('$_', 2000, 10000)") } 'a', 'b';
foreach my $h (@load) { my (undef, $err) = finish_background($h); is($err, '', 'publishers of more than there is memory do not fail'); }
dispatched($node);
$node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.poll('stays', 100000)");
# Those who come back in the middle are compared with the last 400.
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe('stays'); SELECT subdispatch.subscribe('a', id => 'stays', consumer => 'stays')");
$node->safe_psql('postgres', "CALL produce('a', 100, 10000); INSERT INTO seen SELECT event_id FROM subdispatch.poll('stays', 100000)") foreach 1 .. 4;
note_seen($node);
my $kept = kept_bytes($node);
cmp_ok($kept, '>', 1024 * 1024, 'as much is kept as there is room for');
is($node->safe_psql('postgres', 'SELECT count(*) FROM seen'), '400', 'and whoever stays gets all that is new');

my ($out, $err) = try_sql($node, "SELECT count(subdispatch.subscribe('a', id => 'many ' || i, consumer => 'many', filter => jsonb_build_object('text', repeat('y', 1500) || i))) FROM generate_series(1, 1000) i");
is($err, '', 'subscribers take the room that the history has');
cmp_ok(kept_bytes($node), '<', $kept, 'which it gave up');
is($node->safe_psql('postgres', 'SELECT shared_memory_failures FROM subdispatch.stats'), '0', 'nobody was refused memory');
$node->safe_psql('postgres', "SELECT subdispatch.close_consumer('many')");
come_back($node, 'a', 'SELECT event_id FROM (SELECT event_id, row_number() OVER (ORDER BY event_id DESC) AS n FROM seen) x WHERE n % 10 = 1', 'memory is short');
check_outcome($node, 'memory is short', 1, 1);
ok(dispatched($node), 'the dispatchers are well');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
$node->stop;

# ---- queued behind a slow resolver ----

# A client can know an event from '*' that is still queued in its channel's own dispatcher: the seam is before that.
$node = start_node('queued', dispatchers => 2, listen_channels => '', resolver_timeout => '100s', @limits);
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE go ();
CREATE FUNCTION until_go(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  WHILE event -> 'data' = '"wait"' AND NOT EXISTS (SELECT FROM public.go) LOOP PERFORM pg_sleep(0.01); END LOOP;
  RETURN event -> 'data';
END $$;
SELECT subdispatch.subscribe('*', id => 'star', consumer => 'star');
SELECT subdispatch.subscribe('c' || n, id => 'c' || n) FROM generate_series(1, 20) n;
SQL
my $elsewhere = $node->safe_psql('postgres', "SELECT min(channel) FROM subdispatch.channels WHERE dispatcher <> (SELECT dispatcher FROM subdispatch.channels WHERE channel = '*')");
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('$elsewhere', 'until_go', id => 'slow'); SELECT subdispatch.publish('$elsewhere', '\"wait\"')");
poll_until($node, "SELECT count(*) FROM subdispatch.workers w JOIN pg_stat_activity a USING (pid) WHERE w.busy AND wait_event = 'PgSleep'", '1', 'a resolver holds up the channel');
$node->safe_psql('postgres', "SELECT subdispatch.publish('$elsewhere', to_jsonb('queued ' || n)) FROM generate_series(1, 3) n");
my @known;
eventually('the events behind it are known from *', sub {
	push @known, grep { $_ ne '' } split /\n/, $node->safe_psql('postgres', "SELECT event_id FROM subdispatch.poll('star', 100)");
	return (@known == 4, "@known");
});
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('$elsewhere', id => 'after ' || n, after_event => id, resolver => r) FROM unnest(ARRAY[" . join(',', @known) . "]) WITH ORDINALITY x(id, n), (VALUES ('until_go'::regproc)) y(r)");
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('$elsewhere', id => 'plain ' || n, after_event => id) FROM unnest(ARRAY[" . join(',', @known) . "]) WITH ORDINALITY x(id, n)");
$node->safe_psql('postgres', 'INSERT INTO go DEFAULT VALUES');
dispatched($node);
poll_until($node, "SELECT count(*) FROM subdispatch.subscriptions WHERE state = 'resuming'", '0', 'those who resume behind it catch up');
$node->safe_psql('postgres', "SELECT subdispatch.publish('$elsewhere', '\"new\"')");
foreach my $kind ('after', 'plain')
{
	is(results($node, "$kind $_"), join(' ', (map { "queued $_" } $_ .. 3), 'new'), "$kind $_: what was queued behind a slow resolver comes once") foreach 1 .. 4;
}
$node->stop;

# ---- through Redis ----

my $redis = RedisTest->new;
my @bus = (@limits, dispatchers => 2, shared_memory_size => '256MB', event_history_size => '32MB', redis_resume_timeout => 0, event_bus => 'redis', redis_url => $redis->url, bus_key => 'a key that is long enough');
my @nodes = map { start_node($_, @bus) } 'one', 'two';
foreach my $n (@nodes)
{
	$n->safe_psql('postgres', $setup);
	$n->safe_psql('postgres', "SELECT subdispatch.subscribe('a', id => 'stays', consumer => 'stays', operation_id => 'op')");
}
my $seconds = $ENV{RESUME_SECONDS} || 6;
@load = map { background($_, "DO \$\$ DECLARE until timestamptz := clock_timestamp() + '$seconds s'; BEGIN WHILE clock_timestamp() < until LOOP CALL produce('a', 1 + (random() * 10)::int, 10, clock_timestamp()::text || ' '); COMMIT; PERFORM pg_sleep(random() * 0.01); END LOOP; END \$\$") } @nodes;
my ($last, $returns, @texts);
my $columns = 'SELECT event_id, dropped, response FROM subdispatch.poll';

# What was read; the last event's id is where to go on.
sub take_rows
{
	my ($rows) = @_;
	push @texts, split /\n/, $rows;
	($last) = $texts[-1] =~ /^(\d+)\|/ or BAIL_OUT("a response without an event: $texts[-1]") if @texts;
	return length $rows;
}

eventually('the first event', sub { my $first = $nodes[0]->safe_psql('postgres', 'SELECT subdispatch.subscribe(\'a\', id => \'goes\', consumer => \'goes\', operation_id => \'op\'); ' . "$columns('goes', 1, '5s')"); $first =~ s/^goes\n?//; take_rows($first); return (defined $last, $first) });
my $end = time + $seconds;
my $at = $nodes[0];
while (time < $end)
{
	$at->safe_psql('postgres', "SELECT subdispatch.close_consumer('goes')");
	# to the other server, where it may be ahead of what that one has read
	$at = $nodes[ int rand 2 ];
	my $rows = $at->safe_psql('postgres', "SELECT subdispatch.subscribe('a', id => 'goes', consumer => 'goes', operation_id => 'op', after_event => $last); $columns('goes', " . (1 + int rand 60) . ", '20ms'); $columns('goes', " . (1 + int rand 60) . ", '20ms')");
	$rows =~ s/^goes\n?//;
	take_rows($rows);
	$returns++;
}
foreach my $h (@load) { (undef, $err) = finish_background($h); is($err, '', 'redis: publishers ran'); }
dispatched($_) foreach @nodes, @nodes;
eventually('redis: all of it is read', sub {
	my $state = $at->safe_psql('postgres', "SELECT state FROM subdispatch.subscriptions WHERE id = 'goes'");
	return (!take_rows($at->safe_psql('postgres', "$columns('goes', 100000, '100ms')")) && $state eq 'active', $state);
});
my @ref = map { $_->safe_psql('postgres', "$columns('stays', 100000)") } @nodes;
ok($ref[0] eq $ref[1], 'redis: both servers have the same events under the same ids');
my @all = split /\n/, $ref[0];
shift @all while @all && $all[0] ne $texts[0];
cmp_ok(scalar @all, '>', 200, 'redis: there was something to compare');
cmp_ok($returns, '>', 10, 'redis: it came back often');
my ($differ) = grep { ($texts[$_] // 'nothing') ne ($all[$_] // 'nothing') } 0 .. ($#all > $#texts ? $#all : $#texts);
is(defined $differ ? 'at ' . $differ . ': ' . ($texts[$differ] // 'nothing') . ', not ' . ($all[$differ] // 'nothing') : 'same', 'same',
	'redis: one who comes back, on whichever server, gets what one gets that never left');
is(scalar(grep { !/^\d+\|0\|/ } @texts), 0, 'redis: no loss is told');
$_->safe_psql('postgres', "SELECT subdispatch.close_consumer('goes')") foreach @nodes;

# What one server no longer keeps the other may. Events come from Redis, and go, in blocks of up to 128kB.
$nodes[0]->safe_psql('postgres', "ALTER SYSTEM SET subdispatch.event_history_size = '512kB'");
$nodes[0]->reload;
$nodes[1]->safe_psql('postgres', "CALL produce('a', 1000, 1000)");
dispatched($nodes[1]);
note_seen($_) foreach @nodes;
eventually('redis: the first server has read them, too', sub { note_seen($nodes[0]); my $n = $nodes[0]->safe_psql('postgres', 'SELECT count(*) FROM seen'); return ($n eq '1000', $n) });
foreach my $n (@nodes) { come_back($n, 'a', 'SELECT event_id FROM (SELECT event_id, row_number() OVER (ORDER BY event_id DESC) AS n FROM seen) x WHERE n % 10 = 1', 'redis, ' . $n->name); }
check_outcome($nodes[0], 'redis, older than what is kept', 10, 10);
check_outcome($nodes[1], 'redis, all is kept', 0, 100);
# Nobody subscribes to it here: what was missed before is not known.
$nodes[1]->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 'c', consumer => 'c'); SELECT subdispatch.publish('c', '1') FROM generate_series(1, 2)");
dispatched($nodes[1]);
my $c = $nodes[1]->safe_psql('postgres', "SELECT min(event_id) FROM subdispatch.poll('c')");
$nodes[0]->safe_psql('postgres', "SELECT subdispatch.wait_dispatched()");
$nodes[0]->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 'c', after_event => $c)");
$nodes[1]->safe_psql('postgres', "SELECT subdispatch.publish('c', '2')");
my $read = '';
eventually('redis: a channel that was not served here', sub { $read .= $nodes[0]->safe_psql('postgres', "SELECT string_agg(r, '') FROM subdispatch.next_responses('c', 10, '1s') r"); return (scalar($read =~ /"data":2/), $read) });
like($read, qr/"dropped":null/, 'redis: has a gap');

foreach my $n (@nodes)
{
	unlike(slurp_file($n->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
	$n->stop;
}
done_testing();

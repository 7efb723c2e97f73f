# Acknowledged reading under faults: readers cancelled and terminated in the middle of a batch, shared memory used up, and
# that a batch's memory is given back however it ends.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;
use Time::HiRes qw(sleep time);

my $events = $ENV{SUBDISPATCH_ACK_EVENTS} || 8000;

readers_that_are_ended();
memory_comes_back();
memory_is_used_up();
bytes_do_not_change();
paused_ones_do_not_expire();
done_testing();

# Two readers at a time, each statement of which reads a batch and stores it in one transaction. The batch that is
# stored last is what the next statement acknowledges, so every response is stored once, whatever happens to a reader.
# Readers without ack, beside them, may lose what they read, and nothing else.
sub readers_that_are_ended
{
	my $node = start_node('ended', max_pending => 10000000, max_pending_bytes => '400MB', shared_memory_size => '600MB', publish_timeout => '100s', '.fsync' => 'off');
	my $before = memory_in_use($node);
	$node->safe_psql('postgres', <<'SQL');
CREATE TABLE received (batch bigint, n bigint, subscription text, event_id bigint, data int, type text, PRIMARY KEY (batch, n));
CREATE TABLE received_once (n bigserial, subscription text, event_id bigint, data int);
SELECT subdispatch.open_consumer('acks'), subdispatch.open_consumer('does not');
SELECT subdispatch.subscribe('c', id => 'acks ' || n, consumer => 'acks'), subdispatch.subscribe('c', id => 'does not ' || n, consumer => 'does not') FROM generate_series(1, 4) n;
SELECT subdispatch.subscribe('c', id => 'half', filter => '{"half": true}', consumer => 'acks');
SQL
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my %statement = (
		acks => "INSERT INTO received SELECT batch, ord, subscription_id, event_id, (response::jsonb #>> '{payload,data,n}')::int, response::jsonb->>'type' FROM subdispatch.poll('acks', 2500, '50ms', ack => (SELECT coalesce(max(batch), 0) FROM received)) WITH ORDINALITY p(subscription_id, c, o, event_id, d, response, batch, ord);\n",
		'does not' => "INSERT INTO received_once (subscription, event_id, data) SELECT subscription_id, event_id, (response::jsonb #>> '{payload,data,n}')::int FROM subdispatch.poll('does not', 2500, '50ms');\n");
	my %run;
	foreach my $reader ('acks', 'acks 2', 'does not')
	{
		my $which = $reader =~ s/ 2$//r;
		append_to_file("$dir/$reader.sql", "SET application_name = 'reader';\n" . $statement{$which} x 200);
		$run{$reader} = IPC::Run::start([ 'sh', '-c', "while [ ! -e '$dir/stop' ]; do psql -XAtq -f '$dir/$reader.sql' || sleep 0.01; done" ], '<', \undef, '>', '/dev/null', '2>', "$dir/$reader.err",
			init => sub { $ENV{PGHOST} = $node->host; $ENV{PGPORT} = $node->port; $ENV{PGDATABASE} = 'postgres'; });
	}
	my $killer = background($node, <<'SQL');
CREATE TABLE ended (terminated boolean);
DO $$ BEGIN
  FOR i IN 1..100000 LOOP
    PERFORM pg_stat_clear_snapshot();
    INSERT INTO ended SELECT CASE WHEN i % 4 = 0 THEN pg_terminate_backend(pid) ELSE NOT pg_cancel_backend(pid) END FROM pg_stat_activity WHERE application_name = 'reader' AND state = 'active' AND random() < 0.6;
    COMMIT;
    PERFORM pg_sleep(random() * 0.08);
    EXIT WHEN EXISTS (SELECT FROM pg_class WHERE relname = 'killer_stops');
  END LOOP;
END $$;
SQL
	my $publish = join '', map { "SELECT count(subdispatch.publish('c', jsonb_build_object('n', n, 'half', n % 2 = 0))) FROM generate_series($_ * 100 + 1, $_ * 100 + 100) n;\n" } 0 .. $events / 100 - 1;
	my (undef, $error) = finish_background(background($node, $publish . "SELECT subdispatch.wait_dispatched('100s'); SELECT subdispatch.complete('half');"));
	is($error, '', 'events are published meanwhile');
	ok(dispatched($node), 'and dispatched');
	poll_until($node, "SELECT sum(pending) FROM subdispatch.consumers", '0', 'all is read while readers are ended');
	# on a fast machine all has been read before
	poll_until($node, 'SELECT count(*) FILTER (WHERE NOT terminated) > 20 AND count(*) FILTER (WHERE terminated) > 5 FROM ended', 't', 'many readers are ended');
	$node->safe_psql('postgres', 'CREATE TABLE killer_stops ()');
	finish_background($killer);
	poll_until($node, "SELECT count(*) FROM subdispatch.consumers WHERE batch IS NOT NULL", '0', 'and acknowledged by those that are not');
	append_to_file("$dir/stop", '');
	$_->finish foreach values %run;

	my ($cancelled, $terminated) = split /\|/, $node->safe_psql('postgres', 'SELECT count(*) FILTER (WHERE NOT terminated), count(*) FILTER (WHERE terminated) FROM ended');
	cmp_ok($cancelled, '>', 20, "$cancelled statements were cancelled");
	cmp_ok($terminated, '>', 5, "$terminated processes terminated");
	note("duplicates that were refused: " . (() = slurp_file("$dir/acks.err") . slurp_file("$dir/acks 2.err") =~ /duplicate key/g));
	is($node->safe_psql('postgres', "SELECT subscription, count(*), count(DISTINCT data), bool_and(rising) FROM (SELECT subscription, data, data > lag(data, 1, 0) OVER (PARTITION BY subscription ORDER BY batch, n) AS rising FROM received WHERE type = 'next') r GROUP BY 1 ORDER BY 1"),
		join("\n", (map { "acks $_|$events|$events|t" } 1 .. 4), 'half|' . $events / 2 . '|' . $events / 2 . '|t'), 'with ack: every response, once, in order');
	is($node->safe_psql('postgres', "SELECT subscription, type FROM received WHERE type <> 'next'"), 'half|complete', 'the last message, too');
	is($node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.subscriptions WHERE id = 'half'"), '0', 'after which the subscription is forgotten');
	is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT batch, min(n), max(n), count(*) FROM received GROUP BY batch HAVING min(n) <> 1 OR max(n) <> count(*)) x"), '0', 'batches are whole');
	is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT data > lag(data, 1, 0) OVER (PARTITION BY subscription ORDER BY n) AS rising FROM received_once) r WHERE NOT rising"), '0', 'without: none twice, in order');
	note($node->safe_psql('postgres', "SELECT count(*) || ' of " . 4 * $events . " were received without ack' FROM received_once"));
	is($node->safe_psql('postgres', 'SELECT sum(delivered) = (SELECT responses_delivered FROM subdispatch.stats) - (SELECT count(*) FROM received WHERE subscription = \'half\') FROM subdispatch.subscriptions'), 't', 'deliveries are counted once');

	$node->safe_psql('postgres', 'SELECT subdispatch.close_consumer(consumer) FROM subdispatch.consumers');
	eventually('the memory is back to where it was', sub { my $m = memory_in_use($node) // -1; return ($m <= $before, "$m, before $before") });
	unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
	$node->stop;
	return;
}

# A batch that is outstanding, made in each of the ways; its number.
sub outstanding
{
	my ($node, $function) = @_;
	$node->safe_psql('postgres', "SELECT subdispatch.open_consumer('g'); SELECT subdispatch.subscribe('c', id => 's' || n, consumer => 'g') FROM generate_series(1, 5) n; SELECT subdispatch.publish('c', to_jsonb(repeat('x', 10000))) FROM generate_series(1, 20) n");
	dispatched($node);
	return $node->safe_psql('postgres', "SELECT DISTINCT batch FROM subdispatch.$function('g', ack => 0)");
}

sub metric
{
	my ($node, $name) = @_;
	return $node->safe_psql('postgres', 'SELECT subdispatch.metrics()') =~ /^subdispatch_${name}\{[^}]*\} (\d+)$/m ? $1 : 'none';
}

sub memory_comes_back
{
	my $node = start_node('memory');
	my $before = memory_in_use($node);
	my %end = (
		'it is acknowledged' => sub { $node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.poll('g', ack => $_[0]); SELECT subdispatch.close_consumer('g')") },
		'it is read for the last time' => sub { $node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.$_[1]('g')"); $node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions; SELECT subdispatch.close_consumer('g')") },
		'the consumer is closed' => sub { $node->safe_psql('postgres', "SELECT subdispatch.close_consumer('g')") },
		'it is opened anew' => sub { $node->safe_psql('postgres', "SELECT subdispatch.open_consumer('g')"); is($node->safe_psql('postgres', "SELECT outstanding FROM subdispatch.consumers"), '0', 'nothing is outstanding then') },
		'nobody polls any more' => sub {
			$node->safe_psql('postgres', "ALTER SYSTEM SET subdispatch.subscription_idle_timeout = '1s'; SELECT pg_reload_conf()");
			poll_until($node, 'SELECT count(*) FROM subdispatch.consumers', '0', 'it expires');
			$node->safe_psql('postgres', "ALTER SYSTEM RESET subdispatch.subscription_idle_timeout; SELECT pg_reload_conf()");
		},
		'the extension is dropped' => sub { $node->safe_psql('postgres', 'DROP EXTENSION subdispatch; CREATE EXTENSION subdispatch') });
	foreach my $function ('poll', 'poll_shared')
	{
		foreach my $how (sort keys %end)
		{
			my $batch = outstanding($node, $function);
			is(metric($node, 'outstanding_batches'), 1, "metrics() counts a batch of $function");
			is(metric($node, 'outstanding_responses'), $node->safe_psql('postgres', 'SELECT sum(outstanding) FROM subdispatch.consumers'), 'and its responses, as the view does');
			cmp_ok(memory_in_use($node), '>', $before, "a batch of $function takes memory");
			$end{$how}->($batch, $function);
			# An open consumer is not nothing.
			eventually("and gives it back when $how", sub { my $m = memory_in_use($node) // -1; return ($m <= $before + 1000, "$m, before $before") });
			try_sql($node, "SELECT subdispatch.close_consumer('g')");
			is(metric($node, 'outstanding_batches') . ' ' . metric($node, 'outstanding_responses'), '0 0', 'nothing is counted any more');
		}
	}
	# What is dropped with its database is gone as well.
	$node->safe_psql('postgres', 'CREATE DATABASE other');
	install_extension($node, 'other');
	$node->safe_psql('other', "SELECT subdispatch.open_consumer('g'); SELECT subdispatch.subscribe('c', consumer => 'g'); SELECT subdispatch.publish('c', to_jsonb(repeat('x', 10000)))");
	dispatched($node, 'other');
	is($node->safe_psql('other', "SELECT count(*) FROM subdispatch.poll('g', ack => 0)"), '1', 'outstanding in another database');
	$node->safe_psql('postgres', 'DROP DATABASE other');
	eventually('its memory is back when that is dropped', sub { my $m = memory_in_use($node) // -1; return ($m <= $before, "$m, before $before") });
	$node->stop;
	return;
}

# No memory for a batch: an error, and nothing is taken.
sub memory_is_used_up
{
	my $node = start_node('full', shared_memory_size => '8MB', event_queue_size => '1MB', max_pending => 10000000, max_pending_bytes => '100MB');
	$node->safe_psql('postgres', "SELECT subdispatch.open_consumer('g'); SELECT subdispatch.subscribe('c', id => 's', consumer => 'g'); SELECT subdispatch.publish('c', to_jsonb(n)) FROM generate_series(1, 300) n");
	dispatched($node);
	my ($refused, @got) = (0);
	my $ack = 0;
	# All goes to responses that nobody reads, the large pieces first, then the small ones.
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('hog', id => 'hog')");
	foreach my $size (50000, 20000, 8000, 4000, 2000, 1000, 500, 200, 100)
	{
		for (1 .. 300)
		{
			my $failures = $node->safe_psql('postgres', "SELECT subdispatch.health() #>> '{memory,failures}'");
			try_sql($node, "SELECT subdispatch.publish('hog', to_jsonb(repeat('x', $size))) FROM generate_series(1, 20)");
			dispatched($node);
			last if $node->safe_psql('postgres', "SELECT subdispatch.health() #>> '{memory,failures}'") > $failures;
		}
	}
	for (1 .. 12)
	{
		my ($out, $err) = try_sql($node, "\\set VERBOSITY verbose\nSELECT batch, response::jsonb #> '{payload,data}' FROM subdispatch.poll('g', 30, ack => $ack)");
		if ($err)
		{
			$refused++;
			like($err, qr/53200.*subdispatch\.shared_memory_size/s, 'refused, and says what to change');
		}
		else
		{
			note("memory for a batch of " . (split /\n/, $out) . " rows could be had");
			push @got, map { (split /\|/)[1] } split /\n/, $out;
			$ack = (split /\|/, $out)[0];
		}
		is($node->safe_psql('postgres', "SELECT pending, dropped, state FROM subdispatch.subscriptions WHERE id = 's'"), 300 - @got . '|0|active', 'what is not read is still there');
	}
	cmp_ok($refused, '>', 0, 'it was refused at least once');
	$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions WHERE id LIKE 'hog%'");
	push @got, split /\n/, $node->safe_psql('postgres', "SELECT response::jsonb #> '{payload,data}' FROM subdispatch.poll('g', 1000, ack => $ack)");
	is("@got", join(' ', 1 .. 300), 'with memory again, all is read, in order');
	$node->stop;
	return;
}

# A batch is the same bytes, whatever is set when it is repeated.
sub bytes_do_not_change
{
	my $node = start_node('bytes', max_pending => 5);
	$node->safe_psql('postgres', "SELECT subdispatch.open_consumer('g'); SELECT subdispatch.subscribe('c', id => 's', consumer => 'g', overflow => 'drop_newest', max_pending => 1); SELECT subdispatch.subscribe('c', id => 'e', consumer => 'g', overflow => 'error', max_pending => 1); SELECT subdispatch.publish('c', to_jsonb(n)) FROM generate_series(1, 3) n");
	dispatched($node);
	my $first = $node->safe_psql('postgres', "SELECT * FROM subdispatch.poll('g', ack => 0)");
	like($first, qr/"data":null,"errors":null,"extensions".*"type":"error"|"type":"error".*"data":null,"errors":null,"extensions"/s, 'a loss notice and a last message');
	$node->safe_psql('postgres', "ALTER SYSTEM SET subdispatch.omit_null_errors = on; SELECT pg_reload_conf()");
	poll_until($node, 'SHOW subdispatch.omit_null_errors', 'on', 'a setting changes');
	is($node->safe_psql('postgres', "SELECT * FROM subdispatch.poll('g', ack => 0)"), $first, 'the batch does not');
	$node->stop;
	return;
}

# The consumer is polled, that is enough; what has ended is not kept for ever.
sub paused_ones_do_not_expire
{
	my $node = start_node('paused', subscription_idle_timeout => '2s');
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => n::text, connection_id => 'ws', consumer => 'g') FROM generate_series(1, 2) n; SELECT subdispatch.subscribe('c', id => 'idle', connection_id => 'ws', consumer => 'h'); SELECT subdispatch.pause('ws'); SELECT subdispatch.complete('2'); SELECT subdispatch.publish('c', '1')");
	my $end = time + 6;
	my $seen = '';
	while (time < $end)
	{
		is($node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.poll('g', timeout => '300ms')"), '0', 'nothing of a paused one');
		$seen = $node->safe_psql('postgres', "SELECT string_agg(id || ' ' || state, ',' ORDER BY id) FROM subdispatch.subscriptions WHERE id <> 'idle'");
	}
	is($seen, '1 paused', 'the paused one is there after three times the idle timeout, the ended one is not');
	is($node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.subscriptions WHERE id = 'idle' AND state = 'paused'"), '0', 'one whose consumer is not polled has expired');
	$node->safe_psql('postgres', "SELECT subdispatch.resume('ws')");
	is($node->safe_psql('postgres', "SELECT response::jsonb #> '{payload,data}' FROM subdispatch.poll('g')"), '1', 'it has its response');
	$node->stop;
	return;
}

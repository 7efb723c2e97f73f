# A transaction is visible before its commit callback runs: another can read its row, commit, and be there first. The
# order of the responses must be that of the commits. The setting that holds a commit there exists where the extension
# was compiled with -DUSE_ASSERT_CHECKING.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('order', dispatchers => 2);
if ($node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = 'subdispatch.debug_hold_commit'") ne '1')
{
	$node->stop;
	plan skip_all => 'needs subdispatch.debug_hold_commit, compiled with -DUSE_ASSERT_CHECKING';
}
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t VALUES (1, 'nobody'), (2, 'nobody');
CREATE TRIGGER t AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('c');
CREATE FUNCTION value(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT event #> '{data,row,v}' $$;
SELECT subdispatch.subscribe('c', 'value', id => 's');
SELECT subdispatch.subscribe('*', 'value', id => 'star');
SQL

foreach my $round (1 .. 3)
{
	# A commits and is held before it links its events; B sees A's row, updates it and commits.
	my $a = background($node, "SET subdispatch.debug_hold_commit = 1500; UPDATE t SET v = 'A$round' WHERE id = 1;");
	poll_until($node, 'SELECT v FROM t WHERE id = 1', "A$round", "A's row is visible");
	$node->safe_psql('postgres', "UPDATE t SET v = 'B$round' WHERE id = 1");
	# wait_dispatched covers what was committed, linked or not.
	is(results($node, 's'), "A$round B$round", 'what A committed comes before what B made of it');
	is(results($node, 'star'), "A$round B$round", 'also for "*"');
	my ($out, $err) = finish_background($a);
	is($err, '', 'A went through');
}

# A chain of three, the first two held.
my $first = background($node, "SET subdispatch.debug_hold_commit = 2500; UPDATE t SET v = 'first' WHERE id = 1;");
poll_until($node, 'SELECT v FROM t WHERE id = 1', 'first', 'the first is visible');
my $second = background($node, "SET subdispatch.debug_hold_commit = 1000; UPDATE t SET v = 'second' WHERE id = 1;");
poll_until($node, 'SELECT v FROM t WHERE id = 1', 'second', 'the second is visible');
$node->safe_psql('postgres', "UPDATE t SET v = 'third' WHERE id = 1");
is(results($node, 's'), 'first second third', 'three in a row');
results($node, 'star');
finish_background($_) foreach $first, $second;

# subscribe() and an initial query while a commit is held: nothing is missed. The row was visible to the query, or comes.
my $held = background($node, "SET subdispatch.debug_hold_commit = 1500; UPDATE t SET v = 'held' WHERE id = 2;");
poll_until($node, 'SELECT v FROM t WHERE id = 2', 'held', 'the row is visible');
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', 'value', id => 'late')");
is($node->safe_psql('postgres', 'SELECT v FROM t WHERE id = 2'), 'held', 'an initial query sees it');
finish_background($held);
like(results($node, 'late'), qr/^(?:held)?$/, 'and the subscription brings it at most once');

# One that is held and then dies does not hold up the others for ever.
results($node, 's');
my $dying = background($node, "SET subdispatch.debug_hold_commit = 1500; SELECT 'dying'; UPDATE t SET v = 'dying' WHERE id = 1;");
poll_until($node, 'SELECT v FROM t WHERE id = 1', 'dying', 'its row is visible');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%dying%' AND pid <> pg_backend_pid()");
$node->safe_psql('postgres', "UPDATE t SET v = 'after' WHERE id = 1");
is(results($node, 's'), 'dying after', 'what a terminated session had committed arrives, too, in its order');
finish_background($dying);
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
$node->stop;

done_testing();

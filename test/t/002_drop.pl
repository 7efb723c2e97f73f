# DROP EXTENSION, and everything that can be done to a database, while subscriptions exist.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('drop', '.allow_in_place_tablespaces' => 'on');
$node->safe_psql('postgres', 'CREATE ROLE nobody LOGIN; CREATE ROLE owner LOGIN CREATEDB');

sub sub_works
{
	my ($db, $id, $name) = @_;
	$node->safe_psql($db, "SELECT subdispatch.publish('c', '\"$name\"')");
	is(results($node, $id, $db), $name, "$name: the subscription goes on");
}

sub new_database
{
	my ($db, $owner) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $db" . ($owner ? " OWNER $owner" : ''));
	install_extension($node, $db);
	$node->safe_psql($db, "SELECT subdispatch.subscribe('c', id => 's')");
}

# DROP EXTENSION, rolled back: nothing has happened.
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
my @pids = dispatcher_pids($node);
$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION subdispatch; ROLLBACK');
is_deeply([ dispatcher_pids($node) ], \@pids, 'DROP EXTENSION rolled back: the dispatchers run on');
sub_works('postgres', 's', 'drop-rolled-back');
$node->safe_psql('postgres', 'BEGIN; SAVEPOINT s; DROP EXTENSION subdispatch; ROLLBACK TO s; COMMIT');
sub_works('postgres', 's', 'drop-in-a-savepoint-rolled-back');
# While it is undecided, others go on, and nothing is stopped: a dispatcher that needed the dropped objects would have to wait.
my $dropper = session($node);
$dropper->query_safe('BEGIN; DROP EXTENSION subdispatch');
is_deeply([ split /\n/, $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type ~ 'subdispatch.*dispatcher' AND datname = 'postgres' ORDER BY 1") ], \@pids,
	'an undecided DROP EXTENSION stops no dispatcher');
$dropper->query_safe('ROLLBACK');
$dropper->quit;
sub_works('postgres', 's', 'undecided-drop');

# DROP EXTENSION: at commit all of it ends, a reader that waits too.
my $waiting = background($node, "\\set VERBOSITY sqlstate\nSELECT subdispatch.next_response('s', '1h')");
poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%next_response(''s''%' AND pid <> pg_backend_pid() AND wait_event IS NOT NULL", '1', 'a reader waits');
my ($out, $err) = try_sql($node, "SET lock_timeout = '60s'; DROP EXTENSION subdispatch");
is($err, '', 'DROP EXTENSION does not wait for a reader');
($out, $err) = finish_background($waiting);
like($err, qr/42704|type":"error/, 'the reader is told');
poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'subdispatch' AND datname = 'postgres'", '0', 'DROP EXTENSION ends the dispatchers');
install_extension($node, 'postgres');
is($node->safe_psql('postgres', 'SELECT count(*) FROM subdispatch.subscriptions'), '0', 'and the subscriptions');
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
sub_works('postgres', 's', 'extension-created-again');

# In one transaction: dropped and created.
($out, $err) = try_sql($node, 'BEGIN; DROP EXTENSION subdispatch; CREATE EXTENSION subdispatch; COMMIT');
is($err, '', 'DROP and CREATE EXTENSION in one transaction');
is($node->safe_psql('postgres', 'SELECT count(*) FROM subdispatch.subscriptions'), '0', 'the old subscriptions are gone');
eventually('subscribe works after that', sub {
	my ($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c', id => 's')");
	return ($out eq 's', $err);
});
sub_works('postgres', 's', 'dropped-and-created');

# DROP OWNED, and CASCADE from what it depends on.
$node->safe_psql('postgres', 'DROP EXTENSION subdispatch; CREATE ROLE extension_owner SUPERUSER; SET ROLE extension_owner; CREATE EXTENSION subdispatch; RESET ROLE');
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
$node->safe_psql('postgres', 'BEGIN; DROP OWNED BY extension_owner; ROLLBACK');
sub_works('postgres', 's', 'drop-owned-rolled-back');
$node->safe_psql('postgres', 'DROP OWNED BY extension_owner');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_extension WHERE extname = 'subdispatch'"), '0', 'DROP OWNED drops the extension');
poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'subdispatch' AND datname = 'postgres'", '0', 'and ends the dispatchers');
install_extension($node, 'postgres');

# DROP DATABASE, first by somebody who may not, then where somebody is connected, then for good.
new_database('d1');
new_database('d2');
$node->safe_psql('d2', "SELECT subdispatch.publish('c', '\"other database\"')");
is(results($node, 's', 'd1'), '', 'an event stays in its database');
is(results($node, 's', 'd2'), 'other database', 'and arrives there');
@pids = dispatcher_pids($node, 'd1');
isnt(scalar(@pids), 0, 'each database has dispatchers');
foreach my $command ('DROP DATABASE d1', 'ALTER DATABASE d1 RENAME TO d9', 'ALTER DATABASE d1 SET TABLESPACE pg_default', 'DROP DATABASE d1 WITH (FORCE)')
{
	($out, $err) = try_sql($node, $command, user => 'nobody');
	like($err, qr/ERROR/, "$command by somebody who may not");
	is_deeply([ dispatcher_pids($node, 'd1') ], \@pids, 'stops nothing');
}
($out, $err) = try_sql($node, 'CREATE DATABASE d9 TEMPLATE d1', user => 'owner');
like($err, qr/permission denied/, 'CREATE DATABASE from a template that one may not copy');
is_deeply([ dispatcher_pids($node, 'd1') ], \@pids, 'stops nothing');
my $connected = session($node, 'd1');
$connected->query_safe('SELECT 1');
($out, $err) = try_sql($node, 'DROP DATABASE d1');
like($err, qr/being accessed/, 'DROP DATABASE fails where somebody is connected');
sub_works('d1', 's', 'failed-drop-database');
$connected->quit;
poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE datname = 'd1' AND backend_type = 'client backend'", '0', 'they have left');
($out, $err) = try_sql($node, 'DROP DATABASE d1');
is($err, '', 'DROP DATABASE works while subscriptions exist');
sub_works('d2', 's', 'other-database-dropped');
# The same name again is another database.
$node->safe_psql('postgres', 'CREATE DATABASE d1');
install_extension($node, 'd1');
is($node->safe_psql('d1', 'SELECT count(*) FROM subdispatch.subscriptions'), '0', 'a new database of the old name has no subscription');
$node->safe_psql('d1', "SELECT subdispatch.subscribe('c', id => 's')");
sub_works('d1', 's', 'database-created-again');
($out, $err) = try_sql($node, 'DROP DATABASE d1 WITH (FORCE)');
is($err, '', 'DROP DATABASE WITH (FORCE)');
new_database('owned', 'owner');
($out, $err) = try_sql($node, 'DROP DATABASE owned', user => 'owner');
is($err, '', 'DROP DATABASE by its owner, no superuser');

# RENAME, SET TABLESPACE, CREATE … TEMPLATE: they work, and the subscriptions go on.
($out, $err) = try_sql($node, 'ALTER DATABASE d2 RENAME TO d3');
is($err, '', 'RENAME works while subscriptions exist');
sub_works('d3', 's', 'renamed');
$node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION ''");
($out, $err) = try_sql($node, 'ALTER DATABASE d3 SET TABLESPACE elsewhere');
is($err, '', 'SET TABLESPACE works while subscriptions exist');
sub_works('d3', 's', 'tablespace');
foreach my $strategy ('WAL_LOG', 'FILE_COPY')
{
	my $copy = lc "copy_$strategy";
	($out, $err) = try_sql($node, "CREATE DATABASE $copy TEMPLATE d3 STRATEGY $strategy");
	is($err, '', "CREATE DATABASE … TEMPLATE ($strategy) works while subscriptions exist");
	sub_works('d3', 's', "copied-$strategy");
	is($node->safe_psql($copy, 'SELECT count(*) FROM subdispatch.subscriptions'), '0', 'the copy has no subscription');
	$node->safe_psql($copy, "SELECT subdispatch.subscribe('c', id => 's')");
	sub_works($copy, 's', "in-the-copy-$strategy");
}
# Of a database that nobody subscribed in, and of one that does not exist.
($out, $err) = try_sql($node, 'SET client_min_messages = warning; DROP DATABASE IF EXISTS never_was');
is($err, '', 'DROP DATABASE IF EXISTS');
($out, $err) = try_sql($node, 'ALTER DATABASE never_was RENAME TO was');
like($err, qr/does not exist/, 'RENAME of a database that does not exist');

# A dropped database leaves no worker that tries to come back.
my $offset = -s $node->logfile;
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
sub_works('postgres', 's', 'in-the-end');
sleep 2;
my $log = substr slurp_file($node->logfile), $offset;
unlike($log, qr/database "?\w+"? does not exist|database [0-9]+ does not exist/, 'nobody tries to connect to a dropped database');
$log = slurp_file($node->logfile);
unlike($log, qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
$node->stop;

done_testing();

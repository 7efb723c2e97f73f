# Without shared_preload_libraries every entry point says what to add, and where.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('noload');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE t (id int);
CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('c');
SQL
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$node->restart;

my @calls = split /\n/, <<'SQL';
SELECT subdispatch.publish('c', '1')
INSERT INTO t VALUES (1)
SELECT subdispatch.subscribe('c')
SELECT subdispatch.unsubscribe('s')
SELECT subdispatch.complete('s')
SELECT subdispatch.disconnect('s')
SELECT subdispatch.open_consumer('s')
SELECT subdispatch.close_consumer('s')
SELECT subdispatch.next_response('s')
SELECT * FROM subdispatch.next_responses('s')
SELECT * FROM subdispatch.poll('s')
SELECT * FROM subdispatch.poll_shared('s')
CALL subdispatch.await_response('s')
CALL subdispatch.await_responses('s')
SELECT subdispatch.wait_dispatched()
SELECT subdispatch.reset_stats()
SELECT subdispatch.metrics()
SELECT subdispatch.health()
SELECT * FROM subdispatch.subscriptions
SELECT * FROM subdispatch.consumers
SELECT * FROM subdispatch.channels
SELECT * FROM subdispatch.stats
SELECT * FROM subdispatch.workers
SQL
foreach my $call (@calls)
{
	my ($out, $err) = try_sql($node, $call);
	like($err, qr/shared_preload_libraries\s*=\s*'subdispatch'/, "$call says what to add");
	like($err, qr/postgresql\.conf|restart/, 'and where, or what then');
}
# LOAD does not help, and does no harm.
my ($out, $err) = try_sql($node, "LOAD 'subdispatch'; SELECT 1");
($out, $err) = try_sql($node, "LOAD 'subdispatch'; SELECT subdispatch.subscribe('c')");
like($err, qr/shared_preload_libraries/, 'LOAD is not enough');
# The extension can be created and dropped without it, or says the same.
($out, $err) = try_sql($node, 'SET client_min_messages = warning; DROP EXTENSION subdispatch CASCADE');
is($err, '', 'DROP EXTENSION works');
($out, $err) = try_sql($node, 'CREATE EXTENSION subdispatch');
like($err, qr/^$|shared_preload_libraries/, 'CREATE EXTENSION works or says what to add');
($out) = try_sql($node, 'SELECT 1');
is($out, '1', 'the server is up');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');

# Next to others in the list, wherever it stands.
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "'auto_explain, subdispatch'");
$node->restart;
install_extension($node, 'postgres');
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's'); SELECT subdispatch.publish('c', '1')");
is(results($node, 's'), '1', 'it works as one of several libraries');
$node->stop;

done_testing();

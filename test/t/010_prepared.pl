# PREPARE TRANSACTION after a publish or a subscribe is refused, as it is after NOTIFY.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('prepared', '.max_prepared_transactions' => 5);
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE t (id int);
CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('c');
SELECT subdispatch.subscribe('c', id => 's');
SQL
my %what = (
	publish => "SELECT subdispatch.publish('c', '1')",
	'publish with nobody there' => "SELECT subdispatch.publish('nobody', '1')",
	publish_change => 'INSERT INTO t VALUES (1)',
	subscribe => "SELECT subdispatch.subscribe('c', id => 'undone')",
);
foreach my $name (sort keys %what)
{
	my ($out, $err) = try_sql($node, "\\set VERBOSITY verbose\nBEGIN; $what{$name}; PREPARE TRANSACTION 'p'");
	like($err, qr/0A000/, "PREPARE TRANSACTION after $name is refused");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), '0', 'and nothing is prepared');
}
is(results($node, 's'), '', 'no event came');
is($node->safe_psql('postgres', 'SELECT count(*) FROM subdispatch.subscriptions'), '1', 'and no subscription');
is($node->safe_psql('postgres', 'SELECT count(*) FROM t'), '0', 'the transactions were rolled back');

# What does neither can be prepared; what rolled its publishing back, too, or is refused cleanly.
my ($out, $err) = try_sql($node, "BEGIN; CREATE TABLE u (); PREPARE TRANSACTION 'p'");
is($err, '', 'other transactions can be prepared');
($out, $err) = try_sql($node, "COMMIT PREPARED 'p'");
is($err, '', 'and committed');
($out, $err) = try_sql($node, "BEGIN; CREATE TABLE v (); SAVEPOINT s; SELECT subdispatch.publish('c', '1'); ROLLBACK TO s; PREPARE TRANSACTION 'p'");
note("after a rolled back savepoint: $err");
$node->safe_psql('postgres', "ROLLBACK PREPARED 'p'") if $err eq '';
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '2')");
is(results($node, 's'), '2', 'events arrive after that');
$node->stop;

done_testing();

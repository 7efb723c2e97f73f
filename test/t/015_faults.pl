# An ERROR and a death (FATAL) at each stage of an event's dispatch, which builds with assertions can be told to have:
# each event reaches every subscription exactly once, in order, and a resolver's effects are committed once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('faults', dispatchers => 2, resolver_timeout => '20s', listen_channels => '');
plan skip_all => 'needs faults, compiled with -DUSE_ASSERT_CHECKING'
  if $node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = 'subdispatch.debug_hold_commit'") eq '0';

$node->safe_psql('postgres', <<'SQL');
SET client_min_messages = warning;
CREATE TABLE calls (n int, variables jsonb);
CREATE FUNCTION noted(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.calls VALUES ((event->'data'->>'n')::int, variables);
  RETURN event->'data'->'n';
END $$;
SELECT subdispatch.subscribe('c', id => 'plain');
SELECT subdispatch.subscribe('c', id => 'filtered', filter => '{"n": {"gt": 0}}');
SELECT subdispatch.subscribe('c', 'noted', id => 'resolved');
SELECT subdispatch.subscribe('c', 'noted', '{"other": true}', id => 'resolved too');
SELECT subdispatch.subscribe('*', id => 'star');
SQL

sub numbers
{
	my ($id) = @_;
	return join ' ', map { /"n": (\d+)/ ? $1 : /"data":(\d+)/ ? $1 : "?$_" } split /\n/, drain($node, $id);
}

my @stages = ('showing', 'shown', 'resolved', 'committed');
my $n = 0;
foreach my $stage (@stages)
{
	foreach my $how ('error', 'fatal')
	{
		$node->safe_psql('postgres', 'TRUNCATE calls');
		my @expected = map { ++$n } 1 .. 5;
		# One transaction, so that they are one batch; the third is the one that fails.
		$node->safe_psql('postgres', join "\n", 'BEGIN;', (map {
			my $fault = $_ == $expected[2] ? qq(, "fault": "$stage $how") : '';
			"SELECT subdispatch.publish('c', '{\"n\": $_$fault}');"
		} @expected), 'COMMIT;');
		dispatched($node);
		my $all = join ' ', @expected;
		is(numbers($_), $all, "$stage $how: $_") foreach 'plain', 'filtered', 'resolved', 'resolved too', 'star';
		is($node->safe_psql('postgres', "SELECT string_agg(n::text, ' ' ORDER BY n) FROM calls WHERE variables = '{}'"),
			$all, "$stage $how: each call took effect once");
	}
}
# '*' is served by another dispatcher, which has its own fault.
cmp_ok(scalar(() = slurp_file($node->logfile) =~ /FATAL:  test of a fault/g), '>=', scalar @stages, 'there were deaths');
cmp_ok(scalar(() = slurp_file($node->logfile) =~ /test of a fault: \w+ error/g), '>=', scalar @stages, 'errors were logged');

$node->safe_psql('postgres', 'SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions');
is(memory_in_use($node), 0, 'all memory is back');
$node->stop;
done_testing();

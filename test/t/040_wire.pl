# Events as they travel between servers. Each takes that way inside one server: subdispatch.debug_wire sends it through its
# text before it is dispatched, and a function shows what a server makes of any text. Both exist where the extension was
# compiled with -DUSE_ASSERT_CHECKING.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('wire');
if ($node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = 'subdispatch.debug_wire'") ne '1')
{
	$node->stop;
	plan skip_all => 'needs subdispatch.debug_wire, compiled with -DUSE_ASSERT_CHECKING';
}
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION wire(bytea, authenticated boolean DEFAULT true) RETURNS text STRICT
	LANGUAGE c AS 'subdispatch', 'subdispatch_debug_wire_text';
CREATE FUNCTION wire(text, authenticated boolean DEFAULT true) RETURNS text STRICT
	LANGUAGE sql AS 'SELECT wire(convert_to($1, ''UTF8''), $2)';
CREATE FUNCTION event(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT event - 'id' - 'timestamp' $$;
CREATE FUNCTION event_time(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT event->'timestamp' $$;
SQL

# Runs SQL in one session with and without the journey: what came must be the same, byte for byte.
sub same_both_ways
{
	my ($sql, $name) = @_;
	my @came;
	foreach my $debug ('off', 'on')
	{
		$node->safe_psql('postgres', "ALTER SYSTEM SET subdispatch.debug_wire = $debug");
		$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
		# The dispatchers read the setting before the next event: the reload wakes them.
		poll_until($node, 'SHOW subdispatch.debug_wire', $debug, "debug_wire is $debug");
		$node->safe_psql('postgres', <<'SQL');
SELECT subdispatch.subscribe('orders', id => 'data');
SELECT subdispatch.subscribe('orders', 'event', id => 'event');
SQL
		$node->safe_psql('postgres', $sql);
		push @came, drain($node, 'data') . "\n" . drain($node, 'event');
		$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(x) FROM unnest('{data,event}'::text[]) x");
	}
	cmp_ok(length $came[0], '>', 100, "$name: something came");
	is($came[1], $came[0], "$name: the same");
	return $came[0];
}

my $came = same_both_ways(<<'SQL', 'publish()');
SELECT subdispatch.publish('orders', '{"n": 1}');
SELECT subdispatch.publish('orders', 'null', '', 'ü "quoted" \ back', E'line\nfeed');
SELECT subdispatch.publish('orders', '[18446744073709551617, 1.50, 1e-400, -0.0, 12345678901234567890123456789.000]');
SELECT subdispatch.publish('orders', jsonb_build_object('data', ',"data":}', 'ctrl', chr(1) || chr(127) || '/'), 'type', 'corr', 'fed');
SELECT subdispatch.publish('orders', to_jsonb(repeat('x', 900000)));
SQL
like($came, qr/18446744073709551617, 1\.50/, 'numbers are exact');

sub wire { my ($text, @more) = @_; return $node->safe_psql('postgres', "SELECT wire(\$text\$$text\$text\$" . join('', map { ", $_" } @more) . ')'); }

my $good = '{"subdispatch":1,"encoding":"UTF8","channel":"c","source":"publish","timestamp":1700000000123456,"event_type":"t",'
  . '"correlation_id":"co","federation_id":"f","system":"18446744073709551615","timeline":7,"lsn":"16/B374D848","data":{"a": 1.10}}';
is(wire($good), $good, 'a text comes back as it was');
is(wire($good, 'false'), $good, 'an event of publish() need not be authenticated here');
(my $other = $good) =~ s/UTF8/LATIN1/;
is(wire($other), $good, 'ASCII is the same in every encoding');
(my $umlaut = $other) =~ s/"co"/"\x{c3}\x{bc}"/;

my %bad = (
	'no JSON' => [ 'x', 'it is not a JSON object as another server writes it' ],
	'another encoding' => [ $umlaut, 'it is in another encoding than this database' ],
	'no channel' => [ $good =~ s/"channel":"c"/"channel":""/r, 'its channel is none that can be published on' ],
	'all channels' => [ $good =~ s/"channel":"c"/"channel":"*"/r, 'its channel is none that can be published on' ],
	'a long channel' => [ $good =~ s/"channel":"c"/'"channel":"' . 'c' x 1025 . '"'/er, 'its channel is none that can be published on' ],
	'a time before time' => [ $good =~ s/1700000000123456/-9223372036854775808/r, 'its timestamp is out of range' ],
	'a notification' => [ $good =~ s/"source":"publish"/"source":"notify"/r, 'its source is not one that can be received' ],
	'a change with data' => [ $good =~ s/"source":"publish"/"source":"change"/r, 'its source is not one that can be received' ],
	'no LSN' => [ $good =~ s/16\/B374D848/16-B374D848/r, q(its commit's position is not one) ],
	'a long LSN' => [ $good =~ s/16\/B374D848/16\/1B374D848/r, q(its commit's position is not one) ],
	'no system' => [ $good =~ s/18446744073709551615/-1/r, q(its commit's position is not one) ],
	'a large system' => [ $good =~ s/18446744073709551615/18446744073709551616/r, q(its commit's position is not one) ],
	'broken data' => [ $good =~ s/1\.10/1.10.1/r, 'its data is not JSON that jsonb can hold' ],
	'two data' => [ $good =~ s/\}\}/},"data":1}/r, 'its data is not JSON that jsonb can hold' ],
	'a NUL in data' => [ $good =~ s/1\.10/"\\u0000"/r, 'its data is not JSON that jsonb can hold' ],
	'deep data' => [ $good =~ s/1\.10/'[' x 100000/er, 'its data is not JSON that jsonb can hold' ],
	'a large event' => [ $good =~ s/1\.10/'"' . 'x' x 1048576 . '"'/er, 'it is larger than subdispatch.max_event_size allows' ],
);
is(wire($bad{$_}[0]), $bad{$_}[1], $_) foreach sort keys %bad;
is($node->safe_psql('postgres', q{SELECT wire('\x7b22ff227d'), wire(convert_to($$} . $good . q{$$, 'UTF8') || '\x00'), wire(overlay(convert_to($$} . $good . q{$$, 'UTF8') placing '\xff' from 60))}),
	'it is not a JSON object as another server writes it|it is not a JSON object as another server writes it|it has bytes that are no character in this database\'s encoding',
	'bytes that are no text');
is($node->safe_psql('postgres', q{SELECT wire(convert_to(repeat('x', 8 * 1048576 + 1), 'UTF8'))}),
	'it is larger than subdispatch.max_event_size allows', 'a large text is not even read');

# Damage: whatever comes, there is an answer and no error.
sub fuzz
{
	my ($text, $rounds) = @_;
	return $node->safe_psql('postgres', <<"SQL");
SELECT setseed(0.5);
DO \$do\$
DECLARE
	good bytea := convert_to(\$text\$$text\$text\$, 'UTF8');
	bytes bytea := convert_to('{}[]",:\\0u ' || E'\\n' || 'd1e-', 'UTF8') || '\\xffc300';
	bad bytea;
	events int := 0;
BEGIN
	FOR i IN 1 .. $rounds LOOP
		bad := good;
		FOR j IN 0 .. (random() * 3)::int LOOP
			bad := set_byte(bad, (random() * (length(good) - 1))::int, get_byte(bytes, (random() * (length(bytes) - 1))::int));
		END LOOP;
		IF random() < 0.2 THEN
			bad := substr(bad, 1, (random() * length(bad))::int);
		END IF;
		IF wire(bad) LIKE '{"subdispatch"%' THEN
			events := events + 1;
		END IF;
	END LOOP;
	PERFORM set_config('x.events', events::text, false);
END
\$do\$;
SELECT current_setting('x.events')::int > $rounds / 100;
SQL
}
like(fuzz($good, 20000), qr/^t$/m, 'damaged texts are answered, and some are still events');

$node->stop;
done_testing();

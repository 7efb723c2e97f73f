# Settings whose effect needs a server of its own: masked errors, omitted nulls, listen_channels, and that slow
# resolvers hold up neither streams without one nor other channels.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('options', mask_errors => 'on', omit_null_errors => 'on', resolver_timeout => '100s', dispatchers => 4,
	listen_channels => 'listened, prefix.*', max_listen_channels => 5);
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION fails(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the secret' USING ERRCODE = 'ZZ123', DETAIL = 'secret detail', HINT = 'secret hint'; END $$;
SELECT subdispatch.subscribe('c', id => 's'), subdispatch.subscribe('c', 'fails', id => 'fails');
SELECT subdispatch.publish('c', '1');
SQL
is(drain($node, 's'), '{"type":"next","id":"s","payload":{"data":1}}', 'omit_null_errors leaves "errors" out');
# include_event_id: the id that poll() tells, also beside an error and a loss.
$node->safe_psql('postgres', "ALTER SYSTEM SET subdispatch.include_event_id = on");
$node->reload;
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('ids', id => 'ids', consumer => 'ids', response_key => 'k', max_pending => 1), subdispatch.subscribe('ids', 'fails', id => 'failing', consumer => 'ids')");
eventually('include_event_id comes with a reload', sub {
	$node->safe_psql('postgres', "SELECT subdispatch.publish('ids', '1')");
	$node->safe_psql('postgres', 'SELECT subdispatch.wait_dispatched()');
	my $told = $node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.poll('ids') WHERE response::jsonb #>> '{payload,extensions,subdispatch,eventId}' = event_id::text");
	return ($told eq '2', $told);
});
$node->safe_psql('postgres', "SELECT subdispatch.publish('ids', to_jsonb(n)) FROM generate_series(1, 3) n");
$node->safe_psql('postgres', 'SELECT subdispatch.wait_dispatched()');
is($node->safe_psql('postgres', "SELECT string_agg(replace(response, event_id::text, '<id>'), ' ') FROM subdispatch.poll('ids') WHERE subscription_id = 'ids'"),
	'{"type":"next","id":"ids","payload":{"data":{"k":3},"extensions":{"subdispatch":{"eventId":<id>,"dropped":2}}}}', 'an event id and a loss in one response');
$node->safe_psql('postgres', "ALTER SYSTEM RESET subdispatch.include_event_id");
$node->safe_psql('postgres', "SELECT subdispatch.close_consumer('ids')");
$node->reload;
my $masked = drain($node, 'fails');
unlike($masked, qr/secret/, 'mask_errors hides the message');
like($masked, qr/"errors":\s*\[\{.*"message":\s*"[^"]+"/, 'behind a general one');
like(slurp_file($node->logfile), qr/the secret/, 'the log has it');
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");

# listen_channels: a name, a prefix, nothing else.
$node->safe_psql('postgres', "SELECT subdispatch.subscribe(c, id => c) FROM unnest('{listened,prefix.a,other,prefixed}'::text[]) c");
$node->safe_psql('postgres', "SELECT pg_notify(c, to_jsonb(c)::text) FROM unnest('{listened,prefix.a,other,prefixed}'::text[]) c");
is(results($node, $_), $_, "$_ is LISTENed on") foreach 'listened', 'prefix.a';
is(results($node, $_), '', "$_ is not") foreach 'other', 'prefixed';
$node->safe_psql('postgres', "SELECT subdispatch.publish('other', '1')");
is(results($node, 'other'), '1', 'publish() needs no LISTEN');
# Beyond max_listen_channels: a WARNING, and the subscription gets what is published.
my ($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('prefix.' || n, id => 'p' || n) FROM generate_series(1, 10) n");
like($err, qr/WARNING.*/s, 'beyond max_listen_channels a WARNING says so');
like($err, qr/subdispatch\.max_listen_channels/, 'and names the setting');
unlike($err, qr/ERROR/, 'but no error');
$node->safe_psql('postgres', "SELECT subdispatch.publish('prefix.10', '1')");
is(results($node, 'p10'), '1', 'such a channel gets what is published');
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");
# A setting that is changed while they run. What is not JSON in the list, is refused or is a name.
$node->safe_psql('postgres', "ALTER SYSTEM SET subdispatch.listen_channels = 'other'");
$node->reload;
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('other', id => 'other'); SELECT subdispatch.subscribe('listened', id => 'listened')");
eventually('a reload changes which channels are LISTENed on', sub {
	$node->safe_psql('postgres', "SELECT pg_notify('other', '1')");
	my $got = results($node, 'other');
	return (scalar($got =~ /1/), $got);
});
$node->safe_psql('postgres', "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions");

# A slow resolver: the stream without one has its response while it runs, and so has the next stream on another dispatcher.
$node->safe_psql('postgres', waits_sql(q('"went"')) . <<'SQL');
SELECT subdispatch.subscribe('slow', 'waits', id => 'slow');
SELECT subdispatch.subscribe('slow', id => 'plain');
SELECT subdispatch.subscribe('other' || n, id => 'other ' || n) FROM generate_series(1, 16) n;
SELECT subdispatch.publish('slow', '1');
SQL
is($node->safe_psql('postgres', "SELECT subdispatch.next_response('plain', '60s')::jsonb #> '{payload,data}'"), '1', 'a stream without a resolver has its response while a resolver runs');
$node->safe_psql('postgres', "SELECT subdispatch.publish('other' || n, '1') FROM generate_series(1, 16) n");
my $through = 0;
eventually('most other channels go on meanwhile', sub {
	$through += $node->safe_psql('postgres', "SELECT count(subdispatch.next_response('other ' || n)) FROM generate_series(1, 16) n");
	return ($through >= 6, "$through of 16");
});
is($node->safe_psql('postgres', "SELECT count(subdispatch.next_response('slow'))"), '0', 'the slow one waits');
is($node->safe_psql('postgres', "SELECT subdispatch.wait_dispatched('300ms')"), 'f', 'wait_dispatched says that not all is dispatched');
is($node->safe_psql('postgres', "SELECT bool_and(subdispatch.next_response('slow') IS NULL) FROM generate_series(1, 1000)"), 't', 'empty reads do not wait for the dispatcher');
$node->safe_psql('postgres', 'INSERT INTO go VALUES (true)');
is(results($node, 'slow'), 'went', 'until it may go');
is($node->safe_psql('postgres', "SELECT $through + count(subdispatch.next_response('other ' || n)) FROM generate_series(1, 16) n"), '16', 'and the rest came as well');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
$node->stop;

# ---- max_listen_channels ----

# The place of one that nobody subscribes to any more goes to another, though it lingers; that of one that is gone, too.
$node = start_node('places', dispatchers => 1, max_listen_channels => 5);
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('prefix.' || n, id => 'p' || n) FROM generate_series(1, 10) n");
my $listening = 'SELECT count(*) FILTER (WHERE listening) FROM subdispatch.channels';
my $one_less = "SELECT subdispatch.unsubscribe(id) FROM subdispatch.subscriptions WHERE channel = (SELECT channel FROM subdispatch.channels WHERE listening LIMIT 1)";
poll_until($node, $listening, '5', 'five are LISTENed on');
foreach my $n (11 .. 13)
{
	$node->safe_psql('postgres', $one_less);
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('prefix.$n', id => 'p$n')");
	poll_until($node, $listening, '5', 'a new one asks: five again');
}
$node->safe_psql('postgres', "ALTER SYSTEM SET subdispatch.event_history_size = 0");
$node->reload;
eventually('without a history none lingers', sub { my $kept = $node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = 'subdispatch.event_history_size' AND setting = '0'"); return ($kept eq '1', $kept) });
$node->safe_psql('postgres', $one_less);
poll_until($node, $listening, '5', 'one goes for good: five again, though nobody asked');
$node->stop;

done_testing();

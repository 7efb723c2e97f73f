# Grants on channels beyond one session: pg_dump, revoking under a waiting reader, other sessions' snapshots, NOTIFY.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('grants', '.max_prepared_transactions' => 5);
my $use = 'GRANT EXECUTE ON FUNCTION subdispatch.publish, subdispatch.subscribe, subdispatch.next_response, subdispatch.next_responses, subdispatch.wait_dispatched TO ann, bob';
$node->safe_psql('postgres', "CREATE ROLE ann LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE \"Odd \"\"name\" LOGIN; CREATE ROLE brief; $use");

sub grant
{
	my ($channel, $role, $privilege, $db) = @_;
	$node->safe_psql($db // 'postgres', "SELECT subdispatch.grant_channel('$channel', '$role', '$privilege')");
}

sub revoke
{
	my ($channel, $role, $privilege) = @_;
	$node->safe_psql('postgres', "SELECT subdispatch.revoke_channel('$channel', '$role', '$privilege')");
}

# What a role's call of publish() gives.
sub publish_error
{
	my ($user, $channel, $db) = @_;
	my ($out, $err) = try_sql($node, "SELECT subdispatch.publish('$channel', '1')", user => $user, dbname => $db);
	return $err;
}

# ---- pg_dump and restore ----

grant('orders.*', 'ann', 'publish');
grant('orders.eu', '"Odd ""name"', 'publish');
grant('chat', '-', 'publish');
grant('brief', 'brief', 'publish');
$node->safe_psql('postgres', "SELECT subdispatch.grant_channel('orders.eu', 'bob', 'subscribe', '{tenant_id,user_id}'), subdispatch.grant_channel('orders.eu', 'bob', 'subscribe')");
# Dropped from another database, a role leaves its rows behind: they belong to nobody, and are not dumped.
$node->safe_psql('template1', 'DROP ROLE brief');
is($node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.channel_grants WHERE channel = 'brief'"), '1', 'a row of a role that was dropped elsewhere');
my $all = "SELECT * FROM subdispatch.channel_grants WHERE channel <> 'brief' ORDER BY channel, grantee::text, privilege, required_context";
my $before = $node->safe_psql('postgres', $all);
is(scalar(split /\n/, $before), 5, 'there is something to dump');
my $dir = PostgreSQL::Test::Utils::tempdir;
foreach my $format ('plain', 'custom')
{
	my $db = "restored_$format";
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->command_ok([ 'pg_dump', '-f', "$dir/$format", '-F', $format, '-d', $node->connstr('postgres') ], "pg_dump ($format)");
	if ($format eq 'plain')
	{
		$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/$format", '-d', $node->connstr($db) ], 'restored by psql');
	}
	else
	{
		$node->command_ok([ 'pg_restore', '-e', '-d', $node->connstr($db), "$dir/$format" ], 'restored by pg_restore');
	}
	is($node->safe_psql($db, $all), $before, "all grants are there ($format)");
	is($node->safe_psql($db, "SELECT count(*) FROM subdispatch.channel_grants WHERE channel = 'brief'"), '0', 'but not those of a role that is gone');
	is(publish_error('ann', 'orders.x', $db), '', 'and are in force');
	like(publish_error('ann', 'other', $db), qr/permission denied to publish on channel "other"/, 'and nothing else is');
}
# The next grant or revocation clears them away.
grant('any', 'ann', 'publish');
is($node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.channel_grants WHERE channel = 'brief'"), '0', 'rows of roles that are gone are cleared away');
# Restored under a session's feet: it knows at once.
my $session = session($node, 'restored_plain');
$session->query_safe('SET ROLE bob');
like($session->query("SELECT subdispatch.publish('late', '1')") . $session->{stderr}, qr/permission denied/, 'not granted yet');
$session->{stderr} = '';
$node->safe_psql('restored_plain', "COPY subdispatch.channel_grants FROM PROGRAM 'printf \"late\\tbob\\tpublish\\t\\\\\\\\N\\n\"'");
$session->query("SELECT subdispatch.publish('late', '1')");
is($session->{stderr}, '', 'what COPY brings is in force at once');
$session->quit;

# ---- revoking ----

# A reader that waits is told at the next event.
grant('r', 'ann', 'subscribe');
$node->safe_psql('postgres', "SET ROLE ann; SELECT subdispatch.subscribe('r', id => 'r')");
my $waiting = background($node, "SET ROLE ann; SELECT subdispatch.next_response('r', '1h')");
poll_until($node, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%next_response(''r''%' AND pid <> pg_backend_pid() AND wait_event IS NOT NULL", '1', 'a reader waits');
revoke('r', 'ann', 'subscribe');
$node->safe_psql('postgres', "SELECT subdispatch.publish('r', '\"hidden\"')");
my ($out, $err) = finish_background($waiting);
like($out, qr/"type":"error".*42501/, 'a reader that waits gets the error message');
unlike($out, qr/hidden/, 'and not the event');
is($node->safe_psql('postgres', 'SELECT denied_channel FROM subdispatch.stats') > 0, 1, 'denied_channel counts');
# One that commits with the event hides it already; one after it comes too late.
foreach my $i (1 .. 20)
{
	grant('r', 'ann', 'subscribe');
	$node->safe_psql('postgres', "SET ROLE ann; SELECT subdispatch.subscribe('r', id => 'r$i')");
	$node->safe_psql('postgres', "SELECT subdispatch.publish('r', '\"seen\"')");
	$node->safe_psql('postgres', "BEGIN; SELECT subdispatch.revoke_channel('r', 'ann', 'subscribe'); SELECT subdispatch.publish('r', '\"hidden\"'); COMMIT");
	dispatched($node);
	my $got = $node->safe_psql('postgres', "SET ROLE ann; SELECT string_agg(r::jsonb->>'type', ' ') || string_agg(r, ' ') FROM subdispatch.next_responses('r$i') r");
	# The first may have been dispatched after the second's commit: then it is hidden, too.
	next if $got =~ /^(?:next )?error/ && $got !~ /hidden/;
	fail("round $i: what the revoking transaction publishes is hidden");
	diag($got);
}
# A session that keeps an old snapshot is bound by what has been revoked since.
grant('r', 'ann', 'publish');
$session = session($node);
$session->query_safe("SET ROLE ann; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT subdispatch.publish('r', '1')");
revoke('r', 'ann', 'publish');
$session->query("SELECT subdispatch.publish('r', '1')");
like($session->{stderr}, qr/permission denied/, 'also with an old snapshot');
$session->{stderr} = '';
$session->query_safe('ROLLBACK');
# An undecided DROP EXTENSION holds up nobody.
grant('r', 'ann', 'publish');
$session->query_safe("SELECT subdispatch.publish('r', '1')");
my $dropper = session($node);
$dropper->query_safe('BEGIN; DROP EXTENSION subdispatch');
$session->query_safe("SET statement_timeout = '30s'");
is($session->query("SELECT 'published' FROM subdispatch.publish('r', '2')"), 'published', 'an undecided DROP EXTENSION does not hold up who publishes');
$dropper->query_safe('ROLLBACK');
$dropper->quit;
$session->quit;
($out, $err) = try_sql($node, "BEGIN; SELECT subdispatch.revoke_channel('r', 'ann', 'publish'); PREPARE TRANSACTION 'p'");
like($err, qr/cannot PREPARE a transaction that has changed channel grants/, 'two-phase commit is refused');
is(publish_error('ann', 'r'), '', 'and has changed nothing');
# A dispatcher that comes anew looks, too.
grant('s', 'ann', 'subscribe');
$node->safe_psql('postgres', "SET ROLE ann; SELECT subdispatch.subscribe('s', id => 's'), subdispatch.subscribe('s', id => 'kept')");
terminate_dispatchers($node);
$node->safe_psql('postgres', "SELECT subdispatch.publish('s', '1')");
dispatched($node);
like($node->safe_psql('postgres', "SET ROLE ann; SELECT * FROM subdispatch.next_responses('s')"), qr/"data":1/, 'a new dispatcher knows the grants');

# ---- NOTIFY ----

grant('n.granted', 'bob', 'subscribe');
my $subscribe = "SELECT subdispatch.subscribe('n.granted', id => 'granted'), subdispatch.subscribe('n.free', id => 'free')";
$node->safe_psql('postgres', $subscribe);
sub notified
{
	my ($text) = @_;
	$node->safe_psql('postgres', "NOTIFY \"n.granted\", '\"$text\"'; NOTIFY \"n.free\", '\"$text\"'");
	return join ' ', map { my $id = $_; (results($node, $id) =~ /\b$text\b/ ? $id : ()) } ('granted', 'free');
}
is(notified('star'), 'free', "'*' does not LISTEN on a channel with a grant");
sub reload
{
	my ($channels) = @_;
	$node->safe_psql('postgres', "ALTER SYSTEM SET subdispatch.listen_channels = '$channels'");
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	poll_until($node, 'SHOW subdispatch.listen_channels', $channels, "listen_channels = $channels");
}
my $listens = "SELECT string_agg(channel, ' ' ORDER BY channel) FROM subdispatch.channels WHERE listening AND channel LIKE 'n.%'";
reload('n.*');
is(notified('prefix'), 'free', 'nor does a prefix');
reload('n.*, n.granted');
poll_until($node, $listens, 'n.free n.granted', 'the dispatchers LISTEN on what is named');
is(notified('name'), 'granted free', 'its name does');
reload('n.*');
poll_until($node, $listens, 'n.free', 'and not without the name');
is(notified('again'), 'free', 'nor receive');
revoke('n.granted', 'bob', 'subscribe');
poll_until($node, $listens, 'n.free n.granted', 'a revoked grant lets the pattern count again');
is(notified('revoked'), 'granted free', 'and NOTIFY arrive');
grant('n.*', '-', 'publish');
poll_until($node, "SELECT count(*) FROM subdispatch.channels WHERE listening", '0', 'a grant on the prefix covers both');
is(notified('both'), '', 'and nothing arrives');

# The notify bus refuses such a channel, and takes it if it is named.
my $bus = "SET subdispatch.event_bus = notify; SELECT subdispatch.publish('n.granted', '\"bus\"')";
($out, $err) = try_sql($node, $bus);
like($err, qr/channel "n\.granted" cannot be used on the notify bus.*listen_channels/s, 'publish() on the notify bus refuses a channel with a grant');
reload('n.granted');
poll_until($node, $listens, 'n.granted', 'the dispatchers LISTEN on it');
($out, $err) = try_sql($node, $bus);
is($err, '', 'and takes it if listen_channels names it');
like(results($node, 'granted'), qr/bus/, 'so it arrives');

unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
$node->stop;

done_testing();

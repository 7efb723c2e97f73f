# Resuming out of the stream in Redis when events have gone another way meanwhile, and the server was started anew since: the
# stream shows nothing of them, so who knows only what was before is told of a gap, and nobody else is.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RedisTest;
use SubdispatchTest;
use Test::More;

my $redis = RedisTest->new;
my @bus = (redis_url => $redis->url, bus_key => 'a key that is long enough', include_event_id => 'on', event_bus => 'redis', listen_channels => 'c');
my $node = start_node('restarts', @bus, '.restart_after_crash' => 'on');
my $file = $node->data_dir . '/pg_stat/subdispatch.' . $node->safe_psql('postgres', "SELECT oid FROM pg_database WHERE datname = 'postgres'");
my $asserts = $node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = 'subdispatch.debug_idle_end'");

sub set_bus
{
	my ($bus) = @_;
	$node->append_conf('postgresql.conf', "subdispatch.event_bus = '$bus'");
	$node->reload;
	poll_until($node, 'SHOW subdispatch.event_bus', $bus, "the bus is $bus");
}

# In Redis, too, if it goes there: what is still to be sent ends with the server.
sub publish { my ($text) = @_; $node->safe_psql('postgres', "SELECT subdispatch.publish('c', '\"$text\"')"); return dispatched($node); }

# Somebody who reads it: the event's id.
sub publish_seen
{
	my ($text) = @_;
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 'reads', consumer => 'reads')");
	publish($text);
	my ($id) = $node->safe_psql('postgres', "SELECT event_id FROM subdispatch.poll('reads', timeout => '30s'); SELECT subdispatch.close_consumer('reads')") =~ /^(\d+)/;
	return $id;
}

# What one gets who comes back: "gap" where he is told of one, and the events. After such a gap that is what the server
# itself has dispatched.
sub come_back
{
	my ($after, $enough) = @_;
	my $got = '';
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 'back', consumer => 'back', after_event => $after)");
	eventually("who comes back has caught up", sub {
		my $state = $node->safe_psql('postgres', "SELECT state FROM subdispatch.subscriptions WHERE id = 'back'");
		my $rows = $node->safe_psql('postgres', "SELECT coalesce(string_agg(concat_ws(' ', CASE WHEN dropped IS NULL THEN 'gap' END, response::jsonb #>> '{payload,data}'), ' '), '') FROM subdispatch.poll('back', timeout => '100ms')");
		$got .= " $rows" if $rows ne '';
		return (scalar($state eq 'active' && $rows eq '' && $got =~ $enough), "$state:$got");
	});
	$node->safe_psql('postgres', "SELECT subdispatch.close_consumer('back')");
	return $got =~ s/^ //r;
}

# ---- by Redis alone
my $r1 = publish_seen('r1');
publish('r2');
$node->restart;
is(come_back($r1, qr/r2/), 'r2', 'a restart alone: nothing is missing');
ok(!-e $file, 'and nothing is kept of it');

# ---- by memory, with somebody who reads it, then anew by Redis
set_bus('memory');
my $m1 = publish_seen('m1');
publish('m2');
is(slurp_file($file), "open\n", 'that events go another way is kept');
$node->append_conf('postgresql.conf', "subdispatch.event_bus = 'redis'");
$node->restart;
my $r3 = publish_seen('r3');
publish('r4');
is(come_back($r1, qr/r4/), 'gap r3 r4', 'what went by memory is told as missing to who knows what was before');
is(come_back($m1, qr/r4/), 'gap r3 r4', 'and to who knows a part of it');
is(come_back($r3, qr/r4/), 'r4', 'but not to who knows what came after');

# ---- by memory, to nobody, in a life of the server's own, which ends in a crash
set_bus('memory');
$node->restart;
publish('m3');
my $pid = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
kill 'KILL', $pid;
eventually('the server has noticed the crash', sub { my $log = slurp_file($node->logfile); return (scalar($log =~ /all server processes terminated; reinitializing/), substr $log, -300) });
eventually('the server is back after a crash', sub { server_is_up($node) });
set_bus('redis');
publish_seen('r5');
is(come_back($r3, qr/r5/), 'gap r5', 'what went to nobody is told, too');

# ---- by NOTIFY
my $r6 = publish_seen('r6');
set_bus('notify');
publish('n1');
$node->append_conf('postgresql.conf', "subdispatch.event_bus = 'redis'");
$node->restart;
publish_seen('r7');
is(come_back($r6, qr/r7/), 'gap r7', 'so is what went by NOTIFY');

# ---- when it has gone by Redis for a while, a restart costs nothing again
SKIP:
{
	skip 'needs subdispatch.debug_idle_end, compiled with -DUSE_ASSERT_CHECKING', 7 if $asserts ne '1';
	$node->append_conf('postgresql.conf', "subdispatch.debug_idle_end = '1s'");
	$node->reload;
	$node->safe_psql('postgres', "SELECT subdispatch.subscribe('other', id => 'keeps the bus')");
	eventually('it is closed', sub { my $text = slurp_file($file); return (scalar($text =~ /^\d+\n$/), $text) });
	my $closed = slurp_file($file);
	my $r8 = publish_seen('r8');
	publish('r9');
	$node->restart;
	publish_seen('r10');
	is(come_back($r8, qr/r10/), 'r9 r10', 'after a while by Redis alone nothing is missing after a restart');
	is(come_back($r6, qr/r10/), 'gap r10', 'but to who knows what was before it went another way');
	is(slurp_file($file), $closed, 'which a restart does not change');
	# a session alone
	$node->safe_psql('postgres', "SET subdispatch.event_bus = 'memory'; SELECT subdispatch.publish('c', '\"m4\"')");
	is(slurp_file($file), "open\n", 'a session that publishes another way opens it again');
}

# ---- what cannot be read is taken for open
my $r11 = publish_seen('r11');
$node->stop;
open my $f, '>', $file or die $!;
print $f '12345';
close $f;
$node->start;
publish_seen('r12');
is(come_back($r11, qr/r12/), 'gap r12', 'a file that is damaged: a gap is told');

# ---- DROP DATABASE
$node->safe_psql('postgres', 'CREATE DATABASE dropped');
install_extension($node, 'dropped');
my $oid = $node->safe_psql('postgres', "SELECT oid FROM pg_database WHERE datname = 'dropped'");
$node->safe_psql('dropped', "SET subdispatch.event_bus = 'memory'; SELECT subdispatch.publish('c', '1')");
ok(-e $node->data_dir . "/pg_stat/subdispatch.$oid", 'each database has its own');
$node->safe_psql('postgres', 'DROP DATABASE dropped');
ok(!-e $node->data_dir . "/pg_stat/subdispatch.$oid", 'which goes with it');

unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash of its own');
$node->stop;
done_testing();

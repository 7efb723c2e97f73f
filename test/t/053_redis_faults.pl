# event_bus = redis with a Redis that is ill, or something that is not Redis: each fault is shown, holds up nobody, and what
# was committed meanwhile arrives when it is over.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use FakePeer;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RedisTest;
use SubdispatchTest;
use Test::More;
use Time::HiRes qw(sleep);

my $redis = RedisTest->new;
my $node = start_node('a', max_pending => 100000, event_bus => 'redis', redis_url => $redis->url, bus_key => 'a key that is long enough',
	redis_timeout => '500ms');
$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
my $number = 0;

sub set
{
	my ($name, $value) = @_;
	$node->append_conf('postgresql.conf', "subdispatch.$name = '$value'");
	$node->reload;
	return;
}

# Publishes while something is wrong, waits until health() tells what, ends it, and waits for what was published.
sub check_fault
{
	my ($name, $pattern, $begin, $end) = @_;
	my $log = -s $node->logfile;
	$begin->();
	poll_until($node, "SELECT subdispatch.publish('c', to_jsonb(" . ++$number . ")); SELECT subdispatch.health() #>> '{bus,error}'", $pattern, "$name: health() tells");
	is($node->safe_psql('postgres', "SELECT state FROM subdispatch.workers WHERE kind = 'bus'"), 'disconnected', "$name: so does workers");
	# which tells it once a minute, so it may have told it of the fault before
	eventually("$name: and the log", sub { my $text = slurp_file($node->logfile); return (scalar($text =~ /subdispatch's Redis bus: /), $text) });
	$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '\"last of $name\"')");
	$end->();
	ok(dispatched($node), "$name: goes on when it is over");
	my $last = results($node, 's');
	# another database of Redis has not what was read before: a loss may be told
	my $more = $name eq 'other password' ? qr/(?: next)?/ : qr//;
	like($last, qr/^(?:\d+ )+last of \Q$name\E$more$/, "$name: all that was published arrives");
	unlike(slurp_file($node->logfile, $log), qr/s3cret|a key that is long/, "$name: no secret in the log");
	return;
}

sub with_url
{
	my ($name, $pattern, $url) = @_;
	check_fault($name, $pattern, sub { set('redis_url', $url) }, sub { set('redis_url', $redis->url) });
	return;
}

sub with_peer
{
	my ($name, $pattern, $peer) = @_;
	with_url($name, $pattern, 'redis://app:s3cret@127.0.0.1:' . $peer->port . '/2');
	return;
}

# Answers AUTH and SELECT as Redis does, and the rest with the text.
sub redis_that_says
{
	my ($text) = @_;
	return FakePeer->answering(sub { return $_[0] =~ /^(?:AUTH|SELECT)$/ ? "+OK\r\n" : $text });
}

# ---- something that is not Redis, or half of it ----
with_peer('silent', qr/no answer within/, FakePeer->new(sub { sleep 1000 }));
with_peer('closing', qr/connection was closed|Connection reset/, FakePeer->new(sub { close $_[0] }));
with_peer('garbage', qr/not its protocol/, FakePeer->new(sub { print { $_[0] } "HTTP/1.1 400 Bad Request\r\n\r\n"; sleep 1000 }));
with_peer('binary', qr/not its protocol/, FakePeer->new(sub { print { $_[0] } join('', map { chr } 0 .. 255) x 1000; sleep 1000 }));
with_peer('half a reply', qr/connection was closed|Connection reset/, redis_that_says_and_closes("\$40\r\nabc"));
with_peer('half a reply and silence', qr/no answer within/, redis_that_says("\$40\r\nabc"));
with_peer('too many elements', qr/not its protocol|too large/, redis_that_says("*2147483647\r\n"));
with_peer('too long', qr/not its protocol|too large|no answer/, redis_that_says("\$99999999999999\r\n"));
with_peer('negative', qr/not its protocol|unexpected type/, redis_that_says("*-5\r\n"));
with_peer('deep', qr/not its protocol/, redis_that_says("*1\r\n" x 50));
with_peer('numbers', qr/unexpected type/, redis_that_says(":1\r\n"));
with_peer('nothing', qr/unexpected type/, redis_that_says("\$-1\r\n"));
with_peer('wrong strings', qr/unexpected type/, redis_that_says("\$3\r\nabc\r\n"));
with_peer('too much', qr/reply to nothing|unexpected type/, redis_that_says("*1\r\n\$1\r\n0\r\n" x 10));

sub redis_that_says_and_closes
{
	my ($text) = @_;
	return FakePeer->new(sub { my ($socket) = @_; <$socket>; print $socket "+OK\r\n+OK\r\n$text"; close $socket });
}

# ---- errors of Redis ----
with_peer('no password', qr/wants a password: NOAUTH/, FakePeer->answering(sub { "-NOAUTH Authentication required.\r\n" }));
with_peer('wrong password', qr/does not accept user and password: WRONGPASS.*\*{6}/, FakePeer->answering(sub { "-WRONGPASS for $_[1] it is not $_[2]\r\n" }));
with_peer('echo', qr/Redis: ERR .*\*{6}/, FakePeer->answering(sub { "-ERR @_\r\n" }));
with_peer('moved', qr/node of a Redis cluster.*MOVED 5 10\.0\.0\.1:7000/, redis_that_says("-MOVED 5 10.0.0.1:7000\r\n"));
with_peer('loading', qr/loading its data/, redis_that_says("-LOADING Redis is loading the dataset in memory\r\n"));
with_peer('readonly', qr/this Redis is a replica/, redis_that_says("-READONLY You can't write against a read only replica.\r\n"));
with_peer('control characters', qr/Redis: ERR a b/, redis_that_says("-ERR a\tb\r\n"));

# ---- the way to it ----
my $closed = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', Proto => 'tcp');
my $port = $closed->sockport;
close $closed;
with_url('refused', qr/could not connect: Connection refused/, "redis://127.0.0.1:$port");
with_url('no socket', qr/could not connect: No such file/, 'unix:///nonexistent/s3cret-free');
with_url('no such host', qr/could not look up the host|could not connect within/, 'redis://user:s3cret@no-such-host.invalid');
with_url('no TLS', qr/TLS handshake failed/, 'rediss://127.0.0.1:' . do { our $peer = FakePeer->new(sub { print { $_[0] } "-ERR unknown command\r\n"; sleep 1 }); $peer->port });

# ---- a real one ----
my $real = $redis->url;
check_fault('out of memory', qr/used up its memory \(maxmemory\)/, sub { $redis->cli('CONFIG', 'SET', 'maxmemory', '1') }, sub { $redis->cli('CONFIG', 'SET', 'maxmemory', '0') });
check_fault('wrong type', qr/is not a stream.*WRONGTYPE/, sub { $redis->cli('RENAME', 'subdispatch:{postgres}:events', 'kept'); $redis->cli('SET', 'subdispatch:{postgres}:events', 'x') },
	sub { $redis->cli('RENAME', 'kept', 'subdispatch:{postgres}:events') });
check_fault('replica', qr/this Redis is a replica|MASTERDOWN/, sub { $redis->cli('CONFIG', 'SET', 'replica-serve-stale-data', 'yes'); $redis->cli('REPLICAOF', '127.0.0.1', $port) }, sub { $redis->cli('REPLICAOF', 'NO', 'ONE') });
check_fault('password', qr/wants a password/, sub { $redis->cli('CONFIG', 'SET', 'requirepass', 's3cret'); $redis->{options}{requirepass} = 's3cret'; $redis->cli('CLIENT', 'KILL', 'TYPE', 'normal') },
	sub { set('redis_url', "unix://:s3cret\@$redis->{socket}") });
check_fault('other password', qr/does not accept/, sub { set('redis_url', "unix://:s3cret2\@$redis->{socket}") }, sub { set('redis_url', "unix://:s3cret\@$redis->{socket}?db=3") });
is($redis->cli('-n', '3', 'EXISTS', 'subdispatch:{postgres}:events'), '1', 'the database of the URL is used');

# ---- the worker is cancelled in the middle of an event, which is not the event's fault ----
$node->safe_psql('postgres', <<'SQL');
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE moods (m mood);
CREATE TRIGGER t AFTER INSERT ON moods FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('moods');
SELECT subdispatch.subscribe('moods', id => 'moods');
SQL
dispatched($node);
my ($locker, $writer) = (session($node), session($node));
my $bus = $node->safe_psql('postgres', "SELECT pid FROM subdispatch.workers WHERE kind = 'bus'");
# what the writer needs is in its caches then
$writer->query_safe("BEGIN; INSERT INTO moods VALUES ('sad'); ROLLBACK");
$locker->query_safe('BEGIN; LOCK TABLE pg_catalog.pg_type IN ACCESS EXCLUSIVE MODE');
$writer->query_safe("INSERT INTO moods VALUES ('ok')");
eventually('the worker asks for the type', sub { my $n = $locker->query_safe("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $bus"); return ($n eq '1', $n) });
my $before = -s $node->logfile;
$locker->query_safe("SELECT pg_cancel_backend($bus)");
eventually('and is cancelled, which it says', sub { my $text = slurp_file($node->logfile, $before); return (scalar($text =~ /canceling statement due to user request.*Redis bus: an error in the bus worker/s), $text) });
$locker->query_safe('COMMIT');
$_->quit foreach $locker, $writer;
my $moods = drain($node, 'moods');
like($moods, qr/"row": \{"m": "ok"\}/, 'the event arrives');
unlike($moods, qr/dropped/, 'and nothing is told to be missing');

# ---- other databases go on meanwhile, and the server ends ----
my $hung = FakePeer->new(sub { sleep 1000 });
set('redis_url', 'redis://127.0.0.1:' . $hung->port);
poll_until($node, "SELECT subdispatch.health() #>> '{bus,error}'", qr/no answer/, 'hung');
$node->safe_psql('postgres', 'CREATE DATABASE other');
install_extension($node, 'other');
$node->safe_psql('postgres', 'ALTER DATABASE other SET subdispatch.event_bus = memory');
$node->safe_psql('other', "SELECT subdispatch.subscribe('c', id => 's')");
$node->safe_psql('other', "SELECT subdispatch.publish('c', '1')");
is(results($node, 's', 'other'), '1', 'another database is not held up');
$node->safe_psql('postgres', 'ALTER DATABASE other RENAME TO renamed');
$node->safe_psql('postgres', 'DROP DATABASE renamed');
$node->stop('fast');
pass('the server ends');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
done_testing();

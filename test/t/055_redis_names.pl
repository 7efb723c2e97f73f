# event_bus = redis with a host's name, and a name server that never answers: it holds up nothing but the connection.
#
# The server runs in namespaces of its own, with a resolv.conf of its own and a name server on its own 127.0.0.1:53. That
# needs no privilege where users may make namespaces; where they may not, this test is left out.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RedisTest;
use SubdispatchTest;
use Test::More;
use Time::HiRes qw(sleep time);

my $dir = PostgreSQL::Test::Utils::tempdir();
my ($uid, $gid) = ($>, (split ' ', $))[0]);
my ($real) = grep { -x } map { "$_/pg_ctl" } split /:/, $ENV{PATH};

sub write_file
{
	my ($name, $text, $mode) = @_;
	append_to_file("$dir/$name", $text);
	chmod $mode // 0644, "$dir/$name";
	return;
}

# Brings the loopback up, takes queries, and says nothing, as long as this test runs.
write_file('names.pl', <<'PERL');
use IO::Socket::INET;
my ($log, $parent) = @ARGV;
socket my $s, 2, 2, 0 or die;
my $up = pack 'a16 s x22', 'lo', 0x41;
ioctl $s, 0x8914, $up or die "lo: $!";
my $names = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 53, Proto => 'udp') or die "port 53: $!";
open my $out, '>>', $log or die;
$out->autoflush(1);
print $out "ready\n";
while (kill 0, $parent)
{
	my $bits = '';
	vec($bits, fileno $names, 1) = 1;
	next unless select $bits, undef, undef, 1;
	recv $names, my $query, 512, 0;
	$query =~ tr/a-z//cd;
	print $out "$query\n";
}
PERL
write_file('inside', <<"SH");
set -e
mount --bind $dir/resolv.conf /etc/resolv.conf
[ ! -e /etc/nsswitch.conf ] || mount --bind $dir/nsswitch.conf /etc/nsswitch.conf
$^X $dir/names.pl $dir/queries $$ </dev/null >$dir/names.log 2>&1 &
for i in 1 2 3 4 5 6 7 8 9 10; do [ -s $dir/queries ] || sleep 0.5; done
[ -s $dir/queries ]
exec unshare -U --map-user=$uid --map-group=$gid "\$@"
SH
write_file('resolv.conf', "nameserver 127.0.0.1\noptions timeout:30 attempts:5\n");
write_file('nsswitch.conf', "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n");
mkdir "$dir/bin";
write_file('bin/pg_ctl', "#!/bin/sh\ncase \" \$* \" in *' start '*) exec unshare -rmn /bin/sh $dir/inside $real \"\$@\" ;; esac\nexec $real \"\$@\"\n", 0755);
if (system("unshare -rmn /bin/sh $dir/inside true >$dir/try.log 2>&1") != 0)
{
	plan skip_all => 'this machine lets no user make namespaces: ' . (join ' ', map { split ' ', slurp_file($_) } grep { -e } "$dir/try.log", "$dir/names.log");
}
unlink "$dir/queries";

my $redis = RedisTest->new;
my $node = PostgreSQL::Test::Cluster->new('names');
$node->init;
$node->append_conf('postgresql.conf', <<"CONF");
shared_preload_libraries = 'subdispatch'
max_worker_processes = 32
subdispatch.event_bus = redis
subdispatch.redis_url = '@{[ $redis->url ]}'
subdispatch.bus_key = 'a key that is long enough'
subdispatch.redis_timeout = '500ms'
CONF
{
	local $ENV{PATH} = "$dir/bin:$ENV{PATH}";
	$node->start;
}
install_extension($node, 'postgres');

sub set_url
{
	my ($url) = @_;
	$node->append_conf('postgresql.conf', "subdispatch.redis_url = '$url'");
	$node->reload;
	return;
}
sub queries { return scalar grep { /redisexample/ } split /\n/, slurp_file("$dir/queries"); }
sub hangs
{
	my ($name, $db) = @_;
	return poll_until($node, "SELECT subdispatch.health() #>> '{bus,error}'", qr/could not connect within 500 ms/, $name, $db);
}

$node->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's'); SELECT subdispatch.publish('c', '1')");
is(results($node, 's'), '1', 'an event by a socket that needs no name');
is(queries(), 0, 'and asks for none');

# ---- the name server does not answer

my $worker = $node->safe_psql('postgres', "SELECT pid FROM subdispatch.workers WHERE kind = 'bus'");
set_url('redis://redis.example:6379');
hangs('a name server that does not answer is found out');
cmp_ok(queries(), '>', 0, 'which was asked');
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '2')");
pass('commits do not wait for it');
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '3')");
# until it has tried some more times
$node->safe_psql('postgres', 'SELECT pg_sleep(5)');
cmp_ok(scalar(() = glob("/proc/$worker/task/*")), '<=', 3, 'it is asked once at a time');
is($node->safe_psql('postgres', "SELECT pid FROM subdispatch.workers WHERE kind = 'bus'"), $worker, 'by the same worker all the time');

# ---- others go on meanwhile

$node->safe_psql('postgres', "CREATE DATABASE memory; ALTER DATABASE memory SET subdispatch.event_bus = memory");
install_extension($node, 'memory');
$node->safe_psql('memory', "SELECT subdispatch.subscribe('c', id => 's'); SELECT subdispatch.publish('c', '1')");
is(results($node, 's', 'memory'), '1', 'a database with another bus is not held up');
$node->safe_psql('postgres', 'CREATE DATABASE redis');
install_extension($node, 'redis');
my ($out, $err) = try_sql($node, "SELECT subdispatch.subscribe('c', id => 's')", dbname => 'redis');
like($err, qr/WARNING:  Redis cannot be reached at the moment/, 'subscribe() works, with a warning');
hangs('another database with this bus waits, too', 'redis');
$node->safe_psql('redis', "SELECT subdispatch.publish('c', '1')");
($out, $err) = try_sql($node, 'ALTER DATABASE redis RENAME TO renamed');
is($err, '', 'and can be renamed');
hangs('it goes on under its new name', 'renamed');
($out, $err) = try_sql($node, 'DROP DATABASE renamed');
like($err, qr/WARNING:  1 committed events have not been sent to Redis and will be lost with the database$/, 'and dropped, which says what is lost');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
eventually('the worker can be ended', sub { my $now = $node->safe_psql('postgres', "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE backend_type = 'subdispatch bus' AND datname = 'postgres'"); return ($now ne $worker && $now ne '0', $now) });
hangs('and is replaced');

# ---- and after it

set_url($redis->url);
$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '4')");
is(results($node, 's'), '2 3 4', 'what was committed meanwhile arrives in order');

foreach my $mode ('fast', 'immediate')
{
	set_url('redis://redis.example:6379');
	hangs("it hangs again, before a shutdown ($mode)");
	$node->stop($mode);
	pass("the server ends ($mode)");
	if ($mode eq 'fast')
	{
		local $ENV{PATH} = "$dir/bin:$ENV{PATH}";
		unlink "$dir/queries";
		$node->start;
		$node->safe_psql('postgres', "SELECT subdispatch.publish('c', '5')");
	}
}
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
done_testing();

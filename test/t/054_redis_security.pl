# event_bus = redis: who can write to Redis cannot make events, nor send them again; secrets stay secret; TLS is checked.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use RedisTest;
use SubdispatchTest;
use Test::More;
use Time::HiRes qw(sleep);

my $redis = RedisTest->new(requirepass => 's3cret');
my $key = 'a key that is long enough';
my $url = "unix://:s3cret\@$redis->{socket}";
my @bus = (max_pending => 100000, event_bus => 'redis', redis_url => $url, bus_key => $key);
my $a = start_node('a', @bus);
my $b = start_node('b', @bus);
my $stream = 'subdispatch:{postgres}:events';
$_->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's'), subdispatch.subscribe('other', id => 'other')") foreach $a, $b;

sub stat_of { my ($node, $counter) = @_; return $node->safe_psql('postgres', "SELECT $counter FROM subdispatch.stats"); }

# The fields of the last entries, oldest first: each an array of its id and a hash.
sub entries
{
	my (@lines) = split /\n/, $redis->cli('--raw', 'XRANGE', $stream, '-', '+');
	my @entries;
	while (@lines)
	{
		my $id = shift @lines;
		push @entries, [ $id, [ splice @lines, 0, 6 ] ];
	}
	return @entries;
}

# ---- entries of others ----
foreach my $n (1 .. 3)
{
	$a->safe_psql('postgres', "SELECT subdispatch.publish('c', '$n')");
	dispatched($a);
}
is(results($a, 's'), '1 2 3', 'three events');
dispatched($b);
is(results($b, 's'), '1 2 3', 'on both servers');
my @good = entries();
is(scalar @good, 3, 'three entries');
my %field = @{ $good[-1][1] };
is(join(' ', sort keys %field), 'b m p', 'with their fields');
my ($version, $sender, $number, $sent_at, $count, $event) = split / /, $field{b}, 6;
is("$version $number $count", '2 3 1', 'the last one has one event, the third of its sender');
like($event, qr/^e 1 \d+ c\{.*"data":3\}$/, 'on its channel');
unlike(join(' ', %field), qr/s3cret|\Q$key\E/, 'and no secret');

sub check_refused
{
	my ($name, $counter, @command) = @_;
	my $before = stat_of($b, $counter);
	# as the script would give them
	$command[0] = sprintf('%d%06d-0', split /\n/, $redis->cli('--raw', 'TIME')) if $command[0] eq 'id';
	my $answer = $redis->cli('XADD', $stream, @command);
	like($answer, qr/^\d+-\d+$/, "$name: it is in Redis") or return;
	eventually("$name: counted", sub { my $now = stat_of($b, $counter); return ($now > $before, $now) });
	is(results($b, 's'), '', "$name: not dispatched");
	return;
}

sub with
{
	my ($entry, %other) = @_;
	my @fields = @{ $entry->[1] };
	for (my $i = 0; $i < @fields; $i += 2) { $fields[ $i + 1 ] = $other{ $fields[$i] } if exists $other{ $fields[$i] }; }
	return @fields;
}

check_refused('nonsense', 'bad_envelopes', '*', 'field', 'value');
check_refused('no MAC', 'bad_envelopes', 'id', @{ $good[0][1] }[ 0 .. 3 ]);
check_refused('another text', 'bad_envelopes', 'id', with($good[2], b => $field{b} =~ s/"data":3/"data":4/r));
check_refused('another number', 'bad_envelopes', 'id', with($good[2], b => $field{b} =~ s/^(\S+ \S+) 3 /$1 4 /r));
check_refused('another time', 'bad_envelopes', 'id', with($good[2], b => $field{b} =~ s/ $sent_at / ($sent_at + 1) . ' '/er));
check_refused('another sender', 'bad_envelopes', 'id', with($good[2], b => $field{b} =~ s/$sender/'0' x 32/er));
check_refused('another channel', 'bad_envelopes', 'id', with($good[2], b => $field{b} =~ s/ c\{/ d{/r));
check_refused('another kind', 'bad_envelopes', 'id', with($good[2], b => $field{b} =~ s/ e 1 / g 1 /r));
check_refused('more events', 'bad_envelopes', 'id', with($good[2], b => ($field{b} =~ s/ 1 e 1 / 2 e 1 /r) . $event));
check_refused('no MAC worth its name', 'bad_envelopes', 'id', with($good[2], m => '0' x 64));
check_refused('sent again', 'bus_repeated', 'id', @{ $good[2][1] });
check_refused('an older one sent again', 'bus_repeated', 'id', @{ $good[0][1] });
check_refused('a huge number', 'bad_envelopes', 'id', with($good[2], b => $field{b} =~ s/^(\S+ \S+) 3 /"$1 " . '9' x 30 . ' '/er));
check_refused('a batch that is none', 'bad_envelopes', 'id', with($good[2], b => ''));
check_refused('an id of Redis\'s own', 'bad_envelopes', '*', @{ $good[2][1] });
like(slurp_file($b->logfile), qr/an entry of the stream in Redis was passed over/, 'the log tells');
is(stat_of($b, 'bus_gaps'), '0', 'and nothing is told to be missing');

$a->safe_psql('postgres', "SELECT subdispatch.publish('c', '4')");
dispatched($a);
dispatched($b);
is(results($b, 's'), '4', 'good ones still arrive');
is(stat_of($b, 'bus_gaps'), '0', 'without a gap');

# An entry that is taken away is missed.
my $pid = $b->safe_psql('postgres', "SELECT pid FROM subdispatch.workers WHERE kind = 'bus'");
kill 'STOP', $pid;
$a->safe_psql('postgres', "SELECT subdispatch.publish('c', '5')");
dispatched($a);
# that one is on its way already
foreach (6, 7)
{
	$a->safe_psql('postgres', "SELECT subdispatch.publish('c', '$_')");
	dispatched($a);
}
my @ids = $redis->cli('--raw', 'XRANGE', $stream, '-', '+') =~ /^(\d+-\d+)$/mg;
is($redis->cli('XDEL', $stream, $ids[-2]), '1', 'one is taken away');
kill 'CONT', $pid;
dispatched($b);
# it is found while the one before may still be queued, and then told with that
my $told = $b->safe_psql('postgres', "SELECT string_agg(r, ' ') FROM subdispatch.next_responses('s', 10) r");
like($told, qr/^.*"data":5.*"data":7/, 'what is there arrives');
is(scalar(() = $told =~ /"dropped":null/g), 1, 'one that was taken away is missed');
is(stat_of($b, 'bus_gaps'), '1', 'and counted');

# A server that starts anew knows what had been sent before.
$b->restart;
$b->safe_psql('postgres', "SELECT subdispatch.subscribe('c', id => 's')");
check_refused('sent again to a new server', 'bus_repeated', 'id', @{ $good[2][1] });

# Ids of the far future neither spread nor harm: Redis's stream has to be put right by hand.
$redis->cli('XADD', $stream, '9007199254740990-0', 'field', 'value');
$a->safe_psql('postgres', "SELECT subdispatch.publish('c', '8')");
poll_until($a, "SELECT subdispatch.health() #>> '{bus,error}'", qr/more than a day ahead of time/, 'ids far ahead of time are refused, and that is told');
cmp_ok(stat_of($b, 'bad_envelopes'), '>', 0, 'readers count them');
$redis->cli('DEL', $stream);
ok(dispatched($a), 'without the stream it goes on');
ok(dispatched($b), 'on the other one, too');
like(results($b, 's'), qr/(?:^| )8$/, 'with what had waited');

# Entries of others that were passed over, and removed with the stream.
$redis->cli('XADD', $stream, sprintf('%d000000-0', time + 3600), 'field', 'value');
poll_until($b, 'SELECT bad_envelopes > 1 FROM subdispatch.stats', 't', 'an entry an hour ahead is passed over');
$redis->cli('DEL', $stream);
$a->safe_psql('postgres', "SELECT subdispatch.publish('c', '9')");
eventually('without the stream ids go on below it', sub { my $r = results($b, 's'); return (scalar($r =~ /9$/), $r) });

# Another key is another group.
$a->append_conf('postgresql.conf', "subdispatch.bus_key = 'another key, long enough'");
$a->reload;
my $before = stat_of($b, 'bad_envelopes');
eventually('with another key nothing arrives', sub {
	$a->safe_psql('postgres', "SELECT subdispatch.publish('c', '\"foreign\"')");
	my $now = stat_of($b, 'bad_envelopes');
	return ($now > $before, $now);
});
unlike(results($b, 's'), qr/foreign.*foreign.*foreign/, 'which is counted');
$a->append_conf('postgresql.conf', "subdispatch.bus_key = '$key'");
$a->reload;

# ---- secrets ----
$a->safe_psql('postgres', 'CREATE ROLE ordinary LOGIN; CREATE ROLE monitor LOGIN IN ROLE pg_monitor; GRANT USAGE ON SCHEMA subdispatch TO ordinary');
foreach my $name ('redis_url', 'bus_key')
{
	my ($out, $err) = try_sql($a, "SHOW subdispatch.$name", user => 'ordinary');
	like($err, qr/pg_read_all_settings/, "$name is not shown to anybody");
	is($a->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = 'subdispatch.$name'", extra_params => [ '-U', 'ordinary' ]), '0', 'nor in pg_settings');
	foreach my $user ('monitor', 'postgres')
	{
		my $user_or_super = $user eq 'postgres' ? undef : $user;
		($out, $err) = try_sql($a, "SHOW subdispatch.$name; SELECT * FROM pg_settings WHERE name = 'subdispatch.$name'; SELECT current_setting('subdispatch.$name'); SHOW ALL", user => $user_or_super);
		is($err, '', "$user sees $name");
		unlike($out, qr/s3cret|\Q$key\E/, 'but not the secret in it');
		like($out, $name eq 'redis_url' ? qr/^unix:\/\/\*\*\*@\// : qr/^\*{8}$/m, 'in its place there are stars');
	}
	($out, $err) = try_sql($a, "SET subdispatch.$name = 'x'");
	like($err, qr/cannot be changed now/, "$name is not a session's to set");
}
foreach my $wrong ("redis_url = 'redis://user:s3cret\@host:99999'", "redis_url = 's3cret://x'", "bus_key = 's3cret-short'", "redis_key_prefix = 'a{b}'")
{
	$a->append_conf('postgresql.conf', "subdispatch.$wrong");
	$a->reload;
}
$a->append_conf('postgresql.conf', "subdispatch.bus_key = '$key'\nsubdispatch.redis_url = '$url'\nsubdispatch.redis_key_prefix = 'subdispatch:'");
foreach my $key2 ('changed key, long enough', $key)
{
	$a->append_conf('postgresql.conf', "subdispatch.bus_key = '$key2'\nsubdispatch.redis_url = '" . ($key2 eq $key ? $url : 'redis://u:s3cret@127.0.0.1:1') . "'");
	$a->reload;
	poll_until($a, "SELECT subdispatch.health() #>> '{bus,state}'", $key2 eq $key ? 'connected' : 'disconnected', 'a reload takes effect');
}
unlike($a->safe_psql('postgres', 'SELECT subdispatch.health()'), qr/s3cret|\Q$key\E/, 'health() has no secret');
unlike($a->safe_psql('postgres', 'SELECT * FROM subdispatch.workers'), qr/s3cret|\Q$key\E/, 'nor has workers');
unlike($a->safe_psql('postgres', 'SELECT * FROM pg_stat_activity'), qr/s3cret|\Q$key\E|changed key/, 'nor pg_stat_activity');
foreach my $node ($a, $b)
{
	my $log = slurp_file($node->logfile);
	unlike($log, qr/s3cret|\Q$key\E|changed key|another key, long/, 'nor the log of ' . $node->name);
}
like(slurp_file($a->logfile), qr/invalid value for parameter "subdispatch\.redis_url"/, 'though it tells of wrong values');
like(slurp_file($a->logfile), qr/The key must have at least 16 characters/, 'and what is wrong with them');

# ---- TLS ----
SKIP:
{
	my $dir = $redis->{dir};
	sub openssl { return system_log('openssl', @_) == 0; }
	openssl('req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=ca', '-keyout', "$dir/ca.key", '-out', "$dir/ca.crt") or skip 'no openssl program', 1;
	openssl('req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=ca', '-keyout', "$dir/ca2.key", '-out', "$dir/ca2.crt");
	append_to_file("$dir/ext", "subjectAltName = DNS:localhost\n");
	openssl('req', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=localhost', '-keyout', "$dir/redis.key", '-out', "$dir/redis.csr");
	openssl('x509', '-req', '-in', "$dir/redis.csr", '-CA', "$dir/ca.crt", '-CAkey', "$dir/ca.key", '-CAcreateserial', '-days', '2', '-extfile', "$dir/ext", '-out', "$dir/redis.crt");
	chmod 0644, glob("$dir/*.crt");
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	$redis->stop;
	$redis->start('tls-port' => $port, 'tls-cert-file' => "$dir/redis.crt", 'tls-key-file' => "$dir/redis.key", 'tls-ca-cert-file' => "$dir/ca.crt", 'tls-auth-clients' => 'no', bind => '127.0.0.1');

	foreach my $case (
		[ 'the wrong authority', "rediss://:s3cret\@localhost:$port", "$dir/ca2.crt", qr/TLS handshake failed: .*certificate|TLS handshake failed: .*issuer|self.signed/ ],
		[ 'another name', "rediss://:s3cret\@127.0.0.1:$port", "$dir/ca.crt", qr/TLS handshake failed: IP address mismatch/ ],
		[ 'no such file', "rediss://:s3cret\@localhost:$port", "$dir/nothing", qr/could not load the certificates/ ],
		[ 'the system\'s authorities', "rediss://:s3cret\@localhost:$port", '', qr/TLS handshake failed/ ],
		[ 'the right one', "rediss://:s3cret\@localhost:$port", "$dir/ca.crt", undef ],
	)
	{
		my ($name, $where, $ca, $error) = @$case;
		$b->append_conf('postgresql.conf', "subdispatch.redis_url = '$where'\nsubdispatch.redis_ca_file = '$ca'");
		$b->reload;
		if (defined $error)
		{
			poll_until($b, "SELECT subdispatch.health() #>> '{bus,error}'", $error, "TLS: $name");
		}
		else
		{
			poll_until($b, "SELECT subdispatch.health() #>> '{bus,state}'", 'connected', "TLS: $name");
			results($b, 's');
			$b->safe_psql('postgres', "SELECT subdispatch.publish('c', to_jsonb(repeat('tls', 100000)))");
			is(length(results($b, 's')), 300000, 'TLS: events come and go');
		}
	}
	unlike(slurp_file($b->logfile), qr/s3cret/, 'TLS: no secret in the log');
}

foreach my $node ($a, $b)
{
	unlike(slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|signal 6/, 'no crash');
	$node->stop;
}
done_testing();

# The gateway of the README that acknowledges, as it stands there: what it is sent arrives, once and in order, while its
# connection is broken again and again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;
use Time::HiRes qw(sleep);

my $readme = "$FindBin::Bin/../../README.md";
plan skip_all => 'no README.md here' unless -f $readme;
plan skip_all => 'no psycopg' if system('python3 -c "import psycopg" 2>/dev/null') != 0;

my ($gateway, $acknowledged) = slurp_file($readme) =~ /### A gateway's loop\n.*?```python\n(.*?)```.*?### Reading that loses nothing\n.*?```python\n(.*?)```/s;
ok($gateway && $acknowledged, 'the README has a gateway, and a loop that acknowledges');
# The loop instead of the gateway's own.
$gateway =~ s/^def drain.*?\n(?=\n\ndef )/$acknowledged/ms or die 'no drain() in the gateway';

my $events = 3000;
my $node = start_node('gateway', max_pending => 100000);
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL, total numeric NOT NULL);
CREATE TRIGGER publish AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('orders');
CREATE FUNCTION order_changed(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT event #> '{data,row,id}' $$;
SQL
my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/gateway.py", $gateway . <<'PYTHON');
for n in range(20):
    subscribe("ws-%d" % n, "1", 7)
print("ready", flush=True)
threading.Event().wait()
PYTHON
my ($out, $err) = ('', '');
my $run = IPC::Run::start([ 'python3', '-u', "$dir/gateway.py" ], '<', \undef, '>', "$dir/out", '2>', "$dir/err",
	init => sub { $ENV{PGHOST} = $node->host; $ENV{PGPORT} = $node->port; $ENV{PGDATABASE} = 'postgres'; });
eventually('it subscribes', sub { my $seen = slurp_file("$dir/out") . slurp_file("$dir/err"); return (scalar($seen =~ /^ready/m), $seen) });
my $publisher = background($node, join '', map { "INSERT INTO orders (customer_id, status, total) SELECT 7, 'new', n FROM generate_series(1, 50) n; SELECT pg_sleep(0.02);\n" } 1 .. $events / 50);
my $ended = 0;
for (1 .. 25)
{
	$ended += $node->safe_psql('postgres', "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query ~ 'subdispatch.(poll|await)' AND pid <> pg_backend_pid()");
	sleep 0.1;
}
finish_background($publisher);
cmp_ok($ended, '>', 5, "its reader was terminated $ended times");
ok(dispatched($node), 'everything is dispatched');
eventually('everything is sent', sub { my $n = () = slurp_file("$dir/out") =~ /^ws-/mg; return ($n >= 20 * $events, $n) });
my (%last, $wrong);
foreach my $line (grep { /^ws-/ } split /\n/, slurp_file("$dir/out"))
{
	my ($ws, $id) = $line =~ /^(\S+) .*"orderChanged": ?(\d+)/ or $wrong //= $line;
	$wrong //= $line if $id != ($last{$ws} // 0) + 1;
	$last{$ws} = $id;
}
is($wrong, undef, 'each response once, in order');
is(join(' ', sort { $a <=> $b } values %last), join(' ', ($events) x 20), 'to every client');
is(slurp_file("$dir/err"), '', 'without an error');
$run->kill_kill;
$node->stop;
done_testing();

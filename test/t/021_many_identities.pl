# More identities than the dispatcher keeps the rights of: whoever's policies are being asked keeps his while those of others
# are looked up.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $kept = 10000;		# MAX_RIGHTS in visible.c
my $node = start_node('identities', dispatchers => 1, listen_channels => '', max_subscriptions => 20000, shared_memory_size => '256MB', context_settings => 'app.who', resolver_timeout => '20s', subscription_idle_timeout => 0);
$node->safe_psql('postgres', <<"SQL");
SET client_min_messages = warning;
CREATE ROLE reader;
CREATE TABLE members (who int, team int, PRIMARY KEY (who, team));
INSERT INTO members SELECT n, 1 FROM generate_series(1, 2 * $kept) n;
CREATE FUNCTION make(name text) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
  EXECUTE format('CREATE TABLE %I (id int, team int)', name);
  EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
  EXECUTE format('CREATE POLICY p ON %I USING (EXISTS (SELECT FROM members m WHERE m.who = current_setting(%L)::int AND m.team = %I.team))', name, 'app.who', name);
  EXECUTE format('CREATE TRIGGER t AFTER INSERT ON %I FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change(%L)', name, name);
  EXECUTE format('GRANT SELECT ON %I, members TO reader', name);
  PERFORM subdispatch.grant_channel(name, 'reader', 'subscribe');
END \$\$;
SELECT make('most'), make('few');
SELECT count(subdispatch.subscribe('most', run_as => 'reader', settings => jsonb_build_object('app.who', n), id => 'm' || n, consumer => 'most')) FROM generate_series(1, $kept - 20) n;
INSERT INTO most VALUES (1, 1);
SQL
ok(dispatched($node), 'dispatched');
my ($pid) = dispatcher_pids($node);
my $poll = 'SELECT count(*) FROM subdispatch.poll(%s, 100000, max_bytes => 100000000) WHERE event_id IS NOT NULL';
is($node->safe_psql('postgres', sprintf $poll, "'most'"), $kept - 20, 'those who may see a row get it');

# Of these only one has a number, so that there is nobody to be asked with him. He is the first whom the event comes to.
$node->safe_psql('postgres', <<"SQL");
SELECT count(subdispatch.subscribe('few', run_as => 'reader', settings => jsonb_build_object('app.who', CASE n WHEN 60 THEN '15000' ELSE 'x' || n END), id => 'f' || n, consumer => 'few')) FROM generate_series(1, 60) n;
INSERT INTO few VALUES (1, 1);
SQL
ok(dispatched($node), 'dispatched');
is($node->safe_psql('postgres', "SELECT string_agg(subscription_id, ' ') FROM subdispatch.poll('few')"), 'f60', 'he who may see it gets it, and nobody else');
unlike(slurp_file($node->logfile), qr/role with OID 0/, 'with his own rights');
is((dispatcher_pids($node))[0], $pid, 'by the same dispatcher');
unlike(slurp_file($node->logfile), qr/terminated by signal/, 'and no process has crashed');
$node->stop;
done_testing();

# A policy that never ends, and swallows every cancel, is ended by resolver_timeout and costs its identity alone: others get
# the event, and it gets what comes after it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $node = start_node('stuck', dispatchers => 1, resolver_timeout => '100ms', listen_channels => '');
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE victim;
CREATE TABLE t (id int PRIMARY KEY);
ALTER TABLE t ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON t TO victim;
CREATE FUNCTION stuck(id int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  WHILE id = 1 LOOP
    BEGIN
      PERFORM pg_sleep(60);
    EXCEPTION WHEN query_canceled THEN NULL;
    END;
  END LOOP;
  RETURN true;
END $$;
CREATE POLICY p ON t USING (public.stuck(id));
CREATE TRIGGER tr AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('t');
SELECT subdispatch.grant_channel('t', 'victim', 'subscribe');
SELECT subdispatch.subscribe('t', id => 'victim', run_as => 'victim');
SELECT subdispatch.subscribe('t', id => 'exempt');
INSERT INTO t VALUES (1);
INSERT INTO t VALUES (2);
SQL
is($node->safe_psql('postgres', "SELECT subdispatch.wait_dispatched('90s')"), 't', 'all is dispatched in the end');
my $ids = sub { join ' ', map { /"id": (\d)/ ? $1 : "?$_" } split /\n/, drain($node, $_[0]) };
is($ids->('exempt'), '1 2', 'whom the policy does not concern gets all');
is($ids->('victim'), '2', 'whom it concerns gets what it lets pass');
like(slurp_file($node->logfile), qr/policy timed out/, 'it is logged');
$node->stop;
done_testing();

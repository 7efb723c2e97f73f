# What the TAP tests share: a server that preloads the library, bounded waiting that shows the last value seen, and
# sessions that run a command in the background.
package SubdispatchTest;

use strict;
use warnings;

use Carp qw(croak);

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(start_node install_extension try_sql poll_until eventually dispatched drain results dispatcher_pids
  session background finish_background background_output terminate_dispatchers memory_in_use server_is_up
  trap_sql waits_sql);

# How long anything may take before a test gives up on it.
our $patience = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 180;

# A server with the library preloaded, started, and the extension in its "postgres" database. Settings are given
# without the prefix when they are the extension's ("resolver_timeout"), with a dot in front otherwise (".max_connections").
sub start_node
{
	my ($name, %settings) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init;
	# Several databases at once need more workers than the default has room for.
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'subdispatch'\nmax_worker_processes = 32\n");
	foreach my $setting (sort keys %settings)
	{
		my $full = $setting =~ /^\.(.*)/ ? $1 : "subdispatch.$setting";
		$node->append_conf('postgresql.conf', "$full = '$settings{$setting}'\n");
	}
	$node->start;
	install_extension($node, 'postgres');
	return $node;
}

sub install_extension
{
	my ($node, $db) = @_;
	$node->safe_psql($db, 'SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS subdispatch');
}

# Runs SQL that may fail: what it printed, and its error.
sub try_sql
{
	my ($node, $sql, %params) = @_;
	my ($out, $err) = ('', '');
	eval {
		$node->psql($params{dbname} // 'postgres', $sql, stdout => \$out, stderr => \$err, on_error_stop => 1,
			extra_params => $params{user} ? [ '-U', $params{user} ] : [], timeout => $patience);
		1;
	} or do {
		# a psql that could not connect has ended before it was given its input
		my $why = $@;
		die $why if $why !~ /Broken pipe/;
		$err = $why if $err eq '';
	};
	return ($out, $err);
}

# Waits until a query gives what is expected (a string or a pattern); shows the last value when it gives up.
sub poll_until
{
	my ($node, $sql, $expected, $name, $db) = @_;
	my ($out, $err) = ('', '');
	my $end = time + $patience;
	while (1)
	{
		($out, $err) = ('', '');
		$node->psql($db // 'postgres', $sql, stdout => \$out, stderr => \$err);
		my $there = $err eq '' && (ref $expected ? $out =~ $expected : $out eq $expected);
		if ($there) { pass($name); return 1; }
		last if time > $end;
		sleep 0.1;
	}
	fail($name);
	diag("after $patience s, \"$sql\" gives \"$out\" ($err), not \"$expected\"");
	return 0;
}

# The same with code instead of a query: it returns (whether it is there, what was seen).
sub eventually
{
	my ($name, $code) = @_;
	my $end = time + $patience;
	my ($there, $seen);
	while (1)
	{
		my @result = $code->();
		# a match that fails is an empty list, and would leave "seen" in its place
		croak "$name: a condition and what was seen, in that order" if @result != 2;
		($there, $seen) = @result;
		if ($there) { pass($name); return 1; }
		last if time > $end;
		sleep 0.1;
	}
	fail($name);
	diag("after $patience s the last value is: " . ($seen // 'undef'));
	return 0;
}

# All that was committed is dispatched; says so if it is not.
sub dispatched
{
	my ($node, $db) = @_;
	my ($out, $err) = try_sql($node, "SELECT subdispatch.wait_dispatched('${patience}s')", dbname => $db);
	diag("wait_dispatched gives \"$out\" ($err)") if $out ne 't';
	return $out eq 't';
}

# The responses that are queued for a subscription, one per line.
sub drain
{
	my ($node, $id, $db) = @_;
	dispatched($node, $db);
	return $node->safe_psql($db // 'postgres', "SELECT * FROM subdispatch.next_responses('$id', 100000)");
}

# Their data only, joined by blanks: short enough to compare.
sub results
{
	my ($node, $id, $db) = @_;
	dispatched($node, $db);
	return $node->safe_psql($db // 'postgres',
		"SELECT coalesce(string_agg(coalesce(r::jsonb #>> '{payload,data}', r::jsonb->>'type'), ' ' ORDER BY n), '')"
		  . " FROM subdispatch.next_responses('$id', 100000) WITH ORDINALITY x(r, n)");
}

sub dispatcher_pids
{
	my ($node, $db) = @_;
	$db //= 'postgres';
	return split /\n/, $node->safe_psql('postgres',
		"SELECT a.pid FROM subdispatch.workers w JOIN pg_stat_activity a USING (pid) WHERE w.kind = 'dispatcher' AND a.datname = '$db' ORDER BY 1");
}

sub terminate_dispatchers
{
	my ($node, $db) = @_;
	$db //= 'postgres';
	return $node->safe_psql('postgres',
		"SELECT count(pg_terminate_backend(w.pid)) FROM subdispatch.workers w WHERE w.kind = 'dispatcher' AND w.database::text = '$db' AND w.pid IS NOT NULL");
}

# An interactive session: ->query, ->query_safe, ->query_until, ->quit.
sub session
{
	my ($node, $db) = @_;
	return $node->background_psql($db // 'postgres', on_error_stop => 0, timeout => 2 * $patience);
}

# A psql that runs in the background: its handle, whose output can be had when it has ended.
sub background
{
	my ($node, $sql, $db) = @_;
	my $h = { stdout => '', stderr => '' };
	# From a file: IPC::Run writes to a pipe only while it is asked for output.
	$h->{file} = PostgreSQL::Test::Utils::tempdir() . '/input.sql';
	append_to_file($h->{file}, $sql);
	$h->{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($db // 'postgres'), '-f', $h->{file} ],
		'<', \undef, '>', \$h->{stdout}, '2>', \$h->{stderr}, IPC::Run::timeout(3 * $patience));
	return $h;
}

sub finish_background
{
	my ($h) = @_;
	eval { $h->{run}->finish };
	diag("a background session was given up: $@") if $@;
	return ($h->{stdout}, $h->{stderr});
}

sub background_output { my ($h) = @_; $h->{run}->pump_nb; return $h->{stdout}; }

# Bytes of shared memory that subscriptions, responses and events take.
sub memory_in_use
{
	my ($node) = @_;
	return $node->safe_psql('postgres', "SELECT subdispatch.health() #>> '{memory,used}'");
}

sub server_is_up
{
	my ($node) = @_;
	my ($out) = try_sql($node, 'SELECT 1');
	return ($out eq '1', $out);
}

# SQL for a table's owner to be: whoever looks at a row of the table executes its "cmd", by its policy; the log tells how
# that ended: trap "<cmd>" as <current_user> (<session_user>, <is_superuser>): <"done" or the SQLSTATE>.
sub trap_sql
{
	my ($table) = @_;
	return <<"SQL";
CREATE TABLE $table (id int, cmd text);
GRANT SELECT ON $table TO PUBLIC;
CREATE FUNCTION $table(cmd text) RETURNS bool LANGUAGE plpgsql AS \$\$
DECLARE r text := 'done';
BEGIN
  BEGIN
    EXECUTE cmd;
  EXCEPTION WHEN OTHERS THEN r := SQLSTATE;
  END;
  RAISE LOG 'trap "%" as % (%, %): %', cmd, current_user, session_user, current_setting('is_superuser'), r;
  RETURN true;
END \$\$;
ALTER TABLE $table ENABLE ROW LEVEL SECURITY;
CREATE POLICY trap ON $table USING ($table(cmd));
CREATE TRIGGER changed AFTER INSERT ON $table FOR EACH ROW EXECUTE FUNCTION subdispatch.publish_change('trapped');
SQL
}

# SQL for a resolver, waits(), that waits until there is a row in the table go and then returns what the expression says.
sub waits_sql
{
	my ($expression) = @_;
	return <<"SQL";
CREATE TABLE go (yes boolean);
CREATE FUNCTION waits(event jsonb, variables jsonb) RETURNS jsonb LANGUAGE plpgsql AS \$\$
BEGIN
  LOOP
    EXIT WHEN EXISTS (SELECT FROM public.go);
    PERFORM pg_sleep(0.02);
  END LOOP;
  RETURN $expression;
END \$\$;
SQL
}

1;

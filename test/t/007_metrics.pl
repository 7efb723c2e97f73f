# metrics() in Prometheus text format, read by a parser.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

use PrometheusText;

# The parser itself: what is right, and what must not pass.
my $right = <<'TEXT';
# HELP a_total A counter, with \\ and \n in it.
# TYPE a_total counter
a_total{x="1",y="a\"b\\c\nd"} 5
a_total{x="2",y=""} 5e3
# HELP g A gauge.
# TYPE g gauge
g -1.5
# HELP h A histogram.
# TYPE h histogram
h_bucket{le="1"} 1
h_bucket{le="+Inf"} 2
h_sum 3
h_count 2
TEXT
is(eval { PrometheusText::parse($right)->{a_total}{samples}[0]{labels}{y} }, "a\"b\\c\nd", 'the parser reads labels') or diag($@);
my %wrong = (
	'no newline at the end' => "# HELP g G\n# TYPE g gauge\ng 1",
	'no HELP' => "# TYPE g gauge\ng 1\n",
	'no TYPE' => "# HELP g G\ng 1\n",
	'an unknown type' => "# HELP g G\n# TYPE g number\ng 1\n",
	'TYPE after the samples' => "# HELP g G\ng 1\n# TYPE g gauge\n",
	'a series twice' => "# HELP g G\n# TYPE g gauge\ng{a=\"1\",b=\"2\"} 1\ng{b=\"2\",a=\"1\"} 1\n",
	'a counter without _total' => "# HELP c C\n# TYPE c counter\nc 1\n",
	'a label unescaped' => "# HELP g G\n# TYPE g gauge\ng{a=\"x\"y\"} 1\n",
	'a wrong escape' => "# HELP g G\n# TYPE g gauge\ng{a=\"x\\y\"} 1\n",
	'no value' => "# HELP g G\n# TYPE g gauge\ng\n",
	'a wrong value' => "# HELP g G\n# TYPE g gauge\ng 1,5\n",
	'a wrong name' => "# HELP g G\n# TYPE g gauge\ng-h 1\n",
	'a metric torn apart' => "# HELP g G\n# TYPE g gauge\ng{a=\"1\"} 1\n# HELP h H\n# TYPE h gauge\nh 1\ng{a=\"2\"} 1\n",
	'a histogram without +Inf' => "# HELP h H\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\n",
);
foreach my $what (sort keys %wrong)
{
	ok(!eval { PrometheusText::parse($wrong{$what}); 1 }, "the parser refuses $what");
}

my $node = start_node('metrics');
my ($name, $text, $parsed) = ("data \"base\\ \n x");

sub metrics
{
	my ($when, $db) = @_;
	# psql -At ends the output with a newline of its own, which safe_psql takes away.
	$text = $node->safe_psql($db // 'postgres', "SELECT replace(subdispatch.metrics(), E'\\r', '<CR>') || '<END>'");
	$text =~ s/<END>$//;
	$parsed = eval { PrometheusText::parse($text) };
	ok($parsed, "$when: metrics() is in Prometheus text format") or diag("$@\n$text");
	$parsed //= {};
}

sub value
{
	my ($name, %labels) = @_;
	my $sum;
	foreach my $s (@{ ($parsed->{$name} // { samples => [] })->{samples} })
	{
		next if grep { ($s->{labels}{$_} // '') ne $labels{$_} } keys %labels;
		$sum = ($sum // 0) + $s->{value};
	}
	return $sum;
}

metrics('with nothing subscribed');
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION fails(jsonb, jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'x'; END $$;
SELECT subdispatch.subscribe('c', id => 'a', consumer => E'con"su\\me\nr');
SELECT subdispatch.subscribe('c', 'fails', id => 'b');
SELECT subdispatch.subscribe(E'chan"nel\\ \n with{all=} of it', id => 'c', max_pending => 1);
SELECT subdispatch.publish('c', to_jsonb(n)) FROM generate_series(1, 5) n;
SELECT subdispatch.publish(E'chan"nel\\ \n with{all=} of it', to_jsonb(n)) FROM generate_series(1, 3) n;
SQL
ok(dispatched($node), 'events are dispatched');
$node->safe_psql('postgres', "SELECT count(*) FROM subdispatch.next_responses('a', 2)");
metrics('with names that must be escaped');
my %stats;
@stats{qw(events_dispatched resolver_calls resolver_errors resolver_timeouts responses_queued responses_delivered responses_dropped)} = split /\|/,
  $node->safe_psql('postgres', 'SELECT events_dispatched, resolver_calls, resolver_errors, resolver_timeouts, responses_queued, responses_delivered, responses_dropped FROM subdispatch.stats');
foreach my $counter (sort keys %stats)
{
	is(value("subdispatch_${counter}_total"), $stats{$counter}, "$counter agrees with the view");
}
cmp_ok($stats{events_dispatched}, '>=', 8, 'events are counted');
cmp_ok($stats{resolver_errors}, '>=', 5, 'errors are counted');
is($stats{responses_delivered}, 2, 'what was read is counted');
cmp_ok($stats{responses_dropped}, '>=', 2, 'what was dropped is counted');
my $bytes = memory_in_use($node);
cmp_ok($bytes // 0, '>', 0, 'the memory in use is told');
# Every metric has the extension's prefix.
is(join(' ', grep { !/^subdispatch_/ } sort keys %$parsed), '', 'all metrics begin with subdispatch_');

# A database whose name must be escaped.
$node->safe_psql('postgres', 'CREATE DATABASE "data ""base\\ x"');
my $odd = 'data "base\\ x';
SKIP:
{
	my $conn = $node->connstr($odd);
	install_extension($node, $odd);
	$node->safe_psql($odd, "SELECT subdispatch.subscribe('c', id => 'a'); SELECT subdispatch.publish('c', '1')");
	ok(dispatched($node, $odd), 'it has dispatchers of its own');
	metrics('in a database whose name must be escaped', $odd);
	metrics('next to a database whose name must be escaped');
}
# Counters only rise; reset_stats() starts them anew.
$node->safe_psql('postgres', 'SELECT subdispatch.reset_stats()');
metrics('after reset_stats()');
is(value('subdispatch_resolver_errors_total'), 0, 'reset_stats() resets them');

# health() is JSON that tells something, to a machine.
my $keys = $node->safe_psql('postgres', 'SELECT count(*) FROM jsonb_object_keys(subdispatch.health())');
cmp_ok($keys, '>', 0, 'health() has fields');
$node->stop;

done_testing();

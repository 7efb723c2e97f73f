# The tables of functions, views and settings in README.md tell what is installed, with the right defaults.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;

my $readme = "$FindBin::Bin/../../README.md";
plan skip_all => 'no README.md here' unless -f $readme;

my $node = start_node('readme');

# The first cells of the tables' rows, and the whole rows.
my (%function, %setting, %view);
foreach my $line (split /\n/, slurp_file($readme))
{
	next unless $line =~ /^\|\s*(.*?)\s*\|(.*)\|\s*$/;
	my ($first, $rest) = ($1, $2);
	while ($first =~ /`(?:CALL |call )?(?:subdispatch\.)?(\w+)\([^`]*`/g) { $function{$1} = $rest; }
	while ($first =~ /`subdispatch\.(\w+)`/g) { $setting{$1} = $rest; }
	while ($first =~ /`(?:subdispatch\.)?(\w+)`/g) { $view{$1} = $rest; }
}
cmp_ok(scalar(keys %function), '>', 10, 'the README has a table of functions');
cmp_ok(scalar(keys %setting), '>', 10, 'and one of settings, named as subdispatch.…');

my @installed = split /\n/, $node->safe_psql('postgres', "SELECT DISTINCT proname FROM pg_proc p WHERE pronamespace = 'subdispatch'::regnamespace AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid WHERE d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid) ORDER BY 1");
is(join(' ', grep { !$function{$_} } @installed), '', 'every function is in the README');
my %is_installed = map { $_ => 1 } @installed;
is(join(' ', grep { !$is_installed{$_} } sort keys %function), '', 'every function of the README is installed');

my @views = split /\n/, $node->safe_psql('postgres', "SELECT relname FROM pg_class WHERE relnamespace = 'subdispatch'::regnamespace AND relkind = 'v' ORDER BY 1");
is(join(' ', grep { !$view{$_} } @views), '', 'every view is in the README');

my %default = map { split /\|/, $_, 2 } split /\n/, $node->safe_psql('postgres', "SELECT substr(name, 13) || '|' || boot_val || '|' || coalesce(unit, '') || '|' || context FROM pg_settings WHERE name LIKE 'subdispatch.%' AND name NOT LIKE 'subdispatch.debug%'");
is(join(' ', grep { !$setting{$_} } sort keys %default), '', 'every setting is in the README');
is(join(' ', grep { !$default{$_} && !$view{$_} && !/^debug/ } sort keys %setting), '', 'every setting of the README exists');

# The default that a row names, in the server's own spelling: 1MB, 10min, on, or the bare number.
foreach my $name (sort keys %default)
{
	next unless $setting{$name};
	my ($boot, $unit) = split /\|/, $default{$name};
	my $shown = $node->safe_psql('postgres', "SELECT current_setting('subdispatch.$name')");
	my %spelling = map { $_ => 1 } ($boot, $shown, "$boot$unit", "$boot $unit");
	$spelling{'24h'} = 1 if $shown eq '1d';
	$spelling{"''"} = $spelling{'empty'} = $spelling{'none'} = 1 if $boot eq '';
	my @cells = map { s/`//gr } $setting{$name} =~ /\s*([^|]*?)\s*(?:\||$)/g;
	ok((grep { my $cell = $_; $spelling{$cell} || $spelling{ $cell =~ s/^'(.*)'$/$1/r } || grep { $_ ne '' && $cell =~ /^\Q$_\E(?:[ ,;(]|$)/ } keys %spelling } @cells), "the README has the default of $name")
	  or diag("it is $shown, the row is: $setting{$name}");
}
$node->stop;

done_testing();

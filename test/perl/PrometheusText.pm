# A parser for the Prometheus text exposition format (version 0.0.4), strict: it dies where the format's rules are
# broken. It returns { name => { type, help, samples => [ { name, labels => {}, value } ] } }.
package PrometheusText;

use strict;
use warnings;

my $metric_name = qr/[a-zA-Z_:][a-zA-Z0-9_:]*/;
my $label_name  = qr/[a-zA-Z_][a-zA-Z0-9_]*/;
my $value       = qr/[+-]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?|Inf)|NaN/;

sub parse
{
	my ($text) = @_;
	my (%family, %ended, %series, $current);
	die "the last line has no newline\n" if $text ne '' && $text !~ /\n\z/;
	die "a carriage return\n" if $text =~ /\r/;
	my $n = 0;
	foreach my $line (split /\n/, $text)
	{
		$n++;
		next if $line eq '';
		if ($line =~ /^# (HELP|TYPE) ($metric_name)(?: (.*))?$/)
		{
			my ($what, $name, $rest) = ($1, $2, $3 // '');
			start_family(\%family, \%ended, \$current, $name, $n);
			my $f = $family{$name};
			die "line $n: a second $what for $name\n" if defined $f->{ lc $what };
			die "line $n: $what of $name after its samples\n" if @{ $f->{samples} };
			if ($what eq 'TYPE')
			{
				die "line $n: unknown type \"$rest\"\n" unless $rest =~ /^(?:counter|gauge|histogram|summary|untyped)$/;
			}
			else
			{
				die "line $n: a wrong escape in the help text\n" unless $rest =~ /^(?:[^\\]|\\\\|\\n)*$/;
			}
			$f->{ lc $what } = $rest;
		}
		elsif ($line =~ /^#/)
		{
			next;
		}
		else
		{
			my $sample = parse_sample($line, $n);
			my $base = family_of(\%family, $sample->{name});
			start_family(\%family, \%ended, \$current, $base, $n);
			my $key = $sample->{name} . '{' . join(',', map { "$_=\"$sample->{labels}{$_}\"" } sort keys %{ $sample->{labels} }) . '}';
			die "line $n: the series $key comes twice\n" if $series{$key}++;
			push @{ $family{$base}{samples} }, $sample;
		}
	}
	check_family($_, $family{$_}) foreach sort keys %family;
	return \%family;
}

# All lines of a metric stand together.
sub start_family
{
	my ($family, $ended, $current, $name, $n) = @_;
	return if defined $$current && $$current eq $name;
	die "line $n: $name goes on after another metric began\n" if $ended->{$name};
	$ended->{$$current} = 1 if defined $$current;
	$$current = $name;
	$family->{$name} //= { samples => [] };
}

# A histogram's or summary's samples carry suffixes.
sub family_of
{
	my ($family, $name) = @_;
	if ($name =~ /^(.*)_(?:bucket|sum|count)$/)
	{
		my $base = $1;
		return $base if ($family->{$base} // {})->{type} && $family->{$base}{type} =~ /^(?:histogram|summary)$/;
	}
	return $name;
}

sub parse_sample
{
	my ($line, $n) = @_;
	my %labels;
	$line =~ /\G($metric_name)/gc or die "line $n: no metric name: $line\n";
	my $name = $1;
	if ($line =~ /\G\{/gc)
	{
		until ($line =~ /\G\}/gc)
		{
			$line =~ /\G($label_name)="((?:[^"\\]|\\\\|\\"|\\n)*)"/gc or die "line $n: a wrong label at \"" . substr($line, pos($line) // 0) . "\"\n";
			die "line $n: label $1 comes twice\n" if exists $labels{$1};
			my ($label, $escaped) = ($1, $2);
			$escaped =~ s/\\(.)/$1 eq 'n' ? "\n" : $1/ge;
			$labels{$label} = $escaped;
			$line =~ /\G,/gc or $line =~ /\G(?=\})/gc or die "line $n: neither comma nor brace after a label\n";
		}
	}
	$line =~ /\G ($value)(?: (-?[0-9]+))?$/gc or die "line $n: no value: $line\n";
	return { name => $name, labels => \%labels, value => $1 };
}

sub check_family
{
	my ($name, $f) = @_;
	die "$name has no HELP\n" unless defined $f->{help} && $f->{help} ne '';
	die "$name has no TYPE\n" unless defined $f->{type};
	if ($f->{type} eq 'counter')
	{
		die "the counter $name does not end in _total\n" unless $name =~ /_total$/;
		foreach my $s (@{ $f->{samples} })
		{
			die "the counter $name is $s->{value}\n" if $s->{value} =~ /^-|NaN/;
		}
	}
	die "$name is no counter, but ends in _total\n" if $f->{type} ne 'counter' && $name =~ /_total$/;
	if ($f->{type} eq 'histogram')
	{
		my (%last, %inf, %count);
		foreach my $s (@{ $f->{samples} })
		{
			my %l = %{ $s->{labels} };
			my $le = delete $l{le};
			my $key = join ',', map { "$_=$l{$_}" } sort keys %l;
			if ($s->{name} eq "${name}_bucket")
			{
				die "a bucket of $name without le\n" unless defined $le;
				die "$name\'s buckets do not rise\n" if defined $last{$key} && $s->{value} < $last{$key};
				$last{$key} = $s->{value};
				$inf{$key} = $s->{value} if $le eq '+Inf';
			}
			elsif ($s->{name} eq "${name}_count") { $count{$key} = $s->{value}; }
			elsif ($s->{name} ne "${name}_sum") { die "$s->{name} is no part of the histogram $name\n"; }
		}
		foreach my $key (keys %count)
		{
			die "the histogram $name has no +Inf bucket, or not its count in it\n" unless defined $inf{$key} && $inf{$key} == $count{$key};
		}
	}
}

1;

# A redis-server of a test's own, on a Unix socket (and a port, if it is asked for), that can be stopped, killed, started
# anew with or without what it had, and frozen.
package RedisTest;

use strict;
use warnings;

use IO::Socket::UNIX;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SubdispatchTest;
use Test::More;
use Time::HiRes qw(sleep time);

my ($program) = grep { -x } map { ($_ . '/redis-server', $_ . '/redis-check-rdb') } split /:/, $ENV{PATH};

# Options of redis-server, without the dashes: start(appendonly => 'yes', ...).
sub new
{
	my ($class, %options) = @_;
	my $self = bless { dir => PostgreSQL::Test::Utils::tempdir_short(), options => {%options}, pid => 0 }, $class;
	$self->{socket} = "$self->{dir}/s";
	$self->start;
	return $self;
}

sub socket_path { my ($self) = @_; return $self->{socket}; }
sub url { my ($self) = @_; return "unix://$self->{socket}"; }
sub pid { my ($self) = @_; return $self->{pid}; }

sub start
{
	my ($self, %more) = @_;
	my %o = (port => 0, save => '', appendonly => 'no', daemonize => 'no', %{ $self->{options} }, %more);
	my @args = map { ("--$_", $o{$_}) } sort keys %o;
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>>', "$self->{dir}/log";
		open STDERR, '>>', "$self->{dir}/log";
		# as Debian has it the program is in redis-tools, and goes by the name that it is called by
		exec { $program } 'redis-server', '--unixsocket', $self->{socket}, '--dir', $self->{dir}, @args;
		exit 127;
	}
	$self->{pid} = $pid;
	my $end = time + $SubdispatchTest::patience;
	while ($self->cli('PING') !~ /PONG|NOAUTH/)
	{
		die "redis-server does not answer: " . $self->log if time > $end;
		sleep 0.05;
	}
	return;
}

sub log { my ($self) = @_; return -f "$self->{dir}/log" ? slurp_file("$self->{dir}/log") : ''; }

# What redis-cli prints.
sub cli
{
	my ($self, @command) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'redis-cli', '-s', $self->{socket}, ($self->{options}{requirepass} ? ('--no-auth-warning', '-a', $self->{options}{requirepass}) : ()), @command ],
		'<', \undef, '>', \$out, '2>', \$err);
	chomp $out;
	return $out eq '' ? $err : $out;
}

sub signal { my ($self, $signal) = @_; kill $signal, $self->{pid} if $self->{pid}; return; }
sub freeze { my ($self) = @_; $self->signal('STOP'); return; }
sub thaw { my ($self) = @_; $self->signal('CONT'); return; }

# signal: TERM saves if it is told to, KILL does not.
sub stop
{
	my ($self, $signal) = @_;
	return unless $self->{pid};
	$self->signal('CONT');
	$self->signal($signal // 'TERM');
	waitpid $self->{pid}, 0;
	$self->{pid} = 0;
	return;
}

sub DESTROY { my ($self) = @_; local $?; $self->stop('KILL'); return; }

1;

# Something that listens on a port of 127.0.0.1 and treats each connection as it is told to: what Redis does when it is ill,
# or is not Redis.
package FakePeer;

use strict;
use warnings;

use IO::Socket::INET;

# The code gets the socket of a connection, in a process of its own.
sub new
{
	my ($class, $code) = @_;
	my $listener = IO::Socket::INET->new(Listen => 16, LocalAddr => '127.0.0.1', Proto => 'tcp', ReuseAddr => 1) // die "listen: $!";
	my $self = bless { port => $listener->sockport, pid => fork // die "fork: $!" }, $class;
	if ($self->{pid} == 0)
	{
		setpgrp;
		$SIG{CHLD} = 'IGNORE';
		$SIG{PIPE} = 'IGNORE';
		while (1)
		{
			my $socket = $listener->accept or next;
			my $pid = fork;
			next if !defined $pid || $pid;
			$socket->autoflush(1);
			eval { $code->($socket) };
			require POSIX;
			POSIX::_exit(0);
		}
	}
	close $listener;
	# so that it can be ended with all its connections from the start
	select(undef, undef, undef, 0.01) while getpgrp($self->{pid}) != $self->{pid};
	return $self;
}

# One that reads commands and answers each with what the code makes of its parts; undef: not at all.
sub answering
{
	my ($class, $code) = @_;
	return $class->new(sub {
		my ($socket) = @_;
		while (defined(my $head = <$socket>))
		{
			my ($n) = $head =~ /^\*(\d+)/ or last;
			my @parts;
			foreach (1 .. $n)
			{
				my ($len) = (<$socket> // '') =~ /^\$(\d+)/ or last;
				read $socket, my $part, $len + 2;
				push @parts, substr $part, 0, $len;
			}
			my $answer = $code->(@parts);
			print $socket $answer if defined $answer;
		}
	});
}

sub port { my ($self) = @_; return $self->{port}; }

sub DESTROY
{
	my ($self) = @_;
	local $?;
	if ($self->{pid})
	{
		kill 'KILL', -$self->{pid};
		waitpid $self->{pid}, 0;
	}
	return;
}

1;

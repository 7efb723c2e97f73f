/*
 * drain.c
 *	  A consumer that reads until it is told to end (SIGTERM), beside a load
 *	  that something else makes.
 *
 *	  drain notify|redis|poll|poll_shared|outbox CONNECTIONS
 */
#include "reader.h"

#include <signal.h>

static volatile sig_atomic_t ending = 0;

static void
handle_end(int signal_number)
{
	(void) signal_number;
	ending = 1;
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = handle_end};
	Reader	   *reader;
	long		count = 0;
	int64_t		start;

	if (argc != 3)
		die("usage: drain notify|redis|poll|poll_shared|outbox CONNECTIONS");
	sigaction(SIGTERM, &action, NULL);
	reader = reader_open(argv[1], number_argument(argv[2], 1));
	start = now_ns();
	while (!ending)
		count += reader_read(reader);
	printf("{\"deliveries\": %ld, \"seconds\": %.6f}\n", count, (now_ns() - start) / 1e9);
	reader_close(reader);
	return 0;
}

/*
 * drain.c
 *	  A consumer that reads until it is told to end (SIGTERM), beside a load
 *	  that something else makes.
 *
 *	  drain notify|redis|poll|poll_shared|outbox CONNECTIONS COUNT
 *
 * COUNT is a file of eight bytes: the number of deliveries so far, for those
 * who want to see how far the consumer has come.
 */
#include "reader.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile sig_atomic_t ending = 0;

static void
handle_end(int signal_number)
{
	(void) signal_number;
	ending = 1;
}

static volatile int64_t *
map_count(const char *path)
{
	int			fd = open(path, O_RDWR);
	void	   *at;

	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	at = mmap(NULL, sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		die("%s: %s", path, strerror(errno));
	close(fd);
	return at;
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = handle_end};
	Reader	   *reader;
	volatile int64_t *count;
	int64_t		start;

	if (argc != 4)
		die("usage: drain notify|redis|poll|poll_shared|outbox CONNECTIONS COUNT");
	count = map_count(argv[3]);
	sigaction(SIGTERM, &action, NULL);
	reader = reader_open(argv[1], number_argument(argv[2], 1));
	start = now_ns();
	while (!ending)
		*count += reader_read(reader);
	printf("{\"deliveries\": %ld, \"seconds\": %.6f}\n", (long) *count, (now_ns() - start) / 1e9);
	reader_close(reader);
	return 0;
}

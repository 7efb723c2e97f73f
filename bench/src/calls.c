/*
 * calls.c
 *	  The time of one call of a prepared statement, one after the other.
 *
 *	  calls length|next_response COUNT
 *
 * next_response reads the subscription "bench1", which has nothing queued.
 */
#include "bench.h"

int
main(int argc, char **argv)
{
	const char *params[1];
	const char *sql;
	int64_t    *samples;
	long		count;
	PGconn	   *conn;

	if (argc != 3)
		die("usage: calls length|next_response COUNT");
	if (strcmp(argv[1], "length") == 0)
		sql = "SELECT length($1)";
	else if (strcmp(argv[1], "next_response") == 0)
		sql = "SELECT subdispatch.next_response($1)";
	else
		die("unknown call \"%s\"", argv[1]);
	count = number_argument(argv[2], 1);
	if ((samples = calloc(count, sizeof(*samples))) == NULL)
		die("out of memory");
	params[0] = "bench1";
	conn = db_connect();
	db_prepare(conn, "call", sql);
	for (long i = -count / 10; i < count; i++)
	{
		int64_t		start = now_ns();
		PGresult   *result = PQexecPrepared(conn, "call", 1, params, NULL, NULL, 0);

		if (i >= 0)
			samples[i] = now_ns() - start;
		PQclear(db_expect(conn, result, PGRES_TUPLES_OK));
	}
	print_samples(samples, count);
	PQfinish(conn);
	free(samples);
	return 0;
}

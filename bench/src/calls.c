/*
 * calls.c
 *	  The time of one call of a prepared statement, one after the other.
 *
 *	  calls STATEMENT COUNT [PARAMETER]
 *
 * PARAMETER is the statement's $1; a # in it becomes the number of the call,
 * from 1 on.  A tenth of COUNT is done before, to warm up.
 */
#include "bench.h"

static void
fill(char *to, size_t size, const char *parameter, long n)
{
	const char *number = strchr(parameter, '#');

	if (number == NULL)
		snprintf(to, size, "%s", parameter);
	else
		snprintf(to, size, "%.*s%ld%s", (int) (number - parameter), parameter, n, number + 1);
}

int
main(int argc, char **argv)
{
	char		parameter[DATA_SIZE];
	const char *params[1] = {parameter};
	int64_t    *samples;
	long		count;
	long		warm;
	int64_t		cpu = 0;
	PGconn	   *conn;

	if (argc != 3 && argc != 4)
		die("usage: calls STATEMENT COUNT [PARAMETER]");
	count = number_argument(argv[2], 1);
	warm = count / 10;
	if ((samples = calloc(count, sizeof(*samples))) == NULL)
		die("out of memory");
	conn = db_connect();
	db_prepare(conn, "call", argv[1]);
	for (long i = 0; i < warm + count; i++)
	{
		PGresult   *result;
		int64_t		start;

		if (i == warm)
			cpu = own_cpu_ns() + backend_cpu_ns(conn);
		if (argc == 4)
			fill(parameter, sizeof(parameter), argv[3], i + 1);
		start = now_ns();
		result = PQexecPrepared(conn, "call", argc - 3, params, NULL, NULL, 0);
		if (i >= warm)
			samples[i - warm] = now_ns() - start;
		PQclear(db_expect(conn, result, PGRES_TUPLES_OK));
	}
	print_samples(samples, count, own_cpu_ns() + backend_cpu_ns(conn) - cpu);
	PQfinish(conn);
	free(samples);
	return 0;
}

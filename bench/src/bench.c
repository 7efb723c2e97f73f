/*
 * bench.c
 *	  What the load generators share: errors, time, connections, samples.
 */
#include "bench.h"

#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <stdarg.h>
#include <time.h>

#define KEPT_MEMORY		(64 * 1024 * 1024)

void
die(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

int64_t
now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t) t.tv_sec * 1000000000 + t.tv_nsec;
}

void
sleep_us(long us)
{
	struct timespec t = {us / 1000000, us % 1000000 * 1000};

	while (nanosleep(&t, &t) != 0 && errno == EINTR)
		;
}

long
number_argument(const char *text, long least)
{
	char	   *end;
	long		n = strtol(text, &end, 10);

	if (*text == '\0' || *end != '\0' || n < least)
		die("\"%s\" is not a number of at least %ld", text, least);
	return n;
}

/*
 * What is read is kept, as by a client that always reads: memory that goes
 * back to the kernel after each result, and comes again for the next, would be
 * a good part of all that some ways of reading take.
 */
static void __attribute__((constructor))
keep_memory(void)
{
	mallopt(M_MMAP_THRESHOLD, KEPT_MEMORY / 2);
	mallopt(M_TRIM_THRESHOLD, KEPT_MEMORY);
}

static void
ignore_notice(void *arg, const PGresult *result)
{
	(void) arg;
	(void) result;
}

static PGconn *
connect_to(const char *conninfo)
{
	PGconn	   *conn = PQconnectdb(conninfo);

	if (PQstatus(conn) != CONNECTION_OK)
		die("%s", PQerrorMessage(conn));
	PQsetNoticeReceiver(conn, ignore_notice, NULL);
	return conn;
}

PGconn *
db_connect(void)
{
	return connect_to("");
}

PGconn *
db_connect_consumer(void)
{
	const char *conninfo = getenv("BENCH_CONSUMER");

	return connect_to(conninfo ? conninfo : "");
}

PGresult *
db_expect(PGconn *conn, PGresult *result, ExecStatusType status)
{
	if (PQresultStatus(result) != status)
		die("%s instead of %s: %s", PQresStatus(PQresultStatus(result)), PQresStatus(status), PQerrorMessage(conn));
	return result;
}

void
db_prepare(PGconn *conn, const char *name, const char *sql)
{
	PQclear(db_expect(conn, PQprepare(conn, name, sql, 0, NULL), PGRES_COMMAND_OK));
}

void
db_do(PGconn *conn, const char *sql)
{
	PGresult   *result = PQexec(conn, sql);

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		db_expect(conn, result, PGRES_COMMAND_OK);
	PQclear(result);
}

void
db_send(PGconn *conn, const char *statement, int nparams, const char *const *params, int binary)
{
	if (!PQsendQueryPrepared(conn, statement, nparams, params, NULL, NULL, binary))
		die("%s", PQerrorMessage(conn));
}

PGresult *
db_result(PGconn *conn, ExecStatusType status)
{
	return db_expect(conn, PQgetResult(conn), status);
}

void
db_end(PGconn *conn)
{
	if (PQgetResult(conn) != NULL)
		die("a result too many: %s", PQerrorMessage(conn));
}

redisContext *
redis_connect(void)
{
	const char *path = getenv("BENCH_REDIS");
	redisContext *redis;

	if (path == NULL)
		die("BENCH_REDIS, the path of the Redis server's socket, is not set");
	redis = redisConnectUnix(path);
	if (redis == NULL || redis->err)
		die("redis: %s", redis ? redis->errstr : "out of memory");
	return redis;
}

int64_t
own_cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (int64_t) t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t
backend_cpu_ns(PGconn *conn)
{
	char		path[64];
	long long	ns;
	FILE	   *file;

	snprintf(path, sizeof(path), "/proc/%d/schedstat", PQbackendPID(conn));
	if ((file = fopen(path, "r")) == NULL || fscanf(file, "%lld", &ns) != 1)
		die("%s could not be read", path);
	fclose(file);
	return ns;
}

void
wait_readable(int fd)
{
	struct pollfd p = {fd, POLLIN, 0};

	while (poll(&p, 1, -1) < 0)
		if (errno != EINTR)
			die("poll: %s", strerror(errno));
}

static int
compare_samples(const void *a, const void *b)
{
	int64_t		x = *(const int64_t *) a;
	int64_t		y = *(const int64_t *) b;

	return (x > y) - (x < y);
}

void
print_samples(int64_t *samples, long count, int64_t cpu_ns)
{
	double		sum = 0;

	qsort(samples, count, sizeof(*samples), compare_samples);
	for (long i = 0; i < count; i++)
		sum += samples[i];
	printf("{\"count\": %ld, \"mean\": %.3f, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f, \"cpu_seconds\": %.6f}\n", count,
		   sum / count / 1000, samples[count / 2] / 1000.0, samples[count * 99 / 100] / 1000.0, samples[count - 1] / 1000.0,
		   cpu_ns / 1e9);
}

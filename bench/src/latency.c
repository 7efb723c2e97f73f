/*
 * latency.c
 *	  From sending a transaction that publishes to a waiting consumer having
 *	  what was published, one event at a time.
 *
 *	  latency notify|redis|await_poll|await_poll_pipelined|poll|next_response COUNT
 *
 * One thread publishes on one connection and then sleeps on the other one,
 * as a consumer does that has nothing else to do, so no further process comes
 * between.  Before each event it gives the consumer's backend time to wait.
 */
#include "bench.h"

#define PAUSE_US	200
#define WARM		50

typedef struct Way
{
	const char *name;
	const char *publish;
	const char *wait[2];		/* statements that wait and read */
	bool		pipelined;		/* both are sent at once */
} Way;

#define PUBLISH "SELECT subdispatch.publish('" CHANNEL "', $1::jsonb)"

static const Way ways[] = {
	{"notify", "SELECT pg_notify('" CHANNEL "', $1)", {NULL, NULL}, false},
	{"await_poll", PUBLISH, {"CALL subdispatch.await_responses('" CONSUMER "', '30s')",
	"SELECT response FROM subdispatch.poll('" CONSUMER "')"}, false},
	{"await_poll_pipelined", PUBLISH, {"CALL subdispatch.await_responses('" CONSUMER "', '30s')",
	"SELECT response FROM subdispatch.poll('" CONSUMER "')"}, true},
	{"poll", PUBLISH, {"SELECT response FROM subdispatch.poll('" CONSUMER "', 1000, '30s')", NULL}, false},
	{"next_response", PUBLISH, {"SELECT subdispatch.next_response('bench1', '30s')", NULL}, false},
};

static void
make_data(char *data, long n)
{
	snprintf(data, DATA_SIZE, "{\"id\": %ld, \"total\": \"9.99\", \"customer\": 7}", n);
}

/* Whether a message is that of event n: its number is in it, in any form. */
static void
check_message(const char *message, long n)
{
	char		number[32];

	snprintf(number, sizeof(number), ": %ld", n);
	if (strstr(message, number) == NULL)
		die("event %ld did not arrive, but \"%s\"", n, message);
}

static void
wait_sent(PGconn *conn)
{
	while (PQflush(conn) > 0)
		;
}

/* The consumer goes to wait. */
static void
begin_wait(PGconn *conn, const Way *way)
{
	if (way->wait[0] == NULL)
		return;
	db_send(conn, "wait0", 0, NULL, 0);
	if (way->pipelined)
	{
		if (!PQpipelineSync(conn))
			die("%s", PQerrorMessage(conn));
		db_send(conn, "wait1", 0, NULL, 0);
		if (!PQpipelineSync(conn))
			die("%s", PQerrorMessage(conn));
	}
	wait_sent(conn);
}

static void
check_row(PGconn *conn, PGresult *result, long n)
{
	db_expect(conn, result, PGRES_TUPLES_OK);
	if (PQntuples(result) != 1 || PQgetisnull(result, 0, 0))
		die("%d rows instead of event %ld", PQntuples(result), n);
	check_message(PQgetvalue(result, 0, 0), n);
	PQclear(result);
}

static void
end_notify(PGconn *conn, long n)
{
	PGnotify   *notify;

	while ((notify = PQnotifies(conn)) == NULL)
	{
		wait_readable(PQsocket(conn));
		if (!PQconsumeInput(conn))
			die("%s", PQerrorMessage(conn));
	}
	check_message(notify->extra, n);
	PQfreemem(notify);
}

/* The consumer has event n. */
static void
end_wait(PGconn *conn, const Way *way, long n)
{
	if (way->wait[0] == NULL)
	{
		end_notify(conn, n);
		return;
	}
	if (way->wait[1] != NULL)
	{
		PQclear(db_result(conn, PGRES_COMMAND_OK));
		db_end(conn);
		if (way->pipelined)
			PQclear(db_result(conn, PGRES_PIPELINE_SYNC));
		else
			db_send(conn, "wait1", 0, NULL, 0);
	}
	check_row(conn, PQgetResult(conn), n);
}

static void
finish_wait(PGconn *conn, const Way *way)
{
	if (way->wait[0] == NULL)
		return;
	db_end(conn);
	if (way->pipelined)
		PQclear(db_result(conn, PGRES_PIPELINE_SYNC));
}

/* Returns the processor time, this process' and its backends'. */
static int64_t
measure_database(const Way *way, int64_t *samples, long count)
{
	PGconn	   *publisher = db_connect();
	PGconn	   *consumer = db_connect_consumer();
	int64_t		cpu = 0;
	char		data[DATA_SIZE];
	const char *params[1] = {data};

	db_prepare(publisher, "publish", way->publish);
	if (way->wait[0] == NULL)
		db_do(consumer, "LISTEN " CHANNEL);
	else
		db_prepare(consumer, "wait0", way->wait[0]);
	if (way->wait[1] != NULL)
		db_prepare(consumer, "wait1", way->wait[1]);
	if (way->pipelined && !PQenterPipelineMode(consumer))
		die("%s", PQerrorMessage(consumer));
	for (long i = -WARM; i < count; i++)
	{
		long		n = i + WARM + 1000000;
		int64_t		start;

		if (i == 0)
			cpu = own_cpu_ns() + backend_cpu_ns(publisher) + backend_cpu_ns(consumer);
		begin_wait(consumer, way);
		sleep_us(PAUSE_US);
		make_data(data, n);
		start = now_ns();
		db_send(publisher, "publish", 1, params, 0);
		end_wait(consumer, way, n);
		if (i >= 0)
			samples[i] = now_ns() - start;
		finish_wait(consumer, way);
		PQclear(db_result(publisher, PGRES_TUPLES_OK));
		db_end(publisher);
	}
	cpu = own_cpu_ns() + backend_cpu_ns(publisher) + backend_cpu_ns(consumer) - cpu;
	PQfinish(consumer);
	PQfinish(publisher);
	return cpu;
}

static int64_t
measure_redis(int64_t *samples, long count)
{
	redisContext *publisher = redis_connect();
	redisContext *consumer = redis_connect();
	redisReply *reply = redisCommand(consumer, "SUBSCRIBE " CHANNEL);
	char		data[DATA_SIZE];
	int64_t		cpu = 0;

	if (reply == NULL)
		die("redis: %s", consumer->errstr);
	freeReplyObject(reply);
	for (long i = -WARM; i < count; i++)
	{
		long		n = i + WARM + 1000000;
		int64_t		start;
		int			done = 0;

		if (i == 0)
			cpu = own_cpu_ns();
		sleep_us(PAUSE_US);
		make_data(data, n);
		start = now_ns();
		redisAppendCommand(publisher, "PUBLISH " CHANNEL " %s", data);
		while (!done)
			if (redisBufferWrite(publisher, &done) != REDIS_OK)
				die("redis: %s", publisher->errstr);
		if (redisGetReply(consumer, (void **) &reply) != REDIS_OK)
			die("redis: %s", consumer->errstr);
		check_message(reply->element[2]->str, n);
		if (i >= 0)
			samples[i] = now_ns() - start;
		freeReplyObject(reply);
		if (redisGetReply(publisher, (void **) &reply) != REDIS_OK)
			die("redis: %s", publisher->errstr);
		freeReplyObject(reply);
	}
	cpu = own_cpu_ns() - cpu;
	redisFree(consumer);
	redisFree(publisher);
	return cpu;
}

int
main(int argc, char **argv)
{
	const Way  *way = NULL;
	int64_t    *samples;
	int64_t		cpu = 0;
	long		count;

	if (argc != 3)
		die("usage: latency notify|redis|await_poll|await_poll_pipelined|poll|next_response COUNT");
	count = number_argument(argv[2], 1);
	if ((samples = calloc(count, sizeof(*samples))) == NULL)
		die("out of memory");
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
		if (strcmp(argv[1], ways[i].name) == 0)
			way = &ways[i];
	if (way != NULL)
		cpu = measure_database(way, samples, count);
	else if (strcmp(argv[1], "redis") == 0)
		cpu = measure_redis(samples, count);
	else
		die("unknown way \"%s\"", argv[1]);
	print_samples(samples, count, cpu);
	free(samples);
	return 0;
}

/*
 * stream.c
 *	  One publisher and one consumer, end to end: how fast events come through.
 *
 *	  stream WAY EVENTS PER_TRANSACTION READERS WINDOW
 *
 * WAY is one of reader.c's.  EVENTS are published, PER_TRANSACTION in one
 * statement and transaction, with up to WINDOW transactions sent ahead; each
 * is to be delivered READERS times (to as many connections, or subscriptions).
 * The time is from sending the first to having the last.
 */
#include "reader.h"

#include <pthread.h>

#define GIVE_UP_AFTER	20		/* reads without anything, a second each */

/* SQL over i, the event's number */
#define DATA			"'{\"id\": ' || i || ', \"total\": \"9.99\", \"customer\": 7}'"

typedef struct Job
{
	const char *way;
	long		events;
	long		per_transaction;
	long		window;
	PGconn	   *conn;
	redisContext *redis;
} Job;

static const char *
publish_statement(const char *way)
{
	if (strcmp(way, "notify") == 0)
		return "SELECT count(pg_notify('" CHANNEL "', " DATA ")) FROM generate_series($1::int, $2::int) i";
	if (strcmp(way, "outbox") == 0)
		return "INSERT INTO bench_outbox (payload) SELECT " DATA " FROM generate_series($1::int, $2::int) i";
	return "SELECT count(subdispatch.publish('" CHANNEL "', (" DATA ")::jsonb)) FROM generate_series($1::int, $2::int) i";
}

/* The same for one event, as an application would write it. */
static const char *
publish_one_statement(const char *way)
{
	if (strcmp(way, "notify") == 0)
		return "SELECT pg_notify('" CHANNEL "', $1)";
	if (strcmp(way, "outbox") == 0)
		return "INSERT INTO bench_outbox (payload) VALUES ($1)";
	return "SELECT subdispatch.publish('" CHANNEL "', $1::jsonb)";
}

static void
send_transaction(Job *job, long first)
{
	char		from[DATA_SIZE];
	char		to[32];
	const char *params[2] = {from, to};

	if (job->per_transaction == 1)
		snprintf(from, sizeof(from), "{\"id\": %ld, \"total\": \"9.99\", \"customer\": 7}", first);
	else
	{
		snprintf(from, sizeof(from), "%ld", first);
		snprintf(to, sizeof(to), "%ld", first + job->per_transaction - 1);
	}
	db_send(job->conn, "publish", job->per_transaction == 1 ? 1 : 2, params, 0);
	if (!PQpipelineSync(job->conn))
		die("%s", PQerrorMessage(job->conn));
}

static void
end_transaction(Job *job)
{
	PGresult   *result = PQgetResult(job->conn);

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		db_expect(job->conn, result, PGRES_COMMAND_OK);
	PQclear(result);
	db_end(job->conn);
	PQclear(db_result(job->conn, PGRES_PIPELINE_SYNC));
}

static void *
publish_database(void *arg)
{
	Job		   *job = arg;
	long		transactions = job->events / job->per_transaction;
	long		sent = 0;

	for (long done = 0; done < transactions; done++)
	{
		/* Half a window at a time, so that one system call sends many. */
		if (sent - done <= job->window / 2)
			while (sent < transactions && sent - done < job->window)
				send_transaction(job, ++sent * job->per_transaction);
		end_transaction(job);
	}
	return NULL;
}

static void *
publish_redis(void *arg)
{
	Job		   *job = arg;
	long		window = job->window * job->per_transaction;
	long		sent = 0;

	for (long done = 0; done < job->events; done++)
	{
		redisReply *reply;

		if (sent - done <= window / 2)
			for (; sent < job->events && sent - done < window; sent++)
				redisAppendCommand(job->redis, "PUBLISH " CHANNEL " {\"id\":%ld,\"total\":\"9.99\",\"customer\":7}", sent);
		if (redisGetReply(job->redis, (void **) &reply) != REDIS_OK)
			die("redis: %s", job->redis->errstr);
		freeReplyObject(reply);
	}
	return NULL;
}

static void
open_publisher(Job *job)
{
	if (strcmp(job->way, "redis") == 0)
	{
		job->redis = redis_connect();
		return;
	}
	job->conn = db_connect();
	/* else each execution is planned: the number of rows would be worth it */
	db_do(job->conn, "SET plan_cache_mode = force_generic_plan");
	db_prepare(job->conn, "publish",
			   job->per_transaction == 1 ? publish_one_statement(job->way) : publish_statement(job->way));
	if (!PQenterPipelineMode(job->conn))
		die("%s", PQerrorMessage(job->conn));
}

/* Reads until that many deliveries are there. */
static void
read_all(Reader *reader, long expected)
{
	long		count = 0;
	int			idle = 0;

	while (count < expected)
	{
		long		n = reader_read(reader);

		count += n;
		idle = n > 0 ? 0 : idle + 1;
		if (idle == GIVE_UP_AFTER)
			die("%ld of %ld deliveries arrived", count, expected);
	}
	if (count > expected)
		die("%ld deliveries instead of %ld", count, expected);
}

/* This process and its backends; what else works for them is not known here. */
static int64_t
cpu_ns(Job *job, Reader *reader)
{
	return own_cpu_ns() + reader_cpu_ns(reader) + (job->conn ? backend_cpu_ns(job->conn) : 0);
}

int
main(int argc, char **argv)
{
	Job			job = {0};
	Reader	   *reader;
	pthread_t	publisher;
	long		readers;
	int64_t		start;
	int64_t		cpu;
	double		seconds;

	if (argc != 6)
		die("usage: stream notify|redis|poll|poll_shared|outbox EVENTS PER_TRANSACTION READERS WINDOW");
	job.way = argv[1];
	job.per_transaction = number_argument(argv[3], 1);
	job.events = number_argument(argv[2], 1) / job.per_transaction * job.per_transaction;
	readers = number_argument(argv[4], 1);
	job.window = number_argument(argv[5], 1);
	reader = reader_open(job.way, readers);
	open_publisher(&job);

	cpu = cpu_ns(&job, reader);
	start = now_ns();
	if (pthread_create(&publisher, NULL, job.redis ? publish_redis : publish_database, &job) != 0)
		die("no thread could be made");
	read_all(reader, job.events * readers);
	seconds = (now_ns() - start) / 1e9;
	pthread_join(publisher, NULL);
	cpu = cpu_ns(&job, reader) - cpu;

	printf("{\"seconds\": %.6f, \"events_per_second\": %.1f, \"deliveries_per_second\": %.1f, \"cpu_seconds\": %.6f,"
		   " \"events\": %ld}\n", seconds, job.events / seconds, job.events * readers / seconds, cpu / 1e9, job.events);
	reader_close(reader);
	if (job.redis != NULL)
		redisFree(job.redis);
	else
		PQfinish(job.conn);
	return 0;
}

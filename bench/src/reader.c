/*
 * reader.c
 *	  A consumer, in each of the ways that are compared.
 *
 * Each touches what it reads as a gateway would that passes it on: it has the
 * bytes of every message in its hands.
 */
#include "reader.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>

#define WAIT_MS			1000
#define OUTBOX_POLL_US	10000	/* how often an empty outbox is looked at */

typedef long (*ReadFunction) (Reader *reader);

struct Reader
{
	ReadFunction read;
	long		nconns;
	PGconn	  **conns;
	redisContext **redis;
	struct pollfd *fds;
	size_t		bytes;			/* of all messages, so that they are looked at */
};

static void *
allocate(size_t count, size_t size)
{
	void	   *p = calloc(count, size);

	if (p == NULL)
		die("out of memory");
	return p;
}

/* Waits for any of the sockets; whether one has something. */
static bool
wait_any(Reader *reader)
{
	int			n = poll(reader->fds, reader->nconns, WAIT_MS);

	if (n < 0 && errno != EINTR)
		die("poll: %s", strerror(errno));
	return n > 0;
}

static long
read_notify(Reader *reader)
{
	long		count = 0;

	if (!wait_any(reader))
		return 0;
	for (long i = 0; i < reader->nconns; i++)
	{
		PGnotify   *notify;

		if (reader->fds[i].revents == 0)
			continue;
		if (!PQconsumeInput(reader->conns[i]))
			die("%s", PQerrorMessage(reader->conns[i]));
		while ((notify = PQnotifies(reader->conns[i])) != NULL)
		{
			reader->bytes += strlen(notify->extra);
			PQfreemem(notify);
			count++;
		}
	}
	return count;
}

static PGresult *
call(Reader *reader, int binary)
{
	PGconn	   *conn = reader->conns[0];

	return db_expect(conn, PQexecPrepared(conn, "read", 0, NULL, NULL, NULL, binary), PGRES_TUPLES_OK);
}

/* What outbox and poll return: a message in the first column of each row. */
static long
read_rows(Reader *reader)
{
	PGresult   *result = call(reader, 0);
	long		count = PQntuples(result);

	for (long i = 0; i < count; i++)
		reader->bytes += PQgetlength(result, i, 0);
	PQclear(result);
	return count;
}

static long
read_outbox(Reader *reader)
{
	long		count = read_rows(reader);

	if (count == 0)
		sleep_us(OUTBOX_POLL_US);
	return count;
}

/* The number of elements of a one-dimensional array in binary form. */
static long
array_length(const char *array)
{
	uint32_t	length;

	memcpy(&length, array + 12, sizeof(length));
	return ntohl(length);
}

static long
read_poll_shared(Reader *reader)
{
	PGresult   *result = call(reader, 1);
	long		count = 0;

	for (int i = 0; i < PQntuples(result); i++)
	{
		count += array_length(PQgetvalue(result, i, 1));
		reader->bytes += PQgetlength(result, i, 0) + PQgetlength(result, i, 1);
	}
	PQclear(result);
	return count;
}

static long
read_redis(Reader *reader)
{
	long		count = 0;

	if (!wait_any(reader))
		return 0;
	for (long i = 0; i < reader->nconns; i++)
	{
		redisContext *redis = reader->redis[i];
		redisReply *reply;

		if (reader->fds[i].revents == 0)
			continue;
		if (redisBufferRead(redis) != REDIS_OK)
			die("redis: %s", redis->errstr);
		while (redisGetReplyFromReader(redis, (void **) &reply) == REDIS_OK && reply != NULL)
		{
			reader->bytes += reply->element[2]->len;
			freeReplyObject(reply);
			count++;
		}
	}
	return count;
}

/* What is read: the channel and the consumer have the same name. */
static const char *
name_to_read(void)
{
	const char *name = getenv("BENCH_NAME");

	return name ? name : CHANNEL;
}

static void
open_redis(Reader *reader)
{
	reader->redis = allocate(reader->nconns, sizeof(*reader->redis));
	for (long i = 0; i < reader->nconns; i++)
	{
		redisReply *reply;

		reader->redis[i] = redis_connect();
		if ((reply = redisCommand(reader->redis[i], "SUBSCRIBE " CHANNEL)) == NULL)
			die("redis: %s", reader->redis[i]->errstr);
		freeReplyObject(reply);
		reader->fds[i] = (struct pollfd) {reader->redis[i]->fd, POLLIN, 0};
	}
}

static void
open_database(Reader *reader, const char *statement, bool prepared)
{
	reader->conns = allocate(reader->nconns, sizeof(*reader->conns));
	for (long i = 0; i < reader->nconns; i++)
	{
		reader->conns[i] = db_connect_consumer();
		if (prepared)
			db_prepare(reader->conns[i], "read", statement);
		else
			db_do(reader->conns[i], statement);
		reader->fds[i] = (struct pollfd) {PQsocket(reader->conns[i]), POLLIN, 0};
	}
}

Reader *
reader_open(const char *way, long connections)
{
	Reader	   *reader = allocate(1, sizeof(*reader));
	const char *name = name_to_read();
	const char *sql = NULL;
	char		statement[256];

	reader->nconns = 1;
	if (strcmp(way, "notify") == 0 || strcmp(way, "redis") == 0)
		reader->nconns = connections;
	reader->fds = allocate(reader->nconns, sizeof(*reader->fds));
	if (strcmp(way, "redis") == 0)
	{
		reader->read = read_redis;
		open_redis(reader);
		return reader;
	}
	if (strcmp(way, "notify") == 0)
	{
		reader->read = read_notify;
		snprintf(statement, sizeof(statement), "LISTEN %s", name);
		open_database(reader, statement, false);
		return reader;
	}
	if (strcmp(way, "poll") == 0)
	{
		reader->read = read_rows;
		sql = "SELECT response, subscription_id, event_id, dropped FROM subdispatch.poll('%s', 5000, '1s')";
	}
	else if (strcmp(way, "poll_shared") == 0)
	{
		reader->read = read_poll_shared;
		sql = "SELECT payload, subscription_ids, type, event_id FROM subdispatch.poll_shared('%s', 1000, '1s')";
	}
	else if (strcmp(way, "outbox") == 0)
	{
		reader->read = read_outbox;
		sql = "DELETE FROM bench_outbox WHERE id IN (SELECT id FROM bench_outbox ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED)"
			" RETURNING payload";
	}
	else
		die("unknown way \"%s\"", way);
	if (snprintf(statement, sizeof(statement), sql, name) >= (int) sizeof(statement))
		die("the name \"%s\" is too long", name);
	open_database(reader, statement, true);
	return reader;
}

long
reader_read(Reader *reader)
{
	return reader->read(reader);
}

int64_t
reader_cpu_ns(Reader *reader)
{
	int64_t		sum = 0;

	for (long i = 0; reader->conns != NULL && i < reader->nconns; i++)
		sum += backend_cpu_ns(reader->conns[i]);
	return sum;
}

void
reader_close(Reader *reader)
{
	for (long i = 0; i < reader->nconns; i++)
	{
		if (reader->redis != NULL)
			redisFree(reader->redis[i]);
		else
			PQfinish(reader->conns[i]);
	}
	free(reader->redis);
	free(reader->conns);
	free(reader->fds);
	free(reader);
}

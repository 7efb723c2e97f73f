/*-------------------------------------------------------------------------
 *
 * redis_conn.c
 *	  One connection to Redis: commands out, replies in, time limits.
 *
 * hiredis parses the replies.  Its limits are not enough where a peer must not
 * be trusted: it allocates an array as large as the peer says, and keeps what
 * the peer sends.  So arrays are bounded, and the bytes of one reply.
 *
 * TIME.  Redis has subdispatch.redis_timeout for connecting and greeting as a
 * whole, and the same from one byte to the next while an answer is due (longer
 * where it was asked to wait itself).
 *
 * SECRETS.  The URL is parsed when it is needed and wiped afterwards, as is what
 * was written.  A peer may send back what it was sent, so texts from it are
 * searched for the password and the key before anybody sees them.
 *
 * Memory: malloc (hiredis, OpenSSL) and TopMemoryContext.  Raises an error only
 * when that is used up; the owner then closes the connection.  Takes no lock.
 *
 *-------------------------------------------------------------------------
 */
#include "redis_conn.h"

#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "subdispatch.h"

#define READ_AT_ONCE		(64 * 1024)
#define MAX_ELEMENTS		100000	/* of an array in a reply */
#define MAX_REPLY			((Size) 512 * 1024 * 1024)
#define KEEP_OUT			(1024 * 1024)	/* a larger buffer is given back */
#define KEEP_IN				(1024 * 1024)	/* likewise */

/* ---- errors ---- */

/* Replaces each occurrence of the secret by as many stars. */
static void
hide(char *text, const char *secret)
{
	Size		len = secret ? strlen(secret) : 0;
	char	   *at = text;

	if (len == 0)
		return;
	while ((at = strstr(at, secret)) != NULL)
	{
		memset(at, '*', len);
		at += len;
	}
}

/* What a peer sent, made fit to be shown. */
static void
make_presentable(RedisConn *conn, char *text)
{
	RedisUrl	url;

	if (subdispatch_redis_url != NULL && redis_url_parse(subdispatch_redis_url, &url) == NULL)
	{
		hide(text, url.password);
		explicit_bzero(&url, sizeof(url));
	}
	/* the one that was used may be another one, after a reload */
	hide(text, conn->net.url.password);
	hide(text, subdispatch_bus_key);
	for (char *p = text; *p; p++)
		if (*p < ' ' || *p > '~')
			*p = ' ';
}

/* "why" may come from the peer. */
void
conn_fail(RedisConn *conn, const char *why)
{
	char		buf[4096];

	if (conn->state == CONN_BROKEN)
		return;
	/* hide first, cut then, so that no part of a secret is left at the end */
	strlcpy(buf, why, sizeof(buf));
	make_presentable(conn, buf);
	strlcpy(conn->error, buf, sizeof(conn->error));
	conn->state = CONN_BROKEN;
}

/* An error that is known by its code gets the words that help. */
static void
fail_by_reply(RedisConn *conn, const char *reply)
{
	static const struct
	{
		const char *code;
		const char *meaning;
	}			known[] = {
		{"OOM ", "Redis has used up its memory (maxmemory)"},
		{"MOVED ", "this is a node of a Redis cluster that has the key elsewhere"},
		{"ASK ", "this is a node of a Redis cluster that moves the key"},
		{"TRYAGAIN ", "the Redis cluster is moving the key"},
		{"CLUSTERDOWN ", "the Redis cluster is down"},
		{"WRONGTYPE ", "the key in Redis is not a stream"},
		{"NOAUTH ", "Redis wants a password"},
		{"WRONGPASS ", "Redis does not accept user and password"},
		{"NOPERM ", "Redis does not permit a command to the user"},
		{"READONLY ", "this Redis is a replica"},
		{"MISCONF ", "Redis cannot write to its disk"},
		{"LOADING ", "Redis is loading its data"},
		{"BUSY ", "Redis is busy with a script"},
		{"MASTERDOWN ", "this Redis is a replica that has lost its primary"},
	};
	char		buf[1024];

	for (Size i = 0; i < lengthof(known); i++)
	{
		/* an error within a script has its code later in the text */
		const char *at = strstr(reply, known[i].code);

		if (at == NULL || (at != reply && at[-1] != ' ' && at[-1] != '-' && at[-1] != ':'))
			continue;
		snprintf(buf, sizeof(buf), "%s: %s", known[i].meaning, reply);
		conn_fail(conn, buf);
		return;
	}
	snprintf(buf, sizeof(buf), "Redis: %s", reply);
	conn_fail(conn, buf);
}

/* ---- the parser ---- */

static redisReplyObjectFunctions reply_functions;
static void *(*create_array) (const redisReadTask *, int);

static void *
create_bounded_array(const redisReadTask *task, int elements)
{
	return elements > MAX_ELEMENTS ? NULL : create_array(task, elements);
}

/* NULL if there is no memory. */
static redisReader *
make_reader(void)
{
	redisReader *reader = redisReaderCreate();

	if (reader == NULL)
		return NULL;
	if (create_array == NULL)
	{
		reply_functions = *reader->fn;
		create_array = reply_functions.createArray;
		reply_functions.createArray = create_bounded_array;
	}
	reader->fn = &reply_functions;
	/* an empty buffer of this size is kept */
	reader->maxbuf = KEEP_IN;
	return reader;
}

/* ---- opening and closing ---- */

void
conn_init(RedisConn *conn)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	memset(conn, 0, sizeof(RedisConn));
	net_init(&conn->net);
	initStringInfo(&conn->out);
	MemoryContextSwitchTo(old);
}

void
conn_close(RedisConn *conn)
{
	net_close(&conn->net);
	if (conn->reader)
		redisReaderFree(conn->reader);
	conn->reader = NULL;
	/* a password was among it */
	explicit_bzero(conn->out.data, conn->out.maxlen);
	resetStringInfo(&conn->out);
	conn->greetings = 0;
	conn->outstanding = 0;
	conn->unparsed = 0;
	conn->block_ms = 0;
	conn->state = CONN_CLOSED;
}

/* From any state. */
void
conn_open(RedisConn *conn, const char *text)
{
	RedisUrl	url;
	const char *wrong;

	conn_close(conn);
	conn->error[0] = '\0';
	conn->last_progress = GetCurrentTimestamp();
	conn->state = CONN_CONNECTING;
	wrong = redis_url_parse(text, &url);
	conn->reader = make_reader();
	if (wrong != NULL || conn->reader == NULL)
		conn_fail(conn, wrong ? wrong : "out of memory");
	else
		net_open(&conn->net, &url);
	explicit_bzero(&url, sizeof(url));
}

/* Who we are, and which database we want. */
static void
greet(RedisConn *conn)
{
	const RedisUrl *url = &conn->net.url;

	if (url->has_password)
	{
		conn_begin(conn, url->has_user ? 3 : 2);
		conn_arg_string(conn, "AUTH");
		if (url->has_user)
			conn_arg_string(conn, url->user);
		conn_arg_string(conn, url->password);
		conn->greetings++;
	}
	if (url->db != 0)
	{
		conn_begin(conn, 2);
		conn_arg_string(conn, "SELECT");
		conn_arg_uint64(conn, (uint64) url->db);
		conn->greetings++;
	}
	conn->state = conn->greetings > 0 ? CONN_GREETING : CONN_READY;
}

/* ---- commands ---- */

void
conn_begin(RedisConn *conn, int n)
{
	appendStringInfo(&conn->out, "*%d\r\n", n);
}

void
conn_arg(RedisConn *conn, const char *arg, Size len)
{
	appendStringInfo(&conn->out, "$%zu\r\n", len);
	appendBinaryStringInfo(&conn->out, arg, (int) len);
	appendBinaryStringInfo(&conn->out, "\r\n", 2);
}

void
conn_arg_string(RedisConn *conn, const char *arg)
{
	conn_arg(conn, arg, strlen(arg));
}

void
conn_arg_uint64(RedisConn *conn, uint64 arg)
{
	char		buf[24];

	conn_arg(conn, buf, (Size) snprintf(buf, sizeof(buf), UINT64_FORMAT, arg));
}

void
conn_end(RedisConn *conn)
{
	if (conn->outstanding++ == 0)
		conn->last_progress = GetCurrentTimestamp();
}

/* ---- moving bytes ---- */

static void
forget_written(RedisConn *conn)
{
	MemoryContext old;

	if (conn_unwritten(conn) > 0)
		return;
	explicit_bzero(conn->out.data, conn->out.len);
	resetStringInfo(&conn->out);
	if (conn->out.maxlen <= KEEP_OUT)
		return;
	pfree(conn->out.data);
	old = MemoryContextSwitchTo(TopMemoryContext);
	initStringInfo(&conn->out);
	MemoryContextSwitchTo(old);
}

static void
write_out(RedisConn *conn)
{
	conn->net.wants = WL_SOCKET_READABLE;
	while (conn_unwritten(conn) > 0)
	{
		size_t		n;
		NetResult	result = net_write(&conn->net, conn->out.data + conn->out.cursor,
									   conn_unwritten(conn), &n);

		if (result == NET_FAILED)
			conn_fail(conn, conn->net.error);
		if (result != NET_DONE)
			return;
		conn->out.cursor += (int) n;
		conn->last_progress = GetCurrentTimestamp();
	}
	forget_written(conn);
}

/* Takes what has come, but not more than a piece at a time. */
static void
read_in(RedisConn *conn)
{
	static char buf[READ_AT_ONCE];
	size_t		n;
	NetResult	result = net_read(&conn->net, buf, sizeof(buf), &n);

	if (result == NET_FAILED)
		conn_fail(conn, conn->net.error);
	if (result != NET_DONE)
		return;
	conn->last_progress = GetCurrentTimestamp();
	conn->unparsed += n;
	if (conn->unparsed > MAX_REPLY)
		conn_fail(conn, "a reply of Redis is too large");
	else if (redisReaderFeed(conn->reader, buf, n) != REDIS_OK)
		conn_fail(conn, "out of memory");
}

/* What the parser makes of what has come; NULL if it is not enough. */
static redisReply *
parse_reply(RedisConn *conn)
{
	void	   *reply = NULL;

	if (conn->state == CONN_BROKEN)
		return NULL;
	if (redisReaderGetReply(conn->reader, &reply) != REDIS_OK)
	{
		conn_fail(conn, psprintf("what Redis answers is not its protocol: %s",
								 conn->reader->errstr));
		return NULL;
	}
	if (reply != NULL)
		conn->unparsed = conn->reader->len - conn->reader->pos;
	return reply;
}

/* The next reply, for whomever; more is read only when none is there. */
static redisReply *
next_reply(RedisConn *conn)
{
	redisReply *reply = parse_reply(conn);

	while (reply == NULL && conn->state != CONN_BROKEN)
	{
		Size		before = conn->unparsed;

		read_in(conn);
		if (conn->unparsed == before)
			break;
		reply = parse_reply(conn);
	}
	if (reply != NULL && reply->type == REDIS_REPLY_ERROR)
	{
		fail_by_reply(conn, reply->str);
		freeReplyObject(reply);
		reply = NULL;
	}
	return reply;
}

redisReply *
conn_reply(RedisConn *conn)
{
	redisReply *reply;

	if (conn->state != CONN_READY)
		return NULL;
	reply = next_reply(conn);
	if (reply == NULL)
		return NULL;
	if (conn->outstanding == 0)
	{
		freeReplyObject(reply);
		conn_fail(conn, "Redis sent a reply to nothing");
		return NULL;
	}
	conn->outstanding--;
	return reply;
}

/* ---- driving ---- */

static void
drive_connecting(RedisConn *conn)
{
	switch (net_continue(&conn->net))
	{
		case NET_DONE:
			greet(conn);
			break;
		case NET_WAIT:
			break;
		case NET_FAILED:
			conn_fail(conn, conn->net.error);
			break;
	}
}

static void
drive_greeting(RedisConn *conn)
{
	redisReply *reply;

	while (conn->greetings > 0 && (reply = next_reply(conn)) != NULL)
	{
		freeReplyObject(reply);
		conn->greetings--;
	}
	if (conn->greetings == 0 && conn->state == CONN_GREETING)
		conn->state = CONN_READY;
}

/* Does the peer owe us anything? */
static bool
is_due(const RedisConn *conn)
{
	return conn->state == CONN_CONNECTING || conn->state == CONN_GREETING ||
		(conn->state == CONN_READY && (conn->outstanding > 0 || conn_unwritten(conn) > 0));
}

static TimestampTz
deadline(const RedisConn *conn)
{
	return conn->last_progress +
		(int64) (subdispatch_redis_timeout + conn->block_ms) * 1000;
}

static void
check_time(RedisConn *conn)
{
	char		buf[128];

	if (!is_due(conn) || GetCurrentTimestamp() < deadline(conn))
		return;
	snprintf(buf, sizeof(buf), conn->state == CONN_CONNECTING ?
			 "could not connect within %d ms" : "no answer within %d ms",
			 subdispatch_redis_timeout + conn->block_ms);
	conn_fail(conn, buf);
}

void
conn_drive(RedisConn *conn)
{
	if (conn->state == CONN_CONNECTING)
		drive_connecting(conn);
	if (conn->state == CONN_GREETING || conn->state == CONN_READY)
		write_out(conn);
	if (conn->state == CONN_GREETING)
		drive_greeting(conn);
	check_time(conn);
}

long
conn_wait_ms(const RedisConn *conn)
{
	long		ms = -1;
	long		poll = net_poll_ms(&conn->net);

	if (is_due(conn))
		ms = Max(1, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline(conn)));
	if (poll >= 0 && conn->state == CONN_CONNECTING)
		ms = ms < 0 ? poll : Min(ms, poll);
	return ms;
}

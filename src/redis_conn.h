/*-------------------------------------------------------------------------
 *
 * redis_conn.h
 *	  One connection to Redis: commands out, replies in, time limits.
 *
 *	  conn_open()			begins to connect, authenticate and select
 *	  conn_drive()			does what can be done without waiting
 *	  conn_begin(), conn_arg() ..., conn_end()
 *							a command, when conn_is_ready()
 *	  conn_reply()			the replies, in the order of the commands
 *	  conn_close()
 *
 * Whatever goes wrong (also a reply that the owner calls wrong, conn_fail())
 * leaves the connection in CONN_BROKEN with a text that holds no secret; what
 * was not answered by then is unknown, and the owner's to find out.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_REDIS_CONN_H
#define SD_REDIS_CONN_H

#include "postgres.h"

#include <hiredis.h>

#include "datatype/timestamp.h"
#include "lib/stringinfo.h"

#include "redis_net.h"

typedef enum ConnState
{
	CONN_CLOSED,
	CONN_CONNECTING,			/* up to and including TLS */
	CONN_GREETING,				/* AUTH, SELECT */
	CONN_READY,
	CONN_BROKEN
} ConnState;

typedef struct RedisConn
{
	ConnState	state;
	RedisNet	net;
	redisReader *reader;		/* hiredis's parser; NULL: none */
	StringInfoData out;			/* commands, from out.cursor on not written yet */
	int			greetings;		/* replies to AUTH and SELECT that are to come */
	int			outstanding;	/* replies to the owner's commands that are to come */
	int			block_ms;		/* how long Redis may wait before it answers */
	TimestampTz last_progress;	/* when anything moved, or waiting began */
	Size		unparsed;		/* bytes received of the reply that is to come */
	char		error[NET_ERROR_SIZE];
} RedisConn;

extern void conn_init(RedisConn *conn);
extern void conn_open(RedisConn *conn, const char *url);
extern void conn_drive(RedisConn *conn);
extern void conn_close(RedisConn *conn);
extern void conn_fail(RedisConn *conn, const char *why);

static inline bool
conn_is_ready(const RedisConn *conn)
{
	return conn->state == CONN_READY;
}

/* A command of n parts.  The parts must follow, all of them. */
extern void conn_begin(RedisConn *conn, int n);
extern void conn_arg(RedisConn *conn, const char *arg, Size len);
extern void conn_arg_string(RedisConn *conn, const char *arg);
extern void conn_arg_uint64(RedisConn *conn, uint64 arg);
extern void conn_end(RedisConn *conn);

/*
 * The next reply, to be freed by freeReplyObject(); NULL if there is none yet.
 * One that is an error breaks the connection and is not returned.
 */
extern redisReply *conn_reply(RedisConn *conn);

/* Bytes that wait to be written. */
static inline Size
conn_unwritten(const RedisConn *conn)
{
	return (Size) (conn->out.len - conn->out.cursor);
}

/* When to call conn_drive() at the latest, in ms; -1: no need. */
extern long conn_wait_ms(const RedisConn *conn);

#endif							/* SD_REDIS_CONN_H */

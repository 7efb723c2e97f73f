/*-------------------------------------------------------------------------
 *
 * redis_begin.c
 *	  Where the bus worker begins to read the stream.
 *
 * A server that has a position (SdBusProgress) goes on there.  One that begins, or
 * that had nobody subscribed for a while, begins at the stream's end, which the
 * script script_hello tells.
 *
 * A REPLICA that begins looks back over replay_wait_timeout: what has not been
 * replayed of that is for those who subscribe now, who cannot see it.  Until it
 * is past that (its position is behind "chain") nobody is told that it reads.
 * Who can write to Redis may have such an event dispatched twice, no other one.
 * What stands before that is given up (replay.c); whether it has been replayed
 * is told by the last few of its entries.
 *
 * Locks: order_lock and registry_lock (shared), in what it calls.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "redis_begin.h"
#include "redis_bus.h"
#include "redis_entry.h"
#include "redis_progress.h"
#include "redis_script.h"

#define OLDER_ENTRIES		32	/* that are looked at before a replica begins */
#define SENT_TOLERANCE		INT64CONST(600000000)	/* us; see redis_read.c */

static bool asked_older = false;	/* what a replica gives up */
static bool reading_begun = false;	/* since begin_ask() */

static uint64
last_id(void)
{
	uint64		id;

	LWLockAcquire(&bus_db->order_lock, LW_SHARED);
	id = bus_db->last_id;
	LWLockRelease(&bus_db->order_lock);
	return id;
}

/* Is anybody there who is owed what passes by? */
static bool
channels_are_kept(void)
{
	return pg_atomic_read_u32(&bus_db->nsubscriptions) > 0 ||
		pg_atomic_read_u32(&bus_db->nlingering) > 0;
}

void
begin_ask(void)
{
	RedisConn  *conn = &read_link.conn;

	conn_begin(conn, 6);
	conn_arg_string(conn, "EVAL");
	conn_arg_string(conn, script_hello);
	conn_arg_string(conn, "2");
	conn_arg_string(conn, bus_stream);
	conn_arg_string(conn, bus_state_key);
	conn_arg_uint64(conn, last_id() + 1);
	conn_end(conn);
	asked_older = false;
	reading_begun = false;
}

static void
ask_older(void)
{
	RedisConn  *conn = &read_link.conn;

	conn_begin(conn, 6);
	conn_arg_string(conn, "XREVRANGE");
	conn_arg_string(conn, bus_stream);
	/* the id of an entry is that of its last event */
	conn_arg_uint64(conn, bus_self()->progress.position + BATCH_MAX_EVENTS - 1);
	conn_arg_string(conn, "-");
	conn_arg_string(conn, "COUNT");
	conn_arg_uint64(conn, OLDER_ENTRIES);
	conn_end(conn);
	asked_older = true;
}

/*
 * At the stream's end, with the senders' last numbers.  What is given an id here
 * from now on gets one by Redis's clock: ours may be ahead of it.  On a replica,
 * which gives none, a little before the end.
 */
static void
begin_at_end(const redisReply *reply, uint64 prev, uint64 now)
{
	SdBusProgress *progress = &bus_self()->progress;
	uint64		back = RecoveryInProgress() ? (uint64) subdispatch_replay_wait_timeout * 1000 : 0;
	uint64		from = prev;

	LWLockAcquire(&bus_db->order_lock, LW_EXCLUSIVE);
	/* what an earlier worker has linked is not linked again */
	if (back > 0)
		from = Min(prev, Max(now - Min(now, back), bus_db->last_id));
	bus_db->last_id = Max(bus_db->last_id, back > 0 ? from : Max(prev, now - 1));
	LWLockRelease(&bus_db->order_lock);

	memset(progress, 0, sizeof(SdBusProgress));
	progress->position = from;
	progress->chain = prev;
	progress->oldest_sent = bus_now() - SENT_TOLERANCE;
	for (Size i = 3; i + 1 < reply->elements; i += 2)
	{
		const redisReply *name = reply->element[i];
		const redisReply *number = reply->element[i + 1];
		SdBusSender *sender;

		if (name->type != REDIS_REPLY_STRING || name->len != SD_SENDER_LEN ||
			number->type != REDIS_REPLY_STRING)
			continue;
		/* more than there are places for: those that are left out are not known */
		if (progress->senders[SD_BUS_SENDERS - 1].name[0] != '\0')
			break;
		sender = progress_add_sender(progress, name->str);
		(void) bus_number(number->str, number->len, &sender->number);
	}
}

/*
 * Goes on where we were.  If Redis has an older state than we have read (it
 * was started without all of its data) something may be missing.
 */
static void
go_on(uint64 prev, uint64 top)
{
	SdBusProgress *progress = &bus_self()->progress;

	if (prev < progress->chain)
	{
		read_tell_break(last_id() + 1);
		progress->chain = prev;
	}
	/* who did not wait until it had looked back, see redis_wait_for_position() */
	else if (progress->position < progress->chain &&
			 pg_atomic_read_u32(&bus_db->nsubscriptions) > 0)
		read_tell_gap(NULL);
	/* entries of others that we have passed were removed, with the stream */
	if (progress->position > top)
		progress_set(progress, progress->chain, 0);
}

/* From now on nothing is missed. */
static void
begin_reading(void)
{
	SdBus	   *bus = bus_self();

	/* subscriptions were made while Redis could not be reached */
	if (!bus->has_position && channels_are_kept())
		read_tell_gap(NULL);
	bus->has_position = true;
	reading_begun = true;
	ConditionVariableBroadcast(&bus_db->changed);
}

/*
 * What is before our beginning will not come.  Commits are in the stream almost
 * in the order of their positions, so the last ones tell how far that goes.
 * False if it is no reply to XREVRANGE.
 */
static bool
take_older(const redisReply *reply)
{
	MemoryContext old = CurrentMemoryContext;
	MemoryContext context;
	Item	   *items;
	ReplayPoint point;

	if (reply->type != REDIS_REPLY_ARRAY || reply->elements > OLDER_ENTRIES)
		return false;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	/* deleted with the transaction, if that is what an error leaves */
	context = AllocSetContextCreate(TopTransactionContext, "subdispatch entries",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	items = palloc(sizeof(Item) * BATCH_MAX_EVENTS);
	replay_look(&point);
	for (size_t i = 0; i < reply->elements; i++)
	{
		int			n = entry_examine(reply->element[i], &point, 0, items);

		/* we may begin in the middle of an entry */
		for (int k = 0; k < n; k++)
			if (items[k].pending && items[k].id <= bus_self()->progress.position)
				replay_give_up(bus_db, &point, &items[k].commit);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	begin_reading();
	return true;
}

/* False if the reply is not that of script_hello. */
static bool
take_hello(const redisReply *reply)
{
	SdBus	   *bus = bus_self();
	uint64		prev;
	uint64		top;
	uint64		now;

	if (reply->type != REDIS_REPLY_ARRAY || reply->elements < 3 ||
		reply->element[0]->type != REDIS_REPLY_STRING ||
		reply->element[1]->type != REDIS_REPLY_STRING ||
		reply->element[2]->type != REDIS_REPLY_STRING ||
		!bus_number(reply->element[2]->str, reply->element[2]->len, &now) ||
		!bus_number(reply->element[0]->str, reply->element[0]->len, &prev) || now == 0)
		return false;
	/* ids that we give go on above these */
	if (Max(prev, now) > (uint64) (bus_now() + FUTURE_TOLERANCE))
	{
		conn_fail(&read_link.conn, "Redis's clock, or the last id in the stream, is more than a day ahead of time");
		return false;
	}
	top = strtou64(reply->element[1]->str, NULL, 10);

	HOLD_INTERRUPTS();
	if (bus->has_position)
		go_on(prev, top);
	else
		begin_at_end(reply, prev, now);
	if (bus->has_position || !RecoveryInProgress())
		begin_reading();
	else
		ask_older();
	RESUME_INTERRUPTS();
	return true;
}

BeginResult
begin_take(const redisReply *reply)
{
	if (asked_older ? !take_older(reply) : !take_hello(reply))
		return BEGIN_FAILED;
	return reading_begun ? BEGIN_DONE : BEGIN_ASKED;
}

/*-------------------------------------------------------------------------
 *
 * redis_read.c
 *	  The bus worker's way in: from the stream to the dispatchers' queues.
 *
 * Every server reads the whole stream of its database, its own events included,
 * with XREAD, which waits in Redis for what is to come.  What is read is
 * checked, and linked for the dispatchers under the id that it has in the
 * stream, so that an event has one id on all servers.  If there is no room for
 * it in a queue no more is read: Redis keeps the rest.  If it is shared memory
 * that is used up, or too small for it, while the queues are empty, the event
 * becomes a gap after MEMORY_PATIENCE: the rest must not wait for it for ever.
 *
 * PROGRESS.  How far this server has read is in shared memory (SdBusProgress):
 * a worker that follows goes on there; where others begin, redis_begin.c tells.
 * Linking and progress are one step that cannot fail or be interrupted.
 *
 * WHAT IS CHECKED, of each entry (1) and of its events:
 *
 *	  1. The MAC.  Only who knows bus_key makes entries.
 *	  2. The sender's number.  One that is not above the sender's last was there
 *		 before (sent again by an attacker, or by a sender whose Redis lost its
 *		 memory).  Of a sender that we don't know it must have been sent lately,
 *		 not before we began to read: what is older may be sent again by
 *		 anybody.  SENT_TOLERANCE is for clocks that differ; what was sent within
 *		 it before we began may be played back to us, once, by who can write to
 *		 Redis and has removed the sender's number there.
 *	  3. Nothing is missing: the entry names the id of the event before it, and a
 *		 sender's numbers follow each other.  Otherwise the stream was trimmed
 *		 past our position, or Redis has lost what it had: all subscriptions of
 *		 the database are told that something is missing.
 *
 * The id is not authenticated (Redis gives it), so it must be plausible: see
 * up_to_future().  What fails 1 or 2 is counted, logged at a limited rate, and passed over.
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

#include "bus_own.h"
#include "redis_begin.h"
#include "redis_bus.h"
#include "redis_entry.h"
#include "redis_progress.h"

#define READ_AT_ONCE		32	/* entries of a reply */
#define LINK_AT_ONCE		(2 * BATCH_MAX_EVENTS)	/* events */
#define BLOCK_MS			2000	/* that Redis waits for an entry */
#define CHUNK_BYTES			(1024 * 1024)	/* of text, that are checked together */
#define MEMORY_PATIENCE		SD_SECOND
#define KEPT_BYTES			(512 * 1024)	/* of memory, for the next step */

RedisLink	read_link;

static bool reading = false;	/* the stream's state was asked for and is known */
static redisReply *entries_reply = NULL;	/* the last reply to XREAD */
static Size next_entry;			/* of its entries, the first not linked to its end */
static bool no_room = false;
static TimestampTz no_memory_since = 0; /* 0: it is not that */
static MemoryContext read_context = NULL;	/* reset after each step */
static Item *items = NULL;		/* LINK_AT_ONCE of them */

/* ---- gaps ---- */

void
read_tell_gap(const uint32 *bits)
{
	gaps_raise(bus_db, bits);
	stats_add(&bus_db->stats, SD_STAT_BUS_GAPS, 1);
}

/* On the channels that the entry is about. */
static void
tell_gap_of(const Item *item)
{
	uint32		bits[SD_SKETCH_SIZE / 32];

	entry_gap_channels(&item->entry, bits);
	read_tell_gap(bits);
}

void
read_tell_break(uint64 id)
{
	bus_self()->broken_before = id;
	read_tell_gap(NULL);
}

static bool
tells_gap(const Item *item)
{
	switch (item->verdict)
	{
		case ENTRY_BAD:
		case ENTRY_REPEATED:
			return false;
		case ENTRY_OLD:
			/* who did not wait until we had looked back does not get it */
			return item->ev != NULL || item->unusable;
		case ENTRY_GOOD:
			break;
	}
	return item->gap || item->unusable || item->entry.kind == BUS_GAP;
}

/*
 * What is missing where the item stands, or before it.  Told before it is
 * linked, so that nobody gets what follows without having been told.  On a
 * replica that may be about what is still to be replayed: so it is for those
 * who subscribe before that, too (replay.c).  What is missing before an entry
 * has committed before it, almost.
 */
static void
tell_gaps(const Item *item, const ReplayPoint *point)
{
	if (item->pending)
		replay_give_up(bus_db, point, &item->commit);
	/* once: what finds no room is linked again */
	if (item->verdict == ENTRY_GOOD && item->gap && bus_self()->broken_before != item->id)
		read_tell_break(item->id);
	if (item->verdict == ENTRY_OLD || item->unusable || item->entry.kind == BUS_GAP)
		tell_gap_of(item);
}

/* ---- linking ---- */

/* What there is to be counted of an entry that was passed. */
static void
settle(const Item *item)
{
	switch (item->verdict)
	{
		case ENTRY_BAD:
			stats_add(&bus_db->stats, SD_STAT_BAD_ENVELOPES, 1);
			return;
		case ENTRY_REPEATED:
			stats_add(&bus_db->stats, SD_STAT_BUS_REPEATED, 1);
			return;
		case ENTRY_OLD:
			return;
		case ENTRY_GOOD:
			break;
	}
	if (item->entry.kind == BUS_GAP)
		return;
	if (item->unusable)
		stats_add(&bus_db->stats, SD_STAT_BAD_ENVELOPES, 1);
	stats_add(&bus_db->stats, SD_STAT_BUS_RECEIVED, 1);
}

/* Does its id become one that was given here? */
static bool
is_numbered(const Item *item)
{
	return item->verdict == ENTRY_GOOD || item->verdict == ENTRY_OLD;
}

/*
 * Links those of the items that are to be linked, and moves on past those before
 * the first one that found no room.  Returns how many are behind us.  Cannot
 * fail, nor be interrupted.
 */
static int
link_run(Item *from, int n)
{
	SdBus	   *bus = bus_self();
	static SdNumbered numbered[LINK_AT_ONCE];
	uint32		nnumbered = 0;
	uint32		nlinked;
	int			done = 0;

	HOLD_INTERRUPTS();
	for (int i = 0; i < n; i++)
	{
		if (!is_numbered(&from[i]))
			continue;
		/* of an old one only the id counts */
		numbered[nnumbered++] = (SdNumbered) {
			.ev = from[i].verdict == ENTRY_GOOD ? from[i].ev : NULL,
			.id = from[i].id, .pending = from[i].pending
		};
	}
	nlinked = publish_numbered(bus_db, numbered, nnumbered);
	nnumbered = 0;
	while (done < n)
	{
		if (is_numbered(&from[done]) && nnumbered++ == nlinked)
			break;
		progress_advance(&bus->progress, &from[done]);
		settle(&from[done]);
		done++;
	}
	RESUME_INTERRUPTS();
	return done;
}

/* The same, but first decides what they are, and tells what is missing between them. */
static int
link_items(Item *from, int n, const ReplayPoint *point)
{
	static SdBusProgress ahead;
	int			done = 0;
	int			end;

	ahead = bus_self()->progress;
	for (int i = 0; i < n; i++)
		progress_advance(&ahead, &from[i]);
	if (n == 0)
		return 0;
	do
	{
		for (end = done + 1; end < n && !tells_gap(&from[end]);)
			end++;
		if (tells_gap(&from[done]))
			tell_gaps(&from[done], point);
		done += link_run(from + done, end - done);
	} while (done == end && done < n);
	return done;
}

/* Is there no room though the dispatchers have nothing to do, and for how long? */
static bool
memory_stays_short(bool stuck)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int d = 0; d < subdispatch_dispatchers; d++)
		stuck = stuck && pg_atomic_read_u64(&bus_db->dispatchers[d].queue_bytes) == 0;
	if (!stuck)
		no_memory_since = 0;
	else if (no_memory_since == 0)
		no_memory_since = now;
	return stuck && now - no_memory_since >= MEMORY_PATIENCE;
}

static void
give_up(Item *item)
{
	item->ev = NULL;
	item->unusable = true;
	item->why = "there is no shared memory for it";
}

static void
complain(const Item *item)
{
	if (item->verdict == ENTRY_REPEATED)
		bus_complain("an entry of the stream in Redis was passed over",
					 psprintf("Event " UINT64_FORMAT ": it was sent before.", item->id));
	else if (item->why != NULL)
		bus_complain(item->verdict == ENTRY_BAD ? "an entry of the stream in Redis was passed over" :
					 "an event of another server cannot be read; its channel's subscriptions are told that something is missing",
					 psprintf("%s " UINT64_FORMAT ": %s.", item->verdict == ENTRY_BAD ? "Entry" : "Event", item->id, item->why));
}

/* ---- the reply to XREAD ---- */

/* The array of entries, or NULL if it has another form. */
static redisReply *
entries_of(redisReply *reply)
{
	redisReply *stream;

	if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 1)
		return NULL;
	stream = reply->element[0];
	if (stream->type != REDIS_REPLY_ARRAY || stream->elements != 2 ||
		stream->element[1]->type != REDIS_REPLY_ARRAY ||
		stream->element[1]->elements > READ_AT_ONCE)
		return NULL;
	return stream->element[1];
}

static Size
entry_size(const redisReply *entry)
{
	const redisReply *fields;

	if (entry->type != REDIS_REPLY_ARRAY || entry->elements != 2)
		return 0;
	fields = entry->element[1];
	if (fields->type != REDIS_REPLY_ARRAY || fields->elements < 4 ||
		fields->element[3]->type != REDIS_REPLY_STRING)
		return 0;
	return fields->element[3]->len;
}

static void
forget_entries(void)
{
	if (entries_reply != NULL)
		freeReplyObject(entries_reply);
	entries_reply = NULL;
	no_room = false;
}

/*
 * An id that is more than a day ahead of time is none of the script's: nothing
 * that comes after it can be.  To go past it would be to miss what comes when
 * the stream has been put right.  Returns how many items stand before it.
 */
static int
up_to_future(int n)
{
	uint64		limit = (uint64) (bus_now() + FUTURE_TOLERANCE);

	for (int i = 0; i < n; i++)
		if (items[i].id > limit)
			return i;
	return n;
}

static void
refuse_future(void)
{
	stats_add(&bus_db->stats, SD_STAT_BAD_ENVELOPES, 1);
	conn_fail(&read_link.conn, "an entry in the stream has an id more than a day ahead of time: remove the stream from Redis");
}

/*
 * Links some of the entries at hand; true if all of them are done with.  An
 * error leaves the rest to be read again.
 */
static bool
link_some(void)
{
	redisReply *entries = entries_of(entries_reply);
	MemoryContext old = CurrentMemoryContext;
	ReplayPoint point;
	Size		bytes = 0;
	Size		at = next_entry;
	int			n = 0;
	int			done;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	MemoryContextSwitchTo(read_context);
	/* before anybody is looked for who subscribes; see entry_examine() */
	replay_look(&point);
	pg_memory_barrier();
	while (at < entries->elements && n <= LINK_AT_ONCE - BATCH_MAX_EVENTS &&
		   (n == 0 || bytes < CHUNK_BYTES))
	{
		const redisReply *entry = entries->element[at++];

		n += entry_examine(entry, &point, bus_self()->progress.position, items + n);
		bytes += entry_size(entry);
		CHECK_FOR_INTERRUPTS();
	}
	n = up_to_future(n);
	done = link_items(items, n, &point);
	/* once it was short for long, it is so for all until one finds room again */
	while (memory_stays_short(done < n))
	{
		give_up(&items[done]);
		done += link_items(items + done, n - done, &point);
	}
	for (int i = 0; i < done; i++)
	{
		complain(&items[i]);
		next_entry += items[i].last ? 1 : 0;
		if (items[i].verdict == ENTRY_GOOD && entry_is_own(&items[i].entry))
			own_forget(items[i].entry.number);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	MemoryContextReset(read_context);

	no_room = done < n;
	if (n == 0)
		refuse_future();
	return next_entry == entries->elements;
}

/* ---- commands ---- */

static void
ask_entries(void)
{
	RedisConn  *conn = &read_link.conn;
	char		after[48];

	snprintf(after, sizeof(after), UINT64_FORMAT "-" UINT64_FORMAT,
			 bus_self()->progress.position, bus_self()->progress.part);
	/* the first one does not wait, and shows that all is well */
	conn_begin(conn, read_link.healthy ? 8 : 6);
	conn_arg_string(conn, "XREAD");
	conn_arg_string(conn, "COUNT");
	conn_arg_uint64(conn, READ_AT_ONCE);
	if (read_link.healthy)
	{
		conn_arg_string(conn, "BLOCK");
		conn_arg_uint64(conn, BLOCK_MS);
		conn->block_ms = BLOCK_MS;
	}
	conn_arg_string(conn, "STREAMS");
	conn_arg_string(conn, bus_stream);
	conn_arg_string(conn, after);
	conn_end(conn);
}

/* ---- the worker's view ---- */

static void
forget_connection(void)
{
	reading = false;
	forget_entries();
}

void
read_init(void)
{
	link_init(&read_link, bus_report);
	/* what is kept when it is reset is enough for small events */
	read_context = AllocSetContextCreate(TopMemoryContext, "subdispatch entries",
										 KEPT_BYTES, ALLOCSET_DEFAULT_INITSIZE,
										 ALLOCSET_DEFAULT_MAXSIZE);
	items = MemoryContextAlloc(TopMemoryContext, sizeof(Item) * LINK_AT_ONCE);
	forget_connection();
}

void
read_reset(void)
{
	link_reset(&read_link);
	MemoryContextReset(read_context);
	forget_connection();
}

bool
read_is_up(void)
{
	const SdBusProgress *progress = &bus_self()->progress;

	return reading && progress->position >= progress->chain && link_is_well(&read_link);
}

bool
read_waits_for_room(void)
{
	return no_room;
}

/*
 * The last entries were not ours.  If whoever keeps Redis removes them and the
 * stream, ids go on below theirs.
 */
static void
look_again(void)
{
	reading = false;
	begin_ask();
}

/* False if it is none to what was asked. */
static bool
take_reply(redisReply *reply)
{
	SdBusProgress *progress = &bus_self()->progress;
	BeginResult result;

	if (!reading)
	{
		result = begin_take(reply);
		reading = result == BEGIN_DONE;
		freeReplyObject(reply);
		return result != BEGIN_FAILED;
	}
	/* nothing came for BLOCK_MS */
	if (reply->type == REDIS_REPLY_NIL)
	{
		freeReplyObject(reply);
		if (progress->position < progress->chain)
			progress_set(progress, progress->chain, 0);
		else if (progress->position > progress->chain)
			look_again();
		return true;
	}
	if (entries_of(reply) == NULL)
	{
		freeReplyObject(reply);
		return false;
	}
	entries_reply = reply;
	next_entry = 0;
	return true;
}

bool
read_turn(void)
{
	RedisConn  *conn = &read_link.conn;
	redisReply *reply;
	bool		fresh;

	if (!link_drive(&read_link, &fresh))
	{
		if (conn->state == CONN_CLOSED)
			forget_connection();
		return false;
	}
	if (fresh)
	{
		forget_connection();
		begin_ask();
	}
	if (entries_reply == NULL && (reply = conn_reply(conn)) != NULL)
	{
		bool		was_reading = reading;

		if (!take_reply(reply))
			conn_fail(conn, "Redis sent a reply of an unexpected type");
		else if (was_reading)
			link_succeeded(&read_link);
	}
	if (entries_reply != NULL && link_some())
		forget_entries();
	if (conn_is_ready(conn) && reading && entries_reply == NULL && conn->outstanding == 0)
		ask_entries();
	conn_drive(conn);
	return entries_reply != NULL && !no_room;
}

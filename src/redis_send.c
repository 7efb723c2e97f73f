/*-------------------------------------------------------------------------
 *
 * redis_send.c
 *	  The bus worker's way out: from its queue to Redis.
 *
 * Events lie in the bus worker's place as they would in a dispatcher's: in the
 * order of commits, each with a number (base_id + ordinal), which rise without
 * a gap as long as the server is up.  They stay in hand until Redis has
 * acknowledged them, so they survive a broken connection and this process.
 *
 * A batch is what one call of script_send adds: an entry of the stream.  While
 * one is under way no small one is sent: what comes meanwhile goes together, as
 * commits share a flush.  Of large ones a few are under way at a time, so that
 * Redis and this process both have work; they are acknowledged in their order.
 * While many transactions commit the next small one is not sent before GATHER_MS
 * are over, since a round through Redis and to all readers costs as much for one
 * event as for a few; whoever commits by himself is not held up (gather.c).
 * When nothing can be sent, however much is committed, nobody needs to wake this
 * process: a signal costs the committing backend more than its event.
 * When anything fails the connection is given up, and the next one begins with
 * the first event that was not acknowledged.  The script tells the last number
 * that it has: where that is another one than expected (events had arrived that
 * were not acknowledged) sending begins anew behind it.
 *
 * GAPS.  Committed events that found no room in the queue were noted by the
 * hash of their channel (redis_lose()).  They are told to all servers by an
 * entry of their own, which gets the next number and so stands behind what was
 * queued then.  An event that cannot be made into text becomes such an entry.
 *
 * Locks: order_lock, for the number of a gap's entry.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "bus_batch.h"
#include "bus_own.h"
#include "dispatcher.h"
#include "event_wire.h"
#include "redis_bus.h"
#include "redis_script.h"
#include "replay.h"

#define MAX_UNDER_WAY		4	/* batches */
/* as much as Redis writes to a reader at once */
#define BATCH_BYTES			(64 * 1024)
/* So many are worth a batch while another one is under way. */
#define MANY_EVENTS			64
/* Between two looks at the queue when nothing can be sent. */
#define STUCK_MS			10
/* No more is made while so much waits to be written. */
#define ENOUGH_UNWRITTEN	(1024 * 1024)
/* A larger text is not sent: Redis takes 512MB, if it was not told otherwise. */
#define MAX_TEXT			((Size) 256 * 1024 * 1024)

RedisLink	send_link;

/* What replies are to come, in their order. */
typedef enum AskedFor
{
	ASKED_SCRIPT,				/* to be loaded: the reply is its name */
	ASKED_BATCH,
	ASKED_SYNC
} AskedFor;

typedef struct Asked
{
	AskedFor	what;
	uint64		last;			/* ASKED_BATCH: number of its last event */
} Asked;

#define MAX_ASKED			(MAX_UNDER_WAY + 2)

static Asked asked[MAX_ASKED];
static int	nasked = 0;
static int	batches_under_way = 0;
static char script_name[41] = "";	/* empty: not loaded on this connection */
static uint64 next_number;		/* to be sent on this connection */
static bool out_of_step = false;	/* Redis has another number: see take_reply() */
static TimestampTz gather_until = 0;	/* from the last batch that was sent on */
static bool more_expected = false;	/* before that, after what it had */

static MemoryContext batch_context = NULL;	/* a batch that is made */
static MemoryContext text_context = NULL;	/* an event of it */

/* wait_dispatched() */
static bool sync_wanted = false;
static bool sync_asked = false;
static bool sync_known = false;
static uint64 sync_number;		/* events below it are to be sent first */
static uint64 sync_target;

/* ---- numbers ---- */

static uint64
block_first_number(const SdBlock *block)
{
	return block->base_id + block->last_ordinal - (block->nevents - 1);
}

static uint64
block_last_number(const SdBlock *block)
{
	return block->base_id + block->last_ordinal;
}

/* What was given out so far. */
static uint64
numbers_end(void)
{
	uint64		end;

	LWLockAcquire(&bus_db->order_lock, LW_SHARED);
	end = bus_self()->next_number;
	LWLockRelease(&bus_db->order_lock);
	return end;
}

/* How many events, and entries of a gap, are in hand from this number on. */
static uint64
in_hand_from(uint64 number)
{
	dlist_head *inhand = &bus_place()->inhand;
	uint64		last = bus_self()->marker_number;

	if (!dlist_is_empty(inhand))
		last = Max(last, block_last_number(dlist_tail_element(SdBlock, node, inhand)));
	return last >= number ? last - number + 1 : 0;
}

/* ---- gaps ---- */

/* Committed events without room get an entry, unless one waits already. */
static void
note_losses(void)
{
	SdBus	   *bus = bus_self();

	if (bus->marker_number != 0 || pg_atomic_read_u32(&bus->nlost) == 0)
		return;
	/* what is lost from now on is for the next one */
	pg_atomic_write_u32(&bus->nlost, 0);
	pg_memory_barrier();
	for (int i = 0; i < SD_SKETCH_SIZE / 32; i++)
		bus->marker[i] = pg_atomic_exchange_u32(&bus->lost[i], 0);
	LWLockAcquire(&bus_db->order_lock, LW_EXCLUSIVE);
	bus->marker_number = bus->next_number++;
	LWLockRelease(&bus_db->order_lock);
}

static BusBytes
gap_of_event(const SdBlock *block, const SdEvent *ev)
{
	BusGap		gap = {.commit = block->commit};
	uint32		bit = ev->channel_hash % SD_SKETCH_SIZE;

	gap.channels[bit / 32] |= UINT32_C(1) << (bit % 32);
	return gap_text(&gap);
}

/* What is lost has committed by now; a replica loses nothing. */
static BusBytes
gap_of_marker(void)
{
	BusGap		gap = {0};

	memcpy(gap.channels, bus_self()->marker, sizeof(gap.channels));
	if (!RecoveryInProgress())
		replay_note_now(&gap.commit);
	return gap_text(&gap);
}

/* ---- making a batch ---- */

/* The event's text; NULL if it has none, which is logged. */
static char *
text_of(const SdBlock *block, const SdEvent *ev, Size *len)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *volatile text = NULL;
	const char *volatile why = NULL;

	PG_TRY();
	{
		const char *reason = NULL;

		text = event_wire_out(ev, &block->commit, len, &reason);
		why = reason;
	}
	PG_CATCH();
	{
		why = bus_event_error(context);
		text = NULL;
	}
	PG_END_TRY();
	if (text != NULL && *len > MAX_TEXT)
	{
		text = NULL;
		why = "its text is too large";
	}
	if (text == NULL)
		bus_complain("an event cannot be sent to the other servers; all of them tell its channel's subscriptions that something is missing",
					 psprintf("Channel \"%s\": %s.", EVENT_CHANNEL(ev), why));
	return text;
}

/* The text is made in a context of its own, which is empty again afterwards. */
static void
add_event(BatchWriter *batch, const SdBlock *block, const SdEvent *ev)
{
	uint64		number = batch->number + batch->count;
	MemoryContext old = MemoryContextSwitchTo(text_context);
	BusBytes	channel = {EVENT_CHANNEL(ev), ev->channel_len};
	BusBytes	text;

	text.data = text_of(block, ev, &text.len);
	if (text.data != NULL)
		batch_add(batch, BUS_EVENT, channel, text);
	else
		batch_add(batch, BUS_GAP, channel, gap_of_event(block, ev));
	own_keep(number, text.data ? ev : NULL, &block->commit);
	MemoryContextSwitchTo(old);
	MemoryContextReset(text_context);
}

/*
 * Adds what comes from number "next" on, in a row.  In a transaction, since a
 * row image may need the catalog.
 */
static void
fill_batch(BatchWriter *batch, uint64 next)
{
	dlist_iter	iter;

	/* only we change the list and its blocks */
	dlist_foreach(iter, &bus_place()->inhand)
	{
		SdBlock    *block = dlist_container(SdBlock, node, iter.cur);
		SdEvent    *ev = block_first(block);

		if (block_last_number(block) < next)
			continue;
		if (block_first_number(block) > next)
			break;				/* a gap's entry stands before it */
		for (uint32 i = 0; i < block->nevents; i++, ev = event_next(ev))
		{
			if (block_first_number(block) + i < next)
				continue;
			if (batch->count == BATCH_MAX_EVENTS || batch->events.len > BATCH_BYTES)
				return;
			add_event(batch, block, ev);
			next++;
		}
	}
	if (batch->count == 0 && bus_self()->marker_number == next)
	{
		batch_add(batch, BUS_GAP, (BusBytes) {"", 0}, gap_of_marker());
		own_keep(next, NULL, NULL);
	}
}

/* ---- commands ---- */

static void
ask(AskedFor what, uint64 last)
{
	Assert(nasked < MAX_ASKED);
	conn_end(&send_link.conn);
	asked[nasked].what = what;
	asked[nasked++].last = last;
}

static void
write_batch(BatchWriter *batch, uint64 floor)
{
	RedisConn  *conn = &send_link.conn;
	BusBytes	text = batch_finish(batch, bus_self()->sender, bus_now());
	uint64		last = batch->number + batch->count - 1;
	char		mac[BUS_MAC_HEX + 1];

	bus_mac(text, bus_stream, subdispatch_bus_key, mac);
	conn_begin(conn, 5 + SCRIPT_SEND_ARGS);
	conn_arg_string(conn, "EVALSHA");
	conn_arg_string(conn, script_name);
	conn_arg_string(conn, "2");
	conn_arg_string(conn, bus_stream);
	conn_arg_string(conn, bus_state_key);
	conn_arg_string(conn, bus_self()->sender);
	conn_arg_uint64(conn, floor);
	conn_arg_uint64(conn, (uint64) subdispatch_redis_max_length);
	conn_arg_uint64(conn, batch->number);
	conn_arg_uint64(conn, bus_self()->acknowledged);
	conn_arg_uint64(conn, batch->count);
	conn_arg(conn, text.data, text.len);
	conn_arg(conn, mac, BUS_MAC_HEX);
	ask(ASKED_BATCH, last);
	batches_under_way++;
	next_number = last + 1;
	gather_until = GetCurrentTimestamp() + GATHER_MS * INT64CONST(1000);
}

/* Ids must rise above those that were given here already. */
static uint64
id_floor(void)
{
	uint64		last;

	LWLockAcquire(&bus_db->order_lock, LW_SHARED);
	last = bus_db->last_id;
	LWLockRelease(&bus_db->order_lock);
	return last + 1;
}

/* More is about to come, or a reply, before the next batch. */
static bool
gathers(void)
{
	return (batches_under_way > 0 || more_expected) && GetCurrentTimestamp() < gather_until;
}

/* Is what there is to be sent worth a batch now? */
static bool
is_worth_sending(void)
{
	uint64		n = in_hand_from(next_number);

	if (batches_under_way == 0 && !gathers())
		return n > 0;
	/* each of those under way has about BATCH_BYTES at most */
	return n >= MANY_EVENTS ||
		(n > 0 && pg_atomic_read_u64(&bus_place()->queue_bytes) >
		 (uint64) BATCH_BYTES * (batches_under_way + 1));
}

/* False if there was nothing to be sent. */
static bool
send_batch(void)
{
	MemoryContext old = CurrentMemoryContext;
	BatchWriter batch;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	MemoryContextSwitchTo(batch_context);
	batch_begin(&batch, next_number);
	fill_batch(&batch, next_number);
	if (batch.count > 0)
		write_batch(&batch, id_floor());
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	MemoryContextReset(batch_context);
	return batch.count > 0;
}

static void
load_script(void)
{
	conn_begin(&send_link.conn, 3);
	conn_arg_string(&send_link.conn, "SCRIPT");
	conn_arg_string(&send_link.conn, "LOAD");
	conn_arg_string(&send_link.conn, script_send);
	ask(ASKED_SCRIPT, 0);
}

static void
ask_sync(void)
{
	conn_begin(&send_link.conn, 3);
	conn_arg_string(&send_link.conn, "HGET");
	conn_arg_string(&send_link.conn, bus_state_key);
	conn_arg_string(&send_link.conn, "prev");
	ask(ASKED_SYNC, 0);
	sync_asked = true;
}

/* ---- replies ---- */

/* Redis has all up to this number. */
static void
acknowledge(uint64 number)
{
	SdBus	   *bus = bus_self();
	uint64		n = 0;
	uint32		nblocks = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &bus_place()->inhand)
	{
		SdBlock    *block = dlist_container(SdBlock, node, iter.cur);
		uint64		first = block_first_number(block);
		uint32		done;

		if (first > number)
			break;
		done = (uint32) Min((uint64) block->nevents, number - first + 1);
		n += done - block->ndone;
		block->ndone = done;
		if (done < block->nevents)
			break;
		nblocks++;
	}
	bus_done(bus_db, SD_BUS_PLACE, nblocks);
	if (bus->marker_number != 0 && bus->marker_number <= number)
		bus->marker_number = 0;
	bus->acknowledged = number;
	more_expected = gather_expects_more(bus_db, nblocks);
	stats_add(&bus_db->stats, SD_STAT_BUS_SENT, n);
}

/*
 * The reply to a batch: the last number that Redis has.  A lower one than that
 * of the batch: it was not added, nor is what is under way behind it.  A higher
 * one: another connection of ours, given up before, got more across.
 */
static bool
take_number(const Asked *to, uint64 number)
{
	if (number >= next_number && number >= numbers_end())
		return false;
	batches_under_way--;
	acknowledge(Max(number, bus_self()->acknowledged));
	next_number = Max(next_number, number + 1);
	out_of_step = out_of_step || number < to->last;
	if (out_of_step && batches_under_way == 0)
	{
		next_number = bus_self()->acknowledged + 1;
		out_of_step = false;
	}
	link_succeeded(&send_link);
	return true;
}

/* False if the reply is none to what was asked. */
static bool
take_reply(const Asked *to, const redisReply *reply)
{
	uint64		number;

	switch (to->what)
	{
		case ASKED_SCRIPT:
			if (reply->type != REDIS_REPLY_STRING || reply->len != sizeof(script_name) - 1)
				return false;
			memcpy(script_name, reply->str, sizeof(script_name) - 1);
			/* with something to send it has to prove itself */
			if (in_hand_from(next_number) == 0)
				link_succeeded(&send_link);
			return true;
		case ASKED_BATCH:
			return reply->type == REDIS_REPLY_STRING &&
				bus_number(reply->str, reply->len, &number) && take_number(to, number);
		case ASKED_SYNC:
			if (reply->type == REDIS_REPLY_STRING)
				sync_target = strtou64(reply->str, NULL, 10);
			else if (reply->type == REDIS_REPLY_NIL)
				sync_target = 0;
			else
				return false;
			sync_known = true;
			return true;
	}
	return false;
}

/*
 * A script that Redis has forgotten (SCRIPT FLUSH) is an error like others; it
 * is loaded anew with the next connection.
 */
static void
take_replies(void)
{
	redisReply *reply;

	while ((reply = conn_reply(&send_link.conn)) != NULL)
	{
		Asked		to = asked[0];
		bool		good;

		Assert(nasked > 0);
		nasked--;
		memmove(asked, asked + 1, sizeof(Asked) * nasked);
		good = take_reply(&to, reply);
		freeReplyObject(reply);
		if (!good)
			conn_fail(&send_link.conn, "Redis sent a reply of an unexpected type");
	}
}

/* ---- the worker's view ---- */

static void
forget_connection(void)
{
	nasked = 0;
	batches_under_way = 0;
	script_name[0] = '\0';
	next_number = bus_self()->acknowledged + 1;
	out_of_step = false;
	more_expected = false;
	sync_asked = sync_known = false;
}

void
send_init(void)
{
	link_init(&send_link, bus_report);
	/* what is kept when they are reset is enough for small events */
	batch_context = AllocSetContextCreate(TopMemoryContext, "subdispatch batch", 8 * BATCH_BYTES,
										  ALLOCSET_DEFAULT_INITSIZE, ALLOCSET_DEFAULT_MAXSIZE);
	own_init();
	text_context = AllocSetContextCreate(TopMemoryContext, "subdispatch event", ALLOCSET_DEFAULT_SIZES);
	forget_connection();
}

void
send_reset(void)
{
	link_reset(&send_link);
	MemoryContextReset(batch_context);
	MemoryContextReset(text_context);
	forget_connection();
}

/*
 * Not before it is settled from where on this server reads: what it sends must
 * come back to its own subscriptions.
 */
static bool
can_send(void)
{
	return script_name[0] != '\0' && conn_is_ready(&send_link.conn) && bus_self()->has_position;
}

bool
send_is_up(void)
{
	return can_send() && link_is_well(&send_link);
}

/* Reading is to keep up: what has been forgotten costs more to read. */
static int
max_under_way(void)
{
	return own_is_filling() ? 1 : MAX_UNDER_WAY;
}

/* Redis is away, or does not answer. */
static bool
is_stuck(void)
{
	return batches_under_way >= max_under_way() || (!can_send() && in_hand_from(next_number) > 0);
}

int
send_gathers_ms(void)
{
	return gathers() ? GATHER_MS : is_stuck() ? STUCK_MS : 0;
}

void
send_turn(void)
{
	bool		fresh;

	note_losses();
	if (!link_drive(&send_link, &fresh))
		return;
	if (fresh)
	{
		forget_connection();
		load_script();
	}
	take_replies();
	while (can_send() && !out_of_step && batches_under_way < max_under_way() &&
		   conn_unwritten(&send_link.conn) < ENOUGH_UNWRITTEN && is_worth_sending())
	{
		if (!send_batch())
			break;
	}
	if (can_send() && sync_wanted && !sync_asked && nasked < MAX_ASKED &&
		next_number >= sync_number)
		ask_sync();
	conn_drive(&send_link.conn);
}

/* Nothing can come between its steps: whoever follows finds all or nothing done. */
uint64
send_give_up(const char *name)
{
	SdBus	   *bus = bus_self();
	uint64		n = 0;
	uint32		nblocks = 0;
	dlist_iter	iter;

	HOLD_INTERRUPTS();
	dlist_foreach(iter, &bus_place()->inhand)
	{
		SdBlock    *block = dlist_container(SdBlock, node, iter.cur);
		SdEvent    *ev = block_first(block);

		for (uint32 i = 0; i < block->nevents; i++, ev = event_next(ev))
			if (i >= block->ndone)
			{
				redis_lose(bus_db, ev->channel_hash);
				n++;
			}
		nblocks++;
	}
	bus_done(bus_db, SD_BUS_PLACE, nblocks);
	if (bus->marker_number != 0)
	{
		for (int i = 0; i < SD_SKETCH_SIZE / 32; i++)
			pg_atomic_fetch_or_u32(&bus->lost[i], bus->marker[i]);
		pg_atomic_fetch_add_u32(&bus->nlost, 1);
		bus->marker_number = 0;
	}
	bus->acknowledged = numbers_end() - 1;
	memcpy(bus->sender, name, SD_SENDER_LEN);
	send_reset();
	RESUME_INTERRUPTS();
	return n;
}

void
send_sync_begin(void)
{
	sync_wanted = true;
	sync_asked = sync_known = false;
	sync_number = numbers_end();
}

bool
send_sync_target(uint64 *id)
{
	*id = sync_target;
	return sync_known;
}

void
send_sync_done(void)
{
	sync_wanted = sync_asked = sync_known = false;
}

/*-------------------------------------------------------------------------
 *
 * redis_range.c
 *	  The bus worker's way back: parts of the stream, read again.
 *
 * What a dispatcher asks for on behalf of those who resume (backfill.c) is read
 * with XRANGE, page by page, on a connection of its own, so that it holds up
 * neither what is sent nor what comes: one page at most is taken up in a turn of
 * the worker.  A scan begins at the lowest id that any dispatcher asks for, and
 * serves all who ask for something within it.  What it finds is collected in
 * this process; when it is over each dispatcher gets its window in one piece of
 * shared memory.  A scan ends when it has enough, at a gap, or with what this
 * server has read of the stream so far: what comes later comes as it always does.
 *
 * Entries have the id of their last event, so what follows an event begins in
 * the first entry that Redis has from that event's id on.
 *
 * MEMORY.  A window has WINDOW_BYTES of events and one more, and WINDOW_IDS ids;
 * a page is asked for as large as, by the size of the last one, is PAGE_BYTES.
 *
 * WHAT IS CHECKED is what redis_read.c checks, by the same functions:
 *
 *	  1. The MAC.
 *	  2. The senders' numbers, as far as the scan reaches.  Of a sender that it has
 *		 not met yet, an entry must not be older than its id by more than
 *		 SENT_TOLERANCE: who can write to Redis may have had an event of the last
 *		 ten minutes replayed to those who resume after it; no older one.
 *	  3. Nothing is missing: entries name the id of the one before, numbers follow
 *		 each other, the last entry is the last that was read when it was new, and
 *		 this server has not found a break in between (SdBus->broken_before).
 *		 The first one may name an id below that which is asked for: that is not
 *		 always one of an entry.  But it must name one, or the stream began
 *		 anew (FLUSHALL).
 *
 * What fails 1 or 2 is passed over without being counted or logged again; if it
 * should have been there, 3 finds that it isn't.  At a gap the scan ends, so that
 * the gap is told in its place.
 *
 * A connection that breaks is made anew, ever later; the scan begins anew then.
 * How long is waited for that is the dispatcher's to decide.
 *
 * Locks: order_lock (shared); the history's, in backfill.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "backfill.h"
#include "redis_bus.h"
#include "redis_entry.h"
#include "redis_progress.h"
#include "shmem.h"

#define PAGE_ENTRIES		128 /* at most */
#define FIRST_PAGE			4	/* nothing is known of their size */
#define PAGE_BYTES			(128 * 1024)
#define WINDOW_BYTES		(256 * 1024)
#define WINDOW_IDS			4096
#define SENT_TOLERANCE		INT64CONST(600000000)	/* us; as in redis_read.c */
#define IDLE_END			(10 * SD_SECOND)	/* the connection is closed */
#define NO_MEMORY_WAIT		(SD_SECOND / 10)

RedisLink	range_link;

/* What one dispatcher gets of a scan. */
typedef struct Target
{
	bool		here;			/* it asks */
	BackfillRequest request;
	WindowEvent *events;		/* in scan_context, as what they point to */
	uint32		nevents;
	uint32		size;
	Size		bytes;
} Target;

typedef struct Scan
{
	bool		active;
	/* set at the beginning */
	uint64		from;
	uint64		last_read;		/* entries up to this id were read when they were new */
	uint64		last_id;		/* and all events up to this id, by our count */
	uint64		chain_end;		/* the last good one of them */
	uint64		broken_before;
	/* how far it is */
	uint64		next_id;		/* where the next page begins */
	uint64		next_part;
	bool		has_chain;		/* progress.chain is known */
	SdBusProgress progress;
	uint32		nids;
	uint64		ids[WINDOW_IDS + 1];
	Size		bytes;			/* of events, all targets */
	/* how it ended */
	bool		over;
	uint64		to;
	bool		gap;
	ChannelSet	gap_channels;
} Scan;

static Scan scan;
static Target targets[SD_MAX_DISPATCHERS];
static MemoryContext scan_context = NULL;	/* what was collected */
static MemoryContext page_context = NULL;
static redisReply *page = NULL;
static Item *items = NULL;		/* of one entry */
static int	page_entries = FIRST_PAGE;	/* as many are asked for */
static int	asked_entries = 0;	/* of the page that is to come; 0: none */
static TimestampTz last_wanted = 0;
static TimestampTz not_before = 0;

/* ---- the beginning of a scan ---- */

static bool
anybody_asks(void)
{
	for (int d = 0; d < subdispatch_dispatchers; d++)
		if (backfill_is_asked(bus_db, d))
			return true;
	return false;
}

static void
forget_scan(void)
{
	scan.active = false;
	asked_entries = 0;
	if (page != NULL)
		freeReplyObject(page);
	page = NULL;
	MemoryContextReset(scan_context);
	MemoryContextReset(page_context);
}

/* False if nobody asks any more. */
static bool
begin_scan(void)
{
	const SdBusProgress *read = &bus_self()->progress;

	forget_scan();
	memset(targets, 0, sizeof(targets));
	memset(&scan, 0, sizeof(scan));
	scan.from = PG_UINT64_MAX;
	for (int d = 0; d < subdispatch_dispatchers; d++)
	{
		targets[d].here = backfill_request(bus_db, d, &targets[d].request);
		if (targets[d].here)
			scan.from = Min(scan.from, targets[d].request.from);
	}
	if (scan.from == PG_UINT64_MAX)
		return false;
	LWLockAcquire(&bus_db->order_lock, LW_SHARED);
	scan.last_id = bus_db->last_id;
	LWLockRelease(&bus_db->order_lock);
	scan.last_read = Min(read->position, scan.last_id);
	scan.chain_end = read->chain;
	scan.broken_before = bus_self()->broken_before;
	scan.next_id = scan.from;
	scan.active = true;
	return true;
}

/* ---- the end of a scan ---- */

static void
end_scan(uint64 to)
{
	scan.over = true;
	scan.to = to;
}

/* channels NULL: all. */
static void
end_with_gap(uint64 to, const uint32 *channels)
{
	end_scan(to);
	scan.gap = true;
	scan.gap_channels.all = channels == NULL;
	if (channels)
		memcpy(scan.gap_channels.bits, channels, sizeof(scan.gap_channels.bits));
}

static SdWindow *
make_window(const Target *t)
{
	Size		head = MAXALIGN(sizeof(SdWindow));
	Size		ids = MAXALIGN(scan.nids * sizeof(uint64));
	Size		events = MAXALIGN(t->nevents * sizeof(WindowEvent));
	SdWindow   *w = sd_alloc(SD_MEM_HISTORY, head + ids + events + t->bytes);
	char	   *at;

	if (w == NULL)
		return NULL;
	w->from = t->request.from;
	w->to = scan.to;
	w->channels = t->request.channels;
	w->gap = scan.gap;
	w->gap_channels = scan.gap_channels;
	w->nids = scan.nids;
	w->ids = (uint64 *) ((char *) w + head);
	memcpy(w->ids, scan.ids, scan.nids * sizeof(uint64));
	w->nevents = t->nevents;
	w->events = (WindowEvent *) ((char *) w->ids + ids);
	at = (char *) w->events + events;
	for (uint32 i = 0; i < t->nevents; i++)
	{
		w->events[i].id = t->events[i].id;
		w->events[i].ev = memcpy(at, t->events[i].ev, t->events[i].ev->size);
		at += t->events[i].ev->size;
	}
	return w;
}

/*
 * Each gets his window.  Who is to begin behind the end asks on.  Without memory
 * it is tried again: by then somebody may have given some back.
 */
static void
hand_over(void)
{
	HOLD_INTERRUPTS();
	for (int d = 0; d < subdispatch_dispatchers; d++)
	{
		Target	   *t = &targets[d];
		SdWindow   *w;

		if (!t->here || t->request.from >= scan.to)
			continue;
		w = make_window(t);
		if (w != NULL)
			backfill_answer(bus_db, d, &t->request, w);
		else
			not_before = GetCurrentTimestamp() + NO_MEMORY_WAIT;
	}
	RESUME_INTERRUPTS();
}

/* ---- one entry ---- */

static void
add_id(uint64 id)
{
	if (scan.nids == 0 || scan.ids[scan.nids - 1] < id)
		scan.ids[scan.nids++] = id;
}

static bool
target_wants(int d, const BusEntry *entry, uint32 hash, uint64 id)
{
	const Target *t = &targets[d];

	return t->here && id > t->request.from &&
		(t->request.channels.all ||
		 (channel_dispatcher(hash) == d && channels_have(&t->request.channels, hash)));
}

static void
add_event(int d, uint64 id, const SdEvent *ev)
{
	Target	   *t = &targets[d];
	MemoryContext old = MemoryContextSwitchTo(scan_context);
	SdEvent    *copy = memcpy(palloc(ev->size), ev, ev->size);

	copy->own_channel = channel_dispatcher(ev->channel_hash) == d;
	copy->star_copy = copy->second = !copy->own_channel;
	if (t->nevents == t->size)
	{
		t->size = t->size * 2 + 64;
		t->events = t->events == NULL ? palloc(t->size * sizeof(WindowEvent)) :
			repalloc(t->events, t->size * sizeof(WindowEvent));
	}
	t->events[t->nevents].id = id;
	t->events[t->nevents++].ev = copy;
	t->bytes += ev->size;
	scan.bytes += ev->size;
	MemoryContextSwitchTo(old);
}

static bool
sets_meet(const ChannelSet *a, const uint32 *bits)
{
	bool		meet = a->all;

	for (int i = 0; i < SD_SKETCH_SIZE / 32; i++)
		meet |= (a->bits[i] & bits[i]) != 0;
	return meet;
}

/* Something is missing where the entry stands; ends the scan if it concerns anybody. */
static void
take_gap(const Item *item)
{
	uint32		bits[SD_SKETCH_SIZE / 32];

	entry_gap_channels(&item->entry, bits);
	for (int d = 0; d < subdispatch_dispatchers; d++)
		if (targets[d].here && sets_meet(&targets[d].request.channels, bits))
		{
			end_with_gap(item->id, bits);
			return;
		}
}

static void
take_event(Item *item)
{
	const BusEntry *entry = &item->entry;
	uint32		hash = channel_hash(entry->channel.data, entry->channel.len);

	for (int d = 0; d < subdispatch_dispatchers; d++)
	{
		if (!target_wants(d, entry, hash, item->id))
			continue;
		if (item->ev == NULL && !item->unusable)
			entry_read_event(item);
		if (item->unusable)
		{
			take_gap(item);
			return;
		}
		add_event(d, item->id, item->ev);
	}
}

/*
 * The first entry behind "from": does it follow, as far as can be told?  If the
 * stream begins with it, only one who knows it by the scan before is there.
 */
static void
find_chain(const Item *item)
{
	bool		follows = item->prev <= scan.from &&
	(item->prev > 0 || scan.from == 0 || item->id == scan.from + 1);

	if (follows && item->prev == scan.from)
		add_id(scan.from);
	scan.progress.chain = follows ? item->prev : scan.from;
	scan.has_chain = true;
}

/* An entry that is ours, behind "from". */
static void
take_good(Item *item)
{
	bool		broken = scan.from + 1 < scan.broken_before && item->id >= scan.broken_before;

	if (!scan.has_chain)
		find_chain(item);
	scan.progress.oldest_sent = (int64) item->id - SENT_TOLERANCE;
	progress_advance(&scan.progress, item);
	if (item->verdict != ENTRY_GOOD)
		return;
	/* the next scan begins with it */
	if ((item->gap || broken) && item->id > scan.from + 1)
	{
		end_with_gap(item->id - 1, NULL);
		return;
	}
	add_id(item->id);
	if (item->entry.kind == BUS_GAP)
		take_gap(item);
	else
		take_event(item);
	if (item->gap || broken)
		end_with_gap(item->id, NULL);
	else if (!scan.over && (scan.nids >= WINDOW_IDS || scan.bytes >= WINDOW_BYTES))
		end_scan(item->id);
}

/* The one that is asked for itself: it is there. */
static void
take_from(const Item *item)
{
	const BusEntry *entry = &item->entry;
	SdBusSender *sender = progress_add_sender(&scan.progress, entry->sender.data);

	sender->number = entry->number;
	sender->sent_at = entry->sent_at;
	progress_set(&scan.progress, item->id, 0);
	scan.progress.chain = item->id;
	scan.has_chain = true;
	add_id(item->id);
}

/* There is no more of what this server has read when it was new. */
static void
end_of_stream(void)
{
	uint64		last = scan.has_chain ? scan.progress.chain : scan.from;
	uint64		to = Max(scan.last_id, last);

	/* the last one that was read; who has seen it misses nothing */
	if (scan.from == scan.chain_end && scan.from > 0)
		add_id(scan.from);
	if (last < scan.chain_end ||
		(scan.from + 1 < scan.broken_before && scan.broken_before <= to + 1))
		end_with_gap(to, NULL);
	else
		end_scan(to);
}

static void
take_item(Item *item)
{
	if (item->id > scan.last_read)
		end_of_stream();
	else if (item->id > scan.from)
		take_good(item);
	else if (!scan.has_chain)
		take_from(item);
}

static void
take_entry(const redisReply *reply)
{
	int			n = entry_check(reply, scan.from > 0 ? scan.from - 1 : 0, items);
	const Item *last = &items[n - 1];

	/* it was not asked for; that is noticed when nothing else comes */
	if (last->id < scan.next_id)
		return;
	/* whatever it is, it must not come again */
	scan.next_id = last->id;
	scan.next_part = last->part + 1;
	if (last->verdict == ENTRY_BAD)
	{
		if (last->id > scan.last_read)
			end_of_stream();
		return;
	}
	stats_add(&bus_db->stats, SD_STAT_BUS_REREAD, n);
	for (int i = 0; i < n && !scan.over; i++)
	{
		take_item(&items[i]);
		CHECK_FOR_INTERRUPTS();
	}
}

/* ---- pages ---- */

static bool
is_page(const redisReply *reply)
{
	return reply->type == REDIS_REPLY_ARRAY && reply->elements <= (Size) asked_entries;
}

static Size
entry_bytes(const redisReply *reply)
{
	Size		bytes = 64;

	if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
		reply->element[1]->type != REDIS_REPLY_ARRAY)
		return bytes;
	for (Size i = 0; i < reply->element[1]->elements; i++)
		bytes += reply->element[1]->element[i]->len;
	return bytes;
}

/* How many the next page may have. */
static void
learn_size(void)
{
	Size		bytes = 0;

	for (Size i = 0; i < page->elements; i++)
		bytes += entry_bytes(page->element[i]);
	if (page->elements > 0)
		page_entries = (int) Max(1, Min(PAGE_ENTRIES, PAGE_BYTES / (bytes / page->elements)));
}

static void
take_page(void)
{
	Size		n = page->elements;
	uint64		id = scan.next_id;
	uint64		part = scan.next_part;
	MemoryContext old = CurrentMemoryContext;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	MemoryContextSwitchTo(page_context);
	for (Size i = 0; i < n && !scan.over; i++)
		take_entry(page->element[i]);
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	MemoryContextReset(page_context);
	if (!scan.over && n < (Size) asked_entries)
		end_of_stream();
	else if (!scan.over && scan.next_id == id && scan.next_part == part)
	{
		conn_fail(&range_link.conn, "Redis sent other entries than those that it was asked for");
		return;
	}
	learn_size();
	freeReplyObject(page);
	page = NULL;
	asked_entries = 0;
	if (!scan.over)
		return;
	hand_over();
	forget_scan();
}

static void
ask_page(void)
{
	RedisConn  *conn = &range_link.conn;
	char		from[48];

	snprintf(from, sizeof(from), UINT64_FORMAT "-" UINT64_FORMAT, scan.next_id, scan.next_part);
	conn_begin(conn, 6);
	conn_arg_string(conn, "XRANGE");
	conn_arg_string(conn, bus_stream);
	conn_arg_string(conn, from);
	conn_arg_string(conn, "+");
	conn_arg_string(conn, "COUNT");
	conn_arg_uint64(conn, (uint64) page_entries);
	conn_end(conn);
	asked_entries = page_entries;
}

/* ---- the worker's view ---- */

static void
report(const char *error)
{
	bus_complain("what subscriptions have missed that resume cannot be read from Redis at the moment", error);
}

void
range_init(void)
{
	link_init(&range_link, report);
	scan_context = AllocSetContextCreate(TopMemoryContext, "subdispatch scan",
										 ALLOCSET_DEFAULT_SIZES);
	items = MemoryContextAlloc(TopMemoryContext, sizeof(Item) * BATCH_MAX_EVENTS);
	page_context = AllocSetContextCreate(TopMemoryContext, "subdispatch page",
										 ALLOCSET_DEFAULT_SIZES);
}

void
range_reset(void)
{
	link_reset(&range_link);
	forget_scan();
}

/* Not before it is settled up to where this server has read. */
static bool
is_wanted(void)
{
	return (scan.active || anybody_asks()) && read_is_up() && GetCurrentTimestamp() >= not_before;
}

/*
 * Beyond what there is to be asked for: a page that was asked for is taken in any
 * case.
 */
bool
range_turn(void)
{
	RedisConn  *conn = &range_link.conn;
	bool		wanted = is_wanted();
	bool		fresh;

	if (wanted)
		last_wanted = GetCurrentTimestamp();
	else if (conn->state == CONN_CLOSED)
		return false;
	else if (GetCurrentTimestamp() - last_wanted > IDLE_END)
	{
		range_reset();
		return false;
	}
	if (!link_drive(&range_link, &fresh))
	{
		if (conn->state == CONN_CLOSED)
			forget_scan();
		return false;
	}
	if (fresh)
		forget_scan();
	if ((page = conn_reply(conn)) != NULL)
	{
		if (is_page(page))
		{
			link_succeeded(&range_link);
			take_page();
		}
		else
		{
			conn_fail(conn, "Redis sent a reply of an unexpected type");
			forget_scan();
		}
	}
	if (wanted && conn_is_ready(conn) && asked_entries == 0 && (scan.active || begin_scan()))
		ask_page();
	conn_drive(conn);
	return false;
}

long
range_wait_ms(void)
{
	if (range_link.conn.state == CONN_CLOSED && !is_wanted())
		return not_before > GetCurrentTimestamp() ? NO_MEMORY_WAIT / 1000 : -1;
	return link_wait_ms(&range_link);
}

/*-------------------------------------------------------------------------
 *
 * history.c
 *	  Dispatched events, kept for subscriptions that come back.
 *
 * A dispatcher that is done with a block keeps it, as it is, in its history:
 * the newest blocks of event_history_size (or of HISTORY_HELD, while some are
 * about to come back to it, see backfill.c).  The memory is counted as a kind of
 * its own and given up first, oldest events first, when an allocation for
 * anything else finds no room.
 *
 * What is complete.  Whoever resumes has to know whether an event of his
 * channel was given up.  Trimming may happen under any lock, so it cannot look
 * channels up; it notes the id of each event that goes in a counter by channel
 * hash (SdDatabase->gone), as the sketch of subscriptions is made.  Two channels
 * may share a counter: then one may be told of a gap that it hasn't, never the
 * other way round.
 *
 * A walk pins the block where it is; that and what follows it stays, so the
 * walk needs the lock only where it goes from one block to the next.
 *
 * Locks: SdHistory->lock of a dispatcher, which guards its list and is held
 * for short steps.  Nothing but DSA's locks is taken inside, and nothing is
 * allocated.  order_lock (shared) for what is in hand: only its dispatcher, who
 * walks, takes anything out of it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "history.h"
#include "shmem.h"

/* At least so much is given up at a time, or each allocation would come here. */
#define RECLAIM_STEP	((Size) 64 * 1024)

/* So much is kept at least while history_hold() is in force. */
#define HISTORY_HELD	((Size) 1024 * 1024)

static inline Size
size_limit(const SdHistory *h)
{
	Size		size = (Size) subdispatch_event_history_size * 1024;

	return pg_atomic_read_u32(unconstify(pg_atomic_uint32 *, &h->held)) ? Max(size, HISTORY_HELD) : size;
}

static inline SdHistory *
history_of(SdDatabase *db, int dispatcher)
{
	return &db->dispatchers[dispatcher].history;
}

static inline int
star_home(void)
{
	return channel_dispatcher(channel_hash(SD_STAR, strlen(SD_STAR)));
}

/* ---- what was given up ---- */

static void
raise_to(pg_atomic_uint64 *to, uint64 id)
{
	uint64		now = pg_atomic_read_u64(to);

	while (now < id && !pg_atomic_compare_exchange_u64(to, &now, id))
		;
}

/* Its events are about to go. */
static void
note_gone(SdDatabase *db, SdBlock *block)
{
	SdEvent    *ev = block_first(block);

	for (uint32 i = 0; i < block->nevents; i++, ev = event_next(ev))
		if (ev->own_channel)
			raise_to(&db->gone[ev->channel_hash % SD_SKETCH_SIZE], event_id(block, ev));
	if (block->dispatcher == star_home())
		raise_to(&db->gone_star, block->base_id + block->last_ordinal);
}

uint64
history_gone(const SdChannel *channel)
{
	SdDatabase *db = channel->db;

	return pg_atomic_read_u64(channel->star ? &db->gone_star :
							  &db->gone[channel->hash % SD_SKETCH_SIZE]);
}

/* ---- trimming ---- */

/*
 * Gives up the oldest until no more than "keep" bytes are left, or "enough"
 * have become free; returns how many did.  Caller holds the history's lock.
 */
static Size
trim(SdDatabase *db, SdHistory *h, Size keep, Size enough)
{
	Size		freed = 0;

	Assert(LWLockHeldByMeInMode(&h->lock, LW_EXCLUSIVE));
	while (!dlist_is_empty(&h->blocks) && freed < enough &&
		   pg_atomic_read_u64(&h->bytes) > keep)
	{
		SdBlock    *block = dlist_head_element(SdBlock, node, &h->blocks);

		if (block == h->pin)
			break;
		if (block == h->hint)
			h->hint = NULL;
		dlist_delete(&block->node);
		note_gone(db, block);
		freed += block->bytes;
		pg_atomic_fetch_sub_u64(&h->bytes, block->bytes);
		sd_free(block);
	}
	return freed;
}

void
history_keep(SdDatabase *db, int dispatcher, SdBlock *block)
{
	SdHistory  *h = history_of(db, dispatcher);

	if (block->bytes > size_limit(h))
	{
		note_gone(db, block);
		sd_free(block);
		return;
	}
	sd_count_as(block, SD_MEM_HISTORY);
	LWLockAcquire(&h->lock, LW_EXCLUSIVE);
	dlist_push_tail(&h->blocks, &block->node);
	pg_atomic_fetch_add_u64(&h->bytes, block->bytes);
	(void) trim(db, h, size_limit(h), SIZE_MAX);
	LWLockRelease(&h->lock);
}

/* Down to so many bytes. */
static void
trim_to(SdDatabase *db, int dispatcher, Size keep)
{
	SdHistory  *h = history_of(db, dispatcher);

	if (pg_atomic_read_u64(&h->bytes) <= keep)
		return;
	LWLockAcquire(&h->lock, LW_EXCLUSIVE);
	(void) trim(db, h, keep, SIZE_MAX);
	LWLockRelease(&h->lock);
}

void
history_trim(SdDatabase *db, int dispatcher)
{
	trim_to(db, dispatcher, size_limit(history_of(db, dispatcher)));
}

void
history_hold(SdDatabase *db, int dispatcher, bool hold)
{
	SdHistory  *h = history_of(db, dispatcher);

	if ((pg_atomic_read_u32(&h->held) != 0) == hold)
		return;
	pg_atomic_write_u32(&h->held, hold);
	history_trim(db, dispatcher);
}

void
history_clear(SdDatabase *db, int dispatcher)
{
	trim_to(db, dispatcher, 0);
}

void
history_clear_all(SdDatabase *db)
{
	for (int d = 0; d < subdispatch_dispatchers; d++)
		history_clear(db, d);
}

uint64
history_bytes(const SdDispatcher *disp)
{
	return pg_atomic_read_u64(unconstify(pg_atomic_uint64 *, &disp->history.bytes));
}

/* ---- when memory is short ---- */

/* The dispatcher with the largest history of less than "below" bytes; 0: none. */
static uint64
find_largest(uint64 below, SdDatabase **db, int *dispatcher)
{
	uint64		largest = 0;

	for (int i = 0; i < SD_MAX_DATABASES; i++)
		for (int d = 0; d < subdispatch_dispatchers; d++)
		{
			uint64		bytes = history_bytes(&sd_shared->databases[i].dispatchers[d]);

			if (bytes > largest && bytes < below)
			{
				largest = bytes;
				*db = &sd_shared->databases[i];
				*dispatcher = d;
			}
		}
	return largest;
}

/*
 * Slots of databases are looked at without their lock: one that is not in use
 * has an empty history.
 */
bool
history_reclaim(Size size)
{
	uint64		below = PG_UINT64_MAX;
	SdDatabase *db;
	int			dispatcher;
	Size		freed = 0;

	if (pg_atomic_read_u64(&sd_shared->mem_used[SD_MEM_HISTORY]) == 0)
		return false;
	size = Max(size, RECLAIM_STEP);
	while (freed < size && (below = find_largest(below, &db, &dispatcher)) > 0)
	{
		SdHistory  *h = history_of(db, dispatcher);

		LWLockAcquire(&h->lock, LW_EXCLUSIVE);
		freed += trim(db, h, 0, size - freed);
		LWLockRelease(&h->lock);
	}
	return freed > 0;
}

/* ---- walking ---- */

static bool
ends_after(const SdBlock *block, uint64 id)
{
	return block->base_id + block->last_ordinal > id;
}

static inline dlist_head *
inhand_of(SdHistoryWalk *walk)
{
	return &walk->db->dispatchers[walk->dispatcher].inhand;
}

static void
enter(SdHistoryWalk *walk, SdBlock *block)
{
	walk->block = block;
	walk->at = 0;
	walk->next = block ? block_first(block) : NULL;
}

/* The first block in hand that has an event to come. */
static void
enter_inhand(SdHistoryWalk *walk)
{
	dlist_iter	iter;

	walk->inhand = true;
	enter(walk, NULL);
	dlist_foreach(iter, inhand_of(walk))
	{
		SdBlock    *block = dlist_container(SdBlock, node, iter.cur);

		if (ends_after(block, walk->after))
		{
			enter(walk, block);
			return;
		}
	}
}

/*
 * The first block with an event after the given one, found from where the last
 * walk was, if that is still there.  Caller holds the lock.
 */
static SdBlock *
find_block(SdHistory *h, uint64 after)
{
	dlist_node *node;

	if (dlist_is_empty(&h->blocks))
		return NULL;
	node = h->hint ? &h->hint->node : dlist_head_node(&h->blocks);
	while (dlist_has_prev(&h->blocks, node) &&
		   ends_after(dlist_container(SdBlock, node, dlist_prev_node(&h->blocks, node)), after))
		node = dlist_prev_node(&h->blocks, node);
	while (!ends_after(dlist_container(SdBlock, node, node), after))
	{
		if (!dlist_has_next(&h->blocks, node))
			return NULL;
		node = dlist_next_node(&h->blocks, node);
	}
	return dlist_container(SdBlock, node, node);
}

void
history_walk_begin(SdHistoryWalk *walk, SdDatabase *db, int dispatcher, uint64 after)
{
	SdHistory  *h = history_of(db, dispatcher);
	SdBlock    *block;

	walk->db = db;
	walk->dispatcher = dispatcher;
	walk->inhand = false;
	walk->after = after;
	LWLockAcquire(&h->lock, LW_EXCLUSIVE);
	block = find_block(h, after);
	h->pin = block;
	LWLockRelease(&h->lock);
	if (block)
		enter(walk, block);
	else
		enter_inhand(walk);
}

/*
 * What was passed stays pinned until the end, so that events which the caller
 * has been given stay where they are.
 */
static void
next_block(SdHistoryWalk *walk)
{
	SdHistory  *h = history_of(walk->db, walk->dispatcher);
	SdBlock    *block = NULL;

	if (walk->inhand)
	{
		if (dlist_has_next(inhand_of(walk), &walk->block->node))
			block = dlist_container(SdBlock, node,
									dlist_next_node(inhand_of(walk), &walk->block->node));
		enter(walk, block);
		return;
	}
	LWLockAcquire(&h->lock, LW_EXCLUSIVE);
	h->hint = walk->block;
	if (dlist_has_next(&h->blocks, &walk->block->node))
		block = dlist_container(SdBlock, node, dlist_next_node(&h->blocks, &walk->block->node));
	LWLockRelease(&h->lock);
	if (block)
		enter(walk, block);
	else
		enter_inhand(walk);
}

SdEvent *
history_walk_next(SdHistoryWalk *walk, uint64 *id)
{
	while (walk->block)
	{
		while (walk->at < walk->block->nevents)
		{
			SdEvent    *ev = walk->next;

			walk->at++;
			walk->next = event_next(ev);
			*id = event_id(walk->block, ev);
			if (*id > walk->after)
				return ev;
		}
		next_block(walk);
	}
	return NULL;
}

void
history_walk_end(SdHistoryWalk *walk)
{
	SdHistory  *h = history_of(walk->db, walk->dispatcher);

	LWLockAcquire(&h->lock, LW_EXCLUSIVE);
	if (walk->block && !walk->inhand)
		h->hint = walk->block;
	h->pin = NULL;
	(void) trim(walk->db, h, size_limit(h), SIZE_MAX);
	LWLockRelease(&h->lock);
}

void
history_unpin(SdDatabase *db, int dispatcher)
{
	SdHistory  *h = history_of(db, dispatcher);

	LWLockAcquire(&h->lock, LW_EXCLUSIVE);
	h->pin = NULL;
	LWLockRelease(&h->lock);
}

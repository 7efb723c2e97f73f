/*-------------------------------------------------------------------------
 *
 * publish_blocks.c
 *	  The events of a transaction in shared memory: blocks of a dispatcher's
 *	  copies, each with many small events or one large one.
 *
 * Until they are linked, blocks are known to their publisher only.  Nothing
 * here raises an error, so all of it may be used after a commit, and in a
 * dispatcher.
 *
 * Takes no lock of ours but those of bus_memory.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "elsewhere.h"
#include "publish.h"
#include "replay.h"
#include "shmem.h"

/* A block is at most this large, unless a single event is larger. */
#define BLOCK_SIZE			(256 * 1024)

void
publish_attach(PublishTx *tx, SdDatabase *db)
{
	tx->star_home = channel_dispatcher(channel_hash(SD_STAR, strlen(SD_STAR)));
	memset(tx->reserved, 0, sizeof(tx->reserved));
	dlist_init(&tx->blocks);
	tx->db = db;
}

/* ---- sizes ---- */

/* A run of events, of which those for one dispatcher fill a block. */
typedef struct Run
{
	uint32		first;
	uint32		end;
	uint32		nevents;
	Size		bytes;			/* of the block */
} Run;

/*
 * The next block for dispatcher d, of events from number "first" on; false if
 * there is none.
 */
static bool
next_run(const PublishTx *tx, int d, uint32 first, Run *run)
{
	run->first = first;
	run->nevents = 0;
	run->bytes = SD_BLOCK_HEADER;
	for (run->end = first; run->end < tx->n; run->end++)
	{
		const Pending *p = &tx->events[run->end];

		if (!goes_to(tx, p, p->copies, d))
			continue;
		if (run->nevents > 0 && run->bytes + p->ev->size > BLOCK_SIZE)
			break;
		run->bytes += p->ev->size;
		run->nevents++;
	}
	return run->nevents > 0;
}

static Size
size_for(const PublishTx *tx, int d)
{
	Size		bytes = 0;
	Run			run;

	for (uint32 first = 0; next_run(tx, d, first, &run); first = run.end)
		bytes += run.bytes;
	return bytes;
}

uint32
blocks_size(const PublishTx *tx, Size *bytes)
{
	uint32		mask = 0;

	for (uint32 i = 0; i < tx->n; i++)
	{
		if (tx->events[i].copies & COPY_HOME)
			mask |= dispatcher_bit(tx->events[i].home);
		if (tx->events[i].copies & COPY_STAR)
			mask |= dispatcher_bit(tx->star_home);
		if (tx->events[i].copies & COPY_BUS)
			mask |= dispatcher_bit(SD_BUS_PLACE);
	}
	for (int d = 0; d < SD_PLACES; d++)
		bytes[d] = (mask & dispatcher_bit(d)) ? size_for(tx, d) : 0;
	return mask;
}

/* ---- blocks ---- */

/* Fills a block; what linking and sequencing will know is left out. */
static SdBlock *
make_block(const PublishTx *tx, int d, const Run *run)
{
	SdBlock    *block = sd_alloc(SD_MEM_EVENT, run->bytes);
	SdEvent    *to;

	if (block == NULL)
		return NULL;
	block->dispatcher = d;
	block->bytes = run->bytes;
	block->nevents = run->nevents;
	to = block_first(block);
	for (uint32 i = run->first; i < run->end; i++)
	{
		const Pending *p = &tx->events[i];

		if (!goes_to(tx, p, p->copies, d))
			continue;
		memcpy(to, p->ev, p->ev->size);
		to->ordinal = p->ordinal;
		to->own_channel = d == p->home;
		to->star_copy = d != p->home;
		to->second = d != p->home && (p->copies & COPY_HOME) != 0;
		block->last_ordinal = p->ordinal;
		to = event_next(to);
	}
	Assert((char *) to == (char *) block + run->bytes);
	return block;
}

static void
free_list(dlist_head *blocks)
{
	while (!dlist_is_empty(blocks))
		sd_free(dlist_container(SdBlock, node, dlist_pop_head_node(blocks)));
}

static void
move_list(dlist_head *to, dlist_head *from)
{
	while (!dlist_is_empty(from))
		dlist_push_tail(to, dlist_pop_head_node(from));
}

/* Makes all blocks for dispatcher d, or none. */
static bool
make_for(PublishTx *tx, int d)
{
	dlist_head	made;
	Run			run;

	dlist_init(&made);
	for (uint32 first = 0; next_run(tx, d, first, &run); first = run.end)
	{
		SdBlock    *block = make_block(tx, d, &run);

		if (block == NULL)
		{
			free_list(&made);
			return false;
		}
		dlist_push_tail(&made, &block->node);
	}
	move_list(&tx->blocks, &made);
	return true;
}

bool
blocks_make(PublishTx *tx, uint32 mask)
{
	for (int d = 0; d < SD_PLACES; d++)
	{
		if ((mask & dispatcher_bit(d)) && !make_for(tx, d))
		{
			/* another may be waiting with the other half of the memory */
			blocks_free(tx);
			return false;
		}
	}
	return true;
}

/* Their room stays reserved. */
void
blocks_free(PublishTx *tx)
{
	free_list(&tx->blocks);
}

void
blocks_release_room(PublishTx *tx)
{
	for (int d = 0; d < SD_PLACES; d++)
	{
		if (tx->reserved[d] > 0)
			bus_release(tx->db, d, tx->reserved[d]);
		tx->reserved[d] = 0;
	}
}

/* ---- late copies ---- */

static void
take_out(PublishTx *tx, int d, dlist_head *to)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &tx->blocks)
	{
		SdBlock    *block = dlist_container(SdBlock, node, iter.cur);

		if (block->dispatcher != d)
			continue;
		dlist_delete(&block->node);
		dlist_push_tail(to, &block->node);
	}
}

/* Late copies for dispatcher d become copies. */
static void
accept_late(PublishTx *tx, int d)
{
	for (uint32 i = 0; i < tx->n; i++)
	{
		Pending    *p = &tx->events[i];

		if (goes_to(tx, p, p->late, d))
			p->copies |= d == p->home ? COPY_HOME : COPY_STAR;
	}
}

/* There was no room for those that accept_late() accepted. */
static void
refuse_late(PublishTx *tx, int d)
{
	for (uint32 i = 0; i < tx->n; i++)
	{
		Pending    *p = &tx->events[i];
		uint8		copy = d == p->home ? COPY_HOME : COPY_STAR;

		if (!goes_to(tx, p, p->late, d))
			continue;
		p->copies &= ~copy;
		p->gap |= copy;
	}
}

/*
 * Adds late copies for dispatcher d to what was prepared for it, each in its
 * place: the order within a transaction is that of publication, so all of d's
 * blocks are made anew.  Without room or memory the late ones become a gap.
 */
void
blocks_add_late(PublishTx *tx, int d)
{
	uint64		limit = (uint64) subdispatch_event_queue_size * 1024;
	uint64		queued = pg_atomic_read_u64(&tx->db->dispatchers[d].queue_bytes);
	dlist_head	prepared;
	Size		more;

	dlist_init(&prepared);
	take_out(tx, d, &prepared);
	accept_late(tx, d);
	more = size_for(tx, d) - tx->reserved[d];

	if (queued + more <= limit && make_for(tx, d))
	{
		bus_force_reserve(tx->db, d, more);
		tx->reserved[d] += more;
		free_list(&prepared);
	}
	else
	{
		refuse_late(tx, d);
		move_list(&tx->blocks, &prepared);
	}
}

/* ---- a single event, at once ---- */

/*
 * See bus.h.  For the dispatcher, outside of a transaction's end.  Cannot
 * fail, and nothing in it can be interrupted: what is reserved gets linked.
 */
bool
publish_now(SdDatabase *db, const SdEvent *ev)
{
	Pending		event = {0};
	PublishTx	tx = {0};
	Size		bytes[SD_PLACES];
	uint32		mask;
	int			full;
	bool		linked = false;

	event.ev = unconstify(SdEvent *, ev);
	event.home = channel_dispatcher(ev->channel_hash);
	tx.events = &event;
	tx.n = 1;
	publish_attach(&tx, db);

	/* so that its id is above those that come from Redis, and the same everywhere */
	if (subdispatch_event_bus == SD_BUS_REDIS)
		copies_choose_bus(&tx);
	else
	{
		elsewhere_begin(db);
		elsewhere_note(db);
		copies_choose(&tx);
	}
	mask = blocks_size(&tx, bytes);
	if (mask == 0)
		return true;

	if (bus_reserve(db, bytes, &full))
	{
		memcpy(tx.reserved, bytes, sizeof(bytes));
		linked = blocks_make(&tx, mask);
	}
	if (linked)
	{
		/* a notification comes after its commit */
		if (tx.by_redis)
			replay_note_now(&tx.commit);
		bus_link(db, &tx.blocks, tx.n, &tx.commit);
		copies_count_published(&tx);
		if (tx.by_redis)
			redis_want_worker(db);
	}
	else
		blocks_release_room(&tx);
	return linked;
}

/* ---- events with ids ---- */

/*
 * Makes blocks of events that are to be linked together, which base_id and
 * ordinals give their ids.  False without room or memory.
 */
static bool
link_numbered(PublishTx *tx, uint64 first, uint64 last)
{
	Size		bytes[SD_PLACES];
	uint32		mask;
	int			full;
	dlist_iter	iter;

	copies_choose(tx);
	mask = blocks_size(tx, bytes);
	if (mask != 0)
	{
		if (!bus_reserve(tx->db, bytes, &full))
			return false;
		memcpy(tx->reserved, bytes, sizeof(bytes));
		if (!blocks_make(tx, mask))
		{
			blocks_release_room(tx);
			return false;
		}
	}
	dlist_foreach(iter, &tx->blocks)
		dlist_container(SdBlock, node, iter.cur)->base_id = first;
	bus_link_with_ids(tx->db, &tx->blocks, first, last);
	return true;
}

/* Events linked together; bounds what a look at them costs. */
#define NUMBERED_AT_ONCE	256

/*
 * How many from the first one on are linked together: what fits into a block,
 * and their ids into ordinals.
 */
static uint32
numbered_run(PublishTx *tx, const SdNumbered *events, uint32 n)
{
	Size		bytes = 0;
	uint32		i;

	tx->n = 0;
	for (i = 0; i < n && i < NUMBERED_AT_ONCE; i++)
	{
		Pending    *p = &tx->events[tx->n];

		if (events[i].id - events[0].id > PG_UINT32_MAX)
			break;
		if (events[i].ev == NULL)
			continue;
		if (bytes > 0 && bytes + events[i].ev->size > BLOCK_SIZE / 2)
			break;
		memset(p, 0, sizeof(Pending));
		p->ev = events[i].ev;
		p->home = channel_dispatcher(p->ev->channel_hash);
		p->ordinal = (uint32) (events[i].id - events[0].id);
		p->for_all = events[i].pending;
		bytes += p->ev->size;
		tx->n++;
	}
	return i;
}

/* See bus.h.  Nothing in it can be interrupted, as in publish_now(). */
uint32
publish_numbered(SdDatabase *db, const SdNumbered *events, uint32 n)
{
	Pending		pending[NUMBERED_AT_ONCE];
	uint32		at = 0;

	/* who subscribes from now on knows that these may pass him by */
	if (n > 0)
		pg_atomic_write_u64(&db->bus.linking, events[n - 1].id);
	pg_memory_barrier();		/* pairs with registry_get_stream() */
	while (at < n)
	{
		PublishTx	tx = {.events = pending};
		uint32		run = numbered_run(&tx, events + at, n - at);

		publish_attach(&tx, db);
		if (!link_numbered(&tx, events[at].id, events[at + run - 1].id))
		{
			/* perhaps there is room for one */
			if (run == 1)
				break;
			run = numbered_run(&tx, events + at, 1);
			publish_attach(&tx, db);
			if (!link_numbered(&tx, events[at].id, events[at].id))
				break;
		}
		at += run;
	}
	return at;
}

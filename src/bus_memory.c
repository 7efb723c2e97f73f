/*-------------------------------------------------------------------------
 *
 * bus_memory.c
 *	  The memory bus: what lies between the commit of a transaction and the
 *	  dispatch of its events.
 *
 * A block of events goes through these hands:
 *
 *	  1. The publisher, before its commit record, reserves room in the queues of
 *		 the dispatchers concerned (queue_bytes), fills blocks in shared memory
 *		 that nobody else knows of yet, and takes a ticket.
 *	  2. After its commit became visible it gives the ticket back and links the
 *		 blocks into db->linked, by ticket.
 *	  3. Whichever dispatcher wakes first moves what may go from db->linked to
 *		 the dispatchers' queues and gives the events their ids: this is the
 *		 order of dispatch.
 *	  4. The dispatcher takes its queue in hand, dispatches it block by block,
 *		 and keeps each in its history.  Blocks in hand outlive their dispatcher: the one that
 *		 follows finds them.
 *
 * THE ORDER.  A transaction A becomes visible before its callback links its
 * events.  In between B may see a row of A's, change it, commit and link
 * first; but A's event has to go first.  Tickets tell: A took its ticket before
 * its commit record, B after A was visible, so A's is lower.  Step 3 must only
 * see to it that B does not go while A is visible and not linked:
 *
 *	  a. Under order_lock note how far linking has come (link_counter, L), and
 *		 which tickets lower than the highest linked one are still taken, with
 *		 their transaction ids.
 *	  b. Without the lock, look which of these transactions are no longer in
 *		 progress: they are visible (or aborted) and about to link (or to give
 *		 their ticket back).  The lowest of their tickets is the bound.
 *	  c. Under order_lock again sequence what has a ticket below the bound and
 *		 was linked no later than L, in the order of tickets.
 *
 * Say that B was linked by L and depends on A.  A was visible before B took
 * its ticket, hence before (a).  So either A is linked by L too and goes first
 * by its ticket, or its ticket is taken in (a) and (b) finds A not in progress,
 * and B waits for it.  If (b) finds a transaction in progress, it was not
 * visible when anything noted in (a) was linked, and nothing of that depends
 * on it; what links after (a) has to wait for the next turn, as its dependence
 * was not looked at.  A transaction without an id has changed no row: it
 * can depend on others, but none on it, and takes its ticket when it links.
 *
 * Whoever links or gives back a ticket wakes the dispatcher whose blocks wait
 * first, so that what was held back goes on; a dispatcher also looks again
 * after a short time while anything stays linked.
 *
 * LOCKS.  order_lock guards tickets, lists and ids, and is held for short
 * steps only.  queue_bytes is atomic, so that reserving takes no lock; room is
 * signalled whenever it falls.  Transaction ids are looked up holding no lock.
 *
 * DEATH.  A backend that ends regularly goes through its abort callback, which
 * gives everything back; one that is killed makes the server restart, and
 * all of this memory is new.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "bus.h"
#include "history.h"
#include "shmem.h"

static inline SdTicketSlot *
my_slot(void)
{
	return &sd_shared->slots[MyProc->pgprocno];
}

static inline Size
queue_limit(void)
{
	return (Size) subdispatch_event_queue_size * 1024;
}

/* Wakes the dispatchers whose bits are set.  Caller holds no lock. */
static void
wake_mask(SdDatabase *db, uint32 mask)
{
	while (mask != 0)
	{
		int			d = pg_rightmost_one_pos32(mask);

		database_wake(db, d);
		mask &= mask - 1;
	}
}

/* ---- room ---- */

static bool
reserve_one(SdDispatcher *disp, Size bytes)
{
	uint64		now = pg_atomic_read_u64(&disp->queue_bytes);

	do
	{
		if (now + bytes > queue_limit())
			return false;
	} while (!pg_atomic_compare_exchange_u64(&disp->queue_bytes, &now, now + bytes));
	return true;
}

/*
 * Takes no lock, never waits.  bytes[] has SD_PLACES members.
 */
bool
bus_reserve(SdDatabase *db, const Size *bytes, int *full_dispatcher)
{
	for (int d = 0; d < SD_PLACES; d++)
	{
		if (bytes[d] == 0 || reserve_one(&db->dispatchers[d], bytes[d]))
			continue;
		*full_dispatcher = d;
		while (--d >= 0)
			if (bytes[d] > 0)
				bus_release(db, d, bytes[d]);
		return false;
	}
	return true;
}

/* Reserves beyond the limit, for those who must not wait. */
void
bus_force_reserve(SdDatabase *db, int dispatcher, Size bytes)
{
	pg_atomic_fetch_add_u64(&db->dispatchers[dispatcher].queue_bytes, bytes);
}

void
bus_release(SdDatabase *db, int dispatcher, Size bytes)
{
	SdDispatcher *disp = &db->dispatchers[dispatcher];

	Assert(pg_atomic_read_u64(&disp->queue_bytes) >= bytes);
	pg_atomic_fetch_sub_u64(&disp->queue_bytes, bytes);
	ConditionVariableBroadcast(&disp->room);
}

/* ---- tickets ---- */

/* Caller holds order_lock. */
static void
count_taken(SdDatabase *db, int more)
{
	pg_atomic_write_u32(&db->ntaken, pg_atomic_read_u32(&db->ntaken) + more);
}

/*
 * Takes the place of this transaction in the order of commits: after its work
 * and before its commit record.  Without a transaction id there is nothing to
 * take.  Takes order_lock.
 */
void
bus_take_ticket(SdDatabase *db, TransactionId xid)
{
	SdTicketSlot *slot = my_slot();

	Assert(slot->ticket == 0);
	if (!TransactionIdIsValid(xid))
		return;

	LWLockAcquire(&db->order_lock, LW_EXCLUSIVE);
	slot->ticket = db->next_ticket++;
	slot->xid = xid;
	dlist_push_tail(&db->taken, &slot->node);
	count_taken(db, 1);
	LWLockRelease(&db->order_lock);
}

/* The ticket that this backend had, or 0.  Caller holds order_lock. */
static uint64
return_ticket(SdDatabase *db, SdTicketSlot *slot)
{
	uint64		ticket = slot->ticket;

	if (ticket != 0)
	{
		dlist_delete(&slot->node);
		count_taken(db, -1);
		slot->ticket = 0;
		slot->xid = InvalidTransactionId;
	}
	return ticket;
}

/*
 * The dispatcher that has to look again when a ticket was returned: what may
 * have waited for it has a higher one.  One is enough, as it sequences for all.
 * Caller holds order_lock.
 */
static uint32
held_back_mask(SdDatabase *db, uint64 ticket)
{
	SdBlock    *last;

	if (dlist_is_empty(&db->linked))
		return 0;
	last = dlist_tail_element(SdBlock, node, &db->linked);
	return last->ticket > ticket ? UINT32_C(1) << last->dispatcher : 0;
}

/* Gives back what was taken and not linked; does nothing if there is none. */
void
bus_give_back_ticket(SdDatabase *db)
{
	SdTicketSlot *slot = my_slot();
	uint64		ticket;
	uint32		mask;

	/* only this backend writes it */
	if (slot->ticket == 0)
		return;

	LWLockAcquire(&db->order_lock, LW_EXCLUSIVE);
	ticket = return_ticket(db, slot);
	mask = held_back_mask(db, ticket);
	LWLockRelease(&db->order_lock);
	wake_mask(db, mask);
}

/* ---- linking ---- */

/* Caller holds order_lock. */
static void
insert_by_ticket(SdDatabase *db, SdBlock *block)
{
	dlist_node *after = &db->linked.head;
	dlist_iter	iter;

	/* from the tail: hardly anything there has a higher ticket */
	dlist_reverse_foreach(iter, &db->linked)
	{
		if (dlist_container(SdBlock, node, iter.cur)->ticket <= block->ticket)
		{
			after = iter.cur;
			break;
		}
	}
	dlist_insert_after(after, &block->node);
}

/*
 * Links the blocks of a transaction that has become visible, for which
 * bus_reserve() was called; tx_events counts all of its events, also those in
 * no block.  Its ticket goes back.  Cannot fail.  Takes order_lock.
 */
void
bus_link(SdDatabase *db, dlist_head *blocks, uint32 tx_events, const SdPosition *commit)
{
	TimestampTz now = GetCurrentTimestamp();
	uint64		ticket;
	uint64		link_no;
	uint32		mask;

	LWLockAcquire(&db->order_lock, LW_EXCLUSIVE);
	ticket = return_ticket(db, my_slot());
	if (ticket == 0)
		ticket = db->next_ticket++;
	mask = held_back_mask(db, ticket);
	link_no = ++db->link_counter;
	while (!dlist_is_empty(blocks))
	{
		SdBlock    *block = dlist_container(SdBlock, node, dlist_pop_head_node(blocks));

		block->ticket = ticket;
		block->link_no = link_no;
		block->tx_events = tx_events;
		block->commit = *commit;
		block->linked_at = now;
		insert_by_ticket(db, block);
		pg_atomic_fetch_add_u64(&db->dispatchers[block->dispatcher].queue_events,
								block->nevents);
		mask |= UINT32_C(1) << block->dispatcher;
	}
	LWLockRelease(&db->order_lock);
	wake_mask(db, mask);
}

/* ---- the order of dispatch ---- */

typedef struct TakenTicket
{
	uint64		ticket;
	TransactionId xid;
} TakenTicket;

/* Room for everybody's ticket, allocated at first use. */
static TakenTicket *
ticket_buffer(void)
{
	static TakenTicket *buffer = NULL;

	if (buffer == NULL)
		buffer = MemoryContextAlloc(TopMemoryContext,
									sizeof(TakenTicket) * sd_shared->nslots);
	return buffer;
}

/*
 * Copies the tickets below a bound that are taken, in their order; returns how
 * many.  Caller holds order_lock.
 */
static int
copy_taken(SdDatabase *db, uint64 below, TakenTicket *to)
{
	dlist_iter	iter;
	int			n = 0;

	dlist_foreach(iter, &db->taken)
	{
		SdTicketSlot *slot = dlist_container(SdTicketSlot, node, iter.cur);

		if (slot->ticket >= below)
			break;
		Assert(n < sd_shared->nslots);
		to[n].ticket = slot->ticket;
		to[n].xid = slot->xid;
		n++;
	}
	return n;
}

/*
 * The lowest of these tickets whose transaction is visible (or has aborted);
 * PG_UINT64_MAX if all are in progress.  Caller holds no lock.
 */
static uint64
lowest_ended(const TakenTicket *taken, int n)
{
	for (int i = 0; i < n; i++)
		if (!TransactionIdIsInProgress(taken[i].xid))
			return taken[i].ticket;
	return PG_UINT64_MAX;
}

/*
 * Moves linked blocks with a ticket below "bound", linked no later than "upto",
 * to the queues and gives them ids.  Returns the dispatchers that got any.
 * Caller holds order_lock; now is in microseconds of the Unix epoch.
 */
static uint32
move_to_queues(SdDatabase *db, uint64 bound, uint64 upto, uint64 now)
{
	dlist_mutable_iter iter;
	uint64		ticket = 0;
	uint64		base_id = 0;
	uint32		mask = 0;

	dlist_foreach_modify(iter, &db->linked)
	{
		SdBlock    *block = dlist_container(SdBlock, node, iter.cur);

		if (block->ticket >= bound)
			break;
		if (block->link_no > upto)
			continue;
		if (block->ticket != ticket)
		{
			ticket = block->ticket;
			base_id = block->dispatcher == SD_BUS_PLACE ?
				bus_next_numbers(db, block->tx_events) : bus_next_ids(db, block->tx_events, now);
		}
		block->base_id = base_id;
		dlist_delete(&block->node);
		dlist_push_tail(&db->dispatchers[block->dispatcher].queue, &block->node);
		mask |= UINT32_C(1) << block->dispatcher;
	}
	return mask;
}

/* Puts all of "from" behind what is in "to". */
static void
append_list(dlist_head *to, dlist_head *from)
{
	dlist_node *first;
	dlist_node *last;

	if (dlist_is_empty(from))
		return;
	first = dlist_head_node(from);
	last = dlist_tail_node(from);
	first->prev = to->head.prev;
	last->next = &to->head;
	to->head.prev->next = first;
	to->head.prev = last;
	dlist_init(from);
}

/*
 * Sequences what may go, for all dispatchers, and takes this one's queue in
 * hand.  True if there is something in hand.  Takes order_lock; call it
 * holding no lock.  Inside or outside of a transaction.
 */
bool
bus_sequence(SdDatabase *db, int dispatcher)
{
	SdDispatcher *me = &db->dispatchers[dispatcher];
	TakenTicket *taken = ticket_buffer();
	uint64		now = (uint64) (GetCurrentTimestamp() + UNIX_EPOCH_US);
	uint64		bound = PG_UINT64_MAX;
	uint64		upto;
	uint32		mask = 0;
	bool		result;

	LWLockAcquire(&db->order_lock, LW_EXCLUSIVE);
	if (!dlist_is_empty(&db->linked))
	{
		SdBlock    *last = dlist_tail_element(SdBlock, node, &db->linked);
		int			n = copy_taken(db, last->ticket, taken);

		upto = db->link_counter;
		if (n > 0)
		{
			LWLockRelease(&db->order_lock);
			bound = lowest_ended(taken, n);
			LWLockAcquire(&db->order_lock, LW_EXCLUSIVE);
		}
		mask = move_to_queues(db, bound, upto, now);
	}
	append_list(&me->inhand, &me->queue);
	result = !dlist_is_empty(&me->inhand);
	LWLockRelease(&db->order_lock);

	wake_mask(db, mask & ~(UINT32_C(1) << dispatcher));
	return result;
}

/*
 * Puts blocks into the dispatchers' queues whose base_id is set already, rising
 * in each queue.  For the bus worker: events come with the ids that Redis gave
 * them.  Should this server have got ahead of these (the bus was changed, or a
 * clock), all ids are raised as far as they must, since streams go by them.
 * first and last are those of all events, also of those in no block.  Cannot
 * fail.  Takes order_lock.
 */
void
bus_link_with_ids(SdDatabase *db, dlist_head *blocks, uint64 first, uint64 last)
{
	TimestampTz now = GetCurrentTimestamp();
	uint64		raise;
	uint32		mask = 0;

	LWLockAcquire(&db->order_lock, LW_EXCLUSIVE);
	raise = first > db->last_id ? 0 : db->last_id + 1 - first;
	while (!dlist_is_empty(blocks))
	{
		SdBlock    *block = dlist_container(SdBlock, node, dlist_pop_head_node(blocks));
		SdDispatcher *disp = &db->dispatchers[block->dispatcher];

		block->base_id += raise;
		block->linked_at = now;
		dlist_push_tail(&disp->queue, &block->node);
		pg_atomic_fetch_add_u64(&disp->queue_events, block->nevents);
		mask |= UINT32_C(1) << block->dispatcher;
	}
	db->last_id = last + raise;
	Assert(db->last_id < SD_MAX_EVENT_ID);
	if (unlikely(raise > 0))
		bus_note_elsewhere(db, db->last_id);
	LWLockRelease(&db->order_lock);
	wake_mask(db, mask);
}

/* ---- the end of blocks ---- */

/*
 * The dispatcher is done with the first n blocks in its hand; all that they led
 * to can be read.  They go into the history, unless they are what Redis has now.
 * Those that are done with together are so in one step, since committing
 * backends want the lock, too.  Takes order_lock.
 */
void
bus_done(SdDatabase *db, int dispatcher, uint32 n)
{
	SdDispatcher *me = &db->dispatchers[dispatcher];
	dlist_head	blocks;
	Size		bytes = 0;
	uint64		nevents = 0;

	if (n == 0)
		return;
	dlist_init(&blocks);
	LWLockAcquire(&db->order_lock, LW_EXCLUSIVE);
	for (uint32 i = 0; i < n; i++)
		dlist_push_tail(&blocks, dlist_pop_head_node(&me->inhand));
	LWLockRelease(&db->order_lock);

	while (!dlist_is_empty(&blocks))
	{
		SdBlock    *block = dlist_container(SdBlock, node, dlist_pop_head_node(&blocks));

		Assert(block->dispatcher == dispatcher);
		bytes += block->bytes;
		nevents += block->nevents;
		pg_atomic_write_u64(&me->done_id, block->base_id + block->last_ordinal);
		if (dispatcher == SD_BUS_PLACE)
			sd_free(block);
		else
			history_keep(db, dispatcher, block);
	}
	pg_atomic_fetch_sub_u64(&me->queue_events, nevents);
	bus_release(db, dispatcher, bytes);
	ConditionVariableBroadcast(&db->changed);
}

/*
 * Empties a list of blocks that no longer can be found; releases their room.
 * Caller holds no lock.
 */
static void
free_blocks(SdDatabase *db, dlist_head *blocks)
{
	while (!dlist_is_empty(blocks))
	{
		SdBlock    *block = dlist_container(SdBlock, node, dlist_pop_head_node(blocks));

		pg_atomic_fetch_sub_u64(&db->dispatchers[block->dispatcher].queue_events,
								block->nevents);
		bus_release(db, block->dispatcher, block->bytes);
		sd_free(block);
	}
}

/* Takes out of db->linked what is not for other servers.  Caller holds order_lock. */
static void
take_linked(SdDatabase *db, dlist_head *to)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &db->linked)
	{
		if (dlist_container(SdBlock, node, iter.cur)->dispatcher == SD_BUS_PLACE)
			continue;
		dlist_delete(iter.cur);
		dlist_push_tail(to, iter.cur);
	}
}

/*
 * Forgets all events of a database that nobody subscribes to any more: with
 * "all" also those for other servers.  What a living dispatcher has in hand is
 * left to it: it finds no subscription and ends it soon.  Cannot fail.  Takes
 * order_lock.
 */
void
bus_clear(SdDatabase *db, bool all)
{
	dlist_head	blocks;

	dlist_init(&blocks);
	LWLockAcquire(&db->order_lock, LW_EXCLUSIVE);
	if (all)
		append_list(&blocks, &db->linked);
	else
		take_linked(db, &blocks);
	for (int d = 0; d < SD_PLACES; d++)
	{
		SdDispatcher *disp = &db->dispatchers[d];

		if (d == SD_BUS_PLACE && !all)
			continue;
		append_list(&blocks, &disp->queue);
		if (database_dispatcher_pid(disp) == 0)
			append_list(&blocks, &disp->inhand);
	}
	LWLockRelease(&db->order_lock);

	free_blocks(db, &blocks);
	ConditionVariableBroadcast(&db->changed);
}

/*-------------------------------------------------------------------------
 *
 * bus_wait.c
 *	  Waiting until what is committed has been dispatched.
 *
 * Three stages, each of which ends for good once it is reached, whatever is
 * published meanwhile:
 *
 *	  1. Notifications.  Each dispatcher that LISTENs sends itself a marker; when
 *		 it comes back, all that was notified before is linked.
 *	  2. Commits.  Whoever is visible by now but has not linked yet holds a
 *		 ticket that is lower than the next one.
 *	  3. Blocks.  All that is linked by then must have got its id, and all ids up
 *		 to then must have left the dispatchers' queues and hands.
 *
 * Where there is a bus worker what is linked is on its way to Redis, and back.
 * So between the two halves of 3 it is asked to tell when it has read all that
 * was in Redis when all that had been linked was there.
 *
 * Locks: order_lock, for short looks.  Waits hold none, and can be cancelled.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/int.h"
#include "miscadmin.h"
#include "storage/procarray.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "bus.h"
#include "shmem.h"

/*
 * db->changed is not signalled for every step that is waited for, and those
 * that aren't signalled take microseconds.
 */
#define LOOK_AGAIN_MS		10
#define LOOK_AGAIN_SOON_MS	1

typedef struct Wait
{
	SdDatabase *db;
	TimestampTz deadline;
	uint32		markers[SD_MAX_DISPATCHERS];	/* 0: none asked for */
	uint64		ticket;			/* those below it count */
	uint64		link_no;		/* blocks linked up to it count */
	uint64		last_id;		/* events up to it count */
	bool		by_bus;			/* was the bus worker asked? */
	uint32		sync;			/* the number of the request */
} Wait;

/* ---- 1. notifications ---- */

static void
ask_for_markers(Wait *wait)
{
	for (int d = 0; d < SD_MAX_DISPATCHERS; d++)
	{
		SdDispatcher *disp = &wait->db->dispatchers[d];

		if (pg_atomic_read_u32(&disp->nlistening) == 0)
			continue;
		wait->markers[d] = pg_atomic_add_fetch_u32(&disp->marker_requests, 1);
		database_wake(wait->db, d);
	}
}

/* The numbers may wrap around.  One that LISTENs to nothing owes nothing. */
static bool
markers_are_back(Wait *wait)
{
	for (int d = 0; d < SD_MAX_DISPATCHERS; d++)
	{
		SdDispatcher *disp = &wait->db->dispatchers[d];

		if (wait->markers[d] == 0)
			continue;
		if ((int32) (pg_atomic_read_u32(&disp->marker_done) - wait->markers[d]) >= 0 ||
			pg_atomic_read_u32(&disp->nlistening) == 0)
			wait->markers[d] = 0;
		else
			return false;
	}
	return true;
}

/* ---- 2. commits ---- */

static void
note_tickets(Wait *wait)
{
	LWLockAcquire(&wait->db->order_lock, LW_SHARED);
	wait->ticket = wait->db->next_ticket;
	LWLockRelease(&wait->db->order_lock);
}

/*
 * Has everybody linked who is visible?  Looks at the tickets one by one, as
 * transaction ids are not to be looked up under the lock.
 */
static bool
commits_are_linked(Wait *wait)
{
	SdDatabase *db = wait->db;
	uint64		from = 0;

	for (;;)
	{
		TransactionId xid = InvalidTransactionId;
		dlist_iter	iter;

		LWLockAcquire(&db->order_lock, LW_SHARED);
		dlist_foreach(iter, &db->taken)
		{
			SdTicketSlot *slot = dlist_container(SdTicketSlot, node, iter.cur);

			if (slot->ticket >= wait->ticket)
				break;
			if (slot->ticket <= from)
				continue;
			from = slot->ticket;
			xid = slot->xid;
			break;
		}
		LWLockRelease(&db->order_lock);

		if (!TransactionIdIsValid(xid))
			return true;
		if (!TransactionIdIsInProgress(xid))
			return false;
	}
}

/* ---- 3. blocks ---- */

static void
note_links(Wait *wait)
{
	LWLockAcquire(&wait->db->order_lock, LW_SHARED);
	wait->link_no = wait->db->link_counter;
	LWLockRelease(&wait->db->order_lock);
}

static bool
links_have_ids(Wait *wait)
{
	SdDatabase *db = wait->db;
	dlist_iter	iter;
	bool		result = true;

	LWLockAcquire(&db->order_lock, LW_SHARED);
	dlist_foreach(iter, &db->linked)
	{
		if (dlist_container(SdBlock, node, iter.cur)->link_no <= wait->link_no)
		{
			result = false;
			break;
		}
	}
	wait->last_id = db->last_id;
	LWLockRelease(&db->order_lock);
	return result;
}

/* Is the first block of a list, which has the lowest id, among those that count? */
static bool
list_counts(Wait *wait, dlist_head *list)
{
	if (dlist_is_empty(list))
		return false;
	return dlist_head_element(SdBlock, node, list)->base_id <= wait->last_id;
}

static bool
ids_are_done(Wait *wait)
{
	SdDatabase *db = wait->db;
	bool		result = true;

	LWLockAcquire(&db->order_lock, LW_SHARED);
	for (int d = 0; d < SD_MAX_DISPATCHERS && result; d++)
		result = !list_counts(wait, &db->dispatchers[d].queue) &&
			!list_counts(wait, &db->dispatchers[d].inhand);
	LWLockRelease(&db->order_lock);
	return result;
}

/* ---- Redis ---- */

static void
ask_bus(Wait *wait)
{
	if (pg_atomic_read_u32(&wait->db->bus.wanted) == 0)
		return;
	wait->by_bus = true;
	wait->sync = pg_atomic_add_fetch_u32(&wait->db->bus.sync_requests, 1);
	database_wake(wait->db, SD_BUS_PLACE);
}

/* If it retires it had nothing left to do. */
static bool
bus_has_read(Wait *wait)
{
	SdBus	   *bus = &wait->db->bus;

	return !wait->by_bus ||
		(int32) (pg_atomic_read_u32(&bus->sync_done) - wait->sync) >= 0 ||
		pg_atomic_read_u32(&bus->wanted) == 0;
}

static void
note_ids(Wait *wait)
{
	LWLockAcquire(&wait->db->order_lock, LW_SHARED);
	wait->last_id = Max(wait->last_id, wait->db->last_id);
	LWLockRelease(&wait->db->order_lock);
}

/* ---- waiting ---- */

/* Until a stage is reached; false on timeout. */
static bool
wait_until(Wait *wait, bool (*reached) (Wait *), long look_again_ms)
{
	bool		result = true;

	while (!reached(wait))
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														   wait->deadline);

		if (left <= 0)
		{
			result = false;
			break;
		}
		(void) ConditionVariableTimedSleep(&wait->db->changed, Min(left, look_again_ms),
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	return result;
}

/*
 * See bus.h.  A timeout of 0 only looks; one of centuries is as good as
 * forever.  Raises an error when it is cancelled.
 */
bool
bus_wait_dispatched(SdDatabase *db, int64 timeout_us)
{
	Wait		wait = {.db = db};
	TimestampTz now = GetCurrentTimestamp();

	if (pg_add_s64_overflow(now, Max(timeout_us, 0), &wait.deadline))
		wait.deadline = PG_INT64_MAX;

	ask_for_markers(&wait);
	if (!wait_until(&wait, markers_are_back, LOOK_AGAIN_MS))
		return false;

	note_tickets(&wait);
	if (!wait_until(&wait, commits_are_linked, LOOK_AGAIN_SOON_MS))
		return false;

	note_links(&wait);
	if (!wait_until(&wait, links_have_ids, LOOK_AGAIN_SOON_MS))
		return false;

	ask_bus(&wait);
	if (!wait_until(&wait, bus_has_read, LOOK_AGAIN_MS))
		return false;
	note_ids(&wait);

	return wait_until(&wait, ids_are_done, LOOK_AGAIN_MS);
}

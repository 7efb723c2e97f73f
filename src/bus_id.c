/*-------------------------------------------------------------------------
 *
 * bus_id.c
 *	  The ids of events, and the numbers of those that go to Redis.
 *
 * Ids rise in the order of dispatch and never restart: an event's is the last one
 * plus 1, or the time in microseconds, whichever is higher.  Events that come from
 * Redis have been given theirs there by the same rule (bus_link_with_ids()).
 *
 * Locks: order_lock guards the counters; bus_note_elsewhere() takes none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "bus.h"
#include "shmem.h"

/* How far the clock of another server of the group may be ahead. */
#define MAX_AHEAD_US		UINT64CONST(60000000)

void
bus_note_elsewhere(SdDatabase *db, uint64 id)
{
	pg_atomic_uint64 *to = &db->bus.not_in_stream;
	uint64		now = pg_atomic_read_u64(to);

	if (id == 0)
		id = (uint64) (GetCurrentTimestamp() + UNIX_EPOCH_US);
	while (now < id && !pg_atomic_compare_exchange_u64(to, &now, id))
		;
}

/*
 * Ids for n events that are dispatched here without having been anywhere else.
 * Those that come from Redis have theirs from there, and time is all that keeps
 * them above ours: so ours don't get ahead while any may come.  Caller holds
 * order_lock; now is in microseconds of the Unix epoch.
 */
uint64
bus_next_ids(SdDatabase *db, uint32 n, uint64 now)
{
	uint64		first = db->last_id + 1;

	if (pg_atomic_read_u32(&db->bus.wanted) == 0 || first == 1)
		first = Max(first, now);
	db->last_id = first + n - 1;
	Assert(db->last_id < SD_MAX_EVENT_ID);
	bus_note_elsewhere(db, db->last_id);
	return first;
}

/* Numbers for n events that go to Redis; see redis_send.c.  Likewise. */
uint64
bus_next_numbers(SdDatabase *db, uint32 n)
{
	uint64		first = db->bus.next_number;

	db->bus.next_number += n;
	return first;
}

uint64
bus_take_id(SdDatabase *db)
{
	uint64		now = (uint64) (GetCurrentTimestamp() + UNIX_EPOCH_US);
	uint64		id;

	LWLockAcquire(&db->order_lock, LW_EXCLUSIVE);
	/* the next one that comes from Redis, and is not being linked, is this or a higher one */
	if (pg_atomic_read_u32(&db->bus.wanted) > 0 && db->last_id > 0)
		id = Max(db->last_id, pg_atomic_read_u64(&db->bus.linking)) + 1;
	else
		id = db->last_id = Max(db->last_id + 1, now);
	LWLockRelease(&db->order_lock);
	return id;
}

/*
 * Ids of before a restart of the server are not known, but below the time.  One
 * that another server gave may be a little ahead of ours, and the next one that
 * comes from Redis may be lower.
 */
bool
bus_skip_ids(SdDatabase *db, uint64 id, uint64 *last)
{
	uint64		now = (uint64) (GetCurrentTimestamp() + UNIX_EPOCH_US);
	bool		by_redis = pg_atomic_read_u32(&db->bus.wanted) > 0;
	bool		possible;

	LWLockAcquire(&db->order_lock, LW_EXCLUSIVE);
	*last = db->last_id;
	possible = id <= Max(db->last_id, by_redis ? now + MAX_AHEAD_US : now);
	if (possible && !by_redis)
		db->last_id = Max(db->last_id, id);
	LWLockRelease(&db->order_lock);
	return possible;
}

/*-------------------------------------------------------------------------
 *
 * walk.c
 *	  Going through a hash table in shared memory, a lot at a time.
 *
 * A lot is what fits into buffers that were allocated before; under the lock
 * it is only copied, and turned into rows of a view after the lock's release.
 * Chains are copied whole or not at all, so the walk can go on with the next
 * bucket whatever has happened in between: what is there during all of the
 * walk is seen exactly once.
 *
 * Locks: registry_lock in shared mode, for the subscriptions also the id lock
 * of the partition; released after each lot.  collect() may take locks below
 * these (a stream's).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "walk.h"

/* Bounds of one lot; the buffers grow if a single chain needs more. */
#define LOT_ROWS		16
#define LOT_BYTES		(64 * 1024)
#define LOT_BUCKETS		64

void *
walk_row(SdWalk *walk)
{
	void	   *row;

	if (walk->nrows == walk->max_rows)
		walk->full = true;
	if (walk->full)
		return NULL;
	row = walk->rows + walk->row_size * walk->nrows++;
	memset(row, 0, walk->row_size);
	return row;
}

/* Room for len bytes, MAXALIGNed; 0, and the walk is full, if there is none. */
static SdCopied
take_room(SdWalk *walk, Size len)
{
	Size		at = walk->nbytes;

	if (walk->full)
		return 0;
	if (MAXALIGN(len) > walk->max_bytes - at)
	{
		walk->full = true;
		return 0;
	}
	walk->nbytes = at + MAXALIGN(len);
	return (SdCopied) at;
}

SdCopied
walk_copy(SdWalk *walk, const void *src, Size len)
{
	SdCopied	at = src == NULL ? 0 : take_room(walk, len);

	if (at != 0)
		memcpy(walk->bytes + at, src, len);
	return at;
}

SdCopied
walk_copy_text(SdWalk *walk, const char *s, Size len)
{
	SdCopied	at = take_room(walk, len + 1);

	if (at != 0)
	{
		memcpy(walk->bytes + at, s, len);
		walk->bytes[at + len] = '\0';
	}
	return at;
}

SdCopied
walk_copy_string(SdWalk *walk, const char *s)
{
	return s == NULL ? 0 : walk_copy(walk, s, strlen(s) + 1);
}

/* A varlena with a four-byte header, as all in shared memory have. */
SdCopied
walk_copy_jsonb(SdWalk *walk, const void *jsonb)
{
	return jsonb == NULL ? 0 : walk_copy(walk, jsonb, VARSIZE(jsonb));
}

static void
start_lot(SdWalk *walk)
{
	walk->nrows = 0;
	walk->nbytes = MAXIMUM_ALIGNOF; /* so that no copy is at 0 */
	walk->full = false;
}

/* A single chain was too much: more room for the next try. */
static void
enlarge(SdWalk *walk)
{
	walk->max_rows *= 2;
	walk->max_bytes *= 2;
	walk->rows = repalloc_huge(walk->rows, walk->row_size * walk->max_rows);
	walk->bytes = repalloc_huge(walk->bytes, walk->max_bytes);
}

/*
 * Copies chains from bucket on, but none from end on, until the lot is full.
 * Returns the bucket to go on with.  Caller holds the locks.
 */
static uint64
collect_lot(SdWalk *walk, uint64 bucket, uint64 end)
{
	end = Min(end, bucket + LOT_BUCKETS);
	while (bucket < end)
	{
		int			nrows = walk->nrows;
		Size		nbytes = walk->nbytes;

		for (SdHashNode *n = sd_hash_first(walk->table, bucket); n && !walk->full; n = sd_hash_next(n))
			walk->collect(walk, n);
		if (walk->full)
		{
			walk->nrows = nrows;
			walk->nbytes = nbytes;
			break;
		}
		bucket++;
	}
	return bucket;
}

/* The buckets from the one to the other, which is left out. */
static void
run_partition(SdWalk *walk, uint64 bucket, uint64 end, LWLock *lock, MemoryContext cxt)
{
	uint64		fetched = bucket;

	while (bucket < end)
	{
		start_lot(walk);
		if (bucket >= fetched)
		{
			fetched = Min(end, bucket + LOT_BUCKETS);
			sd_hash_fetch(walk->table, bucket, fetched, walk->fetch);
		}
		LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
		if (lock)
			LWLockAcquire(lock, LW_SHARED);
		bucket = collect_lot(walk, bucket, end);
		if (lock)
			LWLockRelease(lock);
		LWLockRelease(&sd_shared->registry_lock);

		if (walk->full && walk->nrows == 0)
			enlarge(walk);
		for (int i = 0; i < walk->nrows; i++)
		{
			MemoryContext old = MemoryContextSwitchTo(cxt);

			walk->emit(walk, walk->rows + walk->row_size * i);
			MemoryContextSwitchTo(old);
			MemoryContextReset(cxt);
		}
		CHECK_FOR_INTERRUPTS();
	}
}

/* The same, of any partitions. */
static void
run(SdWalk *walk, uint64 bucket, uint64 end)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "subdispatch view row",
											  ALLOCSET_DEFAULT_SIZES);
	uint64		n = SD_ID_PARTITION_BUCKETS;

	walk->max_rows = LOT_ROWS;
	walk->max_bytes = LOT_BYTES;
	walk->rows = palloc(walk->row_size * walk->max_rows);
	walk->bytes = palloc(walk->max_bytes);
	if (walk->table != &sd_shared->subscriptions)
		run_partition(walk, bucket, end, NULL, cxt);
	else
		for (; bucket < end; bucket = (bucket / n + 1) * n)
			run_partition(walk, bucket, Min(end, (bucket / n + 1) * n),
						  &sd_shared->id_locks[bucket / n], cxt);
	pfree(walk->rows);
	pfree(walk->bytes);
	MemoryContextDelete(cxt);
}

void
walk_run(SdWalk *walk)
{
	run(walk, 0, (uint64) walk->table->mask + 1);
}

void
walk_look_up(SdWalk *walk, uint32 hash)
{
	uint64		bucket = hash & walk->table->mask;

	run(walk, bucket, bucket + 1);
}

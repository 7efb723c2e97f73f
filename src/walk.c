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
	SdCopied	at = s == NULL ? 0 : take_room(walk, VARHDRSZ + len);

	if (at != 0)
	{
		SET_VARSIZE(walk->bytes + at, VARHDRSZ + len);
		memcpy(VARDATA(walk->bytes + at), s, len);
	}
	return at;
}

SdCopied
walk_copy_string(SdWalk *walk, const char *s)
{
	return walk_copy_text(walk, s, s ? strlen(s) : 0);
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
	walk->nrows = walk->next_row = 0;
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

/*
 * The next lot.  Of the subscriptions, which one id lock guards: a lot ends where
 * the lock's part of them does.
 */
static void
next_lot(SdWalk *walk)
{
	LWLock	   *lock = NULL;
	uint64		end = walk->end;

	if (walk->table == &sd_shared->subscriptions)
	{
		uint64		partition = walk->bucket / SD_ID_PARTITION_BUCKETS;

		lock = &sd_shared->id_locks[partition];
		end = Min(end, (partition + 1) * SD_ID_PARTITION_BUCKETS);
	}
	start_lot(walk);
	if (walk->bucket >= walk->fetched)
	{
		walk->fetched = Min(end, walk->bucket + LOT_BUCKETS);
		sd_hash_fetch(walk->table, walk->bucket, walk->fetched, walk->fetch);
	}
	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	if (lock)
		LWLockAcquire(lock, LW_SHARED);
	walk->bucket = collect_lot(walk, walk->bucket, Min(end, walk->fetched));
	if (lock)
		LWLockRelease(lock);
	LWLockRelease(&sd_shared->registry_lock);
	if (walk->full && walk->nrows == 0)
		enlarge(walk);
}

static void
begin(SdWalk *walk, uint64 bucket, uint64 end)
{
	walk->max_rows = LOT_ROWS;
	walk->max_bytes = LOT_BYTES;
	walk->rows = palloc(walk->row_size * walk->max_rows);
	walk->bytes = palloc(walk->max_bytes);
	walk->bucket = walk->fetched = bucket;
	walk->end = end;
	walk->nrows = walk->next_row = 0;
}

void
walk_begin(SdWalk *walk)
{
	begin(walk, 0, (uint64) walk->table->mask + 1);
}

void
walk_begin_look_up(SdWalk *walk, uint32 hash)
{
	uint64		bucket = hash & walk->table->mask;

	begin(walk, bucket, bucket + 1);
}

void *
walk_next(SdWalk *walk)
{
	while (walk->next_row == walk->nrows)
	{
		if (walk->bucket >= walk->end)
			return NULL;
		CHECK_FOR_INTERRUPTS();
		next_lot(walk);
	}
	return walk->rows + walk->row_size * walk->next_row++;
}

void
walk_run(SdWalk *walk)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "subdispatch view row",
											  ALLOCSET_DEFAULT_SIZES);
	void	   *row;

	walk_begin(walk);
	while ((row = walk_next(walk)) != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(cxt);

		walk->emit(walk, row);
		MemoryContextSwitchTo(old);
		MemoryContextReset(cxt);
	}
	pfree(walk->rows);
	pfree(walk->bytes);
	MemoryContextDelete(cxt);
}

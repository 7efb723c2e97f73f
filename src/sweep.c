/*-------------------------------------------------------------------------
 *
 * sweep.c
 *	  Going through all subscriptions of a database: to end those that nobody
 *	  polls any more, or all of them.
 *
 * The sweep is dispatcher 0's.  It goes round the hash tables of subscriptions
 * and consumers in pieces of BUCKETS_PER_LOCK buckets, and stops after
 * SLICE_TIME so that events need not wait for it; sweep_slice() tells when it
 * should be called again.  A round of a million subscriptions so takes some
 * seconds, and one in which nothing is over a few hundredths of one dispatcher.
 *
 * Locks: registry_lock, shared to look and exclusive to end, and an id lock;
 * for one piece at a time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "history.h"
#include "registry.h"

#define BUCKETS_PER_LOCK	64
#define ENDS_PER_LOCK		16
#define OVER_MAX			16	/* found in one piece; more are found next time */
#define SLICE_TIME			200 /* us */
#define SLICE_PAUSE			(SD_SECOND / 100)	/* between slices of a round */
#define ROUND_PAUSE			(SD_SECOND / 4)

/* One that is over. */
typedef struct Over
{
	Oid			owner;
	uint64		serial;
	char		id[SD_MAX_NAME + 1];
} Over;

/* Where this process's round is. */
static uint32 next_bucket = 0;
static uint32 next_consumer = 0;

/* ---- what is over ---- */

/* What the sweep should do with one; caller holds its id lock. */
static bool
is_over(SdSubscription *sub, TimestampTz now, SdEnd *end)
{
	TimestampTz idle = (TimestampTz) subdispatch_subscription_idle_timeout * SD_SECOND;
	TimestampTz life = (TimestampTz) subdispatch_subscription_max_lifetime * SD_SECOND;
	TimestampTz polled = pg_atomic_read_u64(&sub->last_polled);

	if (sub_consumer(sub))
		polled = Max(polled, (TimestampTz) pg_atomic_read_u64(&sub_consumer(sub)->last_polled));
	*end = SD_END_NONE;
	/* Its last message was read, but the reader failed before it forgot it. */
	if (sub->structurally_ended && sub->end_told && !sub->end_held)
		return true;
	if (sub->structurally_ended)
		return now > sub->ended_at + (idle > 0 ? idle : 600 * SD_SECOND);
	if (life > 0 && now > sub->created_at + life)
		*end = SD_END_LIFETIME;
	else if (idle > 0 && now > polled + idle)
		*end = SD_END_IDLE;
	return *end != SD_END_NONE;
}

/*
 * Finds up to OVER_MAX in the buckets from "bucket" to "end", all of one
 * partition.  registry_lock keeps consumers, the id lock the subscriptions.
 */
static int
find_over(Oid dboid, uint32 bucket, uint32 end, TimestampTz now, Over *over)
{
	SdHash	   *table = &sd_shared->subscriptions;
	LWLock	   *lock = subscription_id_lock(bucket);
	int			n = 0;
	SdEnd		ignored;

	sd_hash_fetch(table, bucket, end, offsetof(SdSubscription, stream));
	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	LWLockAcquire(lock, LW_SHARED);
	for (uint32 b = bucket; b < end; b++)
		for (SdHashNode *node = sd_hash_first(table, b); node && n < OVER_MAX; node = sd_hash_next(node))
		{
			SdSubscription *sub = (SdSubscription *) node;

			if (sub->dboid != dboid || !is_over(sub, now, &ignored))
				continue;
			over[n].owner = subscription_owner(sub);
			over[n].serial = sub->serial;
			strcpy(over[n].id, sub_id(sub));
			n++;
		}
	LWLockRelease(lock);
	LWLockRelease(&sd_shared->registry_lock);
	return n;
}

static void
end_over(Oid dboid, Over *over)
{
	SdSubscription *sub;
	SdEnd		end;

	registry_lock_exclusive();
	sub = subscription_find(dboid, over->owner, over->id);
	if (sub && sub->serial == over->serial && is_over(sub, GetCurrentTimestamp(), &end))
	{
		if (sub->structurally_ended)
			subscription_destroy(sub);
		else
			subscription_end_one(sub, end);
	}
	registry_unlock();
}

/* ---- the sweep ---- */

/* A piece of the subscriptions; returns whether it ended any. */
static bool
sweep_subscriptions(Oid dboid, TimestampTz now)
{
	static Over over[OVER_MAX];
	uint32		end = next_bucket + Min(BUCKETS_PER_LOCK, SD_ID_PARTITION_BUCKETS);
	int			n = find_over(dboid, next_bucket, end, now, over);

	for (int i = 0; i < n; i++)
		end_over(dboid, &over[i]);
	if (n < OVER_MAX)
		next_bucket = end;
	return n > 0;
}

/* A piece of the consumers. */
static void
sweep_consumers(Oid dboid, TimestampTz now)
{
	uint32		end = Min(next_consumer + BUCKETS_PER_LOCK, sd_shared->consumers.mask + 1);

	for (; next_consumer < end; next_consumer++)
		registry_drop_consumers(next_consumer, dboid, now, false);
}

TimestampTz
subscription_sweep(SdDatabase *db)
{
	TimestampTz begin = GetCurrentTimestamp();
	TimestampTz now = begin;
	bool		found = false;

	do
	{
		if (next_bucket <= sd_shared->subscriptions.mask)
			found |= sweep_subscriptions(db->dboid, now);
		else if (next_consumer <= sd_shared->consumers.mask)
			sweep_consumers(db->dboid, now);
		else
		{
			next_bucket = next_consumer = 0;
			linger_sweep(db, now);
			return now + ROUND_PAUSE;
		}
		now = GetCurrentTimestamp();
	} while (now >= begin && now < begin + SLICE_TIME);
	return found ? now : now + SLICE_PAUSE;
}

/* ---- all of a database ---- */

/* Caller holds registry_lock exclusive. */
static SdSubscription *
first_of_database(uint32 bucket, Oid dboid)
{
	for (SdHashNode *node = sd_hash_first(&sd_shared->subscriptions, bucket); node; node = sd_hash_next(node))
		if (((SdSubscription *) node)->dboid == dboid)
			return (SdSubscription *) node;
	return NULL;
}

/*
 * Called after a commit: raises nothing.  Subscriptions of the database go
 * without a word; whoever reads next finds that they are not there.
 */
void
subscription_purge_database(Oid dboid)
{
	SdDatabase *db = database_find(dboid);
	SdHash	   *table = &sd_shared->subscriptions;
	uint32		b = 0;

	while (b <= table->mask)
	{
		uint32		end = Min(b + BUCKETS_PER_LOCK, table->mask + 1);

		registry_lock_exclusive();
		for (int n = 0; n < ENDS_PER_LOCK && b < end && !trash_is_full();)
		{
			SdSubscription *sub = first_of_database(b, dboid);

			if (sub)
			{
				subscription_destroy(sub);
				n++;
			}
			else
				b++;
		}
		registry_unlock();
	}
	for (b = 0; b <= sd_shared->consumers.mask; b++)
		registry_drop_consumers(b, dboid, 0, true);
	if (db != NULL)
		linger_purge(db);
}

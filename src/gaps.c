/*-------------------------------------------------------------------------
 *
 * gaps.c
 *	  Telling streams that something is missing.
 *
 * A committed event that found no room is noted at its channel, with the
 * dispatcher's gap_requests as the sign; that needs no memory.  The channel's
 * dispatcher then tells every stream of the channel.  Nothing in here raises an
 * error or can be interrupted, so that no one is left out.
 *
 * Locks: registry_lock shared, for a piece of a table or of a channel's streams
 * at a time; streams' locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "audience.h"
#include "bus.h"
#include "dispatch.h"
#include "dispatcher.h"
#include "registry.h"

#define STREAMS_PER_LOCK	64
#define BUCKETS_PER_LOCK	16

static SdDatabase *db;
static int	me;

/*
 * Whoever comes back to the channel and has seen no event after those shown by
 * now does not know of the gap.
 */
static void
note_for_those_who_resume(SdChannel *channel, bool elsewhere)
{
	uint64		shown = audience_last_shown();
	uint64		from;

	if (shown == 0)				/* not by this process */
		shown = bus_take_id(db);
	from = shown + 1;
	/* what is missing of the stream in Redis may stand behind what is queued */
	if (subdispatch_event_bus == SD_BUS_REDIS)
		from = bus_take_id(db);
	if (pg_atomic_read_u64(&channel->kept_from) < from)
		pg_atomic_write_u64(&channel->kept_from, from);
	if (elsewhere)
		pg_atomic_write_u64(&channel->lost_elsewhere, from);
}

/* A channel of mine in the bucket that has gaps to tell, pinned, or NULL. */
static SdChannel *
gapped_in(uint32 bucket)
{
	for (SdHashNode *node = sd_hash_first(&sd_shared->channels, bucket); node; node = sd_hash_next(node))
	{
		SdChannel  *channel = (SdChannel *) node;
		uint32		gaps;

		if (channel->dboid == db->dboid && channel->dispatcher == me &&
			(gaps = pg_atomic_exchange_u32(&channel->gaps, 0)) > 0)
		{
			note_for_those_who_resume(channel, (gaps & SD_GAP_ELSEWHERE) != 0);
			pg_atomic_fetch_add_u32(&channel->refs, 1);
			return channel;
		}
	}
	return NULL;
}

/* The next one from *bucket on, whose chain may have another, or NULL. */
static SdChannel *
next_gapped(uint32 *bucket)
{
	SdHash	   *table = &sd_shared->channels;
	SdChannel  *found = NULL;

	while (found == NULL && *bucket <= table->mask)
	{
		sd_hash_fetch(table, *bucket, *bucket + BUCKETS_PER_LOCK, 0);
		LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
		for (int i = 0; i < BUCKETS_PER_LOCK && *bucket <= table->mask; i++)
		{
			found = gapped_in(*bucket);
			if (found)
				break;
			(*bucket)++;
		}
		LWLockRelease(&sd_shared->registry_lock);
	}
	return found;
}

static void
tell(const SdStreamVec *vec)
{
	SdStream   *pins[STREAMS_PER_LOCK];
	uint32		at = PG_UINT32_MAX;

	do
	{
		int			n;

		LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
		n = registry_pin_streams(vec, &at, pins, lengthof(pins));
		LWLockRelease(&sd_shared->registry_lock);
		for (int i = 0; i < n; i++)
		{
			stream_lose(pins[i], 0, 0);
			stream_unpin(pins[i]);
		}
		stream_flush();
	} while (at > 0);
}

/*
 * Committed events that found no room were noted at their channels, with
 * gap_requests as the sign that there are any.
 */
void
dispatch_gaps(SdDatabase *database, int dispatcher)
{
	static uint32 seen = 0;
	uint32		requests = pg_atomic_read_u32(&database->dispatchers[dispatcher].gap_requests);
	SdChannel  *channel;
	uint32		bucket = 0;

	if (requests == seen)
		return;
	db = database;
	me = dispatcher;
	while ((channel = next_gapped(&bucket)) != NULL)
	{
		tell(&channel->plain);
		tell(&channel->filtered);
		channel_unref(channel);
	}
	seen = requests;
}

/*
 * Notes a gap at channels of the database, for their dispatchers to tell: those
 * whose hash is set in bits[], which has SD_SKETCH_SIZE bits, and '*'; or all,
 * if bits is NULL.  Cannot fail.
 */
void
gaps_raise(SdDatabase *database, const uint32 *bits)
{
	SdHash	   *table = &sd_shared->channels;

	for (uint32 from = 0; from <= table->mask; from += BUCKETS_PER_LOCK)
	{
		sd_hash_fetch(table, from, from + BUCKETS_PER_LOCK, 0);
		LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
		for (uint32 i = from; i <= table->mask && i < from + BUCKETS_PER_LOCK; i++)
			for (SdHashNode *node = sd_hash_first(table, i); node; node = sd_hash_next(node))
			{
				SdChannel  *channel = (SdChannel *) node;
				uint32		bit = channel->hash % SD_SKETCH_SIZE;

				if (channel->dboid != database->dboid)
					continue;
				if (bits && !channel->star && !(bits[bit / 32] & (UINT32_C(1) << (bit % 32))))
					continue;
				pg_atomic_fetch_or_u32(&channel->gaps, 1);
				pg_atomic_fetch_add_u32(&database->dispatchers[channel->dispatcher].gap_requests, 1);
			}
		LWLockRelease(&sd_shared->registry_lock);
	}
	database_wake_all(database);
}

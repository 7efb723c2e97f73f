/*-------------------------------------------------------------------------
 *
 * gaps.c
 *	  Telling streams that something is missing.
 *
 * A committed event that found no room is noted at its channel, with the
 * dispatcher's gap_requests as the sign; that needs no memory.  The channel's
 * dispatcher then tells every stream of the channel.
 *
 * Locks: registry_lock shared, then streams' locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "dispatch.h"
#include "dispatcher.h"
#include "registry.h"

static SdDatabase *db;
static int	me;

/* A channel of mine that has gaps to tell, pinned, or NULL. */
static SdChannel *
next_gapped(uint32 *bucket)
{
	SdHash	   *table = &sd_shared->channels;
	SdChannel  *found = NULL;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	for (; *bucket <= table->mask && found == NULL; (*bucket)++)
		for (SdHashNode *node = table->buckets[*bucket]; node; node = node->next)
		{
			SdChannel  *channel = (SdChannel *) node;

			if (channel->dboid == db->dboid && channel->dispatcher == me &&
				pg_atomic_exchange_u32(&channel->gaps, 0) > 0)
			{
				found = channel;
				pg_atomic_fetch_add_u32(&found->refs, 1);
				(*bucket)--;	/* its chain may have another */
				break;
			}
		}
	LWLockRelease(&sd_shared->registry_lock);
	return found;
}

static void
tell_gap_in(SdStreamVec *vec)
{
	for (uint32 i = 0; i < vec->n; i++)
		stream_lose(vec->items[i], 0, 0);
}

/* Tells all streams of the channel that something is missing. */
static void
tell_gap(SdChannel *channel)
{
	dlist_iter	p;
	dlist_iter	b;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	tell_gap_in(&channel->plain);
	dlist_foreach(p, &channel->paths)
	{
		SdIndexPath *path = dlist_container(SdIndexPath, node, p.cur);

		dlist_foreach(b, &path->buckets)
			tell_gap_in(&dlist_container(SdBucket, node, b.cur)->vec);
	}
	LWLockRelease(&sd_shared->registry_lock);
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
		tell_gap(channel);
		channel_unref(channel);
	}
	seen = requests;
}

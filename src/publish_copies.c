/*-------------------------------------------------------------------------
 *
 * publish_copies.c
 *	  Whom the events of a transaction concern, and who is told of a gap.
 *
 * The answer comes from a sketch in shared memory (counters by channel hash),
 * which is read without a lock: yes may be wrong, no is certain.  Only where
 * something depends on it (a publisher would have to wait or to fail, a gap is
 * told) the registry is asked.
 *
 * Nothing here can fail.  Locks: registry_lock (shared), for a thousand
 * events at a time at most.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/pg_bitutils.h"

#include "publish.h"
#include "shmem.h"
#include "subscription.h"

/* How many events are looked up without giving others the lock. */
#define LOOKUPS_PER_LOCK	1000

/* ---- by the sketch ---- */

/*
 * database_maybe_subscribed() is true of every channel while '*' has a
 * subscription; here it matters which copy is needed.
 */
static uint8
copies_by_sketch(const PublishTx *tx, const Pending *p, bool star)
{
	uint32		counter = p->ev->channel_hash % SD_SKETCH_SIZE;
	uint8		copies = 0;

	if (pg_atomic_read_u32(&tx->db->sketch[counter]) > 0)
		copies = COPY_HOME;
	if (star)
		copies |= p->home == tx->star_home ? COPY_HOME : COPY_STAR;
	return copies;
}

void
copies_choose(PublishTx *tx)
{
	bool		star = pg_atomic_read_u32(&tx->db->nstar) > 0;

	for (uint32 i = 0; i < tx->n; i++)
	{
		Pending    *p = &tx->events[i];

		if (unlikely(p->for_all))
			p->copies = COPY_HOME | (p->home == tx->star_home ? 0 : COPY_STAR);
		else
			p->copies = copies_by_sketch(tx, p, star);
	}
}

/* Whoever subscribes to what: other servers have their own subscriptions. */
void
copies_choose_bus(PublishTx *tx)
{
	tx->by_redis = true;
	for (uint32 i = 0; i < tx->n; i++)
		tx->events[i].copies = COPY_BUS;
}

/*
 * Returns the dispatchers of late copies.  The events are visible, so whoever
 * subscribes after this look sees them in a query.
 */
uint32
copies_find_late(PublishTx *tx)
{
	uint32		mask = 0;
	bool		star;

	if (tx->by_redis)
		return 0;
	/* between the end of our transaction for others and their counters */
	pg_memory_barrier();
	star = pg_atomic_read_u32(&tx->db->nstar) > 0;
	for (uint32 i = 0; i < tx->n; i++)
	{
		Pending    *p = &tx->events[i];

		p->late = copies_by_sketch(tx, p, star) & ~(p->copies | p->gap);
		if (p->late & COPY_HOME)
			mask |= dispatcher_bit(p->home);
		if (p->late & COPY_STAR)
			mask |= dispatcher_bit(tx->star_home);
	}
	return mask;
}

/* ---- by the registry ---- */

/* What was looked up while the lock is held: the next event asks the same. */
typedef struct Lookup
{
	const SdEvent *last;
	SdChannel  *channel;
	SdChannel  *star;
} Lookup;

/* Caller holds registry_lock, and has begun with an empty Lookup. */
static void
look_up(Lookup *lookup, const SdEvent *ev)
{
	Assert(LWLockHeldByMe(&sd_shared->registry_lock));
	if (lookup->last == NULL)
		lookup->star = channel_lookup(MyDatabaseId, SD_STAR, strlen(SD_STAR),
									  channel_hash(SD_STAR, strlen(SD_STAR)));
	if (lookup->last == NULL || lookup->last->channel_hash != ev->channel_hash ||
		strcmp(EVENT_CHANNEL(lookup->last), EVENT_CHANNEL(ev)) != 0)
		lookup->channel = channel_lookup(MyDatabaseId, EVENT_CHANNEL(ev), ev->channel_len,
										 ev->channel_hash);
	lookup->last = ev;
}

static bool
has_subscriptions(const SdChannel *channel)
{
	return channel && channel->nsubscriptions > 0;
}

/*
 * Takes one copy back unless one of the channels that it serves has a
 * subscription.  If one lingers the event becomes a gap in its history.
 */
static void
take_back(Pending *p, uint8 copy, const SdChannel *channel, const SdChannel *other)
{
	if ((p->copies & copy) == 0 || has_subscriptions(channel) || has_subscriptions(other))
		return;
	p->copies &= ~copy;
	if (channel || other)
		p->gap |= copy;
}

void
copies_choose_exactly(PublishTx *tx)
{
	if (tx->by_redis)
		return;
	for (uint32 i = 0; i < tx->n;)
	{
		uint32		end = Min(tx->n, i + LOOKUPS_PER_LOCK);
		Lookup		lookup = {0};

		LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
		for (; i < end; i++)
		{
			Pending    *p = &tx->events[i];
			bool		serves_both = p->home == tx->star_home;

			if (p->copies == 0)
				continue;
			look_up(&lookup, p->ev);
			take_back(p, COPY_HOME, lookup.channel, serves_both ? lookup.star : NULL);
			take_back(p, COPY_STAR, lookup.star, NULL);
		}
		LWLockRelease(&sd_shared->registry_lock);
	}
}

/* ---- gaps ---- */

void
copies_give_up(PublishTx *tx)
{
	for (uint32 i = 0; i < tx->n; i++)
	{
		tx->events[i].gap |= tx->events[i].copies;
		tx->events[i].copies = 0;
	}
}

/* True if the channel has subscriptions, which will be told. */
static bool
add_gap(SdChannel *channel, uint32 *mask)
{
	if (channel == NULL)
		return false;
	pg_atomic_fetch_or_u32(&channel->gaps, SD_GAP_ELSEWHERE);
	pg_atomic_fetch_add_u32(&channel->db->dispatchers[channel->dispatcher].gap_requests, 1);
	*mask |= dispatcher_bit(channel->dispatcher);
	return channel->nsubscriptions > 0;
}

/* Caller holds registry_lock. */
static bool
add_gaps_of(const PublishTx *tx, const Pending *p, Lookup *lookup, uint32 *mask)
{
	bool		serves_both = p->home == tx->star_home;
	bool		told = false;

	look_up(lookup, p->ev);
	if (p->gap & COPY_HOME)
		told |= add_gap(lookup->channel, mask);
	if ((p->gap & COPY_STAR) || ((p->gap & COPY_HOME) && serves_both))
		told |= add_gap(lookup->star, mask);
	return told;
}

/* All servers are told, this one too, when Redis is. */
static void
count_bus_gaps(PublishTx *tx)
{
	uint64		ngaps = 0;

	for (uint32 i = 0; i < tx->n; i++)
	{
		if (tx->events[i].gap == 0)
			continue;
		redis_lose(tx->db, tx->events[i].ev->channel_hash);
		ngaps++;
	}
	if (ngaps > 0)
	{
		stats_add(&tx->db->stats, SD_STAT_EVENTS_GAPPED, ngaps);
		redis_want_worker(tx->db);
		database_wake(tx->db, SD_BUS_PLACE);
	}
}

/*
 * Counts every gap for the channels concerned, and wakes their dispatchers,
 * which tell the subscriptions.
 */
void
copies_count_gaps(PublishTx *tx)
{
	uint32		mask = 0;
	uint64		ngaps = 0;

	if (tx->by_redis)
	{
		count_bus_gaps(tx);
		return;
	}
	for (uint32 i = 0; i < tx->n;)
	{
		uint32		end = Min(tx->n, i + LOOKUPS_PER_LOCK);
		Lookup		lookup = {0};
		bool		locked = false;

		for (; i < end; i++)
		{
			if (tx->events[i].gap == 0)
				continue;
			if (!locked)
			{
				/* before those who resume can hear of it */
				bus_note_elsewhere(tx->db, 0);
				LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
			}
			locked = true;
			if (add_gaps_of(tx, &tx->events[i], &lookup, &mask))
				ngaps++;
		}
		if (locked)
			LWLockRelease(&sd_shared->registry_lock);
	}

	if (ngaps > 0)
		stats_add(&tx->db->stats, SD_STAT_EVENTS_GAPPED, ngaps);
	for (; mask != 0; mask &= mask - 1)
		database_wake(tx->db, pg_rightmost_one_pos32(mask));
}

void
copies_count_published(PublishTx *tx)
{
	uint64		n = 0;

	for (uint32 i = 0; i < tx->n; i++)
		n += tx->events[i].copies != 0;
	stats_add(&tx->db->stats, SD_STAT_EVENTS_PUBLISHED, n);
}

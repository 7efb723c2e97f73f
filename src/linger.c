/*-------------------------------------------------------------------------
 *
 * linger.c
 *	  Channels that nobody subscribes to any more, and may again soon.
 *
 * Events that nobody subscribes to end at their publisher.  A client that was
 * its channel's only one, lost its connection and comes back would miss them,
 * so a channel lingers after its last subscription: it stays in the registry,
 * is counted in the sketch and LISTENed on, and its events go on into the
 * history.  That lasts for subscription_idle_timeout (10min if that is 0), as
 * long as the database's dispatchers run and a history is kept at all.  Nobody
 * waits or fails for a lingering channel's sake: an event without room becomes
 * a gap of it.  Whoever may subscribe could leave any number of them behind, so
 * those that have lingered longest go when they take more than bytes_limit().
 *
 * SdChannel->kept_from tells from which event id on the channel is served
 * without interruption.
 *
 * Locks: registry_lock exclusive; those of history.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "history.h"
#include "registry.h"

#define ENDS_PER_LOCK	32		/* keeps the lock's hold time short */
#define ENDS_FOR_ROOM	4		/* likewise; more than the largest needs in the long run */

static TimestampTz
linger_time(void)
{
	int			s = subdispatch_subscription_idle_timeout;

	return (TimestampTz) (s > 0 ? s : 600) * SD_SECOND;
}

/* A database's dispatchers and its history end a minute after its last use. */
static bool
keeps_history(SdDatabase *db)
{
	return subdispatch_event_history_size > 0 && pg_atomic_read_u32(&db->wanted) > 0;
}

/* For a database's lingering channels: as for a history, but not all of the memory. */
static Size
bytes_limit(void)
{
	return (Size) Min(subdispatch_event_history_size, subdispatch_shared_memory_size / 8) * 1024;
}

static Size
bytes_of(const SdChannel *channel)
{
	return sizeof(SdChannel) + channel->namelen;
}

/* Counts the channel itself, so that publishers don't see it without any. */
static void
count(SdChannel *channel, int by)
{
	SdDatabase *db = channel->db;

	pg_atomic_fetch_add_u32(&db->sketch[channel->hash % SD_SKETCH_SIZE], by);
	if (channel->star)
		pg_atomic_fetch_add_u32(&db->nstar, by);
	pg_atomic_fetch_add_u32(&db->nlingering, by);
}

static void
leave(SdChannel *channel)
{
	dlist_delete(&channel->linger_node);
	channel->db->lingering_bytes -= bytes_of(channel);
	channel->lingers_since = 0;
	count(channel, -1);
	sd_count_as(channel, SD_MEM_SUBSCRIPTION);
}

static SdChannel *
longest(SdDatabase *db)
{
	return dlist_head_element(SdChannel, linger_node, &db->lingering);
}

void
linger_begin(SdChannel *channel)
{
	SdDatabase *db = channel->db;
	SdChannel  *other;

	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	Assert(!channel_lingers(channel));
	if (!keeps_history(db))
		return;
	count(channel, 1);
	channel->lingers_since = GetCurrentTimestamp();
	channel->lingers_listened = pg_atomic_read_u32(&channel->listening) != 0;
	/* Whoever asks next may have its place. */
	if (channel->lingers_listened)
		pg_atomic_fetch_add_u32(&db->dispatchers[channel->dispatcher].listen_vacated, 1);
	dlist_push_tail(&db->lingering, &channel->linger_node);
	db->lingering_bytes += bytes_of(channel);
	sd_count_as(channel, SD_MEM_HISTORY);

	for (int i = 0; i < ENDS_FOR_ROOM && db->lingering_bytes > bytes_limit() &&
		 (other = longest(db)) != channel; i++)
	{
		leave(other);
		registry_remove_channel(other);
	}
}

void
linger_revive(SdChannel *channel)
{
	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	leave(channel);
	/* What was sent by NOTIFY since is lost. */
	if (channel->lingers_listened && pg_atomic_read_u32(&channel->listening) == 0)
		registry_keep_from_now(channel);
	registry_listen_anew(channel);
}

/* Some of those whose time is over, or of all; false: no more. */
static bool
end_some(SdDatabase *db, TimestampTz now, bool all)
{
	bool		more = false;

	registry_lock_exclusive();
	for (int i = 0; i < ENDS_PER_LOCK && !dlist_is_empty(&db->lingering); i++)
	{
		SdChannel  *channel = longest(db);

		more = all || now > channel->lingers_since + linger_time() ||
			pg_atomic_read_u32(&db->nlingering) > (uint32) subdispatch_max_subscriptions;
		if (!more)
			break;
		leave(channel);
		registry_remove_channel(channel);
	}
	more &= !dlist_is_empty(&db->lingering);
	registry_unlock();
	return more;
}

/*
 * A few times a second, by whoever keeps house for the database.  The history
 * goes with the last channel that could use it.
 */
void
linger_sweep(SdDatabase *db, TimestampTz now)
{
	bool		keeps = keeps_history(db);

	if (pg_atomic_read_u32(&db->nlingering) > 0)
		while (end_some(db, now, !keeps))
			;
	if (!keeps && pg_atomic_read_u32(&db->nsubscriptions) == 0)
		history_clear_all(db);
}

/* DROP DATABASE, DROP EXTENSION: raises nothing. */
void
linger_purge(SdDatabase *db)
{
	while (end_some(db, 0, true))
		;
	history_clear_all(db);
}

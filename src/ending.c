/*-------------------------------------------------------------------------
 *
 * ending.c
 *	  The ends of subscriptions, whoever brings them about.
 *
 * A subscription ends in two steps.  stream_end_locked() makes the stream do
 * without it and decides its last message; structural_end() takes it out of
 * everything that counts.  It is then kept by its id, and in its consumer's
 * list of ended ones, until the last message is read or nobody comes for it.
 * subscription_destroy() is for those of which nothing is to be read any more.
 *
 * What may concern many subscriptions takes registry_lock for ENDS_PER_LOCK of
 * them at a time.
 *
 * Locks: registry_lock exclusive, then an id lock, then a stream's lock.  No
 * errors are raised while one is held, and none at all by what may be called
 * after a commit or in an abort.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "ack.h"
#include "registry.h"

#define ENDS_PER_LOCK	16		/* keeps the lock's hold time short */
#define LOOKS_PER_LOCK	128		/* likewise, at those that may not be concerned */

/* ---- the end of a subscription ---- */

/*
 * Takes it out of everything that counts live subscriptions.  Caller holds
 * registry_lock exclusive.
 */
static void
structural_end(SdSubscription *sub)
{
	SdStream   *stream = sub_stream(sub);
	SdLink	   *link = sub_link(sub);
	SdDatabase *db = stream_channel(stream)->db;

	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	Assert(!sub->structurally_ended);

	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	if (sub->end == SD_END_NONE)
		stream_leave(stream, sub);
	else if (sub->overflow != SD_DROP_OLDEST)
		sd_list_remove(&stream_strict(stream)->ending, sub_strict_node(sub));
	link_leave(link, sub, sub->paused);
	sub->link = 0;
	sub->structurally_ended = true;
	if (--link->nsubscriptions == 0)
		link_remove(link);
	LWLockRelease(&stream->lock);

	pg_atomic_fetch_sub_u32(&sd_shared->nsubscriptions, 1);
	pg_atomic_fetch_sub_u32(&db->nsubscriptions, 1);
	pg_atomic_write_u64(&db->last_needed, GetCurrentTimestamp());
	registry_count_quotas(stream_identity(stream), -1);
	if (sub_connection(sub))
		sub_connection(sub)->nlive--;
	if (sub_consumer(sub))
		sub_consumer(sub)->nsubscriptions--;
	registry_leave_stream(stream);
}

/* Its last message is to be read: tells its consumer, and whoever waits. */
static void
announce_end(SdSubscription *sub)
{
	SdConsumer *consumer = sub_consumer(sub);

	stats_add(&stream_channel(sub_stream(sub))->db->stats, SD_STAT_SUBSCRIPTIONS_ENDED, 1);
	if (sub->end == SD_END_IDLE || sub->end == SD_END_LIFETIME)
		stats_add(&stream_channel(sub_stream(sub))->db->stats, SD_STAT_SUBSCRIPTIONS_EXPIRED, 1);
	if (consumer && sub->paused)
		sd_list_push_tail(&consumer->paused_ended, &sub->node);
	else if (consumer)
	{
		sd_list_push_tail(&consumer->ended, &sub->node);
		pg_atomic_fetch_add_u32(&consumer->nended, 1);
		sd_wake(consumer);
	}
	sd_wake(sub_stream(sub));
}

/* Ends it with a last message.  Caller holds registry_lock exclusive. */
void
subscription_end_one(SdSubscription *sub, SdEnd end)
{
	SdStream   *stream = sub_stream(sub);

	if (sub->structurally_ended)
		return;
	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	stream_end_locked(stream, sub, end);
	LWLockRelease(&stream->lock);
	structural_end(sub);
	announce_end(sub);
}

/* Removes it for good.  Caller holds registry_lock exclusive. */
void
subscription_destroy(SdSubscription *sub)
{
	SdStream   *stream = sub_stream(sub);
	LWLock	   *lock = subscription_id_lock(sub->hnode.hash);

	/*
	 * First, so that no reader finds one that is in no stream any more, or
	 * copies the name of a connection that is gone.
	 */
	LWLockAcquire(lock, LW_EXCLUSIVE);
	sd_hash_remove(&sd_shared->subscriptions, &sub->hnode);
	LWLockRelease(lock);

	if (!sub->structurally_ended)
		structural_end(sub);
	else if (sub_consumer(sub))
	{
		sd_list_remove(sub->paused ? &sub_consumer(sub)->paused_ended : &sub_consumer(sub)->ended,
					   &sub->node);
		if (!sub->paused)
			pg_atomic_fetch_sub_u32(&sub_consumer(sub)->nended, 1);
	}
	if (sub_connection(sub))
	{
		sd_list_remove(&sub_connection(sub)->subscriptions, &sub->connection_node);
		sub_connection(sub)->nmembers--;
		registry_drop_connection(sub_connection(sub));
	}
	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	stream_leave(stream, sub);
	pg_atomic_fetch_add_u64(&stream->version, 1);
	LWLockRelease(&stream->lock);
	sd_wake(stream);
	if (sub_consumer(sub))
		sd_wake(sub_consumer(sub));
	stream_unpin(stream);
	sd_free(sub);
}

/* One that has ended in its stream only so far, or NULL. */
static SdSubscription *
any_ending(SdStream *stream)
{
	SdSubscription *sub = NULL;

	LWLockAcquire(&stream->lock, LW_SHARED);
	if (stream_strict(stream) && !sd_list_is_empty(&stream_strict(stream)->ending))
		sub = sub_of_strict_node(sd_list_first(&stream_strict(stream)->ending));
	LWLockRelease(&stream->lock);
	return sub;
}

void
subscription_finish_ends(SdStream *stream)
{
	SdSubscription *sub;

	do
	{
		registry_lock_exclusive();
		for (int i = 0; i < ENDS_PER_LOCK && (sub = any_ending(stream)) != NULL; i++)
		{
			structural_end(sub);
			announce_end(sub);
		}
		registry_unlock();
	} while (sub != NULL);
}

/* One live subscription of the link, or NULL.  The stream's lock held. */
static SdSubscription *
any_of_link(SdLink *link)
{
	SdListNode *node = sd_list_first(&link->behind);

	if (node == NULL)
		node = sd_list_first(&link->current);
	if (node == NULL)
		node = sd_list_first(&link->paused);
	return node ? sd_list_container(SdSubscription, node, node) : NULL;
}

/* One live subscription of the stream, or NULL.  Registry held exclusive. */
static SdSubscription *
any_of_stream(SdStream *stream)
{
	SdSubscription *sub = NULL;

	LWLockAcquire(&stream->lock, LW_SHARED);
	sd_list_foreach(node, &stream->links)
	{
		sub = any_of_link(sd_list_container(SdLink, stream_node, node));
		if (sub)
			break;
	}
	LWLockRelease(&stream->lock);
	return sub;
}

void
subscription_end_stream(SdStream *stream, SdEnd end)
{
	SdSubscription *sub = NULL;

	do
	{
		registry_lock_exclusive();
		for (int i = 0; i < ENDS_PER_LOCK && !trash_is_full(); i++)
		{
			sub = any_of_stream(stream);
			if (sub == NULL)
				break;
			subscription_end_one(sub, end);
		}
		registry_unlock();
	} while (sub != NULL);
}

/* ---- ending by request ---- */

/*
 * serial 0: whichever has that id.  Ended ones count as gone, and go.
 */
bool
subscription_remove_one(Oid dboid, Oid owner, const char *id, uint64 serial)
{
	SdSubscription *sub;
	bool		live = false;

	registry_lock_exclusive();
	sub = subscription_find(dboid, owner, id);
	if (sub && (serial == 0 || sub->serial == serial))
	{
		live = !sub->structurally_ended;
		subscription_destroy(sub);
	}
	registry_unlock();
	return live;
}

bool
subscription_remove(Oid owner, const char *id)
{
	return subscription_remove_one(MyDatabaseId, owner, id, 0);
}

/*
 * The reader may be here before the dispatcher, which ended it in its stream
 * only so far: then the rest of the end is done now.
 */
void
subscription_forget(Oid owner, const char *id, uint64 serial)
{
	SdSubscription *sub;

	registry_lock_exclusive();
	sub = subscription_find(MyDatabaseId, owner, id);
	if (sub && sub->serial == serial)
	{
		if (!sub->structurally_ended)
		{
			structural_end(sub);
			announce_end(sub);
		}
		subscription_destroy(sub);
	}
	registry_unlock();
}

bool
subscription_complete(Oid owner, const char *id)
{
	SdSubscription *sub;
	bool		live = false;

	registry_lock_exclusive();
	sub = subscription_find(MyDatabaseId, owner, id);
	if (sub && !sub->structurally_ended)
	{
		live = true;
		subscription_end_one(sub, SD_END_COMPLETE);
	}
	registry_unlock();
	return live;
}

/*
 * Some of a connection's: looks at LOOKS_PER_LOCK and ends ENDS_PER_LOCK of them
 * at most.  *left are still to be looked at, PG_UINT32_MAX at the beginning.
 * Returns how many live ones went.
 */
static int
disconnect_some(Oid owner, const char *name, const char *consumer, uint32 *left)
{
	SdConnection *connection;
	int			live = 0;
	int			gone = 0;

	registry_lock_exclusive();
	connection = registry_find_connection(owner, name);
	*left = connection ? Min(*left, connection->nmembers) : 0;
	if (connection)
	{
		/* Its own reference keeps the connection while its members go. */
		connection->nlive++;
		for (int i = 0; i < LOOKS_PER_LOCK && gone < ENDS_PER_LOCK && *left > 0 &&
			 !trash_is_full(); i++)
		{
			SdSubscription *sub = registry_next_member(connection);

			(*left)--;
			if (consumer && (sub_consumer(sub) == NULL || strcmp(sub_consumer(sub)->name, consumer) != 0))
				continue;
			if (!sub->structurally_ended)
				live++;
			subscription_destroy(sub);
			gone++;
		}
		connection->nlive--;
		registry_drop_connection(connection);
	}
	registry_unlock();
	return live;
}

int64
subscription_disconnect(Oid owner, const char *connection_id, const char *consumer)
{
	int64		n = 0;
	uint32		left = PG_UINT32_MAX;

	do
		n += disconnect_some(owner, connection_id, consumer, &left);
	while (left > 0);
	return n;
}

/* ---- consumers ---- */

static SdSubscription *
any_of_consumer(SdConsumer *consumer)
{
	SdSubscription *sub;
	SdListNode *node = sd_list_first(&consumer->ended);
	SdLink	   *link;

	if (node == NULL)
		node = sd_list_first(&consumer->paused_ended);
	if (node)
		return sd_list_container(SdSubscription, node, node);
	node = sd_list_first(&consumer->links);
	if (node == NULL)
		return NULL;
	link = sd_list_container(SdLink, consumer_node, node);
	LWLockAcquire(&link_stream(link)->lock, LW_SHARED);
	sub = any_of_link(link);
	LWLockRelease(&link_stream(link)->lock);
	return sub;
}

/*
 * Removes some of what a consumer has, and the consumer itself if it is then
 * empty and drop is asked for.
 */
static int
empty_some(Oid owner, const char *name, bool drop, bool *more)
{
	SdConsumer *consumer;
	int			live = 0;

	*more = false;
	registry_lock_exclusive();
	consumer = registry_find_consumer(MyDatabaseId, owner, name);
	if (consumer)
	{
		for (int i = 0; i < ENDS_PER_LOCK && !trash_is_full(); i++)
		{
			SdSubscription *sub = any_of_consumer(consumer);

			if (sub == NULL)
				break;
			if (!sub->structurally_ended)
				live++;
			subscription_destroy(sub);
		}
		*more = any_of_consumer(consumer) != NULL;
		if (!*more && drop)
			registry_drop_consumer(consumer);
	}
	registry_unlock();
	ack_free();
	return live;
}

int64
consumer_close(Oid owner, const char *name)
{
	int64		n = 0;
	bool		more;

	do
		n += empty_some(owner, name, true, &more);
	while (more);
	return n;
}

int64
consumer_open(Oid owner, const char *name)
{
	SdDatabase *db = database_get(true, false);
	int64		n = 0;
	bool		more;
	bool		is_new;
	bool		too_many;
	SdConsumer *consumer;

	do
		n += empty_some(owner, name, false, &more);
	while (more);

	registry_lock_exclusive();
	consumer = registry_get_consumer(db, owner, name, &is_new, &too_many);
	if (consumer)
	{
		ack_drop(consumer);
		pg_atomic_write_u64(&consumer->last_polled, GetCurrentTimestamp());
	}
	registry_unlock();
	ack_free();
	if (too_many)
		registry_too_many_consumers();
	if (consumer == NULL)
		sd_out_of_shared_memory();
	return n;
}

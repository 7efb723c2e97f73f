/*-------------------------------------------------------------------------
 *
 * registry.h
 *	  What subscriptions are made of: channels, streams and their places in a
 *	  channel's index, identities, consumers, connections, quotas.
 *
 * Unless it says otherwise the caller of a function here holds registry_lock
 * in exclusive mode.  "get" finds one or makes it, and returns NULL when
 * shared memory is used up; "drop" frees it if nothing needs it any more.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_REGISTRY_H
#define SD_REGISTRY_H

#include "subscription.h"

extern void registry_lock_exclusive(void);
extern void registry_unlock(void);

/* ---- subscription.c, ending.c and sweep.c, for each other ---- */

extern LWLock *subscription_id_lock(uint32 hash);
/* By id; stays as long as registry_lock is held. */
extern SdSubscription *subscription_find(Oid dboid, Oid owner, const char *id);
/* Removes it for good. */
extern void subscription_destroy(SdSubscription *sub);
/* Ends it with a last message, if it is live. */
extern void subscription_end_one(SdSubscription *sub, SdEnd end);
/*
 * Takes the lock itself.  serial 0: whichever has that id.  Tells whether a
 * live one went; ended ones count as gone, and go.
 */
extern bool subscription_remove_one(Oid dboid, Oid owner, const char *id, uint64 serial);

/* ---- registry.c ---- */

/* Counts one more live subscription for the stream and its channel. */
extern SdStream *registry_get_stream(const SdSubscribe *what, SdDatabase *db);
/* One less; the stream leaves the registry with its last. */
extern void registry_leave_stream(SdStream *stream);

/* Makes it if there is none; NULL without memory, or if there are too many. */
extern SdConsumer *registry_get_consumer(SdDatabase *db, Oid owner, const char *name, bool *is_new,
										 bool *too_many);
extern void registry_too_many_consumers(void) pg_attribute_noreturn();
extern SdConsumer *registry_find_consumer(Oid dboid, Oid owner, const char *name);
extern void registry_drop_consumer(SdConsumer *consumer);

extern SdConnection *registry_get_connection(Oid owner, const char *name);
extern SdConnection *registry_find_connection(Oid owner, const char *name);
extern void registry_drop_connection(SdConnection *connection);
/*
 * The next of its subscriptions, which goes to the end of the list: who comes
 * nmembers times has seen all that were there, though the lock is let go.
 */
extern SdSubscription *registry_next_member(SdConnection *connection);

/* ---- link.c: the stream's lock is held, too ---- */

/* The consumer's (NULL: no consumer's) link in the stream. */
extern SdLink *link_get(SdStream *stream, SdConsumer *consumer);
/* It has no subscriptions any more. */
extern void link_remove(SdLink *link);

/* ---- pause.c ---- */

/* Is a subscription of the connection and the consumer paused?  Either may be NULL. */
extern bool pause_applies(SdConnection *connection, const SdConsumer *consumer);
/* Frees what is said of the connection beyond itself. */
extern void pause_forget(SdConnection *connection);

/* ---- for linger.c ---- */

/* A channel without streams leaves the registry. */
extern void registry_remove_channel(SdChannel *channel);
/* The dispatcher shall look again at which channels to LISTEN on. */
extern void registry_listen_anew(SdChannel *channel);
/* What was before now may be missing on the channel. */
extern void registry_keep_from_now(SdChannel *channel);

/*
 * The quotas of a new identity, with a reference to each: the user's (NULL
 * without a user_key) and the role's.  False without memory.
 */
extern bool registry_get_quotas(const SdSubscribe *what, SdQuota **user, SdQuota **role);
/* The identity needs it no more; the reference stays. */
extern void registry_leave_quota(SdQuota *quota);
/* So many live subscriptions more, for user and role. */
extern void registry_count_quotas(SdIdentity *identity, int by);

/* ---- index.c ---- */

/* Puts a stream where its channel's events look for it; false without memory. */
extern bool index_add(SdStream *stream);
extern void index_remove(SdStream *stream);

/*
 * The streams of a channel that ask for a value at a path, or NULL if there are
 * none.  One alone is put into *alone, and that returned.  Caller holds
 * registry_lock in any mode.
 */
extern SdStreamVec *index_find(SdChannel *channel, const char *path, int pathlen,
							   uint64 value_hash, SdStreamVec *alone);

/*
 * Pins up to room of the streams that come before number *at, the last first,
 * and lowers *at to where to go on (0: that was all).  Returns how many.  Begin
 * with PG_UINT32_MAX.  The lock may be let go in between: a stream that goes is
 * replaced by the last one, which was pinned before, so none that was there at
 * the beginning is missed.  Caller holds registry_lock in any mode; vec may be
 * NULL, for none.
 */
extern int	registry_pin_streams(const SdStreamVec *vec, uint32 *at, SdStream **pins, int room);

/*
 * Drops the database's consumers of a bucket that nobody has come for since the
 * idle timeout, or all that are empty.  Takes and releases registry_lock itself.
 */
extern void registry_drop_consumers(uint32 bucket, Oid dboid, TimestampTz now, bool all);

#endif							/* SD_REGISTRY_H */

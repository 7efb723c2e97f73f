/*-------------------------------------------------------------------------
 *
 * subscription.h
 *	  The registry: subscriptions, consumers, connections, identities.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_SUBSCRIPTION_H
#define SD_SUBSCRIPTION_H

#include "stream.h"

typedef struct SdSubscribe
{
	const char *channel;
	Oid			resolver;		/* InvalidOid: none */
	bool		batched;
	bool		immutable;
	Jsonb	   *variables;
	Jsonb	   *filter_json;
	SdFilter   *filter;
	Jsonb	   *context;
	const char *user_key;		/* the context's user_id as text, or NULL */
	Oid			owner;
	Oid			role;
	bool		ordinary;		/* role is no superuser */
	Jsonb	   *settings;
	const char *operation_name;
	const char *operation_id;
	const char *response_key;
	const char *id;
	const char *connection_id;
	const char *consumer;
	double		rate_limit;		/* 0: none */
	int			burst;
	int			max_pending;
	int			max_pending_bytes;
	SdOverflow	overflow;
	bool		resumes;		/* after this event */
	int64		after_event;
} SdSubscribe;

/*
 * Registers it, at once and for everybody; the caller's transaction undoes it
 * when it rolls back.  Raises errors for limits, memory, an id in use.
 * Returns the subscription's serial.
 */
extern uint64 subscription_create(const SdSubscribe *what);
extern void subscription_init(void);	/* transaction callbacks */
extern bool subscription_pending(void); /* did this transaction subscribe? */

extern bool subscription_remove(Oid owner, const char *id);
extern bool subscription_complete(Oid owner, const char *id);
extern int64 subscription_disconnect(Oid owner, const char *connection_id, const char *consumer);
/* pause.c: returns how many live ones are concerned. */
extern int64 connection_pause(Oid owner, const char *connection_id, const char *consumer,
							  bool paused);
extern int64 consumer_open(Oid owner, const char *name);
extern int64 consumer_close(Oid owner, const char *name);

/*
 * Finds a subscription and returns with its id lock held in shared mode
 * (*lock), which keeps it from going away; NULL without a lock if there is
 * none.
 */
extern SdSubscription *subscription_lookup(Oid owner, const char *id, LWLock **lock);
/* Of this database: its hash in the table. */
extern uint32 subscription_hash(Oid owner, const char *id);
/* Caller holds registry_lock in any mode. */
extern SdConsumer *consumer_lookup(Oid owner, const char *name);
/* Caller holds registry_lock in any mode. */
extern SdChannel *channel_lookup(Oid dboid, const char *name, Size len, uint32 hash);

/*
 * Finishes the end of subscriptions that stream_end_locked() marked, and of
 * all of a stream if end is given.  Caller holds no lock, and a pin.
 */
extern void subscription_end_stream(SdStream *stream, SdEnd end);
extern void subscription_finish_ends(SdStream *stream);

/* Removes one whose last message was read.  Holds no lock. */
extern void subscription_forget(Oid owner, const char *id, uint64 serial);

/*
 * A slice of the sweep for idle and overaged subscriptions and consumers of a
 * database (sweep.c); returns when the next is due.
 */
extern TimestampTz subscription_sweep(SdDatabase *db);

/* All of a database's go, without a word: DROP DATABASE, DROP EXTENSION. */
extern void subscription_purge_database(Oid dboid);

#endif							/* SD_SUBSCRIPTION_H */

/*-------------------------------------------------------------------------
 *
 * bus.h
 *	  What carries events from publish() to the dispatchers.
 *
 * Publisher's side of the memory bus, all in one transaction's end:
 *
 *	  before the commit record:  bus_reserve(), bus_alloc_block() ...,
 *								 bus_take_ticket()
 *	  after it became visible:   bus_link() or bus_give_back_ticket()
 *	  on abort:                  bus_give_back_ticket(), bus_release(),
 *								 bus_free_block()
 *
 * Dispatcher's side:  bus_sequence() moves what may go to the dispatchers'
 * queues and takes this dispatcher's own in hand; bus_done() ends blocks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_BUS_H
#define SD_BUS_H

#include "database.h"
#include "event.h"

/* ---- memory bus: publisher (bus_memory.c) ---- */

/*
 * Tries to reserve bytes[d] in each dispatcher's queue, all or none.  If they
 * don't fit, *full_dispatcher tells whose queue is full.
 */
extern bool bus_reserve(SdDatabase *db, const Size *bytes, int *full_dispatcher);
extern void bus_force_reserve(SdDatabase *db, int dispatcher, Size bytes);
extern void bus_release(SdDatabase *db, int dispatcher, Size bytes);

extern void bus_take_ticket(SdDatabase *db, TransactionId xid);
extern void bus_give_back_ticket(SdDatabase *db);

/* Links blocks (dlist of SdBlock by node); cannot fail.  Wakes dispatchers. */
extern void bus_link(SdDatabase *db, dlist_head *blocks, uint32 tx_events,
					 const SdPosition *commit);

/* ---- memory bus: dispatcher ---- */

/* Returns whether this dispatcher has something in hand. */
extern bool bus_sequence(SdDatabase *db, int dispatcher);
/* The first n in hand are done with. */
extern void bus_done(SdDatabase *db, int dispatcher, uint32 n);
extern void bus_link_with_ids(SdDatabase *db, dlist_head *blocks, uint64 first, uint64 last);

/* Empties a database's queues: its subscriptions are gone. */
extern void bus_clear(SdDatabase *db, bool all);

/* ---- ids (bus_id.c) ---- */

/* The first of n, for events that are dispatched, or sent; caller holds order_lock. */
extern uint64 bus_next_ids(SdDatabase *db, uint32 n, uint64 now);
extern uint64 bus_next_numbers(SdDatabase *db, uint32 n);

/*
 * An id above all that were given by now, and not above any that will be.  No
 * event has it, except with the Redis bus.  Takes order_lock.
 */
extern uint64 bus_take_id(SdDatabase *db);

/*
 * Later events of this server shall have higher ids than this one; false if it
 * is above all that can have been given by now.  *last: the last one given.
 */
extern bool bus_skip_ids(SdDatabase *db, uint64 id, uint64 *last);

/*
 * Up to this id, if it is not 0, else up to now, events may be dispatched, or
 * lost, that Redis does not have under their ids.  Takes no lock.
 */
extern void bus_note_elsewhere(SdDatabase *db, uint64 id);

/* ---- waiting (bus_wait.c) ---- */

/* Waits until what is committed now is dispatched; false on timeout. */
extern bool bus_wait_dispatched(SdDatabase *db, int64 timeout_us);

/* ---- publishing (publish.c) ---- */

extern void publish_init(void); /* transaction callbacks */
/* Queues a copy of the event for this transaction's commit. */
extern void publish_event(const SdEvent *ev);
/*
 * Links one event at once, outside any transaction's end: for notifications.
 * Never waits.  False if there was no room: the caller keeps it and tries again.
 */
extern bool publish_now(SdDatabase *db, const SdEvent *ev);

/*
 * Links events that have their ids already, rising, from the first "n" of an
 * array.  Returns how many it could link, or knew to concern nobody here; fewer
 * than n if there was no room.  For the bus worker.  Cannot fail.
 */
typedef struct SdNumbered
{
	SdEvent    *ev;				/* NULL: concerns nobody, only its id counts */
	uint64		id;
	bool		pending;		/* may concern who subscribes before its dispatch */
} SdNumbered;

extern uint32 publish_numbered(SdDatabase *db, const SdNumbered *events, uint32 n);
extern bool publish_pending(void);	/* has this transaction published? */

/* ---- notify bus (bus_notify.c) ---- */

/* publish() with event_bus = notify: sends an envelope by NOTIFY at commit. */
extern void notify_publish(const SdEvent *ev);

/* Dispatcher: before the loop, in it (outside a transaction), and its limits. */
extern void notify_init(SdDatabase *db, int dispatcher);
/* LISTENs and UNLISTENs as the registry asks, answers markers. */
extern void notify_sync(SdDatabase *db, int dispatcher);
/* Takes what has arrived and links it; true if anything did. */
extern bool notify_receive(SdDatabase *db, int dispatcher);
/* Is anything received and not linked yet, for want of room? */
extern bool notify_backlog(void);

/*
 * Does subdispatch.listen_channels cover the channel, by a pattern only if
 * there is no grant on it, and can it be LISTENed on?  In a transaction.
 */
extern bool notify_covers(const char *channel);
/* Is it there by its name? */
extern bool notify_names(const char *channel);
extern bool notify_check_listen_channels(char **newval, void **extra, int source);

/* ---- Redis bus (bus_redis.c) ---- */

/* Raises an error unless the settings are such that the bus can be used. */
extern void redis_require_settings(void);
/* The bus worker shall run; wakes the launcher if it doesn't.  Cannot fail. */
extern void redis_want_worker(SdDatabase *db);
/* subscribe(): waits until the worker has tried to reach Redis, and warns. */
extern void redis_wait_for_position(SdDatabase *db);
/* A committed event found no room: cannot fail. */
extern void redis_lose(SdDatabase *db, uint32 channel_hash);
/* gaps.c: tells subscriptions that something is missing; bits may be NULL: all. */
extern void gaps_raise(SdDatabase *db, const uint32 *bits);
/* How the worker stands: for views.  error may be NULL. */
extern SdBusState redis_state(SdDatabase *db, char *error, Size size, TimestampTz *since);
extern const char *redis_state_name(SdBusState state);

#endif							/* SD_BUS_H */

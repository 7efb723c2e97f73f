/*-------------------------------------------------------------------------
 *
 * database.h
 *	  What is kept per database: its dispatchers, the order of its events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_DATABASE_H
#define SD_DATABASE_H

#include "lib/ilist.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"

#include "stats.h"
#include "subdispatch.h"

/* A sketch of which channels have subscriptions: counters by channel hash. */
#define SD_SKETCH_SIZE		1024

typedef enum SdWorkerState
{
	SD_WORKER_NONE,				/* not running */
	SD_WORKER_STARTING,			/* registered by the launcher */
	SD_WORKER_RUNNING,			/* connected, in its loop */
	SD_WORKER_FAILED,			/* could not be started: no worker slot */
	SD_WORKER_BROKEN			/* was started, but ended before it was ready */
} SdWorkerState;

/* Dispatched events that are kept; see history.c. */
typedef struct SdHistory
{
	LWLock		lock;
	/* lock */
	dlist_head	blocks;			/* SdBlocks in the order of their event ids */
	struct SdBlock *pin;		/* a walk is there: it and those after it stay */
	struct SdBlock *hint;		/* where the last walk was */
	pg_atomic_uint64 bytes;		/* written under lock, read by anybody */
} SdHistory;

typedef struct SdDispatcher
{
	/* order_lock of the database */
	dlist_head	queue;			/* SdBlocks in the order of their event ids */
	dlist_head	inhand;			/* those its batch is made of; survives it */

	/*
	 * Who has this place: set and cleared by the dispatcher under
	 * database_lock, read by anybody.  Cleared when the process has left the
	 * list of those connected to the database.
	 */
	pg_atomic_uint32 procno;	/* PGPROC number + 1; 0: not running */
	pg_atomic_uint32 pid;

	/*
	 * STARTING, FAILED and BROKEN are the launcher's to set, the rest the
	 * dispatcher's; who waits for a start turns FAILED and BROKEN into NONE.
	 */
	pg_atomic_uint32 state;		/* SdWorkerState */
	pg_atomic_uint32 busy;		/* a batch is under way */

	pg_atomic_uint64 queue_bytes;	/* reserved, linked or in hand */
	pg_atomic_uint64 queue_events;	/* linked or in hand */
	pg_atomic_uint64 done_id;	/* every event up to this id is dispatched */

	/* LISTEN (bus_notify.c): asked for by others, answered by the dispatcher */
	pg_atomic_uint32 listen_requests;	/* rises when LISTENs are to be redone */
	pg_atomic_uint32 listen_done;	/* the request number that is carried out */
	pg_atomic_uint32 marker_requests;	/* wait_dispatched asks for a marker */
	pg_atomic_uint32 marker_done;
	pg_atomic_uint32 nlistening;	/* channels LISTENed on */

	/* rises when a channel's gaps were raised; see dispatch_gaps() */
	pg_atomic_uint32 gap_requests;

	/* single writer: the dispatcher (survives it, for the one that follows) */
	uint64		current_id;		/* event under way */
	uint32		attempts;		/* how often it was begun and not ended */
	Oid			current_resolver;	/* the call that was begun last */
	uint64		current_identity;	/* or whose policies were */
	uint64		fault_id;		/* see dispatch_fault() */
	TimestampTz started_at;		/* atomic enough for a view */

	SdHistory	history;
	ConditionVariable room;		/* publishers that wait for room */
	SdStats		stats;			/* single writer */
} SdDispatcher;

typedef struct SdDatabase
{
	/* database_lock */
	Oid			dboid;			/* InvalidOid: free */
	uint32		generation;		/* rises each time the slot changes hands */

	LWLock		order_lock;
	/* order_lock */
	uint64		next_ticket;
	uint64		link_counter;	/* rises with every linked transaction */
	uint64		last_id;		/* last event id given */
	dlist_head	taken;			/* SdTicketSlots by rising ticket */
	dlist_head	linked;			/* SdBlocks by rising ticket, not yet sequenced */

	/* written under database_lock, read by anybody */
	pg_atomic_uint32 wanted;	/* dispatchers shall run */
	pg_atomic_uint32 paused;	/* > 0: they shall end (DROP DATABASE, ...) */

	pg_atomic_uint32 nsubscriptions;	/* live ones */
	pg_atomic_uint32 nstar;		/* of these on '*' */
	pg_atomic_uint64 last_needed;	/* TimestampTz: when it last had any */
	pg_atomic_uint32 sketch[SD_SKETCH_SIZE];

	/* registry_lock */
	dlist_head	lingering;		/* SdChannels, the longest first; linger.c */
	pg_atomic_uint32 nlingering;

	/* the highest event ids that were given up: by channel hash, of '*' */
	pg_atomic_uint64 gone[SD_SKETCH_SIZE];
	pg_atomic_uint64 gone_star;

	ConditionVariable changed;	/* a worker's state changed, a batch ended */
	SdDispatcher dispatchers[SD_MAX_DISPATCHERS];
	SdStats		stats;			/* of backends: atomic */
} SdDatabase;

/* Once, at server start, by the process that lays shared memory out. */
extern void database_init_all(void);

/*
 * This database's slot; makes one if make is true and there is none (an error
 * when all slots are taken, unless noerror).  Cached per backend; the slot of
 * a connected database cannot go away.
 */
extern SdDatabase *database_get(bool make, bool noerror);
extern SdDatabase *database_find(Oid dboid);

/* Gives the slot back, after DROP DATABASE: nothing of it may be in use. */
extern void database_release(Oid dboid);

extern uint32 channel_hash(const char *name, Size len);
extern int	channel_dispatcher(uint32 hash);
extern bool database_maybe_subscribed(SdDatabase *db, uint32 channel_hash);

/*
 * Makes sure dispatchers run, or raises an error that says why they can't.
 * Also locks the extension against DROP EXTENSION until the transaction ends.
 */
extern void database_start_dispatchers(SdDatabase *db);
extern void database_wake(SdDatabase *db, int dispatcher);
extern void database_wake_all(SdDatabase *db);

/* Dispatchers shall not run any more: they end when their queues are empty. */
extern void database_stop_dispatchers(Oid dboid);

/* The process id of the dispatcher that has the place, 0 if none is alive. */
extern int	database_dispatcher_pid(SdDispatcher *disp);

/* Is something linked that no dispatcher has in its queue yet? */
extern bool database_has_linked(SdDatabase *db);

/* Is anything linked, queued or in hand? */
extern bool database_has_events(SdDatabase *db);

#endif							/* SD_DATABASE_H */

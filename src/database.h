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
#include "storage/spin.h"

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

/* What is asked of the bus worker for those who resume; see backfill.c. */
typedef struct SdBackfill
{
	/*
	 * Number of the request, 0: none.  Set by the dispatcher, cleared by it or
	 * by the bus worker who has served it; read by anybody.
	 */
	pg_atomic_uint32 asked;
	/* the rest is written with "asked" */
	uint32		last_asked;
	uint64		from;			/* events after this one */
	bool		all;			/* of all channels */
	uint32		channels[SD_SKETCH_SIZE / 32];	/* or of these, by hash */
	struct SdWindow *window;	/* what came of it; then the dispatcher's */
} SdBackfill;

/* Dispatched events that are kept; see history.c. */
typedef struct SdHistory
{
	LWLock		lock;
	/* lock */
	dlist_head	blocks;			/* SdBlocks in the order of their event ids */
	struct SdBlock *pin;		/* a walk is there: it and those after it stay */
	struct SdBlock *hint;		/* where the last walk was */
	dlist_head	resuming;		/* SdResumes that run */
	uint32		nresuming;
	SdBackfill	backfill;
	pg_atomic_uint32 held;		/* more is kept: some are about to come back to it;
								 * single writer: the dispatcher */
	pg_atomic_uint32 resume_changes;	/* rises with every change of them */
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

	/*
	 * There are no places as long as "full" is "vacated" + 1: channels that are
	 * not LISTENed on need not ask.  The dispatcher writes the one, and the
	 * other rises when one that is begins to linger.
	 */
	pg_atomic_uint32 listen_full;
	pg_atomic_uint32 listen_vacated;

	/* rises when a channel's gaps were raised; see dispatch_gaps() */
	pg_atomic_uint32 gap_requests;

	/* single writer: the dispatcher (survives it, for the one that follows) */
	uint64		current_id;		/* event under way */
	uint32		attempts;		/* how often it was begun and not ended */
	Oid			current_resolver;	/* the call that was begun last */
	uint64		current_identity;	/* or whose policies were */
	uint64		fault_id;		/* see dispatch_fault() */
	uint64		replay_id;		/* the same of events that are replayed */
	uint32		replay_attempts;
	TimestampTz started_at;		/* atomic enough for a view */

	SdHistory	history;
	ConditionVariable room;		/* publishers that wait for room */
	SdStats		stats;			/* single writer */
} SdDispatcher;

/* How the bus worker stands with Redis. */
typedef enum SdBusState
{
	SD_BUS_OFF,					/* it does not run, or has not begun */
	SD_BUS_CONNECTING,			/* for the first time since it was started */
	SD_BUS_CONNECTED,
	SD_BUS_WAITING				/* it failed, see "error", and tries again */
} SdBusState;

/* Is what was published by another bus known beyond the server's life? */
typedef enum SdElsewhere
{
	SD_ELSEWHERE_UNKNOWN,		/* the file was not looked at */
	SD_ELSEWHERE_CLOSED,
	SD_ELSEWHERE_OPEN
} SdElsewhere;

/* Those whose events were read; see redis_read.c. */
#define SD_BUS_SENDERS			64
#define SD_SENDER_LEN			32	/* hexadecimal digits */

typedef struct SdBusSender
{
	char		name[SD_SENDER_LEN + 1];	/* empty: no entry */
	uint64		number;			/* of its last event */
	int64		sent_at;		/* when that was sent, in us of the Unix epoch */
} SdBusSender;

/* How far a server has read. */
typedef struct SdBusProgress
{
	uint64		position;		/* id of the last entry read */
	uint64		part;			/* second half of its id in Redis; ours have 0 */
	uint64		chain;			/* of the last good one: the next names it */
	int64		oldest_sent;	/* what unknown senders sent before is old */
	SdBusSender senders[SD_BUS_SENDERS];
} SdBusProgress;

/*
 * What the bus worker knows, beyond its process's life, and what others ask of
 * it.  bus_redis.c tells more.
 */
typedef struct SdBus
{
	/* order_lock */
	uint64		next_number;	/* of the events that leave this server */

	/* written under database_lock, read by anybody */
	pg_atomic_uint32 wanted;	/* the bus worker shall run */
	pg_atomic_uint32 dropped;	/* the extension is gone: it shall end soon */

	pg_atomic_uint64 last_needed;	/* TimestampTz */
	pg_atomic_uint32 state;		/* SdBusState; single writer: the worker */

	/*
	 * Up to this id events were dispatched, or lost, that are not in the stream
	 * under their ids: they came by another bus, or had to be raised.
	 */
	pg_atomic_uint64 not_in_stream;
	pg_atomic_uint32 elsewhere; /* SdElsewhere: what the file says; elsewhere.c */
	pg_atomic_uint32 elsewhere_used;	/* since the worker looked */
	TimestampTz begun_at;		/* immutable: when this memory began */
	/* id of the last event that may be linked by now; single writer: the worker */
	pg_atomic_uint64 linking;
	pg_atomic_uint32 sync_requests; /* bus_wait.c asks */
	pg_atomic_uint32 sync_done; /* the worker answers */

	/* events that were committed and found no room, to be told as a gap */
	pg_atomic_uint32 nlost;
	pg_atomic_uint32 lost[SD_SKETCH_SIZE / 32]; /* by channel hash */

	/* single writer: the worker */
	char		sender[SD_SENDER_LEN + 1];	/* this server's name; empty: none yet */
	uint64		acknowledged;	/* number of the last event that Redis has */
	uint64		marker_number;	/* of a gap that is to be sent; 0: none */
	uint32		marker[SD_SKETCH_SIZE / 32];
	uint64		stream_hash;	/* of the stream that "progress" is about */
	bool		has_position;	/* is "progress" worth anything? */
	uint64		broken_before;	/* something before this event was found missing */
	SdBusProgress progress;

	slock_t		mutex;			/* guards what follows */
	TimestampTz error_at;		/* 0: all is well */
	char		error[256];		/* no secret is in it */
} SdBus;

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
	pg_atomic_uint32 ntaken;	/* of them; read by anybody */
	dlist_head	linked;			/* SdBlocks by rising ticket, not yet sequenced */

	/* written under database_lock, read by anybody */
	pg_atomic_uint32 wanted;	/* dispatchers shall run */
	pg_atomic_uint32 paused;	/* > 0: they shall end (DROP DATABASE, ...) */

	pg_atomic_uint32 nsubscriptions;	/* live ones */
	pg_atomic_uint32 nstar;		/* of these on '*' */
	pg_atomic_uint64 last_needed;	/* TimestampTz: when it last had any */
	pg_atomic_uint32 sketch[SD_SKETCH_SIZE];

	/* batches that are not acknowledged, and what they have; ack.c */
	pg_atomic_uint32 nbatches;
	pg_atomic_uint64 noutstanding;

	/* registry_lock */
	dlist_head	lingering;		/* SdChannels, the longest first; linger.c */
	Size		lingering_bytes;
	pg_atomic_uint32 nlingering;

	/*
	 * A replica: what must have been replayed before all is seen of the events
	 * that were given up; see replay.c.
	 */
	pg_atomic_uint64 unseen_until;	/* XLogRecPtr; 0: none was given up */

	/* the highest event ids that were given up: by channel hash, of '*' */
	pg_atomic_uint64 gone[SD_SKETCH_SIZE];
	pg_atomic_uint64 gone_star;

	ConditionVariable changed;	/* a worker's state changed, a batch ended */
	SdDispatcher dispatchers[SD_PLACES];	/* the last one is the bus worker's */
	SdBus		bus;
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
/* A subscription was registered: they shall not have ended since they were started. */
extern void database_keep_dispatchers(SdDatabase *db);
extern void database_wake(SdDatabase *db, int dispatcher);
extern void database_wake_all(SdDatabase *db);

/*
 * The extension is gone.  Dispatchers shall not run any more: they end when their
 * queues are empty; for the bus worker see bus_worker.c.
 */
extern void database_stop_dispatchers(Oid dboid);

/* The process id of the dispatcher that has the place, 0 if none is alive. */
extern int	database_dispatcher_pid(SdDispatcher *disp);

/* Is something linked that no dispatcher has in its queue yet? */
extern bool database_has_linked(SdDatabase *db);

/* Is anything linked, queued or in hand? */
extern bool database_has_events(SdDatabase *db);

#endif							/* SD_DATABASE_H */

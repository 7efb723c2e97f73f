/*-------------------------------------------------------------------------
 *
 * dispatcher.h
 *	  The background workers: one launcher per server, dispatchers per
 *	  database in use.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_DISPATCHER_H
#define SD_DISPATCHER_H

#include "database.h"

/* A database keeps its dispatchers for this long after its last subscription. */
#ifdef USE_ASSERT_CHECKING
#define SD_IDLE_END			(subdispatch_debug_idle_end * INT64CONST(1000))
#else
#define SD_IDLE_END			(60 * SD_SECOND)
#endif

/* launcher.c */
extern void launcher_register(void);	/* called by _PG_init */
extern PGDLLEXPORT void subdispatch_launcher_main(Datum arg);
extern void launcher_wake(void);

/* dispatcher.c; arg: slot in sd_shared->databases * SD_PLACES + index */
extern PGDLLEXPORT void subdispatch_dispatcher_main(Datum arg);
/* bus_worker.c; likewise, the index is SD_BUS_PLACE */
extern PGDLLEXPORT void subdispatch_bus_main(Datum arg);
extern bool am_dispatcher;		/* this process is one */

/* dispatcher_place.c: the place of this process, a dispatcher or the bus worker */
extern pg_atomic_uint32 *place_wanted(SdDatabase *db, int index);
extern Oid	place_take(SdDatabase *db, int dispatcher);
extern void place_leave_if_not_wanted(void);
extern void place_retire_if_idle(TimestampTz now);
extern void place_retire_bus(TimestampTz now);
extern bool place_end_bus(void);

/* dispatch.c: what the dispatcher has in hand */
extern bool dispatch_inhand(SdDatabase *db, int dispatcher);
extern void dispatch_gaps(SdDatabase *db, int dispatcher);
/* How many blocks (of a transaction each, mostly) it was done with since the last call. */
extern uint32 dispatch_blocks_done(void);

/* gather.c: between two batches; may sleep for a moment */
#define GATHER_MS		1
extern void gather_events(SdDatabase *db, int dispatcher);
/* Are more events about to come, after so many blocks were done with together? */
extern bool gather_expects_more(SdDatabase *db, uint32 blocks_done);

/*
 * catchup.c: a slice of work for those that resume; true if there is more to do.
 * If there is, but not now, *retry_at is lowered to when.
 */
extern bool catchup_step(SdDatabase *db, int dispatcher, TimestampTz *retry_at);

/* lifecycle.c */
extern void lifecycle_init(void);	/* installs the hooks */

#endif							/* SD_DISPATCHER_H */

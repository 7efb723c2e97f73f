/*-------------------------------------------------------------------------
 *
 * replay.h
 *	  Read replicas: commits elsewhere, and what of them can be seen here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_REPLAY_H
#define SD_REPLAY_H

#include "database.h"
#include "event.h"

typedef enum ReplayState
{
	REPLAY_DONE,				/* what it did can be seen, or will never be here */
	REPLAY_PENDING,				/* not yet */
	REPLAY_LOST					/* a promotion has left it out */
} ReplayState;

/* What the next calls of replay_state() compare with; looked up anew for each batch. */
typedef struct ReplayPoint
{
	bool		recovery;
	TimeLineID	timeline;
	XLogRecPtr	replayed;		/* if in recovery */
} ReplayPoint;

/*
 * In a transaction's commit callback: where it committed, so that who has
 * replayed that sees all that the transaction did and saw.  Cannot fail.
 */
extern void replay_note_commit(SdPosition *commit);
/* The same of all that has committed by now.  Cannot fail; not in recovery. */
extern void replay_note_now(SdPosition *commit);

extern void replay_look(ReplayPoint *point);

/*
 * May read a file, the history of the server's timeline, and so raise an error
 * or end the process if that is damaged.
 */
extern ReplayState replay_state(const ReplayPoint *point, const SdPosition *commit);

/*
 * An event that is pending will not be waited for any longer.  To be called
 * before anybody is looked for who subscribes to it.
 */
extern void replay_give_up(SdDatabase *db, const ReplayPoint *point, const SdPosition *commit);

/*
 * Is something still to be replayed of which nobody will get an event any more?
 * A subscription asks when it is there to be found.
 */
extern bool replay_lacks_event(SdDatabase *db);

/*
 * Did recovery cancel us because we stood in its way?  Until the transaction is
 * over it does so again and again.
 */
extern bool replay_is_conflict(const ErrorData *error);

/* ---- what recovery does to databases (replay_drop.c) ---- */

/*
 * Dispatcher 0, between its steps, outside of a transaction: has recovery
 * dropped the extension?  Then the database's subscriptions end.
 */
extern void replay_check_extension(void);

/*
 * Launcher: is the database still there?  Recovery drops them without a word.
 * Outside of a transaction.
 */
extern bool replay_database_exists(Oid dboid);

#endif							/* SD_REPLAY_H */

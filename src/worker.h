/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  What the processes of a database have in common, dispatchers and the bus
 *	  worker: how they start, their loop, its errors.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_WORKER_H
#define SD_WORKER_H

#include "database.h"

/*
 * A kind's own steps are numbered from 1.  Step 0 is all that happens between
 * them: what signals ask for, whether the process is still wanted.
 */
#define WORKER_REQUESTS		0
#define WORKER_MAX_STEPS	16

/* What a kind of worker does; all of it may raise errors but failed(). */
typedef struct Worker
{
	const char *name;			/* as pg_stat_activity and ps show it */
	int64		retry_first;	/* us that a step is left out which has failed */
	int64		retry_again;	/* and if it fails again and again */
	void		(*reload) (void);	/* reads the configuration file */
	/* One step after the other.  Returns whether there may be more to be done. */
	bool		(*turn) (void);
	long		(*wait_time) (void);	/* at the most, if no step has to be repeated; ms */
	void		(*wait) (long timeout); /* for the latch at least */
	/* An error was logged, and its transaction aborted: what else is to be undone? */
	void		(*failed) (void);
} Worker;

/* The current one in steps; a turn's end resets it. */
extern MemoryContext worker_context;

/*
 * Takes a place (slot in sd_shared->databases * SD_PLACES + index), and connects.
 * Handlers of SIGTERM and SIGINT are set before.  Ends the process if the place
 * is not to be taken.
 */
extern SdDatabase *worker_start(const Worker *worker, int place);
extern void worker_loop(void) pg_attribute_noreturn();

/* May the step run, or has it failed and has to wait?  If so, it has begun. */
extern bool worker_begin(int step);
extern void worker_end(void);
/* Requests that come by signal; for a step that takes long, outside of transactions. */
extern void worker_handle_requests(void);

#endif							/* SD_WORKER_H */

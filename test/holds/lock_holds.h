/*-------------------------------------------------------------------------
 *
 * lock_holds.h
 *	  An instrument, run by hand (test/holds/run.sh): how long LWLocks are held.
 *
 * gcc includes this before each file.  It replaces LWLockAcquire() and
 * LWLockRelease() by functions that measure the processor time of the process
 * between the two (not the wall clock: on a busy machine a process is stopped
 * anywhere) and write what is longer than HOLD_REPORT_US to stderr, which is
 * the server's log.  Measuring takes some 300 ns, so only one kind of lock is
 * measured per build: HOLD_TRANCHE names its variable.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LOCK_HOLDS_H
#define LOCK_HOLDS_H

#include "postgres.h"

#include <time.h>

#include "storage/lwlock.h"

#ifndef HOLD_TRANCHE
#define HOLD_TRANCHE	sd_tranche_registry
#endif
#ifndef HOLD_REPORT_US
#define HOLD_REPORT_US	20
#endif

extern int	HOLD_TRANCHE;
extern const char *debug_query_string;	/* tcopprot.h brings too many names */

#define HOLDS	16				/* of the kind, held at once */

typedef struct LockHold
{
	LWLock	   *lock;
	int64		since;			/* ns */
	const char *file;
	int			line;
} LockHold;

/* One for the whole library, whichever file defines it. */
LockHold	lock_holds[HOLDS] __attribute__((weak));

static inline int64
hold_clock(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (int64) t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline bool
hold_acquire(LWLock *lock, LWLockMode mode, const char *file, int line)
{
	bool		result = LWLockAcquire(lock, mode);

	if (lock->tranche != HOLD_TRANCHE)
		return result;
	for (int i = 0; i < HOLDS; i++)
		if (lock_holds[i].lock == NULL)
		{
			lock_holds[i].lock = lock;
			lock_holds[i].file = file;
			lock_holds[i].line = line;
			lock_holds[i].since = hold_clock();
			break;
		}
	return result;
}

static inline void
hold_release(LWLock *lock, const char *file, int line)
{
	LockHold	hold = {NULL};
	int64		now = lock->tranche == HOLD_TRANCHE ? hold_clock() : 0;

	for (int i = 0; i < HOLDS; i++)
		if (lock_holds[i].lock == lock)
		{
			hold = lock_holds[i];
			lock_holds[i].lock = NULL;
			break;
		}
	LWLockRelease(lock);
	if (hold.lock && now - hold.since >= HOLD_REPORT_US * 1000)
		fprintf(stderr, "LOCK HELD %lld us from %s:%d to %s:%d in: %.60s\n",
				(long long) (now - hold.since) / 1000, hold.file, hold.line, file, line,
				debug_query_string ? debug_query_string : "a worker");
}

#define LWLockAcquire(lock, mode)	hold_acquire(lock, mode, __FILE__, __LINE__)
#define LWLockRelease(lock)			hold_release(lock, __FILE__, __LINE__)

#endif							/* LOCK_HOLDS_H */

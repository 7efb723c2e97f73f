/*-------------------------------------------------------------------------
 *
 * lock_holds.h
 *	  An instrument, run by hand (test/holds/run.sh): how long LWLocks are held.
 *
 * gcc includes this before each file.  It replaces LWLockAcquire() and
 * LWLockRelease() by functions that measure the time between the two, and
 * writes what is longer than HOLD_REPORT_US to stderr, which is the server's
 * log, once no lock is held.  What the allocator takes is measured likewise:
 * its locks are PostgreSQL's own, and are held for a part of that.
 *
 * Without HOLD_TRANCHE all of the extension's locks are measured by the wall
 * clock, which costs some 50 ns a hold.  A report tells how often the process
 * was preempted and how many pages it touched first since it last wrote some: a
 * hold with a preemption may be long only for that.  HOLD_TRANCHE names the
 * variable of one kind of lock, which is then measured by the processor time of
 * the process; that costs some 600 ns a hold, too much for locks that are taken
 * within others, and for the allocator, which is not measured then.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LOCK_HOLDS_H
#define LOCK_HOLDS_H

#include "postgres.h"

#include <sys/resource.h>
#include <time.h>

#include "storage/lwlock.h"
#include "utils/dsa.h"
#include "utils/wait_event.h"

#ifndef HOLD_REPORT_US
#define HOLD_REPORT_US	20
#endif

#ifdef HOLD_TRANCHE
#define HOLD_CLOCK		CLOCK_THREAD_CPUTIME_ID
extern int	HOLD_TRANCHE;
#else
#define HOLD_CLOCK		CLOCK_MONOTONIC
#endif

extern const char *debug_query_string;	/* tcopprot.h brings too many names */

#define HOLDS	16				/* held at once */
#define REPORTS	256				/* kept until no lock is held */

typedef struct LockHold
{
	LWLock	   *lock;			/* NULL: none; in a report, the allocator */
	int64		since;			/* ns; in a report, how long */
	const char *file;
	int			line;
	const char *to_file;
	int			to_line;
	const char *kind;
	long		switches;
	long		faults;
} LockHold;

typedef struct LockHolds
{
	LockHold	held[HOLDS];
	int			nheld;
	LockHold	reports[REPORTS];
	int			nreports;
	long		switches;		/* when last seen */
	long		faults;
} LockHolds;

/* One for the whole library, whichever file defines it. */
LockHolds	lock_holds __attribute__((weak));

static inline int64
hold_clock(void)
{
	struct timespec t;

	clock_gettime(HOLD_CLOCK, &t);
	return (int64) t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline bool
hold_measured(LWLock *lock)
{
#ifdef HOLD_TRANCHE
	return lock->tranche == HOLD_TRANCHE;
#else
	return lock->tranche >= LWTRANCHE_FIRST_USER_DEFINED;
#endif
}

static inline void
hold_report(LockHold *hold, int64 now, const char *kind, const char *file, int line)
{
	struct rusage usage;

	if (now - hold->since < HOLD_REPORT_US * 1000 || lock_holds.nreports == REPORTS)
		return;
	hold->since = now - hold->since;
	hold->kind = kind;
	hold->to_file = file;
	hold->to_line = line;
	getrusage(RUSAGE_THREAD, &usage);
	hold->switches = usage.ru_nivcsw - lock_holds.switches;
	hold->faults = usage.ru_minflt - lock_holds.faults;
	lock_holds.reports[lock_holds.nreports++] = *hold;
}

static inline void
hold_print(void)
{
	struct rusage usage;

	if (lock_holds.nheld > 0 || lock_holds.nreports == 0)
		return;
	for (int i = 0; i < lock_holds.nreports; i++)
	{
		LockHold   *r = &lock_holds.reports[i];

		fprintf(stderr, "LOCK HELD %lld us %s from %s:%d to %s:%d switches %ld faults %ld in: %.60s\n",
				(long long) r->since / 1000, r->kind, r->file, r->line, r->to_file, r->to_line,
				r->switches, r->faults, debug_query_string ? debug_query_string : "a worker");
	}
	lock_holds.nreports = 0;
	getrusage(RUSAGE_THREAD, &usage);
	lock_holds.switches = usage.ru_nivcsw;
	lock_holds.faults = usage.ru_minflt;
}

static inline bool
hold_acquire(LWLock *lock, LWLockMode mode, const char *file, int line)
{
	bool		result = LWLockAcquire(lock, mode);

	if (!hold_measured(lock))
		return result;
	for (int i = 0; i < HOLDS; i++)
		if (lock_holds.held[i].lock == NULL)
		{
			lock_holds.held[i].lock = lock;
			lock_holds.held[i].file = file;
			lock_holds.held[i].line = line;
			lock_holds.held[i].since = hold_clock();
			lock_holds.nheld++;
			break;
		}
	return result;
}

static inline void
hold_release(LWLock *lock, const char *file, int line)
{
	int64		now = hold_measured(lock) ? hold_clock() : 0;

	LWLockRelease(lock);
	for (int i = 0; i < HOLDS; i++)
		if (lock_holds.held[i].lock == lock)
		{
			lock_holds.held[i].lock = NULL;
			lock_holds.nheld--;
			hold_report(&lock_holds.held[i], now, GetLWLockIdentifier(PG_WAIT_LWLOCK, lock->tranche), file, line);
			lock_holds.held[i].lock = NULL;
			break;
		}
	hold_print();
}

#ifndef HOLD_TRANCHE
static inline dsa_pointer
hold_allocate(dsa_area *area, size_t size, int flags, const char *file, int line)
{
	LockHold	hold = {.since = hold_clock(), .file = file, .line = line};
	dsa_pointer result = dsa_allocate_extended(area, size, flags);

	hold_report(&hold, hold_clock(), "allocating", file, line);
	return result;
}

static inline void
hold_free(dsa_area *area, dsa_pointer p, const char *file, int line)
{
	LockHold	hold = {.since = hold_clock(), .file = file, .line = line};

	dsa_free(area, p);
	hold_report(&hold, hold_clock(), "freeing", file, line);
}

#define dsa_allocate_extended(area, size, flags)	hold_allocate(area, size, flags, __FILE__, __LINE__)
#define dsa_free(area, p)			hold_free(area, p, __FILE__, __LINE__)
#endif

#define LWLockAcquire(lock, mode)	hold_acquire(lock, mode, __FILE__, __LINE__)
#define LWLockRelease(lock)			hold_release(lock, __FILE__, __LINE__)

#endif							/* LOCK_HOLDS_H */

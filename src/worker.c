/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  How a dispatcher or the bus worker starts, its loop, its errors.
 *
 * The loop is made of steps, each of which may raise any error.  An error ends
 * the step, not the process: its transaction is aborted, and the loop goes on
 * with the next step.  A step that failed is left out for a while, if not the
 * first time then from the second in a row, so that it neither keeps the
 * others from their work nor floods the log.
 *
 * While it waits the process is in no transaction and holds no snapshot.
 *
 * SIGTERM between two steps ends the process without a word; within one it is
 * a FATAL error.
 *
 * Locks: database_lock through dispatcher_place.c.  None is held while a step
 * begins.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/pmsignal.h"
#include "storage/sinval.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/ps_status.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "dispatcher.h"
#include "ratelimit.h"
#include "shmem.h"
#include "worker.h"

#define STATS_INTERVAL		SD_SECOND

/* Errors that are logged: ten at once, then one every ten seconds. */
#define ERROR_LOG_RATE		0.1
#define ERROR_LOG_BURST		10

MemoryContext worker_context = NULL;

/* All of this is the process's own. */
static const Worker *me = NULL;
static SdDatabase *my_db = NULL;
static SdDispatcher *my_place = NULL;
static int	running_step = WORKER_REQUESTS;
static int	failures[WORKER_MAX_STEPS]; /* in a row */
static TimestampTz not_before[WORKER_MAX_STEPS];
static TimestampTz next_stats = 0;
static TokenBucket error_log;
static uint32 errors_not_logged = 0;

/* ---- starting ---- */

/* What ps shows; the name that the launcher gave has no more than the OID. */
static void
show_database_name(void)
{
	char	   *name;

	StartTransactionCommand();
	name = get_database_name(MyDatabaseId);
	init_ps_display(psprintf("%s of database %s", me->name, name ? name : "?"));
	CommitTransactionCommand();
}

/* An error in here ends the process; the launcher tries again, ever later. */
SdDatabase *
worker_start(const Worker *worker, int place)
{
	int			index = place % SD_PLACES;
	Oid			dboid;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();

	me = worker;
	my_db = &sd_shared->databases[place / SD_PLACES];
	my_place = &my_db->dispatchers[index];
	dboid = place_take(my_db, index);
	if (!OidIsValid(dboid))
		proc_exit(0);

	/*
	 * As the bootstrap superuser.  ALLOW_CONNECTIONS false doesn't keep it
	 * out: sessions that were there before still commit events.
	 */
	BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid, BGWORKER_BYPASS_ALLOWCONN);
	shmem_attach();
	SetConfigOption("application_name", me->name, PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("statement_timeout", "0", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("idle_in_transaction_session_timeout", "0", PGC_USERSET, PGC_S_OVERRIDE);
	show_database_name();
	pgstat_report_activity(STATE_IDLE, NULL);

	worker_context = AllocSetContextCreate(TopMemoryContext, "subdispatch worker loop",
										   ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(worker_context);
	ratelimit_init(&error_log, ERROR_LOG_RATE, ERROR_LOG_BURST, GetCurrentTimestamp());
	return my_db;
}

/*
 * Tells who waits that we run.  Also later, since a launcher that was started
 * anew may have taken us for one who is still to come.
 */
static void
show_running(void)
{
	if (likely(pg_atomic_read_u32(&my_place->state) == SD_WORKER_RUNNING))
		return;
	pg_atomic_write_u32(&my_place->state, SD_WORKER_RUNNING);
	ConditionVariableBroadcast(&my_db->changed);
}

/* ---- steps ---- */

bool
worker_begin(int step)
{
	Assert(step > WORKER_REQUESTS && step < WORKER_MAX_STEPS);
	if (unlikely(failures[step] > 0) && GetCurrentTimestamp() < not_before[step])
		return false;
	running_step = step;
	return true;
}

void
worker_end(void)
{
	Assert(!IsTransactionState());
	failures[running_step] = 0;
	running_step = WORKER_REQUESTS;
	MemoryContextSwitchTo(worker_context);
}

/* ---- errors ---- */

/* One that repeats must not fill the disk: those left out are counted. */
static void
log_error(void)
{
	if (!ratelimit_take(&error_log, ERROR_LOG_RATE, ERROR_LOG_BURST, GetCurrentTimestamp()))
	{
		errors_not_logged++;
		return;
	}
	EmitErrorReport();
	if (errors_not_logged > 0)
		ereport(LOG,
				(errmsg("subdispatch left %u errors of this worker out of the log",
						errors_not_logged)));
	errors_not_logged = 0;
}

/*
 * An error came out of a step.  Puts the process back into the state that it
 * has between two steps.  Should something in here fail, we are called again.
 */
static void
recover(void)
{
	int			step = running_step;

	error_context_stack = NULL;
	HOLD_INTERRUPTS();
	disable_all_timeouts(false);
	QueryCancelPending = false;

	log_error();
	LWLockReleaseAll();
	ConditionVariableCancelSleep();
	pgstat_report_wait_end();
	/* the innermost subtransaction would be aborted otherwise, and no more */
	AbortOutOfAnyTransaction();

	MemoryContextSwitchTo(worker_context);
	FlushErrorState();
	MemoryContextReset(worker_context);
	me->failed();

	running_step = WORKER_REQUESTS;
	not_before[step] = GetCurrentTimestamp() +
		(failures[step] > 0 ? me->retry_again : me->retry_first);
	failures[step]++;
	RESUME_INTERRUPTS();
}

/* ---- the loop ---- */

void
worker_handle_requests(void)
{
	/* There is no statement to cancel. */
	QueryCancelPending = false;
	/* Ended between two batches, there is nothing to report. */
	if (ProcDiePending)
		proc_exit(0);
	/* Under load we may not wait, which is where it is noticed otherwise. */
	if (!PostmasterIsAlive())
		proc_exit(1);
	CHECK_FOR_INTERRUPTS();
	if (catchupInterruptPending)
		ProcessCatchupInterrupt();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		me->reload();
	}
}

/* Returns whether there may be more to be done at once. */
static bool
turn(void)
{
	bool		more;

	worker_handle_requests();
	place_leave_if_not_wanted();
	show_running();
	more = me->turn();
	MemoryContextReset(worker_context);
	return more;
}

/* Of transactions and tables: not each time, as others have to be locked out. */
static void
flush_stats(bool idle)
{
	TimestampTz now = GetCurrentTimestamp();

	if (now < next_stats)
		return;
	next_stats = now + STATS_INTERVAL;
	pgstat_report_stat(idle);
}

/*
 * In ms.  A failed step whose time has come since the turn, or that the turn
 * left out for another reason, is not worth a busy loop.
 */
static long
wait_time(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long		timeout = me->wait_time();

	for (int step = WORKER_REQUESTS + 1; step < WORKER_MAX_STEPS; step++)
		if (failures[step] > 0)
			timeout = Min(timeout,
						  TimestampDifferenceMilliseconds(now,
														  Max(not_before[step],
															  now + me->retry_again / 2)));
	return timeout;
}

/*
 * Whoever sets the latch has changed what a turn looks at before, so it is reset
 * before the turn.
 */
void
worker_loop(void)
{
	sigjmp_buf	buffer;

	if (sigsetjmp(buffer, 1) != 0)
	{
		recover();
		/* Requests cannot be left out: they have to wait if they fail. */
		if (failures[WORKER_REQUESTS] > 1)
			(void) WaitLatch(NULL, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 me->retry_again / 1000, PG_WAIT_EXTENSION);
	}
	PG_exception_stack = &buffer;

	for (;;)
	{
		bool		more;

		ResetLatch(MyLatch);
		more = turn();
		flush_stats(!more);
		if (!more)
			me->wait(wait_time());
		failures[WORKER_REQUESTS] = 0;
	}
}

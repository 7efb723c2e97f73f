/*-------------------------------------------------------------------------
 *
 * dispatcher.c
 *	  A dispatcher's life: its start, its loop, its errors.
 *
 * The launcher starts the process for a place, which it takes or ends at once;
 * see dispatcher_place.c.
 *
 * The loop is made of steps, each of which may raise any error.  An error ends
 * the step, not the process: its transaction is aborted, and the loop goes on
 * with the next step.  A step that failed twice in a row is left out for a
 * while, so that it neither keeps the others from their work nor floods the
 * log.  What was in hand stays in hand, in shared memory, and is taken up
 * again by the next turn, or by the next process if this one dies.
 *
 * While it waits the process is in no transaction and holds no snapshot.
 *
 * Signals: SIGTERM and SIGINT also interrupt user code that is stuck
 * (resolver_interrupt()).  SIGTERM between two steps ends the process without
 * a word; within one it is a FATAL error.
 *
 * Locks: order_lock (shared) to see whether something is held back.  None is
 * held while a step runs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "commands/async.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/pmsignal.h"
#include "storage/proc.h"
#include "storage/procsignal.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/ps_status.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "bus.h"
#include "dispatcher.h"
#include "history.h"
#include "ratelimit.h"
#include "replay.h"
#include "resolver.h"
#include "security.h"
#include "shmem.h"
#include "subscription.h"

#define SWEEP_RETRY			(SD_SECOND / 4)	/* after an error in it */
#define STEP_RETRY			(SD_SECOND / 10)	/* after a second failure */
#define STATS_INTERVAL		SD_SECOND
#define HELD_BACK_WAIT		1	/* ms */
#define REPLAY_WAIT			2	/* ms; nobody tells what was replayed */
#define RECOVERY_WAIT		250 /* ms; nor that recovery has ended */
#define BACKLOG_WAIT		5	/* ms; notifications wait for room */
#define LONGEST_WAIT		10000	/* ms; nothing depends on it */

/* Errors that are logged: ten at once, then one every ten seconds. */
#define ERROR_LOG_RATE		0.1
#define ERROR_LOG_BURST		10

#define MAX_LOCK_TIMEOUT	250 /* ms */

typedef enum Step
{
	STEP_REQUESTS,				/* what signals ask for, between two turns */
	STEP_LISTEN,				/* LISTEN and UNLISTEN, markers */
	STEP_RECEIVE,				/* notifications */
	STEP_GAPS,					/* gaps to be told */
	STEP_DISPATCH,				/* a batch */
	STEP_CATCHUP,				/* for those that resume */
	STEP_SWEEP,					/* idle and overaged subscriptions */
	STEP_RECOVERY,				/* what a replica may have lost */
	STEPS
} Step;

bool		am_dispatcher = false;

/* All that follows is this process's own. */
static SdDatabase *my_db = NULL;
static int	my_index = -1;

static Step running_step = STEP_REQUESTS;
static int	step_failures[STEPS];	/* in a row */
static TimestampTz step_not_before[STEPS];
static TimestampTz next_sweep = 0;
static TimestampTz next_stats = 0;
static TimestampTz next_catchup = DT_NOEND;	/* if it has to wait */
static bool reported_running = false;
static bool waits_for_replay = false;	/* what is in hand */
static bool was_in_recovery = false;	/* at the last look */
static TimestampTz next_recovery = 0;
static MemoryContext loop_context;
static TokenBucket error_log;
static uint32 errors_not_logged = 0;

static SdDispatcher *
self(void)
{
	return &my_db->dispatchers[my_index];
}

/* ---- signals ---- */

static void
handle_terminate(SIGNAL_ARGS)
{
	die(postgres_signal_arg);
	resolver_interrupt();
}

static void
handle_cancel(SIGNAL_ARGS)
{
	StatementCancelHandler(postgres_signal_arg);
	/* PostgreSQL tells itself so of lock_timeout: an error that may be caught */
	if (!get_timeout_indicator(LOCK_TIMEOUT, false))
		resolver_interrupt();
}

/* ---- starting ---- */

/*
 * Waits for locks must end long before publishers run out of patience.  The
 * settings' values may come from ALTER DATABASE or a reload: ours stand above.
 */
static void
fix_lock_timeout(void)
{
	char		value[32];
	int			ms = Min(MAX_LOCK_TIMEOUT, subdispatch_publish_timeout / 4);

	/* 0 would be no limit at all. */
	snprintf(value, sizeof(value), "%d", Max(ms, 1));
	SetConfigOption("lock_timeout", value, PGC_USERSET, PGC_S_OVERRIDE);
}

static void
fix_settings(void)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "subdispatch dispatcher %d", my_index);
	SetConfigOption("application_name", name, PGC_USERSET, PGC_S_OVERRIDE);
	/* Each event is to see what was committed before it. */
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_deferrable", "off", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("statement_timeout", "0", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("idle_in_transaction_session_timeout", "0", PGC_USERSET, PGC_S_OVERRIDE);
	fix_lock_timeout();
	event_fix_settings();
}

/* What ps shows; the name that the launcher gave has no more than the OID. */
static void
show_database_name(void)
{
	char	   *name;
	char	   *shown;

	StartTransactionCommand();
	name = get_database_name(MyDatabaseId);
	shown = psprintf("subdispatch dispatcher %d of database %s",
					 my_index, name ? name : "?");
	init_ps_display(shown);
	CommitTransactionCommand();
}

/* An error in here ends the process; the launcher tries again, ever later. */
static void
set_up(Datum arg)
{
	int			place = DatumGetInt32(arg);
	Oid			dboid;

	am_dispatcher = true;
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, handle_terminate);
	pqsignal(SIGINT, handle_cancel);
	BackgroundWorkerUnblockSignals();

	my_db = &sd_shared->databases[place / SD_PLACES];
	my_index = place % SD_PLACES;
	dboid = place_take(my_db, my_index);
	if (!OidIsValid(dboid))
		proc_exit(0);

	/*
	 * As the bootstrap superuser.  ALLOW_CONNECTIONS false doesn't keep it
	 * out: sessions that were there before still commit events.
	 */
	BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid, BGWORKER_BYPASS_ALLOWCONN);
	shmem_attach();
	security_init_worker();
	fix_settings();
	show_database_name();
	pgstat_report_activity(STATE_IDLE, NULL);

	loop_context = AllocSetContextCreate(TopMemoryContext, "subdispatch dispatcher loop",
										 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(loop_context);
	ratelimit_init(&error_log, ERROR_LOG_RATE, ERROR_LOG_BURST, GetCurrentTimestamp());
	notify_init(my_db, my_index);
	self()->started_at = GetCurrentTimestamp();
}

/*
 * Tells who waits that we run.  Also later, since a launcher that was started
 * anew may have taken us for one who is still to come.
 */
static void
show_running(void)
{
	if (likely(pg_atomic_read_u32(&self()->state) == SD_WORKER_RUNNING))
		return;
	pg_atomic_write_u32(&self()->state, SD_WORKER_RUNNING);
	ConditionVariableBroadcast(&my_db->changed);
}

/* ---- steps ---- */

/* May the step run, or did it fail so often that it has to wait? */
static bool
begin_step(Step step)
{
	if (unlikely(step_failures[step] > 0) &&
		GetCurrentTimestamp() < step_not_before[step])
		return false;
	running_step = step;
	return true;
}

static void
end_step(void)
{
	Assert(!IsTransactionState());
	step_failures[running_step] = 0;
	running_step = STEP_REQUESTS;
	MemoryContextSwitchTo(loop_context);
}

static void
step_listen(void)
{
	if (!begin_step(STEP_LISTEN))
		return;
	notify_sync(my_db, my_index);
	end_step();
}

/*
 * Notifications are linked like events, but nobody can be made to wait for
 * room: while the queue is full they stay in PostgreSQL's.
 */
static void
step_receive(void)
{
	uint64		room = (uint64) subdispatch_event_queue_size * 1024;

	if (pg_atomic_read_u64(&self()->queue_bytes) >= room || !begin_step(STEP_RECEIVE))
		return;
	notify_receive(my_db, my_index);
	end_step();
}

static void
step_gaps(void)
{
	if (!begin_step(STEP_GAPS))
		return;
	dispatch_gaps(my_db, my_index);
	end_step();
}

static void
report_running(bool running)
{
	if (running == reported_running)
		return;
	reported_running = running;
	if (running)
		pgstat_report_activity(STATE_RUNNING, "dispatching events");
	else
		pgstat_report_activity(STATE_IDLE, NULL);
}

/* Returns whether there was something to be done. */
static bool
step_dispatch(void)
{
	bool		worked;

	waits_for_replay = false;
	if (!begin_step(STEP_DISPATCH))
		return false;
	if (!bus_sequence(my_db, my_index))
	{
		end_step();
		return false;
	}
	/* what is missing before an event in hand was noted before that was linked */
	dispatch_gaps(my_db, my_index);
	report_running(true);
	pg_atomic_write_u32(&self()->busy, 1);
	worked = dispatch_inhand(my_db, my_index);
	pg_atomic_write_u32(&self()->busy, 0);
	end_step();
	waits_for_replay = !worked;
	return worked;
}

/* One slice, so that events which are new come between two. */
static bool
step_catchup(void)
{
	bool		more;

	if (!begin_step(STEP_CATCHUP))
		return false;
	next_catchup = DT_NOEND;
	more = catchup_step(my_db, my_index, &next_catchup);
	end_step();
	return more;
}

/* Dispatcher 0 keeps house for the database. */
static void
step_sweep(void)
{
	TimestampTz now;

	if (my_index != 0)
		return;
	now = GetCurrentTimestamp();
	if (now < next_sweep)
		return;
	next_sweep = now + SWEEP_RETRY;
	if (!begin_step(STEP_SWEEP))
		return;
	next_sweep = subscription_sweep(my_db);
	place_retire_if_idle(now);
	end_step();
}

/*
 * Dispatcher 0: subscriptions of before event_bus was changed to redis need the
 * bus worker, whether or not anybody publishes here.
 */
static void
want_bus_worker(void)
{
	if (my_index == 0 && subdispatch_event_bus == SD_BUS_REDIS &&
		pg_atomic_read_u32(&my_db->nsubscriptions) > 0)
		redis_want_worker(my_db);
}

/* Dispatcher 0 of a replica. */
static void
step_recovery(void)
{
	TimestampTz now;

	if (my_index != 0 || (!RecoveryInProgress() && !was_in_recovery))
		return;
	now = GetCurrentTimestamp();
	if (now < next_recovery || !begin_step(STEP_RECOVERY))
		return;
	next_recovery = now + RECOVERY_WAIT * INT64CONST(1000);
	/* once more after a promotion: what was dropped just before it */
	was_in_recovery = RecoveryInProgress();
	replay_check_extension();
	end_step();
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
				(errmsg("subdispatch left %u errors of this dispatcher out of the log",
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
	Step		step = running_step;

	error_context_stack = NULL;
	HOLD_INTERRUPTS();
	disable_all_timeouts(false);
	QueryCancelPending = false;

	log_error();
	LWLockReleaseAll();
	ConditionVariableCancelSleep();
	pgstat_report_wait_end();
	AbortOutOfAnyTransaction();
	security_reset();

	MemoryContextSwitchTo(loop_context);
	FlushErrorState();
	MemoryContextReset(loop_context);

	running_step = STEP_REQUESTS;
	pg_atomic_write_u32(&self()->busy, 0);
	stats_add(&self()->stats, SD_STAT_DISPATCH_ERRORS, 1);
	step_not_before[step] = GetCurrentTimestamp();
	if (++step_failures[step] > 1)
		step_not_before[step] += STEP_RETRY;
	RESUME_INTERRUPTS();
}

/* ---- the loop ---- */

/* Requests that come by signal; called between two turns. */
static void
handle_requests(void)
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
		ProcessConfigFile(PGC_SIGHUP);
		fix_lock_timeout();
		history_trim(my_db, my_index);
	}
	step_failures[STEP_REQUESTS] = 0;
}

/* Returns whether there was work to do, so that there may be more. */
static bool
turn(void)
{
	bool		worked;

	place_leave_if_not_wanted();
	show_running();
	step_listen();
	step_receive();
	step_gaps();
	worked = step_dispatch();
	if (step_catchup())
		worked = true;
	else if (worked)
		gather_events(my_db, my_index);
	step_sweep();
	want_bus_worker();
	step_recovery();
	MemoryContextReset(loop_context);
	return worked;
}

/* Table statistics of user code; only outside of transactions. */
static void
flush_stats(bool idle)
{
	TimestampTz now = GetCurrentTimestamp();

	if (now < next_stats)
		return;
	next_stats = now + STATS_INTERVAL;
	pgstat_report_stat(idle);
}

static long
until(TimestampTz when, TimestampTz now, long timeout)
{
	return Min(timeout, TimestampDifferenceMilliseconds(now, when));
}

/*
 * A failed step whose time has come since the turn, or that the turn left out
 * for another reason, is not worth a busy loop.
 */
static long
until_retries(TimestampTz now, long timeout)
{
	for (int step = STEP_REQUESTS + 1; step < STEPS; step++)
		if (step_failures[step] > 0)
			timeout = until(Max(step_not_before[step], now + STEP_RETRY / 2), now, timeout);
	return timeout;
}

/* How long to wait for the latch, in ms. */
static long
wait_time(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long		timeout = LONGEST_WAIT;

	/*
	 * An event is held back until a transaction before it has run its commit
	 * callback or was seen to be gone; the former wakes us, the latter not.
	 */
	if (database_has_linked(my_db))
		timeout = HELD_BACK_WAIT;
	else if (waits_for_replay)
		timeout = REPLAY_WAIT;
	/* Room for notifications is not announced: nobody else waits here. */
	else if (notify_backlog() || notifyInterruptPending)
		timeout = BACKLOG_WAIT;
	if (my_index == 0)
		timeout = until(next_sweep, now, timeout);
	if (RecoveryInProgress())
		timeout = Min(timeout, RECOVERY_WAIT);
	timeout = until(next_catchup, now, timeout);
	return until_retries(now, timeout);
}

static void
wait_for_work(void)
{
	report_running(false);
	flush_stats(true);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 wait_time(), PG_WAIT_EXTENSION);
}

/*
 * Never returns.  Whoever sets the latch has changed what a turn looks at
 * before, so it is reset before the turn.
 */
static void
loop(void)
{
	sigjmp_buf	buffer;

	if (sigsetjmp(buffer, 1) != 0)
	{
		recover();
		/* Requests cannot be left out: they have to wait if they fail. */
		if (step_failures[STEP_REQUESTS] > 1)
			(void) WaitLatch(NULL, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 STEP_RETRY / 1000, PG_WAIT_EXTENSION);
	}
	PG_exception_stack = &buffer;

	for (;;)
	{
		ResetLatch(MyLatch);
		handle_requests();
		if (turn())
			flush_stats(false);
		else
			wait_for_work();
	}
}

void
subdispatch_dispatcher_main(Datum arg)
{
	set_up(arg);
	loop();
}

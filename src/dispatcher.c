/*-------------------------------------------------------------------------
 *
 * dispatcher.c
 *	  A dispatcher's life: its start, its loop, its errors.
 *
 * The launcher starts the process for a place, which it takes or ends at once;
 * see dispatcher_place.c.  worker.c has the loop, in which each of the steps here
 * may raise any error.  What was in hand stays in hand, in shared memory, and is
 * taken up again by the next turn, or by the next process if this one dies.
 *
 * Signals: SIGTERM and SIGINT also interrupt user code that is stuck
 * (resolver_interrupt()).
 *
 * Locks: order_lock (shared) to see whether something is held back.  None is
 * held while a step runs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "commands/async.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "bus.h"
#include "dispatcher.h"
#include "history.h"
#include "replay.h"
#include "resolver.h"
#include "security.h"
#include "shmem.h"
#include "subscription.h"
#include "worker.h"

#define SWEEP_RETRY			(SD_SECOND / 4)	/* after an error in it */
#define STEP_RETRY			(SD_SECOND / 10)	/* after a second failure */
#define HELD_BACK_WAIT		1	/* ms */
#define REPLAY_WAIT			2	/* ms; nobody tells what was replayed */
#define RECOVERY_WAIT		250 /* ms; nor that recovery has ended */
#define BACKLOG_WAIT		5	/* ms; notifications wait for room */
#define LONGEST_WAIT		10000	/* ms; nothing depends on it */

#define MAX_LOCK_TIMEOUT	250 /* ms */

typedef enum Step
{
	STEP_LISTEN = WORKER_REQUESTS + 1,	/* LISTEN and UNLISTEN, markers */
	STEP_RECEIVE,				/* notifications */
	STEP_GAPS,					/* gaps to be told */
	STEP_DISPATCH,				/* a batch */
	STEP_CATCHUP,				/* for those that resume */
	STEP_SWEEP,					/* idle and overaged subscriptions */
	STEP_RECOVERY				/* what a replica may have lost */
} Step;

bool		am_dispatcher = false;

/* All that follows is this process's own. */
static SdDatabase *my_db = NULL;
static int	my_index = -1;

static TimestampTz next_sweep = 0;
static TimestampTz next_catchup = DT_NOEND;	/* if it has to wait */
static bool reported_running = false;
static bool waits_for_replay = false;	/* what is in hand */
static bool was_in_recovery = false;	/* at the last look */
static TimestampTz next_recovery = 0;

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
	/* Each event is to see what was committed before it. */
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_deferrable", "off", PGC_USERSET, PGC_S_OVERRIDE);
	fix_lock_timeout();
	event_fix_settings();
}

/* ---- steps ---- */

static void
step_listen(void)
{
	if (!worker_begin(STEP_LISTEN))
		return;
	notify_sync(my_db, my_index);
	worker_end();
}

/*
 * Notifications are linked like events, but nobody can be made to wait for
 * room: while the queue is full they stay in PostgreSQL's.
 */
static void
step_receive(void)
{
	uint64		room = (uint64) subdispatch_event_queue_size * 1024;

	if (pg_atomic_read_u64(&self()->queue_bytes) >= room || !worker_begin(STEP_RECEIVE))
		return;
	notify_receive(my_db, my_index);
	worker_end();
}

static void
step_gaps(void)
{
	if (!worker_begin(STEP_GAPS))
		return;
	dispatch_gaps(my_db, my_index);
	worker_end();
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
	if (!worker_begin(STEP_DISPATCH))
		return false;
	if (!bus_sequence(my_db, my_index))
	{
		worker_end();
		return false;
	}
	/* what is missing before an event in hand was noted before that was linked */
	dispatch_gaps(my_db, my_index);
	report_running(true);
	pg_atomic_write_u32(&self()->busy, 1);
	worked = dispatch_inhand(my_db, my_index);
	pg_atomic_write_u32(&self()->busy, 0);
	worker_end();
	waits_for_replay = !worked;
	return worked;
}

/* One slice, so that events which are new come between two. */
static bool
step_catchup(void)
{
	bool		more;

	if (!worker_begin(STEP_CATCHUP))
		return false;
	next_catchup = DT_NOEND;
	more = catchup_step(my_db, my_index, &next_catchup);
	worker_end();
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
	if (!worker_begin(STEP_SWEEP))
		return;
	next_sweep = subscription_sweep(my_db);
	place_retire_if_idle(now);
	worker_end();
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
	if (now < next_recovery || !worker_begin(STEP_RECOVERY))
		return;
	next_recovery = now + RECOVERY_WAIT * INT64CONST(1000);
	/* once more after a promotion: what was dropped just before it */
	was_in_recovery = RecoveryInProgress();
	replay_check_extension();
	worker_end();
}

/* ---- the worker ---- */

static void
reload(void)
{
	ProcessConfigFile(PGC_SIGHUP);
	fix_lock_timeout();
	history_trim(my_db, my_index);
}

static void
failed(void)
{
	security_reset();
	pg_atomic_write_u32(&self()->busy, 0);
	stats_add(&self()->stats, SD_STAT_DISPATCH_ERRORS, 1);
}

/* Returns whether there was work to do, so that there may be more. */
static bool
turn(void)
{
	bool		worked;

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
	return worked;
}

static long
until(TimestampTz when, TimestampTz now, long timeout)
{
	return Min(timeout, TimestampDifferenceMilliseconds(now, when));
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
	return until(next_catchup, now, timeout);
}

static void
wait_for_work(long timeout)
{
	report_running(false);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 timeout, PG_WAIT_EXTENSION);
}

void
subdispatch_dispatcher_main(Datum arg)
{
	static char name[NAMEDATALEN];
	static const Worker dispatcher = {
		.name = name,
		.retry_again = STEP_RETRY,
		.reload = reload,
		.turn = turn,
		.wait_time = wait_time,
		.wait = wait_for_work,
		.failed = failed
	};
	int			place = DatumGetInt32(arg);

	am_dispatcher = true;
	my_index = place % SD_PLACES;
	snprintf(name, sizeof(name), "subdispatch dispatcher %d", my_index);
	pqsignal(SIGTERM, handle_terminate);
	pqsignal(SIGINT, handle_cancel);

	my_db = worker_start(&dispatcher, place);
	security_init_worker();
	fix_settings();
	notify_init(my_db, my_index);
	self()->started_at = GetCurrentTimestamp();
	worker_loop();
}

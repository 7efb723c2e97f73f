/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  The one background worker that starts all others: it keeps the
 *	  dispatchers running that databases want.
 *
 * It is connected to no database, so it stands in nobody's way, and reads no
 * catalog but the list of databases, in case recovery has dropped one.  It looks at every database's slot when its latch is set (somebody
 * subscribed, a pause is over, a worker has come or gone) or when a worker is
 * to be tried again, and otherwise sleeps.
 *
 * Only the launcher starts dispatchers, and they are never restarted by the
 * postmaster: whether one shall run is decided here each time.  A dispatcher
 * takes its place in the slot for itself, under database_lock, and ends at
 * once if another one has it.  So nothing goes wrong when the launcher dies
 * and its successor knows nothing of the workers that run: their places show
 * that they are alive, and they wake the launcher when they end.
 *
 * Locks: database_lock (shared) to read slots, exclusive to put them right;
 * order_lock through bus_clear(), registry_lock through subscription_sweep().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procsignal.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "bus.h"
#include "dispatcher.h"
#include "elsewhere.h"
#include "replay.h"
#include "shmem.h"
#include "subscription.h"

#define RESTART_SECONDS		5	/* of the launcher itself */
#define HEALTHY_AGE			(5 * SD_SECOND) /* an end after that is the first */
#define FIRST_DELAY			(SD_SECOND / 4)
#define MAX_DELAY			(5 * SD_SECOND)
#define COMPLAINT_INTERVAL	(60 * SD_SECOND)
#define SWEEP_INTERVAL		(30 * SD_SECOND)
#define BROKEN_AFTER		2	/* ends before it was ready, in a row */

/* What the launcher knows of a dispatcher's place. */
typedef struct Place
{
	BackgroundWorkerHandle *handle; /* of the last one started, until it ended */
	TimestampTz started_at;
	TimestampTz next_try;
	int			failures;		/* ends soon after the start, in a row */
	bool		refused;		/* we have set FAILED or BROKEN */
} Place;

/* What it knows of a slot. */
typedef struct Watch
{
	uint32		generation;
	TimestampTz next_sweep;
	Place		places[SD_PLACES];
} Watch;

static Watch *watches;			/* SD_MAX_DATABASES of them */

/* ---- registration ---- */

/*
 * Called while the postmaster loads the library.  pg_upgrade runs a server in
 * which nothing may be started that holds connections or xids.
 */
void
launcher_register(void)
{
	BackgroundWorker worker;

	if (IsBinaryUpgrade)
		return;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = RESTART_SECONDS;
	strlcpy(worker.bgw_library_name, "subdispatch", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "subdispatch_launcher_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "subdispatch launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "subdispatch launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/* Any process, at any time; nothing happens if there is no launcher. */
void
launcher_wake(void)
{
	sd_set_latch(pg_atomic_read_u32(&sd_shared->launcher_procno));
}

/* ---- one dispatcher ---- */

static bool
is_alive(Place *place, SdDispatcher *disp)
{
	pid_t		pid;

	if (place->handle != NULL &&
		GetBackgroundWorkerPid(place->handle, &pid) != BGWH_STOPPED)
		return true;
	return database_dispatcher_pid(disp) != 0;
}

/*
 * Sets what waiting backends look at.  The worker itself is not running, so
 * nobody else sets it but a backend that turns FAILED or BROKEN into NONE.
 */
static void
set_state(SdDatabase *db, SdDispatcher *disp, Place *place, SdWorkerState state)
{
	place->refused = (state == SD_WORKER_FAILED || state == SD_WORKER_BROKEN);
	pg_atomic_write_u32(&disp->state, state);
	ConditionVariableBroadcast(&db->changed);
}

/* Registration failed: at most once a minute the log is told. */
static void
complain(Oid dboid)
{
	static TimestampTz last = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (last != 0 && now - last < COMPLAINT_INTERVAL)
		return;
	last = now;
	ereport(LOG,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("subdispatch could not start a worker for database %u", dboid),
			 errdetail("There is no free background worker slot; max_worker_processes is %d. "
					   "subdispatch needs one for the server and %d for each database in use, and "
					   "one more for each that uses the Redis bus.",
					   max_worker_processes, subdispatch_dispatchers),
			 errhint("Increase max_worker_processes, or decrease subdispatch.dispatchers, "
					 "and restart the server.")));
}

static void
start(SdDatabase *db, Oid dboid, int index, Place *place, TimestampTz now)
{
	SdDispatcher *disp = &db->dispatchers[index];
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	worker.bgw_main_arg = Int32GetDatum((int32) (db - sd_shared->databases) *
										SD_PLACES + index);
	strlcpy(worker.bgw_library_name, "subdispatch", BGW_MAXLEN);
	if (index == SD_BUS_PLACE)
	{
		strlcpy(worker.bgw_function_name, "subdispatch_bus_main", BGW_MAXLEN);
		snprintf(worker.bgw_name, BGW_MAXLEN, "subdispatch bus for database %u", dboid);
		strlcpy(worker.bgw_type, "subdispatch bus", BGW_MAXLEN);
	}
	else
	{
		strlcpy(worker.bgw_function_name, "subdispatch_dispatcher_main", BGW_MAXLEN);
		snprintf(worker.bgw_name, BGW_MAXLEN, "subdispatch dispatcher %d for database %u",
				 index, dboid);
		strlcpy(worker.bgw_type, "subdispatch dispatcher", BGW_MAXLEN);
	}

	/* Before it can run: from then on the state is the worker's. */
	set_state(db, disp, place, SD_WORKER_STARTING);
	place->started_at = now;
	if (!RegisterDynamicBackgroundWorker(&worker, &place->handle))
	{
		place->handle = NULL;
		place->next_try = now + MAX_DELAY;
		set_state(db, disp, place, SD_WORKER_FAILED);
		complain(dboid);
	}
}

/*
 * The worker that we started is gone.  The first time it is replaced at once;
 * if that goes on, ever later.
 */
static void
note_end(SdDatabase *db, SdDispatcher *disp, Place *place, TimestampTz now)
{
	bool		was_ready = disp->started_at >= place->started_at;

	pfree(place->handle);
	place->handle = NULL;

	if (now - place->started_at > HEALTHY_AGE)
		place->failures = 0;
	place->failures++;
	place->next_try = now;
	if (place->failures > 1)
		place->next_try += Min(MAX_DELAY, FIRST_DELAY << Min(place->failures - 2, 10));

	/*
	 * It clears its place itself, on its way out, unless it didn't get as far
	 * as to take it.
	 */
	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	if (database_dispatcher_pid(disp) == 0)
	{
		pg_atomic_write_u32(&disp->procno, 0);
		pg_atomic_write_u32(&disp->pid, 0);
		pg_atomic_write_u32(&disp->busy, 0);
	}
	LWLockRelease(&sd_shared->database_lock);
	set_state(db, disp, place,
			  !was_ready && place->failures >= BROKEN_AFTER ? SD_WORKER_BROKEN : SD_WORKER_NONE);
}

/*
 * Does for one dispatcher what is to be done, and returns when to look at it
 * again if nothing wakes us before.
 */
static TimestampTz
tend_place(SdDatabase *db, Oid dboid, int index, Place *place)
{
	SdDispatcher *disp = &db->dispatchers[index];
	TimestampTz now;

	if (is_alive(place, disp))
		return DT_NOEND;

	now = GetCurrentTimestamp();
	if (place->handle != NULL)
		note_end(db, disp, place, now);

	if (pg_atomic_read_u32(place_wanted(db, index)) == 0 || pg_atomic_read_u32(&db->paused) > 0)
	{
		/* That it ended is as it should be. */
		place->failures = 0;
		place->next_try = now;
		if (pg_atomic_read_u32(&disp->state) != SD_WORKER_NONE)
			set_state(db, disp, place, SD_WORKER_NONE);
		return DT_NOEND;
	}

	/* Somebody waits for it and asked to try again: database.c. */
	if (place->refused && pg_atomic_read_u32(&disp->state) == SD_WORKER_NONE)
		place->next_try = now;

	if (now < place->next_try)
		return place->next_try;
	start(db, dboid, index, place, now);
	return place->handle != NULL ? DT_NOEND : place->next_try;
}

/* ---- one database ---- */

/*
 * Dispatcher 0 sees to it that a database without subscriptions does not want
 * dispatchers for ever.  If it cannot be started that is up to us.
 */
static void
give_up_if_idle(SdDatabase *db)
{
	TimestampTz needed = (TimestampTz) pg_atomic_read_u64(&db->last_needed);

	if (pg_atomic_read_u32(&db->wanted) == 0 || pg_atomic_read_u32(&db->paused) > 0 ||
		pg_atomic_read_u32(&db->nsubscriptions) > 0 ||
		GetCurrentTimestamp() - needed < SD_IDLE_END)
		return;
	if (database_dispatcher_pid(&db->dispatchers[0]) != 0)
		return;

	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	pg_atomic_write_u32(&db->wanted, 0);
	pg_memory_barrier();		/* pairs with database_start_dispatchers() */
	if (pg_atomic_read_u64(&db->last_needed) != (uint64) needed)
		pg_atomic_write_u32(&db->wanted, 1);
	LWLockRelease(&sd_shared->database_lock);
	database_wake_all(db);
}

/*
 * Frees what is queued in a database that nobody wants dispatched.  Nobody
 * else can be at it: dispatchers are started by us alone, and subscriptions
 * are registered only when they run.
 */
static void
clear_leftovers(SdDatabase *db, Watch *watch)
{
	if (pg_atomic_read_u32(&db->wanted) > 0 || pg_atomic_read_u32(&db->nsubscriptions) > 0 ||
		!database_has_events(db))
		return;
	for (int i = 0; i < subdispatch_dispatchers; i++)
		if (is_alive(&watch->places[i], &db->dispatchers[i]))
			return;
	bus_clear(db, false);
}

/*
 * Dispatcher 0 keeps house.  When it has retired, or cannot be started, there
 * may still be ended subscriptions whose last message was not read, and
 * consumers without subscriptions: their time comes all the same.  Returns
 * when to come back.
 */
static TimestampTz
sweep(SdDatabase *db, Watch *watch)
{
	TimestampTz now = GetCurrentTimestamp();

	if (is_alive(&watch->places[0], &db->dispatchers[0]))
		return DT_NOEND;
	if (watch->next_sweep == 0)
		watch->next_sweep = now + SWEEP_INTERVAL;
	if (now >= watch->next_sweep)
	{
		watch->next_sweep = now + SWEEP_INTERVAL;
		subscription_sweep(db);
	}
	return watch->next_sweep;
}

static bool
any_alive(SdDatabase *db, Watch *watch)
{
	for (int i = 0; i < SD_PLACES; i++)
		if (is_alive(&watch->places[i], &db->dispatchers[i]))
			return true;
	return false;
}

/*
 * Has recovery dropped the database?  Looked up when there is something of it
 * and no worker, as all of them were ended by that.  A DROP DATABASE of this
 * server has the database paused until it has cleaned up itself.
 */
static bool
was_dropped(SdDatabase *db, Oid dboid, Watch *watch)
{
	bool		same;

	if ((pg_atomic_read_u32(&db->wanted) == 0 && pg_atomic_read_u32(&db->bus.wanted) == 0 &&
		 pg_atomic_read_u32(&db->nsubscriptions) == 0 &&
		 GetCurrentTimestamp() < watch->next_sweep) ||
		any_alive(db, watch) || replay_database_exists(dboid))
		return false;
	LWLockAcquire(&sd_shared->database_lock, LW_SHARED);
	same = db->dboid == dboid && db->generation == watch->generation &&
		pg_atomic_read_u32(&db->paused) == 0;
	LWLockRelease(&sd_shared->database_lock);
	return same;
}

/* As lifecycle.c does it after the commit. */
static void
forget_database(SdDatabase *db, Oid dboid)
{
	subscription_purge_database(dboid);
	bus_clear(db, true);
	database_release(dboid);
	elsewhere_forget(dboid);
}

static void
forget_places(Watch *watch)
{
	for (int i = 0; i < SD_PLACES; i++)
		if (watch->places[i].handle != NULL)
			pfree(watch->places[i].handle);
	memset(watch->places, 0, sizeof(watch->places));
}

/* Returns when to come back. */
static TimestampTz
tend_database(SdDatabase *db, Watch *watch)
{
	TimestampTz next = DT_NOEND;
	uint32		generation;
	Oid			dboid;

	LWLockAcquire(&sd_shared->database_lock, LW_SHARED);
	dboid = db->dboid;
	generation = db->generation;
	LWLockRelease(&sd_shared->database_lock);

	if (generation != watch->generation)
	{
		forget_places(watch);
		watch->next_sweep = 0;
		watch->generation = generation;
	}
	if (!OidIsValid(dboid))
		return next;
	if (was_dropped(db, dboid, watch))
	{
		forget_database(db, dboid);
		return next;
	}

	give_up_if_idle(db);
	for (int i = 0; i < subdispatch_dispatchers; i++)
		next = Min(next, tend_place(db, dboid, i, &watch->places[i]));
	next = Min(next, tend_place(db, dboid, SD_BUS_PLACE, &watch->places[SD_BUS_PLACE]));
	clear_leftovers(db, watch);
	return Min(next, sweep(db, watch));
}

/* ---- the process ---- */

static void
leave(int code, Datum arg)
{
	pg_atomic_write_u32(&sd_shared->launcher_procno, 0);
}

static void
set_up(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();

	/* To no database: for pg_stat_activity and ProcSignalBarrier. */
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	SetConfigOption("application_name", "subdispatch launcher", PGC_USERSET, PGC_S_OVERRIDE);
	shmem_attach();

	MemoryContextSwitchTo(TopMemoryContext);
	watches = palloc0(sizeof(Watch) * SD_MAX_DATABASES);
	on_shmem_exit(leave, 0);
	pg_atomic_write_u32(&sd_shared->launcher_procno, MyProc->pgprocno + 1);
}

/* -1: until somebody sets the latch. */
static long
wait_time(TimestampTz next)
{
	if (next == DT_NOEND)
		return -1;
	return Max(1, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next));
}

/*
 * An error in here ends the process, and it is started again in a few seconds;
 * the workers don't mind.  It always leaves with exit code 1, because with 0
 * the postmaster would not start it again after a pg_terminate_backend().
 */
void
subdispatch_launcher_main(Datum arg)
{
	set_up();
	for (;;)
	{
		TimestampTz next = DT_NOEND;
		long		timeout;

		ResetLatch(MyLatch);
		if (ShutdownRequestPending)
			proc_exit(1);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}

		for (int i = 0; i < SD_MAX_DATABASES; i++)
			next = Min(next, tend_database(&sd_shared->databases[i], &watches[i]));

		timeout = wait_time(next);
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (timeout >= 0 ? WL_TIMEOUT : 0),
						 timeout, PG_WAIT_EXTENSION);
	}
}

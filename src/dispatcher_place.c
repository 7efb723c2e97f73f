/*-------------------------------------------------------------------------
 *
 * dispatcher_place.c
 *	  A dispatcher's place, or the bus worker's: taken, given back, given up.
 *
 * A place is a database's slot and an index.  At most one process has it.  The
 * process takes it before it connects, so that whoever has paused the database
 * sees it coming, and gives it back after it has left the list of the
 * connected, so that whoever waits for it to be gone finds the database free.
 *
 * Locks: database_lock; order_lock (shared) to see whether anything is queued.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

#include "dispatcher.h"
#include "history.h"
#include "shmem.h"

static SdDatabase *place_db = NULL;
static SdDispatcher *place = NULL;	/* NULL: this process has none */
static pg_atomic_uint32 *wanted;	/* shall it have one? */

/* What tells whether a place shall be taken; database_lock guards it. */
pg_atomic_uint32 *
place_wanted(SdDatabase *db, int index)
{
	return index == SD_BUS_PLACE ? &db->bus.wanted : &db->wanted;
}

/*
 * Runs after the process was removed from the list of those connected: it was
 * registered before that was.  Takes database_lock.
 */
static void
give_back_place(int code, Datum arg)
{
	SdDispatcher *disp = place;

	if (disp == NULL)
		return;
	place = NULL;

	LWLockReleaseAll();
	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	/* what comes until it is wanted again is for nobody here */
	if (disp == &place_db->dispatchers[SD_BUS_PLACE] && pg_atomic_read_u32(wanted) == 0)
		place_db->bus.has_position = false;
	pg_atomic_write_u32(&disp->busy, 0);
	pg_atomic_write_u32(&disp->nlistening, 0);
	pg_atomic_write_u32(&disp->listen_full, pg_atomic_read_u32(&disp->listen_vacated));
	pg_atomic_write_u32(&disp->state, SD_WORKER_NONE);
	pg_atomic_write_u32(&disp->pid, 0);
	pg_atomic_write_u32(&disp->procno, 0);
	LWLockRelease(&sd_shared->database_lock);

	ConditionVariableBroadcast(&place_db->changed);
	launcher_wake();
}

/*
 * Takes the place, unless it is not to be taken (any more) or somebody has it.
 * Returns the database to connect to, or InvalidOid.  To be called before
 * connecting.  Takes database_lock.
 */
Oid
place_take(SdDatabase *db, int dispatcher)
{
	SdDispatcher *disp = &db->dispatchers[dispatcher];
	Oid			dboid = InvalidOid;

	on_shmem_exit(give_back_place, 0);
	wanted = place_wanted(db, dispatcher);

	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	if (OidIsValid(db->dboid) &&
		pg_atomic_read_u32(wanted) > 0 &&
		pg_atomic_read_u32(&db->paused) == 0 &&
		database_dispatcher_pid(disp) == 0)
	{
		dboid = db->dboid;
		pg_atomic_write_u32(&disp->state, SD_WORKER_STARTING);
		pg_atomic_write_u32(&disp->pid, (uint32) MyProcPid);
		pg_atomic_write_u32(&disp->procno, MyProc->pgprocno + 1);
		place_db = db;
		place = disp;
	}
	LWLockRelease(&sd_shared->database_lock);
	return dboid;
}

/*
 * Ends the process if the dispatchers shall not run any more.  Unless it is in
 * somebody's way it empties its queue first.  The state is set under the lock
 * under which wanted is set, so that who sets it knows whether to wait for the
 * next process.  Takes database_lock.
 */
void
place_leave_if_not_wanted(void)
{
	bool		leave;

	if (likely(pg_atomic_read_u32(&place_db->paused) == 0 &&
			   pg_atomic_read_u32(wanted) > 0))
		return;

	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	leave = pg_atomic_read_u32(&place_db->paused) > 0 ||
		(pg_atomic_read_u32(wanted) == 0 &&
		 pg_atomic_read_u64(&place->queue_events) == 0);
	if (leave)
		pg_atomic_write_u32(&place->state, SD_WORKER_NONE);
	LWLockRelease(&sd_shared->database_lock);

	if (!leave)
		return;
	/* Nobody will resume; during a pause it is kept for the successor. */
	if (pg_atomic_read_u32(&place_db->wanted) == 0)
		history_clear(place_db, (int) (place - place_db->dispatchers));
	proc_exit(0);
}

/*
 * Dispatcher 0: a minute after the last subscription nobody wants dispatchers
 * any more.  See database.c for what keeps this from missing a subscription.
 */
void
place_retire_if_idle(TimestampTz now)
{
	uint64		needed;

	if (pg_atomic_read_u32(&place_db->nsubscriptions) > 0)
		pg_atomic_write_u64(&place_db->last_needed, (uint64) now);
	needed = pg_atomic_read_u64(&place_db->last_needed);
	if (now - (TimestampTz) needed < SD_IDLE_END || database_has_events(place_db))
		return;

	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	pg_atomic_write_u32(&place_db->wanted, 0);
	pg_memory_barrier();		/* pairs with database_start_dispatchers() */
	if (pg_atomic_read_u32(&place_db->nsubscriptions) > 0 ||
		pg_atomic_read_u64(&place_db->last_needed) != needed)
		pg_atomic_write_u32(&place_db->wanted, 1);
	LWLockRelease(&sd_shared->database_lock);
	database_wake_all(place_db);
}

/* For another bus its subscriptions don't need it. */
static bool
bus_is_needed(void)
{
	SdBus	   *bus = &place_db->bus;

	return (subdispatch_event_bus == SD_BUS_REDIS &&
			pg_atomic_read_u32(&place_db->nsubscriptions) > 0) ||
		pg_atomic_read_u64(&place->queue_bytes) > 0 ||
		pg_atomic_read_u32(&bus->nlost) > 0 ||
		bus->marker_number != 0 ||
		pg_atomic_read_u32(&bus->sync_requests) != pg_atomic_read_u32(&bus->sync_done);
}

/*
 * The bus worker: a minute after the last subscription and the last event
 * nobody needs it.  Those who publish see that it isn't wanted, or it sees
 * what they have linked: they link first, and look then.  If somebody wants it
 * again before it has left, it stays, with all that it knows.
 */
void
place_retire_bus(TimestampTz now)
{
	SdBus	   *bus = &place_db->bus;

	if (bus_is_needed())
		pg_atomic_write_u64(&bus->last_needed, (uint64) now);
	if (now - (TimestampTz) pg_atomic_read_u64(&bus->last_needed) < SD_IDLE_END)
		return;

	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	pg_atomic_write_u32(&bus->wanted, 0);
	pg_memory_barrier();		/* pairs with redis_want_worker() */
	if (bus_is_needed() ||
		now - (TimestampTz) pg_atomic_read_u64(&bus->last_needed) < SD_IDLE_END)
		pg_atomic_write_u32(&bus->wanted, 1);
	else
		SetLatch(MyLatch);		/* it leaves at its next turn */
	LWLockRelease(&sd_shared->database_lock);
}

/*
 * The bus worker: the extension is gone, and nothing is left to be sent, or none
 * of it can be.  False if more has come meanwhile, or it is wanted again.
 */
bool
place_end_bus(void)
{
	SdBus	   *bus = &place_db->bus;
	bool		end;

	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	end = pg_atomic_read_u32(&bus->dropped) > 0 && pg_atomic_read_u64(&place->queue_bytes) == 0;
	if (end)
	{
		pg_atomic_write_u32(&bus->wanted, 0);
		pg_atomic_write_u32(&bus->dropped, 0);
		SetLatch(MyLatch);
	}
	LWLockRelease(&sd_shared->database_lock);
	return end;
}

/*-------------------------------------------------------------------------
 *
 * database.c
 *	  What is kept per database: slots, wakes, the start of dispatchers.
 *
 * A database gets a slot at its first subscribe() and keeps it until it is
 * dropped.  A backend caches the slot of its own database: while it is
 * connected the database cannot be dropped.
 *
 * Whether dispatchers shall run is db->wanted.  It is set here, by whoever
 * subscribes, and cleared by dispatcher 0 after a minute without
 * subscriptions, by DROP EXTENSION, or by the launcher if no dispatcher could
 * be started and nobody subscribed.  The two sides meet without a lock in the
 * fast path, in the manner of Dekker:
 *
 *	  subscriber:	last_needed = now;	barrier;	is it wanted?
 *	  dispatcher 0: wanted = 0;			barrier;	is last_needed old?
 *
 * so at least one of them sees the other, and one who has just found its
 * dispatchers running has a minute to register a subscription.  Should it take
 * longer it finds out in the same manner, see database_keep_dispatchers().
 *
 * Locks: database_lock for slots, wanted and paused; order_lock (shared) to
 * look at queues.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "bus.h"
#include "dispatcher.h"
#include "shmem.h"

#define START_TIMEOUT		(10 * SD_SECOND)

static SdDatabase *my_database = NULL;	/* cached; see the file's header */

/* ---- slots ---- */

static void
init_dispatcher(SdDispatcher *disp)
{
	dlist_init(&disp->queue);
	dlist_init(&disp->inhand);
	pg_atomic_init_u32(&disp->procno, 0);
	pg_atomic_init_u32(&disp->pid, 0);
	pg_atomic_init_u32(&disp->state, SD_WORKER_NONE);
	pg_atomic_init_u32(&disp->busy, 0);
	pg_atomic_init_u64(&disp->queue_bytes, 0);
	pg_atomic_init_u64(&disp->queue_events, 0);
	pg_atomic_init_u64(&disp->done_id, 0);
	pg_atomic_init_u32(&disp->listen_requests, 0);
	pg_atomic_init_u32(&disp->listen_done, 0);
	pg_atomic_init_u32(&disp->marker_requests, 0);
	pg_atomic_init_u32(&disp->marker_done, 0);
	pg_atomic_init_u32(&disp->gap_requests, 0);
	pg_atomic_init_u32(&disp->nlistening, 0);
	pg_atomic_init_u32(&disp->listen_full, 0);
	pg_atomic_init_u32(&disp->listen_vacated, 0);
	dlist_init(&disp->history.blocks);
	disp->history.pin = NULL;
	disp->history.hint = NULL;
	pg_atomic_init_u64(&disp->history.bytes, 0);
	dlist_init(&disp->history.resuming);
	disp->history.nresuming = 0;
	memset(&disp->history.backfill, 0, sizeof(SdBackfill));
	pg_atomic_init_u32(&disp->history.backfill.asked, 0);
	pg_atomic_init_u32(&disp->history.held, 0);
	pg_atomic_init_u32(&disp->history.resume_changes, 0);
	disp->replay_id = 0;
	disp->replay_attempts = 0;
	disp->current_id = 0;
	disp->current_resolver = InvalidOid;
	disp->current_identity = 0;
	disp->attempts = 0;
	disp->started_at = 0;
	stats_init(&disp->stats);
}

static void
init_bus(SdBus *bus)
{
	bus->next_number = 1;
	pg_atomic_init_u32(&bus->wanted, 0);
	pg_atomic_init_u32(&bus->dropped, 0);
	pg_atomic_init_u64(&bus->last_needed, 0);
	pg_atomic_init_u32(&bus->state, SD_BUS_OFF);
	pg_atomic_init_u64(&bus->not_in_stream, 0);
	pg_atomic_init_u32(&bus->elsewhere, SD_ELSEWHERE_UNKNOWN);
	pg_atomic_init_u32(&bus->elsewhere_used, 0);
	bus->begun_at = GetCurrentTimestamp();
	pg_atomic_init_u64(&bus->linking, 0);
	pg_atomic_init_u32(&bus->sync_requests, 0);
	pg_atomic_init_u32(&bus->sync_done, 0);
	pg_atomic_init_u32(&bus->nlost, 0);
	for (int i = 0; i < SD_SKETCH_SIZE / 32; i++)
		pg_atomic_init_u32(&bus->lost[i], 0);
	memset(bus->sender, 0, sizeof(bus->sender));
	bus->acknowledged = 0;
	bus->marker_number = 0;
	bus->stream_hash = 0;
	bus->has_position = false;
	bus->broken_before = 0;
	memset(&bus->progress, 0, sizeof(bus->progress));
	bus->error_at = 0;
	bus->error[0] = '\0';
}

/*
 * All of a slot but what outlives its database: the locks, the condition
 * variables and the generation.  Nobody else may be using the slot.
 */
static void
init_database(SdDatabase *db)
{
	db->dboid = InvalidOid;
	db->next_ticket = 1;
	db->link_counter = 0;
	db->last_id = 0;
	dlist_init(&db->taken);
	pg_atomic_init_u32(&db->ntaken, 0);
	dlist_init(&db->linked);
	pg_atomic_init_u32(&db->wanted, 0);
	pg_atomic_init_u32(&db->paused, 0);
	pg_atomic_init_u32(&db->nsubscriptions, 0);
	pg_atomic_init_u32(&db->nstar, 0);
	pg_atomic_init_u64(&db->last_needed, 0);
	for (int i = 0; i < SD_SKETCH_SIZE; i++)
	{
		pg_atomic_init_u32(&db->sketch[i], 0);
		pg_atomic_init_u64(&db->gone[i], 0);
	}
	pg_atomic_init_u64(&db->gone_star, 0);
	pg_atomic_init_u64(&db->unseen_until, 0);
	pg_atomic_init_u32(&db->nbatches, 0);
	pg_atomic_init_u64(&db->noutstanding, 0);
	dlist_init(&db->lingering);
	pg_atomic_init_u32(&db->nlingering, 0);
	for (int i = 0; i < SD_PLACES; i++)
		init_dispatcher(&db->dispatchers[i]);
	stats_init(&db->stats);
	init_bus(&db->bus);
}

void
database_init_all(void)
{
	for (int i = 0; i < SD_MAX_DATABASES; i++)
	{
		SdDatabase *db = &sd_shared->databases[i];

		LWLockInitialize(&db->order_lock, sd_tranche_order);
		ConditionVariableInit(&db->changed);
		for (int d = 0; d < SD_PLACES; d++)
		{
			ConditionVariableInit(&db->dispatchers[d].room);
			LWLockInitialize(&db->dispatchers[d].history.lock, sd_tranche_history);
		}
		db->generation = 0;
		SpinLockInit(&db->bus.mutex);
		init_database(db);
	}
}

/* Caller holds database_lock in any mode. */
static SdDatabase *
find_slot(Oid dboid)
{
	Assert(LWLockHeldByMe(&sd_shared->database_lock));
	for (int i = 0; i < SD_MAX_DATABASES; i++)
		if (sd_shared->databases[i].dboid == dboid)
			return &sd_shared->databases[i];
	return NULL;
}

/*
 * The slot of a database, or NULL.  Takes database_lock.  Unless the caller is
 * connected to the database the slot may change hands at any time.
 */
SdDatabase *
database_find(Oid dboid)
{
	SdDatabase *db;

	Assert(OidIsValid(dboid));
	LWLockAcquire(&sd_shared->database_lock, LW_SHARED);
	db = find_slot(dboid);
	LWLockRelease(&sd_shared->database_lock);
	return db;
}

/* This database's slot, made if it has none; NULL when all are taken. */
static SdDatabase *
make_slot(void)
{
	SdDatabase *db;

	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	db = find_slot(MyDatabaseId);
	if (db == NULL)
	{
		db = find_slot(InvalidOid);
		if (db != NULL)
		{
			init_database(db);
			db->generation++;
			db->dboid = MyDatabaseId;
		}
	}
	LWLockRelease(&sd_shared->database_lock);
	return db;
}

/*
 * See database.h.  Takes database_lock the first time; without a connection
 * to a database there is no slot.
 */
SdDatabase *
database_get(bool make, bool noerror)
{
	if (my_database != NULL)
		return my_database;
	if (!OidIsValid(MyDatabaseId))
		return NULL;

	my_database = database_find(MyDatabaseId);
	if (my_database == NULL && make)
		my_database = make_slot();
	if (my_database == NULL && make && !noerror)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("subdispatch can serve no more databases"),
				 errdetail("%d databases have had subscriptions since the server was started, "
						   "which is the limit.", SD_MAX_DATABASES),
				 errhint("Drop databases that are no longer needed, or restart the server.")));
	return my_database;
}

/*
 * Gives the slot back.  The database is gone, and with it its workers and
 * sessions; bus_clear() was called.  Cannot fail: it is called after a commit.
 * Takes database_lock.
 */
void
database_release(Oid dboid)
{
	SdDatabase *db;

	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	db = find_slot(dboid);
	if (db != NULL)
	{
		db->generation++;
		init_database(db);
	}
	LWLockRelease(&sd_shared->database_lock);
}

/* ---- channels ---- */

/* A channel's hash, by which it finds its dispatcher and its sketch counter. */
uint32
channel_hash(const char *name, Size len)
{
	return hash_bytes((const unsigned char *) name, (int) len);
}

int
channel_dispatcher(uint32 hash)
{
	return (int) (hash % (uint32) subdispatch_dispatchers);
}

/*
 * Might the channel have a subscription?  False is certain, if it is asked
 * after the events in question became visible: whoever subscribes raises the
 * counters first and takes a snapshot later.  The barrier keeps this order on
 * our side.
 */
bool
database_maybe_subscribed(SdDatabase *db, uint32 channel_hash)
{
	if (db == NULL)
		return false;
	pg_memory_barrier();
	return pg_atomic_read_u32(&db->nstar) > 0 ||
		pg_atomic_read_u32(&db->sketch[channel_hash % SD_SKETCH_SIZE]) > 0;
}

/* ---- workers ---- */

/*
 * The pid is compared with that of the PGPROC, which the process gives up only
 * when it ends, so a place that was left behind is not taken for a live one.
 */
int
database_dispatcher_pid(SdDispatcher *disp)
{
	uint32		procno = pg_atomic_read_u32(&disp->procno);
	int			pid = (int) pg_atomic_read_u32(&disp->pid);

	if (procno == 0 || pid == 0 || ProcGlobal->allProcs[procno - 1].pid != pid)
		return 0;
	return pid;
}

void
database_wake(SdDatabase *db, int dispatcher)
{
	sd_set_latch(pg_atomic_read_u32(&db->dispatchers[dispatcher].procno));
}

void
database_wake_all(SdDatabase *db)
{
	for (int i = 0; i < subdispatch_dispatchers; i++)
		database_wake(db, i);
	database_wake(db, SD_BUS_PLACE);
}

/* Takes order_lock. */
bool
database_has_linked(SdDatabase *db)
{
	bool		result;

	LWLockAcquire(&db->order_lock, LW_SHARED);
	result = !dlist_is_empty(&db->linked);
	LWLockRelease(&db->order_lock);
	return result;
}

/* Takes order_lock. */
bool
database_has_events(SdDatabase *db)
{
	for (int i = 0; i < subdispatch_dispatchers; i++)
		if (pg_atomic_read_u64(&db->dispatchers[i].queue_events) > 0)
			return true;
	return database_has_linked(db);
}

/* The extension is gone.  Takes database_lock; cannot fail. */
void
database_stop_dispatchers(Oid dboid)
{
	SdDatabase *db;

	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	db = find_slot(dboid);
	if (db != NULL)
	{
		pg_atomic_write_u32(&db->wanted, 0);
		pg_atomic_write_u32(&db->bus.dropped, 1);
	}
	LWLockRelease(&sd_shared->database_lock);

	if (db != NULL)
		database_wake_all(db);
	launcher_wake();
}

/* ---- starting ---- */

static bool
all_run(SdDatabase *db)
{
	if (pg_atomic_read_u32(&db->wanted) == 0 || pg_atomic_read_u32(&db->paused) > 0)
		return false;
	if (subdispatch_event_bus == SD_BUS_REDIS && pg_atomic_read_u32(&db->bus.wanted) == 0)
		return false;
	for (int i = 0; i < subdispatch_dispatchers; i++)
		if (pg_atomic_read_u32(&db->dispatchers[i].state) != SD_WORKER_RUNNING)
			return false;
	return subdispatch_event_bus != SD_BUS_REDIS ||
		pg_atomic_read_u32(&db->dispatchers[SD_BUS_PLACE].state) == SD_WORKER_RUNNING;
}

static bool
any_is(SdDatabase *db, SdWorkerState state)
{
	for (int i = 0; i < subdispatch_dispatchers; i++)
		if (pg_atomic_read_u32(&db->dispatchers[i].state) == state)
			return true;
	return subdispatch_event_bus == SD_BUS_REDIS &&
		pg_atomic_read_u32(&db->dispatchers[SD_BUS_PLACE].state) == state;
}

/*
 * Whoever has it has seen that the extension is there since, unless it was he
 * who has dropped it.
 */
static bool
extension_is_held(Oid extension)
{
	LOCKTAG		tag;

	if (!OidIsValid(extension))
		return false;
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, extension, 0);
	return LockHeldByMe(&tag, AccessShareLock) && !LockHeldByMe(&tag, AccessExclusiveLock);
}

/*
 * Keeps the extension from being dropped while this transaction subscribes:
 * DROP EXTENSION ends the subscriptions that it finds at its commit, and would
 * miss one made after that by a call begun before.  DROP EXTENSION takes an
 * AccessExclusiveLock on the same object.
 */
static void
hold_extension(void)
{
	static Oid	extension = InvalidOid;

	if (extension_is_held(extension))
		return;					/* most of a mass of subscriptions */
	for (;;)
	{
		Oid			now;

		if (OidIsValid(extension))
			LockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock);
		now = get_extension_oid(SD_EXTENSION, false);
		if (now == extension)
			return;
		if (OidIsValid(extension))
			UnlockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock);
		extension = now;
	}
}

static void
check_can_start(void)
{
	if (!IsUnderPostmaster)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot subscribe in single-user mode"),
				 errdetail("subdispatch's background workers do not run in it.")));
	if (IsBinaryUpgrade)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot subscribe during pg_upgrade"),
				 errdetail("subdispatch's background workers do not run during it.")));
	if (RecoveryInProgress() && subdispatch_event_bus != SD_BUS_REDIS)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot subscribe on a server that is in recovery"),
				 errdetail("Events reach a replica through Redis only; subdispatch.event_bus is %s.",
						   GetConfigOption("subdispatch.event_bus", false, false)),
				 errhint("Set subdispatch.event_bus to redis here and on the primary server, or subscribe there.")));
}

/*
 * Asks for dispatchers.  What failed before is to be tried anew, at once: the
 * cause may be gone, and if not, whoever asks shall hear of it.
 */
static void
request_start(SdDatabase *db)
{
	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	pg_atomic_write_u32(&db->wanted, 1);
	if (subdispatch_event_bus == SD_BUS_REDIS)
		pg_atomic_write_u32(&db->bus.wanted, 1);
	pg_atomic_write_u32(&db->bus.dropped, 0);
	LWLockRelease(&sd_shared->database_lock);

	for (int i = 0; i < SD_PLACES; i++)
	{
		uint32		failed = SD_WORKER_FAILED;
		uint32		broken = SD_WORKER_BROKEN;
		SdDispatcher *disp = &db->dispatchers[i];

		pg_atomic_compare_exchange_u32(&disp->state, &failed, SD_WORKER_NONE);
		pg_atomic_compare_exchange_u32(&disp->state, &broken, SD_WORKER_NONE);
	}
	launcher_wake();
}

static void
raise_not_started(SdDatabase *db)
{
	const char *message = "could not start subdispatch's workers for this database";

	if (pg_atomic_read_u32(&db->paused) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("%s", message),
				 errdetail("The database is being dropped, renamed, moved or copied."),
				 errhint("Try again when that is done.")));
	if (any_is(db, SD_WORKER_BROKEN))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s", message),
				 errdetail("A worker ended before it was ready."),
				 errhint("The server log tells why.")));
	if (any_is(db, SD_WORKER_FAILED) ||
		pg_atomic_read_u32(&sd_shared->launcher_procno) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("%s", message),
				 errdetail("There is no free background worker slot; max_worker_processes is %d. "
						   "subdispatch needs one for the server and %d for each database in use.",
						   max_worker_processes,
						   subdispatch_dispatchers + (subdispatch_event_bus == SD_BUS_REDIS ? 1 : 0)),
				 errhint("Increase max_worker_processes, or decrease subdispatch.dispatchers, "
						 "and restart the server.")));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s", message),
			 errdetail("They were not ready within %d seconds.",
					   (int) (START_TIMEOUT / SD_SECOND)),
			 errhint("The server log may tell why.")));
}

/* Waits until the dispatchers run, one could not be started, or time is up. */
static void
wait_for_start(SdDatabase *db)
{
	TimestampTz end = GetCurrentTimestamp() + START_TIMEOUT;

	ConditionVariablePrepareToSleep(&db->changed);
	while (!all_run(db) && !any_is(db, SD_WORKER_FAILED) && !any_is(db, SD_WORKER_BROKEN))
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);

		if (left <= 0)
			break;
		ConditionVariableTimedSleep(&db->changed, left, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

/*
 * See database.h.  Needs a transaction.  Waits up to ten seconds, can be
 * cancelled; holds no lock while it waits but the one on the extension.  If an
 * error is raised wanted stays set, which the launcher puts right.
 */
void
database_start_dispatchers(SdDatabase *db)
{
	check_can_start();
	if (subdispatch_event_bus == SD_BUS_REDIS)
		redis_require_settings();
	hold_extension();

	pg_atomic_write_u64(&db->last_needed, GetCurrentTimestamp());
	pg_atomic_write_u64(&db->bus.last_needed, GetCurrentTimestamp());
	pg_memory_barrier();		/* pairs with place_retire_if_idle() */
	if (all_run(db))
		return;

	if (max_worker_processes > 0)
	{
		request_start(db);
		wait_for_start(db);
	}
	if (!all_run(db))
		raise_not_started(db);
}

/*
 * See database.h.  A machine that sleeps, say, can take a minute from one step
 * of a subscriber's to the next.  Cannot fail; takes database_lock.
 */
void
database_keep_dispatchers(SdDatabase *db)
{
	pg_memory_barrier();		/* pairs with place_retire_if_idle() */
	if (unlikely(pg_atomic_read_u32(&db->wanted) == 0))
		request_start(db);
}

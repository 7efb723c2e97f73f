/*-------------------------------------------------------------------------
 *
 * views_server.c
 *	  The functions behind the views stats and workers, and what metrics()
 *	  shows as well.
 *
 * Both are pg_monitor's.  Of stats others see the row, with nothing in it: each
 * counter tells what has become of events that they may not see, such as how
 * many filters of other roles' subscriptions one has passed.  stats is about
 * the current database, workers shows all.
 *
 * Locks: database_lock in shared mode for workers, else none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/acl.h"

#include "bus.h"
#include "views.h"

PG_FUNCTION_INFO_V1(subdispatch_show_stats);
PG_FUNCTION_INFO_V1(subdispatch_list_workers);

bool
views_is_monitor(void)
{
	return has_privs_of_role(GetUserId(), ROLE_PG_MONITOR);
}

/* ---- stats ---- */

Datum
subdispatch_show_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SdStatsSum *sum = palloc(sizeof(SdStatsSum));
	bool		monitor = views_is_monitor();
	SdRow			row = {0};

	sd_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	stats_sum(database_get(false, true), sum);
	for (int i = 0; i < SD_STAT_COUNTERS; i++)
	{
		if (monitor)
			row_put_int8(&row, sum->counters[i]);
		else
			row_put_null(&row);
	}
	if (!monitor)
	{
		while (row.n < rsinfo->setDesc->natts)
			row_put_null(&row);
		row_store(rsinfo, &row);
		return (Datum) 0;
	}
	row_put_int8(&row, sum->dispatch_time_us);
	row_put_int8(&row, views_dispatch_quantile(sum, 0.5));
	row_put_int8(&row, views_dispatch_quantile(sum, 0.99));
	row_put_int8(&row, sum->dispatch_time_max_us);
	row_put_int8(&row, views_memory_used());
	row_put_int8(&row, views_memory_size());
	row_put_int8(&row, pg_atomic_read_u64(&sd_shared->mem_failures));
	row_put_time(&row, sum->reset_at);
	row_store(rsinfo, &row);
	return (Datum) 0;
}

/* Never more than the exact maximum, which a bucket's end may exceed. */
uint64
views_dispatch_quantile(const SdStatsSum *sum, double q)
{
	return Min(histogram_quantile(sum->dispatch_times, q), sum->dispatch_time_max_us);
}

uint64
views_memory_used(void)
{
	uint64		used = 0;

	for (int i = 0; i < SD_MEM_KINDS; i++)
		if (i != SD_MEM_HISTORY)
			used += pg_atomic_read_u64(&sd_shared->mem_used[i]);
	return used;
}

uint64
views_memory_size(void)
{
	return (uint64) subdispatch_shared_memory_size * 1024;
}

/* ---- workers ---- */

typedef struct WorkerRow
{
	Oid			dboid;
	int			dispatcher;
	uint32		pid;
	SdWorkerState state;
	SdBusState	bus;			/* of the bus worker */
	uint64		events;
	uint64		bytes;
	uint32		listening;
	bool		busy;
} WorkerRow;

static const char *const worker_states[] =
{
	[SD_WORKER_NONE] = "stopped",
	[SD_WORKER_STARTING] = "starting",
	[SD_WORKER_RUNNING] = "running",
	[SD_WORKER_FAILED] = "failed",
	[SD_WORKER_BROKEN] = "broken",
};

static const char *const bus_names[] =
{
	[SD_BUS_MEMORY] = "memory",
	[SD_BUS_NOTIFY] = "notify",
	[SD_BUS_REDIS] = "redis",
};

static void
collect_worker(WorkerRow *row, SdDatabase *db, int i)
{
	SdDispatcher *d = &db->dispatchers[i];

	row->dboid = db->dboid;
	row->dispatcher = i;
	row->state = pg_atomic_read_u32(&d->state);
	row->pid = row->state == SD_WORKER_RUNNING ? pg_atomic_read_u32(&d->pid) : 0;
	row->bus = redis_state(db, NULL, 0, NULL);
	row->events = pg_atomic_read_u64(&d->queue_events);
	row->bytes = pg_atomic_read_u64(&d->queue_bytes);
	row->listening = pg_atomic_read_u32(&d->nlistening);
	row->busy = pg_atomic_read_u32(&d->busy) != 0;
}

/* Copies all workers that run, or should, under database_lock. */
static int
collect_workers(WorkerRow *rows)
{
	int			n = 0;

	LWLockAcquire(&sd_shared->database_lock, LW_SHARED);
	for (int i = 0; i < SD_MAX_DATABASES; i++)
	{
		SdDatabase *db = &sd_shared->databases[i];

		if (!OidIsValid(db->dboid))
			continue;
		for (int d = 0; d < SD_PLACES; d++)
		{
			if (pg_atomic_read_u32(&db->dispatchers[d].state) != SD_WORKER_NONE)
				collect_worker(&rows[n++], db, d);
		}
	}
	LWLockRelease(&sd_shared->database_lock);
	return n;
}

/* A worker that runs has Redis to tell of. */
static const char *
bus_worker_state(const WorkerRow *w)
{
	if (w->state != SD_WORKER_RUNNING || w->bus == SD_BUS_CONNECTED)
		return worker_states[w->state];
	return redis_state_name(w->bus == SD_BUS_OFF ? SD_BUS_CONNECTING : w->bus);
}

static void
store_worker(ReturnSetInfo *rsinfo, const WorkerRow *w)
{
	char	   *database = get_database_name(w->dboid);
	bool		is_bus = w->dispatcher == SD_BUS_PLACE;
	NameData	name;
	SdRow			row = {0};

	if (database == NULL)
		return;					/* just dropped */
	namestrcpy(&name, database);
	row_put(&row, NameGetDatum(&name), false);
	row_put(&row, Int32GetDatum((int32) w->pid), w->pid == 0);
	row_put_string(&row, is_bus ? "bus" : "dispatcher");
	row_put_string(&row, is_bus ? bus_worker_state(w) : worker_states[w->state]);
	row_put_string(&row, is_bus ? "redis" : bus_names[subdispatch_event_bus]);
	row_put_int8(&row, w->events);
	row_put(&row, Int32GetDatum(w->dispatcher), is_bus);
	row_put_int8(&row, w->bytes);
	row_put(&row, Int32GetDatum((int32) w->listening), is_bus);
	row_put(&row, BoolGetDatum(w->busy), false);
	row_store(rsinfo, &row);
}

static void
store_launcher(ReturnSetInfo *rsinfo)
{
	int			pid = views_launcher_pid();
	SdRow			row = {0};

	row_put_null(&row);
	row_put(&row, Int32GetDatum(pid), pid == 0);
	row_put_string(&row, "launcher");
	row_put_string(&row, worker_states[pid == 0 ? SD_WORKER_NONE : SD_WORKER_RUNNING]);
	while (row.n < rsinfo->setDesc->natts)
		row_put_null(&row);
	row_store(rsinfo, &row);
}

int
views_launcher_pid(void)
{
	uint32		procno = pg_atomic_read_u32(&sd_shared->launcher_procno);

	return procno == 0 ? 0 : ProcGlobal->allProcs[procno - 1].pid;
}

/* EXECUTE may have been granted along with that on all functions. */
static void
require_monitor(void)
{
	if (!views_is_monitor())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to see the workers"),
				 errhint("Members of pg_monitor see them.")));
}

Datum
subdispatch_list_workers(PG_FUNCTION_ARGS)
{
	WorkerRow  *rows = palloc(sizeof(WorkerRow) * SD_MAX_DATABASES * SD_PLACES);
	int			n;

	sd_require_preload();
	require_monitor();
	InitMaterializedSRF(fcinfo, 0);
	store_launcher((ReturnSetInfo *) fcinfo->resultinfo);
	n = collect_workers(rows);
	for (int i = 0; i < n; i++)
		store_worker((ReturnSetInfo *) fcinfo->resultinfo, &rows[i]);
	return (Datum) 0;
}

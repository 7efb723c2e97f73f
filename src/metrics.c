/*-------------------------------------------------------------------------
 *
 * metrics.c
 *	  metrics(), health() and reset_stats().
 *
 * metrics() is in Prometheus' text exposition format 0.0.4, in its base units
 * (seconds, bytes), with the current database as a label of whatever is kept
 * per database.  EXECUTE on these functions is the right to call them; what
 * was denied is left out all the same unless the caller is of pg_monitor.
 *
 * Takes no lock: all of it is atomics.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/json.h"

#include "bus.h"
#include "history.h"
#include "sqlfuncs.h"
#include "views.h"

PG_FUNCTION_INFO_V1(subdispatch_metrics);
PG_FUNCTION_INFO_V1(subdispatch_health);
PG_FUNCTION_INFO_V1(subdispatch_reset_stats);

/* ---- metrics() ---- */

/* By counter; those without a text have a metric of another shape. */
static const char *const counter_help[SD_STAT_COUNTERS] =
{
	[SD_STAT_EVENTS_PUBLISHED] = "Events committed to the event queues.",
	[SD_STAT_EVENTS_DISPATCHED] = "Events dispatched.",
	[SD_STAT_EVENTS_GAPPED] = "Committed events that found no room and were told as a gap.",
	[SD_STAT_EVENTS_RETRIED] = "Events dispatched again after an error or the death of a dispatcher.",
	[SD_STAT_NOTIFICATIONS_RECEIVED] = "Notifications received by NOTIFY.",
	[SD_STAT_BAD_ENVELOPES] = "Notifications that looked like an event of publish() but were none.",
	[SD_STAT_RESOLVER_CALLS] = "Calls of resolvers.",
	[SD_STAT_RESOLVER_ERRORS] = "Calls of resolvers that failed.",
	[SD_STAT_RESOLVER_TIMEOUTS] = "Calls of resolvers that were ended by resolver_timeout.",
	[SD_STAT_RESPONSES_QUEUED] = "Responses stored, once for each response stream.",
	[SD_STAT_RESPONSES_DELIVERED] = "Responses read, once for each subscription.",
	[SD_STAT_RESPONSES_DROPPED] = "Responses lost to subscriptions by overflow and gaps.",
	[SD_STAT_RESPONSES_REPLAYED] = "Responses made again from the history, once for each response stream that resumes.",
	[SD_STAT_RATE_LIMITED] = "Responses not made because of a rate limit.",
	[SD_STAT_SUBSCRIPTIONS_CREATED] = "Subscriptions made.",
	[SD_STAT_SUBSCRIPTIONS_ENDED] = "Subscriptions ended from the server's side.",
	[SD_STAT_SUBSCRIPTIONS_EXPIRED] = "Subscriptions ended because they were idle or too old.",
	[SD_STAT_DISPATCH_ERRORS] = "Errors in dispatching outside of resolvers.",
	[SD_STAT_POLICY_ERRORS] = "Errors and timeouts of policies, each of which denied a change to an identity.",
};

static const char *const mem_kinds[SD_MEM_KINDS] =
{
	[SD_MEM_EVENT] = "event",
	[SD_MEM_SUBSCRIPTION] = "subscription",
	[SD_MEM_RESPONSE] = "response",
	[SD_MEM_HISTORY] = "history",
};

static void
head(StringInfo out, const char *name, const char *type, const char *help)
{
	appendStringInfo(out, "# HELP subdispatch_%s %s\n# TYPE subdispatch_%s %s\n",
					 name, help, name, type);
}

static void
sample(StringInfo out, const char *name, const char *labels, uint64 value)
{
	appendStringInfo(out, "subdispatch_%s", name);
	if (labels[0] != '\0')
		appendStringInfo(out, "{%s}", labels);
	appendStringInfo(out, " " UINT64_FORMAT "\n", value);
}

/* database="<name>", escaped as the format wants it. */
static char *
database_label(void)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "database=\"");
	for (const char *s = get_database_name(MyDatabaseId); *s; s++)
	{
		if (*s == '\\' || *s == '"')
			appendStringInfoChar(&buf, '\\');
		if (*s == '\n')
			appendStringInfoString(&buf, "\\n");
		else
			appendStringInfoChar(&buf, *s);
	}
	appendStringInfoChar(&buf, '"');
	return buf.data;
}

static void
metrics_counters(StringInfo out, const SdStatsSum *sum, const char *db)
{
	for (int i = 0; i < SD_STAT_COUNTERS; i++)
	{
		char	   *name;

		if (counter_help[i] == NULL)
			continue;
		name = psprintf("%s_total", stats_counter_name(i));
		head(out, name, "counter", counter_help[i]);
		sample(out, name, db, sum->counters[i]);
	}
	head(out, "resolver_seconds_total", "counter", "Time spent in resolvers.");
	appendStringInfo(out, "subdispatch_resolver_seconds_total{%s} %.6f\n",
					 db, sum->counters[SD_STAT_RESOLVER_TIME_US] / 1e6);
}

static void
metrics_denied(StringInfo out, const SdStatsSum *sum, const char *db)
{
	head(out, "denied_total", "counter", "Events and subscriptions denied, by step.");
	for (int i = SD_STAT_DENIED_CHANNEL; i < SD_STAT_COUNTERS; i++)
		sample(out, "denied_total",
			   psprintf("%s,step=\"%s\"", db, stats_counter_name(i) + strlen("denied_")),
			   sum->counters[i]);
}

/*
 * Bounds are powers of two microseconds, at which buckets of the histogram
 * end: whole microseconds below the bound were counted, parts cut off.
 */
static void
metrics_dispatch_time(StringInfo out, const SdStatsSum *sum, const char *db)
{
	uint64		n = 0;
	int			bucket = 0;

	head(out, "dispatch_seconds", "histogram",
		 "Time from taking an event to its last response being readable.");
	for (int bits = 4; bits <= 24; bits++)
	{
		uint64		bound = UINT64CONST(1) << bits;

		while (bucket < HISTOGRAM_BUCKETS && histogram_bucket_max(bucket) < bound)
			n += sum->dispatch_times[bucket++];
		appendStringInfo(out, "subdispatch_dispatch_seconds_bucket{%s,le=\"%.6f\"} " UINT64_FORMAT "\n",
						 db, bound / 1e6, n);
	}
	while (bucket < HISTOGRAM_BUCKETS)
		n += sum->dispatch_times[bucket++];
	appendStringInfo(out, "subdispatch_dispatch_seconds_bucket{%s,le=\"+Inf\"} " UINT64_FORMAT "\n",
					 db, n);
	appendStringInfo(out, "subdispatch_dispatch_seconds_sum{%s} %.6f\n",
					 db, sum->dispatch_time_us / 1e6);
	appendStringInfo(out, "subdispatch_dispatch_seconds_count{%s} " UINT64_FORMAT "\n", db, n);
}

typedef uint64 (*DispatcherValue) (SdDispatcher *d);

static uint64
dispatcher_up(SdDispatcher *d)
{
	return pg_atomic_read_u32(&d->state) == SD_WORKER_RUNNING ? 1 : 0;
}

static uint64
dispatcher_events(SdDispatcher *d)
{
	return pg_atomic_read_u64(&d->queue_events);
}

static uint64
dispatcher_bytes(SdDispatcher *d)
{
	return pg_atomic_read_u64(&d->queue_bytes);
}

static uint64
dispatcher_listening(SdDispatcher *d)
{
	return pg_atomic_read_u32(&d->nlistening);
}

static uint64
dispatcher_history(SdDispatcher *d)
{
	return history_bytes(d);
}

/* A gauge with a sample for each of the database's dispatchers. */
static void
metrics_dispatchers(StringInfo out, SdDatabase *database, const char *db,
					const char *name, const char *help, DispatcherValue value)
{
	head(out, name, "gauge", help);
	for (int i = 0; i < subdispatch_dispatchers; i++)
		sample(out, name, psprintf("%s,dispatcher=\"%d\"", db, i),
			   database ? value(&database->dispatchers[i]) : 0);
}

/* Only where Redis is used, or there is something left for it. */
static bool
uses_redis(SdDatabase *database)
{
	return subdispatch_event_bus == SD_BUS_REDIS ||
		(database && pg_atomic_read_u32(&database->bus.wanted) > 0);
}

static void
metrics_bus(StringInfo out, SdDatabase *database, const char *db)
{
	SdDispatcher *place = database ? &database->dispatchers[SD_BUS_PLACE] : NULL;

	if (!uses_redis(database))
		return;
	head(out, "bus_up", "gauge", "Whether the bus worker is connected to Redis.");
	sample(out, "bus_up", db,
		   place && redis_state(database, NULL, 0, NULL) == SD_BUS_CONNECTED ? 1 : 0);
	head(out, "bus_queue_events", "gauge", "Events that wait for Redis.");
	sample(out, "bus_queue_events", db, place ? dispatcher_events(place) : 0);
	head(out, "bus_queue_bytes", "gauge", "Bytes of events that wait for Redis, reserved ones included.");
	sample(out, "bus_queue_bytes", db, place ? dispatcher_bytes(place) : 0);
}

static void
metrics_memory(StringInfo out)
{
	head(out, "shared_memory_bytes", "gauge", "Shared memory in use in the whole server, by kind.");
	for (int i = 0; i < SD_MEM_KINDS; i++)
		sample(out, "shared_memory_bytes", psprintf("kind=\"%s\"", mem_kinds[i]),
			   pg_atomic_read_u64(&sd_shared->mem_used[i]));
	head(out, "shared_memory_size_bytes", "gauge", "Shared memory that there is.");
	sample(out, "shared_memory_size_bytes", "", views_memory_size());
	head(out, "shared_memory_failures_total", "counter", "Allocations of shared memory that found no room.");
	sample(out, "shared_memory_failures_total", "", pg_atomic_read_u64(&sd_shared->mem_failures));
}

Datum
subdispatch_metrics(PG_FUNCTION_ARGS)
{
	SdStatsSum *sum = palloc(sizeof(SdStatsSum));
	SdDatabase *database;
	char	   *db = database_label();
	StringInfoData out;

	sd_require_preload();
	database = database_get(false, true);
	stats_sum(database, sum);
	initStringInfo(&out);
	metrics_counters(&out, sum, db);
	if (views_is_monitor())
		metrics_denied(&out, sum, db);
	metrics_dispatch_time(&out, sum, db);
	head(&out, "subscriptions", "gauge", "Live subscriptions.");
	sample(&out, "subscriptions", db,
		   database ? pg_atomic_read_u32(&database->nsubscriptions) : 0);
	head(&out, "outstanding_batches", "gauge", "Batches that were read and are not acknowledged.");
	sample(&out, "outstanding_batches", db, database ? pg_atomic_read_u32(&database->nbatches) : 0);
	head(&out, "outstanding_responses", "gauge", "Responses in them, one for each subscription.");
	sample(&out, "outstanding_responses", db, database ? pg_atomic_read_u64(&database->noutstanding) : 0);
	metrics_dispatchers(&out, database, db, "dispatcher_up",
						"Whether the dispatcher runs.", dispatcher_up);
	metrics_dispatchers(&out, database, db, "queue_events",
						"Events in the dispatcher's queue.", dispatcher_events);
	metrics_dispatchers(&out, database, db, "queue_bytes",
						"Bytes in the dispatcher's queue, reserved ones included.", dispatcher_bytes);
	metrics_dispatchers(&out, database, db, "listening_channels",
						"Channels that the dispatcher listens on for NOTIFY.", dispatcher_listening);
	metrics_dispatchers(&out, database, db, "history_bytes",
						"Bytes of events that the dispatcher keeps for subscriptions that resume.",
						dispatcher_history);
	head(&out, "lingering_channels", "gauge",
		 "Channels without subscriptions whose events still go into the history.");
	sample(&out, "lingering_channels", db,
		   database ? pg_atomic_read_u32(&database->nlingering) : 0);
	metrics_bus(&out, database, db);
	head(&out, "queue_size_bytes", "gauge", "Bytes that fit into the queue of each dispatcher.");
	sample(&out, "queue_size_bytes", "", (uint64) subdispatch_event_queue_size * 1024);
	head(&out, "launcher_up", "gauge", "Whether the launcher runs.");
	sample(&out, "launcher_up", "", views_launcher_pid() != 0 ? 1 : 0);
	metrics_memory(&out);
	PG_RETURN_TEXT_P(cstring_to_text_with_len(out.data, out.len));
}

/* ---- health() ---- */

typedef enum HealthStatus
{
	HEALTH_OK,
	HEALTH_DEGRADED,
	HEALTH_DOWN
} HealthStatus;

static const char *const status_names[] =
{
	[HEALTH_OK] = "ok",
	[HEALTH_DEGRADED] = "degraded",
	[HEALTH_DOWN] = "down",
};

typedef struct Health
{
	HealthStatus status;
	StringInfoData problems;	/* JSON strings with commas between */
	bool		wanted;			/* the database has subscriptions */
	int			running;
	int			failed;
	uint64		queue_events;
	uint64		queue_bytes;
	SdBusState	bus_state;
	char		bus_error[256];
	StringInfoData bus;			/* what is shown of it; empty if it is not used */
} Health;

/* Shares of a queue, and of the memory, from which on there is a problem. */
#define QUEUE_PROBLEM_PERCENT	80
#define MEMORY_PROBLEM_PERCENT	90

static void
problem(Health *health, HealthStatus status, const char *text)
{
	health->status = Max(health->status, status);
	if (health->problems.len > 0)
		appendStringInfoString(&health->problems, ", ");
	escape_json(&health->problems, text);
}

static void
check_dispatcher(Health *health, SdDispatcher *d, int i)
{
	uint64		size = (uint64) subdispatch_event_queue_size * 1024;
	uint64		bytes = dispatcher_bytes(d);

	health->queue_events += dispatcher_events(d);
	health->queue_bytes += bytes;
	if (bytes > size / 100 * QUEUE_PROBLEM_PERCENT)
		problem(health, HEALTH_DEGRADED, psprintf("the queue of dispatcher %d is nearly full", i));

	switch (pg_atomic_read_u32(&d->state))
	{
		case SD_WORKER_RUNNING:
			health->running++;
			break;
		case SD_WORKER_FAILED:
			health->failed++;
			problem(health, HEALTH_DEGRADED,
					psprintf("dispatcher %d cannot be started: max_worker_processes may be too low", i));
			break;
		case SD_WORKER_BROKEN:
			health->failed++;
			problem(health, HEALTH_DEGRADED,
					psprintf("dispatcher %d ends before it is ready: see the server's log", i));
			break;
		default:
			if (health->wanted)
				problem(health, HEALTH_DEGRADED, psprintf("dispatcher %d does not run", i));
			break;
	}
}

/* Redis, where it is used, or still has something to do. */
static void
check_bus(Health *health, SdDatabase *database)
{
	SdDispatcher *place = database ? &database->dispatchers[SD_BUS_PLACE] : NULL;
	uint64		size = (uint64) subdispatch_event_queue_size * 1024;
	TimestampTz since;

	initStringInfo(&health->bus);
	if (!uses_redis(database))
		return;
	if (subdispatch_redis_url == NULL)
		problem(health, HEALTH_DEGRADED, "the Redis bus cannot be used without subdispatch.redis_url");
	if (subdispatch_bus_key == NULL)
		problem(health, HEALTH_DEGRADED, "the Redis bus cannot be used without subdispatch.bus_key");
	health->bus_state = place ? redis_state(database, health->bus_error, sizeof(health->bus_error), &since) : SD_BUS_OFF;
	if (health->bus_state == SD_BUS_WAITING)
		problem(health, HEALTH_DEGRADED, psprintf("Redis bus: %s", health->bus_error));
	if (place && pg_atomic_read_u32(&place->state) == SD_WORKER_FAILED)
		problem(health, HEALTH_DEGRADED, "the bus worker cannot be started: max_worker_processes may be too low");
	if (place && pg_atomic_read_u32(&place->state) == SD_WORKER_BROKEN)
		problem(health, HEALTH_DEGRADED, "the bus worker ends before it is ready: see the server's log");
	if (place && dispatcher_bytes(place) > size / 100 * QUEUE_PROBLEM_PERCENT)
		problem(health, HEALTH_DEGRADED, "the queue of events that wait for Redis is nearly full");
	appendStringInfo(&health->bus, "\"bus\": {\"state\": \"%s\", \"events\": " UINT64_FORMAT ", \"bytes\": " UINT64_FORMAT ", \"error\": ",
					 redis_state_name(health->bus_state), place ? dispatcher_events(place) : 0,
					 place ? dispatcher_bytes(place) : 0);
	if (health->bus_state == SD_BUS_WAITING)
		escape_json(&health->bus, health->bus_error);
	else
		appendStringInfoString(&health->bus, "null");
	appendStringInfoString(&health->bus, "}, ");
}

static void
check_all(Health *health, SdDatabase *database)
{
	memset(health, 0, sizeof(Health));
	initStringInfo(&health->problems);
	if (views_launcher_pid() == 0)
		problem(health, HEALTH_DOWN, "the launcher does not run");
	if (database)
	{
		health->wanted = pg_atomic_read_u32(&database->nsubscriptions) > 0;
		for (int i = 0; i < subdispatch_dispatchers; i++)
			check_dispatcher(health, &database->dispatchers[i], i);
	}
	check_bus(health, database);
	if (health->wanted && health->running == 0)
		problem(health, HEALTH_DOWN, "there are subscriptions and no dispatcher runs");
	if (views_memory_used() + sd_reserve_bytes() > views_memory_size() / 100 * MEMORY_PROBLEM_PERCENT)
		problem(health, HEALTH_DEGRADED, "shared memory is nearly used up: see subdispatch.shared_memory_size");
}

Datum
subdispatch_health(PG_FUNCTION_ARGS)
{
	SdDatabase *database;
	Health		health;
	StringInfoData out;

	sd_require_preload();
	database = database_get(false, true);
	check_all(&health, database);
	initStringInfo(&out);
	appendStringInfo(&out, "{\"status\": \"%s\", ", status_names[health.status]);
	appendStringInfo(&out, "\"workers\": {\"launcher\": %s, \"wanted\": %d, \"running\": %d, \"failed\": %d}, ",
					 views_launcher_pid() != 0 ? "true" : "false",
					 health.wanted ? subdispatch_dispatchers : 0, health.running, health.failed);
	appendStringInfo(&out, "\"queue\": {\"events\": " UINT64_FORMAT ", \"bytes\": " UINT64_FORMAT
					 ", \"size\": " UINT64_FORMAT "}, ",
					 health.queue_events, health.queue_bytes,
					 (uint64) subdispatch_event_queue_size * 1024 * subdispatch_dispatchers);
	appendStringInfoString(&out, health.bus.data);
	appendStringInfo(&out, "\"memory\": {\"used\": " UINT64_FORMAT ", \"size\": " UINT64_FORMAT
					 ", \"failures\": " UINT64_FORMAT "}, ",
					 views_memory_used(), views_memory_size(),
					 pg_atomic_read_u64(&sd_shared->mem_failures));
	appendStringInfo(&out, "\"subscriptions\": %u, ",
					 database ? pg_atomic_read_u32(&database->nsubscriptions) : 0);
	appendStringInfo(&out, "\"problems\": [%s]}", health.problems.data);
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(out.data));
}

/* ---- reset_stats() ---- */

Datum
subdispatch_reset_stats(PG_FUNCTION_ARGS)
{
	SdDatabase *database;

	sd_require_preload();
	refuse_in_policy();
	database = database_get(false, true);
	if (database)
		stats_reset(database);
	PG_RETURN_VOID();
}

/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  Cumulative counters and dispatch times: counting, adding up, resetting.
 *
 * Every counter is an atomic, so nothing here takes a lock or can fail, and
 * counting is allowed under any lock.  A sum is therefore not of one moment,
 * and a reset that meets a running dispatch may miss or keep what that counts
 * just then.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "database.h"
#include "stats.h"

static const char *const counter_names[SD_STAT_COUNTERS] =
{
	[SD_STAT_EVENTS_PUBLISHED] = "events_published",
	[SD_STAT_EVENTS_DISPATCHED] = "events_dispatched",
	[SD_STAT_EVENTS_GAPPED] = "events_gapped",
	[SD_STAT_EVENTS_RETRIED] = "events_retried",
	[SD_STAT_NOTIFICATIONS_RECEIVED] = "notifications_received",
	[SD_STAT_BAD_ENVELOPES] = "bad_envelopes",
	[SD_STAT_BUS_SENT] = "bus_sent",
	[SD_STAT_BUS_RECEIVED] = "bus_received",
	[SD_STAT_BUS_REPEATED] = "bus_repeated",
	[SD_STAT_BUS_REREAD] = "bus_reread",
	[SD_STAT_BUS_GAPS] = "bus_gaps",
	[SD_STAT_BUS_CONNECTIONS] = "bus_connections",
	[SD_STAT_REPLAY_WAITS] = "replay_waits",
	[SD_STAT_REPLAY_TIMEOUTS] = "replay_timeouts",
	[SD_STAT_RESOLVER_CALLS] = "resolver_calls",
	[SD_STAT_RESOLVER_ERRORS] = "resolver_errors",
	[SD_STAT_RESOLVER_TIMEOUTS] = "resolver_timeouts",
	[SD_STAT_RESOLVER_TIME_US] = "resolver_time_us",
	[SD_STAT_RESPONSES_QUEUED] = "responses_queued",
	[SD_STAT_RESPONSES_DELIVERED] = "responses_delivered",
	[SD_STAT_RESPONSES_DROPPED] = "responses_dropped",
	[SD_STAT_RESPONSES_REPLAYED] = "responses_replayed",
	[SD_STAT_RATE_LIMITED] = "rate_limited",
	[SD_STAT_SUBSCRIPTIONS_CREATED] = "subscriptions_created",
	[SD_STAT_SUBSCRIPTIONS_ENDED] = "subscriptions_ended",
	[SD_STAT_SUBSCRIPTIONS_EXPIRED] = "subscriptions_expired",
	[SD_STAT_DISPATCH_ERRORS] = "dispatch_errors",
	[SD_STAT_POLICY_ERRORS] = "policy_errors",
	[SD_STAT_DENIED_CHANNEL] = "denied_channel",
	[SD_STAT_DENIED_RLS] = "denied_rls",
	[SD_STAT_DENIED_ROW_FILTER] = "denied_row_filter",
	[SD_STAT_DENIED_TENANT] = "denied_tenant",
	[SD_STAT_DENIED_FEDERATION] = "denied_federation",
	[SD_STAT_DENIED_SCOPE] = "denied_scope",
	[SD_STAT_DENIED_RBAC] = "denied_rbac",
	[SD_STAT_DENIED_IMAGE] = "denied_image",
};

const char *
stats_counter_name(SdCounter counter)
{
	return counter_names[counter];
}

/* Makes a new set, all zero.  Nobody else uses it yet. */
void
stats_init(SdStats *stats)
{
	for (int i = 0; i < SD_STAT_COUNTERS; i++)
		pg_atomic_init_u64(&stats->counters[i], 0);
	for (int i = 0; i < SD_HISTOGRAM_BUCKETS; i++)
		pg_atomic_init_u64(&stats->dispatch_times[i], 0);
	pg_atomic_init_u64(&stats->dispatch_time_us, 0);
	pg_atomic_init_u64(&stats->dispatch_time_max_us, 0);
	pg_atomic_init_u64(&stats->reset_at, (uint64) GetCurrentTimestamp());
}

/* Adds to a number that only this process writes: cheaper than an atomic add. */
static inline void
add_unlocked(pg_atomic_uint64 *to, uint64 n)
{
	pg_atomic_write_u64(to, pg_atomic_read_u64(to) + n);
}

/* Counts one dispatch that took "us" microseconds. */
void
stats_dispatch_time(SdStats *stats, uint64 us)
{
	int			bucket = Min(histogram_bucket(us), SD_HISTOGRAM_BUCKETS - 1);

	add_unlocked(&stats->dispatch_times[bucket], 1);
	add_unlocked(&stats->dispatch_time_us, us);
	if (us > pg_atomic_read_u64(&stats->dispatch_time_max_us))
		pg_atomic_write_u64(&stats->dispatch_time_max_us, us);
}

static void
add_set(SdStats *stats, SdStatsSum *sum)
{
	for (int i = 0; i < SD_STAT_COUNTERS; i++)
		sum->counters[i] += pg_atomic_read_u64(&stats->counters[i]);
	for (int i = 0; i < SD_HISTOGRAM_BUCKETS; i++)
		sum->dispatch_times[i] += pg_atomic_read_u64(&stats->dispatch_times[i]);
	sum->dispatch_time_us += pg_atomic_read_u64(&stats->dispatch_time_us);
	sum->dispatch_time_max_us = Max(sum->dispatch_time_max_us,
									pg_atomic_read_u64(&stats->dispatch_time_max_us));
}

/*
 * Adds up a database's sets, of its backends and its dispatchers.  All
 * dispatchers are read, running or not: a set outlives its process.
 */
void
stats_sum(SdDatabase *db, SdStatsSum *sum)
{
	memset(sum, 0, sizeof(SdStatsSum));
	if (db == NULL)
		return;
	add_set(&db->stats, sum);
	for (int i = 0; i < subdispatch_dispatchers; i++)
		add_set(&db->dispatchers[i].stats, sum);
	sum->reset_at = (TimestampTz) pg_atomic_read_u64(&db->stats.reset_at);
}

static void
reset_set(SdStats *stats)
{
	for (int i = 0; i < SD_STAT_COUNTERS; i++)
		pg_atomic_write_u64(&stats->counters[i], 0);
	for (int i = 0; i < SD_HISTOGRAM_BUCKETS; i++)
		pg_atomic_write_u64(&stats->dispatch_times[i], 0);
	pg_atomic_write_u64(&stats->dispatch_time_us, 0);
	pg_atomic_write_u64(&stats->dispatch_time_max_us, 0);
	pg_atomic_write_u64(&stats->reset_at, (uint64) GetCurrentTimestamp());
}

void
stats_reset(SdDatabase *db)
{
	reset_set(&db->stats);
	for (int i = 0; i < subdispatch_dispatchers; i++)
		reset_set(&db->dispatchers[i].stats);
}

/*-------------------------------------------------------------------------
 *
 * stats.h
 *	  Cumulative counters and dispatch times.
 *
 * Each dispatcher and each database has a set of its own in shared memory;
 * readers add them up.  Counters are atomics; those of a dispatcher have one
 * writer, so they cost an unlocked read and write.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_STATS_H
#define SD_STATS_H

#include "port/atomics.h"

#include "histogram.h"
#include "subdispatch.h"

typedef enum SdCounter
{
	SD_STAT_EVENTS_PUBLISHED,	/* linked at commit */
	SD_STAT_EVENTS_DISPATCHED,
	SD_STAT_EVENTS_GAPPED,		/* committed, found no room: told as a gap */
	SD_STAT_EVENTS_RETRIED,		/* dispatched again after an error or a death */
	SD_STAT_NOTIFICATIONS_RECEIVED,
	SD_STAT_BAD_ENVELOPES,
	SD_STAT_BUS_SENT,			/* events that Redis has acknowledged */
	SD_STAT_BUS_RECEIVED,		/* events read from Redis */
	SD_STAT_BUS_REPEATED,		/* entries that had been read before */
	SD_STAT_BUS_REREAD,			/* entries read again for those that resume */
	SD_STAT_BUS_GAPS,			/* gaps found in what was read */
	SD_STAT_BUS_CONNECTIONS,	/* made to Redis */
	SD_STAT_REPLAY_WAITS,		/* events that had to wait for replay */
	SD_STAT_REPLAY_TIMEOUTS,	/* that had not been replayed by then, or never will be */
	SD_STAT_RESOLVER_CALLS,
	SD_STAT_RESOLVER_ERRORS,
	SD_STAT_RESOLVER_TIMEOUTS,
	SD_STAT_RESOLVER_TIME_US,
	SD_STAT_RESPONSES_QUEUED,	/* stored once per stream */
	SD_STAT_RESPONSES_DELIVERED,	/* read, per subscription */
	SD_STAT_RESPONSES_DROPPED,	/* overflow and gaps, per subscription */
	SD_STAT_RESPONSES_REPLAYED, /* made again for subscriptions that resume */
	SD_STAT_RATE_LIMITED,
	SD_STAT_SUBSCRIPTIONS_CREATED,
	SD_STAT_SUBSCRIPTIONS_ENDED,	/* from the server's side, with a message */
	SD_STAT_SUBSCRIPTIONS_EXPIRED,	/* of these by idle time or lifetime */
	SD_STAT_DISPATCH_ERRORS,	/* errors outside of resolvers */
	SD_STAT_POLICY_ERRORS,		/* errors and timeouts of policies */
	SD_STAT_DENIED_CHANNEL,
	SD_STAT_DENIED_RLS,
	SD_STAT_DENIED_ROW_FILTER,
	SD_STAT_DENIED_TENANT,
	SD_STAT_DENIED_FEDERATION,
	SD_STAT_DENIED_SCOPE,
	SD_STAT_DENIED_RBAC,
	SD_STAT_DENIED_IMAGE,		/* a change of another server, unreadable here */
	SD_STAT_COUNTERS
} SdCounter;

/*
 * histogram.h's buckets up to 2^34 us (4.8 hours); what is longer is counted in
 * the last one.
 */
#define SD_HISTOGRAM_BUCKETS	256

typedef struct SdStats
{
	pg_atomic_uint64 counters[SD_STAT_COUNTERS];
	/* time from taking an event to its last response being readable, in us */
	pg_atomic_uint64 dispatch_time_us;
	pg_atomic_uint64 dispatch_time_max_us;
	pg_atomic_uint64 dispatch_times[SD_HISTOGRAM_BUCKETS];
	pg_atomic_uint64 reset_at;	/* TimestampTz; of a database's set only */
} SdStats;

/* A copy, or the sum of several. */
typedef struct SdStatsSum
{
	uint64		counters[SD_STAT_COUNTERS];
	uint64		dispatch_time_us;
	uint64		dispatch_time_max_us;
	uint64		dispatch_times[HISTOGRAM_BUCKETS];
	TimestampTz reset_at;
} SdStatsSum;

struct SdDatabase;

/* Any process. */
static inline void
stats_add(SdStats *stats, SdCounter counter, uint64 n)
{
	pg_atomic_fetch_add_u64(&stats->counters[counter], n);
}

/* Only the set's dispatcher. */
static inline void
stats_add_own(SdStats *stats, SdCounter counter, uint64 n)
{
	pg_atomic_write_u64(&stats->counters[counter],
						pg_atomic_read_u64(&stats->counters[counter]) + n);
}

extern void stats_init(SdStats *stats);
/* Only the set's dispatcher. */
extern void stats_dispatch_time(SdStats *stats, uint64 us);

/* db NULL: all zero */
extern void stats_sum(struct SdDatabase *db, SdStatsSum *sum);
extern void stats_reset(struct SdDatabase *db);
/* As in the view "stats": "events_dispatched", ... */
extern const char *stats_counter_name(SdCounter counter);

#endif							/* SD_STATS_H */

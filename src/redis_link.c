/*-------------------------------------------------------------------------
 *
 * redis_link.c
 *	  A connection to Redis that is made anew when it breaks.
 *
 * After a failure it waits, ever longer from one to the next and with a random
 * part (redis_backoff()); the first failure of a connection that had worked
 * counts as the first.  What was under way is the owner's to begin again.
 *
 * Takes no lock; a spinlock in bus_report().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "utils/timestamp.h"

#include "redis_bus.h"

void
link_init(RedisLink *link, void (*report) (const char *))
{
	memset(link, 0, sizeof(RedisLink));
	link->report = report;
	conn_init(&link->conn);
}

static void
broke(RedisLink *link)
{
	int			ms;

	link->report(link->conn.error);
	conn_close(&link->conn);
	link->greeted = false;
	link->healthy = false;
	link->failures++;
	ms = redis_backoff(link->failures, pg_prng_uint32(&pg_global_prng_state));
	link->retry_at = GetCurrentTimestamp() + ms * INT64CONST(1000);
}

bool
link_drive(RedisLink *link, bool *fresh)
{
	RedisConn  *conn = &link->conn;

	*fresh = false;
	if (conn->state == CONN_CLOSED)
	{
		if (GetCurrentTimestamp() < link->retry_at)
			return false;
		if (subdispatch_redis_url == NULL || subdispatch_bus_key == NULL)
		{
			link->report("subdispatch.redis_url or subdispatch.bus_key is not set");
			link->retry_at = GetCurrentTimestamp() + REDIS_BACKOFF_MAX * INT64CONST(1000);
			return false;
		}
		conn_open(conn, subdispatch_redis_url);
	}
	conn_drive(conn);
	if (conn->state == CONN_BROKEN)
		broke(link);
	if (!conn_is_ready(conn))
		return false;
	*fresh = !link->greeted;
	link->greeted = true;
	return true;
}

void
link_succeeded(RedisLink *link)
{
	link->healthy = true;
	link->failures = 0;
}

void
link_reset(RedisLink *link)
{
	conn_close(&link->conn);
	link->greeted = false;
	link->healthy = false;
	link->failures = 0;
	link->retry_at = 0;
}

long
link_wait_ms(const RedisLink *link)
{
	if (link->conn.state == CONN_BROKEN)
		return 0;
	if (link->conn.state == CONN_CLOSED)
		return Max(1, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), link->retry_at));
	return conn_wait_ms(&link->conn);
}

/*-------------------------------------------------------------------------
 *
 * bus_redis.c
 *	  The Redis bus, as publishers, subscribers and views see it.
 *
 * The way of an event with event_bus = redis:
 *
 *	  1. Its transaction commits and links it as on the memory bus, but into the
 *		 queue of the bus worker (SD_BUS_PLACE), whoever subscribes to what: there
 *		 may be subscriptions on other servers.  Tickets give the order, the
 *		 queue has room for event_queue_size, and what finds none is dealt with
 *		 by publish_timeout and on_queue_full.  Nobody waits for the network.
 *	  2. The bus worker, a process of its own for each database, sends it to
 *		 Redis, where it gets its id (redis_send.c, redis_script.c).  Until Redis
 *		 has acknowledged it, it stays in shared memory.
 *	  3. The bus worker of every server of the group, the one it came from
 *		 included, reads it from Redis and links it for the dispatchers
 *		 (redis_read.c).
 *
 * A group is the servers that use the same Redis, key prefix and bus_key; an
 * event goes to the database of the same name.
 *
 * What a dispatcher receives by NOTIFY goes the same way: it could have no id
 * among those that come from Redis otherwise.
 *
 * Locks: database_lock, to ask for the worker; SdBus->mutex to read its state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "bus.h"
#include "dispatcher.h"
#include "shmem.h"

/* How long subscribe() waits for the worker's first try; it has limits itself. */
#define POSITION_TIMEOUT	(30 * SD_SECOND)

/*
 * See bus.h.  The hint is for those who can do something; it has no value in it.
 */
void
redis_require_settings(void)
{
	const char *missing = NULL;

	if (subdispatch_redis_url == NULL)
		missing = "subdispatch.redis_url";
	else if (subdispatch_bus_key == NULL)
		missing = "subdispatch.bus_key";
	if (missing != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the Redis bus cannot be used without %s", missing),
				 errdetail("subdispatch.event_bus is redis."),
				 errhint("Set %s in the configuration file and reload it, or set subdispatch.event_bus to memory.",
						 missing)));
}

/*
 * See bus.h.  Called when something is linked for the worker: it looks for
 * that after it has said that it isn't wanted.
 */
void
redis_want_worker(SdDatabase *db)
{
	pg_memory_barrier();		/* pairs with place_retire_bus() */
	if (likely(pg_atomic_read_u32(&db->bus.wanted) > 0))
		return;
	LWLockAcquire(&sd_shared->database_lock, LW_EXCLUSIVE);
	pg_atomic_write_u64(&db->bus.last_needed, (uint64) GetCurrentTimestamp());
	pg_atomic_write_u32(&db->bus.wanted, 1);
	LWLockRelease(&sd_shared->database_lock);
	launcher_wake();
}

/*
 * A subscription gets what is published from now on, so it must be settled
 * from where on the stream is read.  Where Redis cannot be reached it is not;
 * then what comes first is the news that something may be missing.
 */
void
redis_wait_for_position(SdDatabase *db)
{
	TimestampTz end = GetCurrentTimestamp() + POSITION_TIMEOUT;
	SdBusState	state;

	ConditionVariablePrepareToSleep(&db->changed);
	for (;;)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);

		state = pg_atomic_read_u32(&db->bus.state);
		if (state == SD_BUS_CONNECTED || state == SD_BUS_WAITING || left <= 0)
			break;
		(void) ConditionVariableTimedSleep(&db->changed, Min(left, 1000), PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	if (state != SD_BUS_CONNECTED)
		ereport(WARNING,
				(errcode(ERRCODE_CONNECTION_DOES_NOT_EXIST),
				 errmsg("Redis cannot be reached at the moment"),
				 errdetail("The subscription is made; events come when Redis is back."),
				 errhint("The server's log and subdispatch.health() tell how the bus stands.")));
}

/*
 * See bus.h.  The bits first: the worker takes the count before it takes them.
 */
void
redis_lose(SdDatabase *db, uint32 channel_hash)
{
	uint32		bit = channel_hash % SD_SKETCH_SIZE;

	pg_atomic_fetch_or_u32(&db->bus.lost[bit / 32], UINT32_C(1) << (bit % 32));
	pg_memory_barrier();
	pg_atomic_fetch_add_u32(&db->bus.nlost, 1);
}

SdBusState
redis_state(SdDatabase *db, char *error, Size size, TimestampTz *since)
{
	SdBus	   *bus = &db->bus;

	if (error != NULL)
	{
		SpinLockAcquire(&bus->mutex);
		strlcpy(error, bus->error, Min(size, sizeof(bus->error)));
		*since = bus->error_at;
		SpinLockRelease(&bus->mutex);
	}
	return (SdBusState) pg_atomic_read_u32(&bus->state);
}

const char *
redis_state_name(SdBusState state)
{
	switch (state)
	{
		case SD_BUS_CONNECTED:
			return "connected";
		case SD_BUS_CONNECTING:
			return "connecting";
		case SD_BUS_WAITING:
			return "disconnected";
		case SD_BUS_OFF:
			break;
	}
	return "off";
}

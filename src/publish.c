/*-------------------------------------------------------------------------
 *
 * publish.c
 *	  What a transaction publishes, until it ends.
 *
 *	  publish_event()		keeps the event in this backend's memory
 *	  savepoint rolled back	forgets what was published since
 *	  before the commit		decides whom the events concern, waits for room, puts
 *							them into shared memory, takes a ticket: all that can
 *							fail is done here, while the transaction can fail
 *	  after the commit		looks again whom they concern, links them: when the
 *							locks have been released, which is when others have
 *							been told what changed in the catalogs
 *	  after an abort		gives everything back
 *
 * Whether anybody subscribes is decided after the commit became visible
 * (DESIGN 4.3): whoever subscribes and then queries either sees the change or
 * gets the event.  What is prepared before the commit is only a guess, from a
 * sketch that may say yes for no reason but never no.  If somebody subscribed
 * in between, copies are added to what was prepared; where there is no room
 * for them they become a gap, which needs no memory to tell.
 *
 * Not in the commit callback already: that comes before the invalidations are
 * sent, and a dispatcher that is fast would judge the event by the rights and
 * policies from before its own transaction.
 *
 * Everything a transaction holds outside of its own memory (reserved room,
 * blocks, the ticket) is recorded in "tx", so that the abort callback finds it
 * wherever an error came from.
 *
 * Locks: none here; those of bus_memory.c, and registry_lock (shared) in
 * publish_copies.c.  None is held while memory is allocated or an error raised.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "bus.h"
#include "dispatcher.h"
#include "elsewhere.h"
#include "publish.h"
#include "replay.h"
#include "shmem.h"
#include "sqlfuncs.h"
#include "subscription.h"

static PublishTx tx;

static void
forget_all(void)
{
	/* the memory goes with TopTransactionContext */
	memset(&tx, 0, sizeof(tx));
}

bool
publish_pending(void)
{
	return tx.n > 0;
}

/* ---- collecting ---- */

static void
make_room_to_remember(void)
{
	if (tx.context == NULL)
	{
		forget_all();
		tx.context = GenerationContextCreate(TopTransactionContext, "subdispatch events",
											 ALLOCSET_DEFAULT_SIZES);
	}
	if (tx.n < tx.size)
		return;
	if (tx.events == NULL)
		tx.events = MemoryContextAlloc(TopTransactionContext, sizeof(Pending) * 16);
	else
		tx.events = repalloc_huge(tx.events, sizeof(Pending) * tx.size * 2);
	tx.size = tx.size ? tx.size * 2 : 16;
}

/*
 * A dispatcher must not wait for room at its commit, so its resolvers are told
 * at the call.  What its transaction has published already counts as if it
 * all went to this event's dispatcher.
 */
static void
check_room_in_dispatcher(const SdEvent *ev)
{
	SdDatabase *db = database_get(false, true);
	bool		by_redis = subdispatch_event_bus == SD_BUS_REDIS;
	int			home = by_redis ? SD_BUS_PLACE : channel_dispatcher(ev->channel_hash);
	uint64		bytes;

	if (db == NULL || (!by_redis && !database_maybe_subscribed(db, ev->channel_hash)))
		return;
	bytes = pg_atomic_read_u64(&db->dispatchers[home].queue_bytes);
	if (bytes + tx.bytes + ev->size <= (uint64) subdispatch_event_queue_size * 1024)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("event queue is full"),
			 errdetail("%llu bytes of %d kB are in use, and a resolver cannot wait for room.",
					   (unsigned long long) bytes, subdispatch_event_queue_size),
			 errhint("Increase subdispatch.event_queue_size.")));
}

/*
 * Remembers a copy of the event until the transaction ends.  Raises 54000 if
 * it is too large, 25006 on a standby.
 */
void
publish_event(const SdEvent *ev)
{
	Pending    *p;

	Assert(sd_shared != NULL);
	PreventCommandDuringRecovery("publish()");
	refuse_in_policy();
	if (IsParallelWorker())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("cannot publish events in a parallel worker")));
	event_check_size(ev->size);
	if (subdispatch_event_bus == SD_BUS_REDIS)
		redis_require_settings();
	shmem_attach();
	if (am_dispatcher)
		check_room_in_dispatcher(ev);

	make_room_to_remember();
	p = &tx.events[tx.n];
	memset(p, 0, sizeof(Pending));
	p->ev = MemoryContextAllocHuge(tx.context, ev->size);
	memcpy(p->ev, ev, ev->size);
	p->subid = GetCurrentSubTransactionId();
	p->home = channel_dispatcher(ev->channel_hash);
	p->ordinal = tx.n;
	tx.bytes += ev->size;
	tx.n++;
}

/* ---- savepoints ---- */

static void
subxact_callback(SubXactEvent event, SubTransactionId mine, SubTransactionId parent,
				 void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (tx.n > 0 && tx.events[tx.n - 1].subid >= mine)
		{
			SdEvent    *ev = tx.events[--tx.n].ev;

			tx.bytes -= ev->size;
			pfree(ev);
		}
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (uint32 i = tx.n; i > 0 && tx.events[i - 1].subid >= mine; i--)
			tx.events[i - 1].subid = parent;
	}
}

/* ---- before the commit ---- */

static void
report_never_fits(int d, Size bytes)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("transaction publishes more than an event queue can hold"),
			 errdetail("Its events take %zu bytes in one queue of %d kB.",
					   bytes, subdispatch_event_queue_size),
			 errhint("Publish less in one transaction, or increase subdispatch.event_queue_size.")));
}

static void
report_full(int d)
{
	SdDispatcher *disp = &tx.db->dispatchers[d];
	int			pid = database_dispatcher_pid(disp);
	uint64		bytes = pg_atomic_read_u64(&disp->queue_bytes);

	if (d == SD_BUS_PLACE)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("event queue of database \"%s\" is full", get_database_name(MyDatabaseId)),
				 errdetail("%llu bytes of %d kB wait for Redis, which did not take any within %d ms.",
						   (unsigned long long) bytes, subdispatch_event_queue_size,
						   subdispatch_publish_timeout),
				 errhint("The server's log and subdispatch.health() tell how the bus stands. Increase subdispatch.event_queue_size "
						 "or subdispatch.publish_timeout, or set subdispatch.on_queue_full to \"gap\".")));
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("event queue of database \"%s\" is full", get_database_name(MyDatabaseId)),
			 pid != 0 ?
			 errdetail("%llu bytes of %d kB are in use; the dispatcher with PID %d did not make room within %d ms.",
					   (unsigned long long) bytes, subdispatch_event_queue_size, pid,
					   subdispatch_publish_timeout) :
			 errdetail("%llu bytes of %d kB are in use; the dispatcher is not running.",
					   (unsigned long long) bytes, subdispatch_event_queue_size),
			 errhint("Increase subdispatch.event_queue_size or subdispatch.publish_timeout, "
					 "or set subdispatch.on_queue_full to \"gap\".")));
}

/*
 * Sleeps until there may be more room in d's queue, at most max_ms; false when
 * publish_timeout is over.  *deadline is set at the first call, when it is 0.
 * Can be cancelled, which is an error.
 */
static bool
sleep_for_room(int d, TimestampTz *deadline, long max_ms)
{
	TimestampTz now = GetCurrentTimestamp();
	long		left;

	if (*deadline == 0)
		*deadline = now + subdispatch_publish_timeout * INT64CONST(1000);
	left = TimestampDifferenceMilliseconds(now, *deadline);
	if (left <= 0)
		return false;
	(void) ConditionVariableTimedSleep(&tx.db->dispatchers[d].room, Min(left, max_ms),
									   PG_WAIT_EXTENSION);
	return true;
}

/* Reserves whatever the limit.  For dispatchers. */
static void
reserve_by_force(const Size *bytes)
{
	for (int d = 0; d < SD_PLACES; d++)
		if (bytes[d] > 0)
			bus_force_reserve(tx.db, d, bytes[d]);
}

/* The dispatcher whose queue can never hold its share, or -1. */
static int
never_fits(const Size *bytes)
{
	for (int d = 0; d < SD_PLACES; d++)
		if (bytes[d] > (Size) subdispatch_event_queue_size * 1024)
			return d;
	return -1;
}

/*
 * Reserves room for all copies; waits for it as the settings say.  False if
 * they are to become a gap.  *mask gets the dispatchers concerned.
 */
static bool
reserve_room(uint32 *mask, TimestampTz *deadline)
{
	bool		exact = false;	/* every copy has a subscription */
	bool		timed_out = false;

	for (;;)
	{
		Size		bytes[SD_PLACES];
		int			full = 0;
		int			too_much;

		*mask = blocks_size(&tx, bytes);
		if (am_dispatcher)
			reserve_by_force(bytes);
		too_much = am_dispatcher ? -1 : never_fits(bytes);
		if (am_dispatcher || (too_much < 0 && bus_reserve(tx.db, bytes, &full)))
		{
			memcpy(tx.reserved, bytes, sizeof(bytes));
			return true;
		}

		if (!exact)
		{
			copies_choose_exactly(&tx);
			exact = true;
			continue;
		}
		if (subdispatch_on_queue_full == SD_FULL_GAP)
			return false;
		if (too_much >= 0)
			report_never_fits(too_much, bytes[too_much]);
		if (timed_out)
			report_full(full);
		if (!sleep_for_room(full, deadline, PG_INT32_MAX))
		{
			/* once more without those that nobody waits for any more */
			timed_out = true;
			exact = false;
		}
	}
}

/* How long to wait for memory that others give back without a word. */
#define MEMORY_POLL_MS		20

/*
 * Puts the copies into shared memory; false if they are to become a gap.
 */
static bool
fill_blocks(uint32 mask, TimestampTz *deadline)
{
	while (!blocks_make(&tx, mask))
	{
		int			d = mask ? pg_rightmost_one_pos32(mask) : 0;

		if (am_dispatcher || subdispatch_on_queue_full == SD_FULL_GAP)
			return false;
		if (!sleep_for_room(d, deadline, MEMORY_POLL_MS))
			sd_out_of_shared_memory();
	}
	return true;
}

/*
 * All that can fail.  When it raises an error the transaction aborts, and
 * abandon() gives back what was got so far.
 */
static void
prepare(void)
{
	TimestampTz deadline = 0;
	SdDatabase *db;
	uint32		mask;

	if (tx.n == 0)
		return;

	/* without a slot nobody can subscribe here, but elsewhere */
	db = database_get(true, subdispatch_event_bus != SD_BUS_REDIS);
	if (db == NULL)
		return;
	publish_attach(&tx, db);
	if (subdispatch_event_bus == SD_BUS_REDIS)
		copies_choose_bus(&tx);
	else
	{
		elsewhere_begin(db);
		copies_choose(&tx);
	}
	if (!reserve_room(&mask, &deadline))
		copies_give_up(&tx);
	else if (!fill_blocks(mask, &deadline))
	{
		blocks_release_room(&tx);
		copies_give_up(&tx);
	}
	ConditionVariableCancelSleep();

	bus_take_ticket(tx.db, GetTopTransactionIdIfAny());
}

/* ---- after the commit: nothing here may fail ---- */

/* The transaction is visible, but not over. */
static void
note_commit(void)
{
	if (tx.n == 0)
	{
		forget_all();
		return;
	}
	tx.committed = true;
	if (tx.by_redis)
		replay_note_commit(&tx.commit);

#ifdef USE_ASSERT_CHECKING
	/* before or after that: whoever links is not held up by this */
	if (subdispatch_debug_hold_commit > 0)
		pg_usleep(subdispatch_debug_hold_commit * 1000L);
#endif
}

/* Others have been told of what changed in the catalogs. */
static void
finish(void)
{
	uint32		late;

	if (tx.db != NULL)
	{
		if (!tx.by_redis)
			elsewhere_note(tx.db);
		for (late = copies_find_late(&tx); late != 0; late &= late - 1)
			blocks_add_late(&tx, pg_rightmost_one_pos32(late));
		/* before others' events can follow it */
		copies_count_gaps(&tx);
		if (dlist_is_empty(&tx.blocks))
			bus_give_back_ticket(tx.db);
		else
		{
			bus_link(tx.db, &tx.blocks, tx.n, &tx.commit);
			copies_count_published(&tx);
			if (tx.by_redis)
				redis_want_worker(tx.db);
		}
	}
	forget_all();
}

/* ---- after an abort ---- */

static void
abandon(void)
{
	if (tx.db != NULL)
	{
		blocks_free(&tx);
		blocks_release_room(&tx);
		bus_give_back_ticket(tx.db);
	}
	forget_all();
}

/* ---- callbacks ---- */

static void
refuse_prepare(void)
{
	if (publish_pending())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has published events")));
	if (subscription_pending())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has subscribed")));
}

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			prepare();
			break;
		case XACT_EVENT_COMMIT:
			note_commit();
			break;
		case XACT_EVENT_ABORT:
			abandon();
			break;
		case XACT_EVENT_PRE_PREPARE:
			refuse_prepare();
			break;
		case XACT_EVENT_PREPARE:
			forget_all();
			break;
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
			break;
	}
}

/* Called for every resource owner, three times each. */
static void
release_callback(ResourceReleasePhase phase, bool commit, bool top_level, void *arg)
{
	if (unlikely(tx.committed) && phase == RESOURCE_RELEASE_LOCKS && top_level)
		finish();
}

void
publish_init(void)
{
	RegisterResourceReleaseCallback(release_callback, NULL);
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}

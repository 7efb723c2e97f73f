/*-------------------------------------------------------------------------
 *
 * bus_worker.c
 *	  The bus worker's life: the process that talks to Redis for a database.
 *
 * It is a process of its own so that whatever Redis does, or does not do, holds
 * up neither commits nor dispatchers, nor the shutdown: all it ever waits for
 * is its latch, and sockets beside it.  The launcher starts it when it is
 * wanted (SdBus->wanted) and replaces it when it dies; it takes its place as
 * a dispatcher does (dispatcher_place.c).
 *
 * It has two connections, since the one that reads waits inside Redis, and a
 * third one while it reads again what those missed who resume: redis_send.c,
 * redis_read.c and redis_range.c have a turn each, again and again.  An error in
 * a turn ends the connections, not the process (worker.c): for a second it does
 * nothing but to see whether it is still wanted.
 *
 * It goes on while anybody subscribes or anything is queued, also when
 * event_bus is changed: what was published goes its way.  But when the extension
 * is gone it sends what it can at once, and ends; what waits for Redis is lost.
 *
 * Locks: those of what it calls; none while it waits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "dispatcher.h"
#include "elsewhere.h"
#include "image_text.h"
#include "ratelimit.h"
#include "redis_bus.h"
#include "replay.h"
#include "shmem.h"
#include "worker.h"

#define LONGEST_WAIT		1000	/* ms */
#define HELD_BACK_WAIT		1	/* ms; as in dispatcher.c */
#define ROOM_WAIT			5	/* ms; room in a queue is not announced to us */
#define READS				8	/* steps of reading in a turn */
#define RETIRE_INTERVAL		SD_SECOND
#define ERROR_WAIT			SD_SECOND	/* after an error */

/* Of what is logged about entries: ten at once, then one every ten seconds. */
#define LOG_RATE			0.1
#define LOG_BURST			10
#define REPEAT_INTERVAL		(60 * SD_SECOND)	/* of the same trouble in the log */

#define END_PATIENCE		1000	/* ms */
#define END_POLL			10		/* ms; what becomes of transactions is not announced */

#define STEP_TURN			1

#define LATCH_POSITION		0	/* in the wait set */

#define MAX_KEY				(512 + NAMEDATALEN)

SdDatabase *bus_db = NULL;
char		bus_stream[MAX_KEY];
char		bus_state_key[MAX_KEY];

static TokenBucket entry_log;
static uint32 not_logged = 0;
static TimestampTz next_retire = 0;
static volatile sig_atomic_t end_wanted = false;	/* by SIGTERM */
static TimestampTz end_by = 0;	/* 0: it was not seen yet */
static TimeoutId turn_watch;
static bool left_out = false;	/* the turn, after an error */
static WaitEventSet *wait_set = NULL;

#define NLINKS				3
static const RedisLink *const links[NLINKS] = {&send_link, &read_link, &range_link};
static uint32 wait_generation[NLINKS];	/* of the sockets that it is made of */

int64
bus_now(void)
{
	return GetCurrentTimestamp() + UNIX_EPOCH_US;
}

/* ---- what is told ---- */

/* Logs a trouble when it is new, or has lasted. */
static void
log_trouble(const char *error)
{
	static char last[NET_ERROR_SIZE];
	static TimestampTz last_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (strcmp(last, error) == 0 && now - last_at < REPEAT_INTERVAL)
		return;
	strlcpy(last, error, sizeof(last));
	last_at = now;
	ereport(LOG,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("subdispatch's Redis bus: %s", error),
			 errdetail("Events wait in shared memory; it is tried again.")));
}

void
bus_report(const char *error)
{
	SdBus	   *bus = bus_self();
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&bus->mutex);
	if (bus->error_at == 0)
		bus->error_at = now;
	strlcpy(bus->error, error, sizeof(bus->error));
	SpinLockRelease(&bus->mutex);
	pg_atomic_write_u32(&bus->state, SD_BUS_WAITING);
	ConditionVariableBroadcast(&bus_db->changed);
	log_trouble(error);
}

/* Both connections stand. */
static void
report_connected(void)
{
	SdBus	   *bus = bus_self();
	TimestampTz since;

	if (pg_atomic_read_u32(&bus->state) == SD_BUS_CONNECTED)
		return;
	SpinLockAcquire(&bus->mutex);
	since = bus->error_at;
	bus->error_at = 0;
	bus->error[0] = '\0';
	SpinLockRelease(&bus->mutex);
	pg_atomic_write_u32(&bus->state, SD_BUS_CONNECTED);
	ConditionVariableBroadcast(&bus_db->changed);
	stats_add(&bus_db->stats, SD_STAT_BUS_CONNECTIONS, 1);
	if (since != 0)
		ereport(LOG,
				(errmsg("subdispatch's Redis bus is connected again, after %ld s",
						(long) ((GetCurrentTimestamp() - since) / SD_SECOND))));
}

void
bus_complain(const char *what, const char *detail)
{
	if (!ratelimit_take(&entry_log, LOG_RATE, LOG_BURST, GetCurrentTimestamp()))
	{
		not_logged++;
		return;
	}
	ereport(LOG,
			(errmsg("subdispatch's Redis bus: %s", what),
			 errdetail("%s", detail),
			 not_logged > 0 ? errhint("%u such messages were left out.", not_logged) : 0));
	not_logged = 0;
}

/* To be cancelled, or in the way of recovery, is no event's fault. */
const char *
bus_event_error(MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
		error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN || replay_is_conflict(error))
		PG_RE_THROW();
	FlushErrorState();
	return error->message;
}

/* ---- starting ---- */

static void
make_sender_name(char *name)
{
	uint8		bytes[SD_SENDER_LEN / 2];

	if (!pg_strong_random(bytes, sizeof(bytes)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes")));
	for (int i = 0; i < SD_SENDER_LEN / 2; i++)
		snprintf(name + 2 * i, 3, "%02x", bytes[i]);
}

/* The server's name among senders, for as long as it is up. */
static void
name_sender(void)
{
	char		name[SD_SENDER_LEN + 1];

	if (bus_self()->sender[0] != '\0')
		return;
	make_sender_name(name);
	memcpy(bus_self()->sender, name, sizeof(name));
}

/*
 * The keys in Redis.  How far we have read is of no use with another stream.
 */
static void
name_keys(void)
{
	char	   *database;
	uint64		hash;

	StartTransactionCommand();
	database = get_database_name(MyDatabaseId);
	snprintf(bus_stream, MAX_KEY, "%s{%s}:events", subdispatch_redis_key_prefix, database ? database : "");
	snprintf(bus_state_key, MAX_KEY, "%s{%s}:state", subdispatch_redis_key_prefix, database ? database : "");
	CommitTransactionCommand();
	MemoryContextSwitchTo(worker_context);

	hash = hash_bytes_extended((unsigned char *) bus_stream, strlen(bus_stream), 0);
	if (bus_self()->stream_hash != hash)
		bus_self()->has_position = false;
	bus_self()->stream_hash = hash;
}

static bool
extension_exists(void)
{
	bool		result;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	result = OidIsValid(get_extension_oid(SD_EXTENSION, true));
	CommitTransactionCommand();
	MemoryContextSwitchTo(worker_context);
	return result;
}

static void
at_exit(int code, Datum arg)
{
	LWLockReleaseAll();
	pg_atomic_write_u32(&bus_self()->state, SD_BUS_OFF);
	ConditionVariableBroadcast(&bus_db->changed);
}

/* An error in here ends the process; the launcher tries again, ever later. */
static void
set_up(void)
{
	image_text_init();
	ratelimit_init(&entry_log, LOG_RATE, LOG_BURST, GetCurrentTimestamp());
	name_sender();
	name_keys();
	/* of a transaction that was open when it was dropped */
	if (!extension_exists())
		pg_atomic_write_u32(&bus_self()->dropped, 1);
	send_init();
	read_init();
	range_init();
	before_shmem_exit(at_exit, 0);
	pg_atomic_write_u32(&bus_self()->state, SD_BUS_CONNECTING);
	bus_place()->started_at = GetCurrentTimestamp();
}

/* ---- wait_dispatched() ---- */

static bool sync_under_way = false;
static uint32 sync_request;		/* which one */

/*
 * A sync is done when everything has been read that was in Redis when all that
 * was queued here had arrived there.
 */
static void
begin_sync(void)
{
	SdBus	   *bus = bus_self();

	if (sync_under_way)
		return;
	sync_request = pg_atomic_read_u32(&bus->sync_requests);
	if (sync_request == pg_atomic_read_u32(&bus->sync_done))
		return;
	sync_under_way = true;
	send_sync_begin();
}

static void
answer_sync(void)
{
	SdBus	   *bus = bus_self();
	uint64		target;

	if (!sync_under_way || !send_sync_target(&target) || !read_is_up() || bus->progress.position < target)
		return;
	send_sync_done();
	sync_under_way = false;
	pg_atomic_write_u32(&bus->sync_done, sync_request);
	ConditionVariableBroadcast(&bus_db->changed);
}

/* ---- DROP EXTENSION ---- */

static void
end_with_extension(void)
{
	char		name[SD_SENDER_LEN + 1];
	uint64		n;

	/* dropped and made anew; or its drop is not to be seen yet on a replica */
	if (extension_exists())
	{
		pg_atomic_write_u32(&bus_self()->dropped, 0);
		return;
	}
	if (place_end_bus() || send_is_up() ||
		pg_atomic_read_u32(&bus_self()->state) != SD_BUS_WAITING)
		return;
	make_sender_name(name);
	n = send_give_up(name);
	if (n > 0)
		ereport(LOG,
				(errmsg("subdispatch's Redis bus: %llu committed events were not sent before the extension was dropped",
						(unsigned long long) n),
				 errdetail("Redis could not be reached.")));
	(void) place_end_bus();
}

/* ---- SIGTERM ---- */

/*
 * Most often the server is shut down, and with it goes what is queued.  So what
 * Redis takes at once is still sent.  PostgreSQL sends the signal twice, to the
 * process and to its group.
 */
static void
handle_terminate(SIGNAL_ARGS)
{
	int			save_errno = errno;

	end_wanted = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

/* A turn takes long: it may wait for a lock that nobody lets go before we end. */
static void
turn_takes_long(void)
{
	if (end_wanted)
		die(SIGTERM);
}

/* Also those of transactions that are about to end. */
static bool
has_events_to_send(void)
{
	return pg_atomic_read_u64(&bus_place()->queue_events) > 0 || database_has_linked(bus_db) ||
		pg_atomic_read_u32(&bus_db->ntaken) > 0;
}

static void
end_when_sent(void)
{
	TimestampTz now = GetCurrentTimestamp();
	uint64		n;

	if (end_by == 0)
		end_by = now + Min(subdispatch_redis_timeout, END_PATIENCE) * INT64CONST(1000);
	if (!left_out && send_is_up() && has_events_to_send() && now < end_by)
		return;
	n = pg_atomic_read_u64(&bus_place()->queue_events);
	if (n > 0)
		ereport(LOG,
				(errmsg("subdispatch's Redis bus: the worker ends before %llu committed events were sent",
						(unsigned long long) n),
				 errdetail("They are lost if the server is being shut down; otherwise the next worker sends them.")));
	proc_exit(0);
}

/* ---- the loop ---- */

/* On a replica nobody tells us that the database was renamed. */
static void
look_at_name(void)
{
	char		was[MAX_KEY];

	strlcpy(was, bus_stream, MAX_KEY);
	name_keys();
	if (strcmp(was, bus_stream) == 0)
		return;
	send_reset();
	read_reset();
	range_reset();
}

static bool
same_secret(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

static void
forget_secret(char *secret)
{
	if (secret)
		explicit_bzero(secret, strlen(secret));
}

/* Connections that were made by other settings are made anew. */
static void
reload(void)
{
	char	   *url = subdispatch_redis_url ? pstrdup(subdispatch_redis_url) : NULL;
	char	   *key = subdispatch_bus_key ? pstrdup(subdispatch_bus_key) : NULL;
	char	   *ca = pstrdup(subdispatch_redis_ca_file);
	char	   *prefix = pstrdup(subdispatch_redis_key_prefix);
	bool		same;

	ProcessConfigFile(PGC_SIGHUP);
	same = same_secret(url, subdispatch_redis_url) && same_secret(key, subdispatch_bus_key) &&
		strcmp(ca, subdispatch_redis_ca_file) == 0 &&
		strcmp(prefix, subdispatch_redis_key_prefix) == 0;
	forget_secret(url);
	forget_secret(key);
	if (same)
		return;
	send_reset();
	read_reset();
	range_reset();
	name_keys();
}

static bool
do_turn(void)
{
	TimestampTz now;
	bool		more;

	left_out = !worker_begin(STEP_TURN);
	if (left_out)
		return false;
	begin_sync();
	(void) bus_sequence(bus_db, SD_BUS_PLACE);
	/* somebody waits for what comes, and it is to keep up with what goes */
	for (int i = 0; (more = read_turn()) && i < READS; i++)
		worker_handle_requests();
	send_turn();
	more |= range_turn();
	answer_sync();
	if (send_is_up() && read_is_up())
		report_connected();
	if (unlikely(pg_atomic_read_u32(&bus_self()->dropped) > 0))
		end_with_extension();

	now = GetCurrentTimestamp();
	if (now >= next_retire)
	{
		next_retire = now + RETIRE_INTERVAL;
		elsewhere_settle(bus_db, now);
		place_retire_bus(now);
		if (RecoveryInProgress())
			look_at_name();
	}
	worker_end();
	return more;
}

/* Returns whether there is more to be done at once. */
static bool
turn(void)
{
	bool		more;

	enable_timeout_every(turn_watch, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), END_PATIENCE),
						 END_PATIENCE);
	more = do_turn();
	disable_timeout(turn_watch, false);
	if (unlikely(end_wanted))
		end_when_sent();
	return more;
}

/* ---- waiting ---- */

static long
sooner(long a, long b)
{
	return b < 0 ? a : Min(a, b);
}

static long
wait_time(void)
{
	long		timeout = end_wanted ? END_POLL : LONGEST_WAIT;

	if (left_out)
		return timeout;
	timeout = sooner(timeout, link_wait_ms(&send_link));
	if (read_waits_for_room())
		timeout = Min(timeout, ROOM_WAIT);
	else
		timeout = sooner(timeout, link_wait_ms(&read_link));
	timeout = sooner(timeout, range_wait_ms());
	if (database_has_linked(bus_db))
		timeout = Min(timeout, HELD_BACK_WAIT);
	return timeout;
}

/* What to wait for at a socket; 0 if not at all. */
static uint32
wants(const RedisLink *link)
{
	if (link->conn.net.fd < 0)
		return 0;
	/* what comes is not read while there is no room for it */
	if (link == &read_link && read_waits_for_room())
		return 0;
	return link->conn.net.wants;
}

/*
 * The set has the sockets as they are now.  Made anew only when they are other
 * ones; one that is of no interest is left out.
 */
static void
make_wait_set(const uint32 *interest, int *positions)
{
	static int	made_positions[NLINKS];
	static uint32 made_interest[NLINKS];
	bool		same = wait_set != NULL;

	for (int i = 0; i < NLINKS; i++)
		same = same && wait_generation[i] == links[i]->conn.net.generation &&
			(made_interest[i] == 0) == (interest[i] == 0);
	if (!same)
	{
		if (wait_set)
			FreeWaitEventSet(wait_set);
		wait_set = NULL;
		wait_set = CreateWaitEventSet(TopMemoryContext, 2 + NLINKS);
		AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
		for (int i = 0; i < NLINKS; i++)
		{
			if (interest[i] != 0)
				made_positions[i] = AddWaitEventToSet(wait_set, interest[i],
													  links[i]->conn.net.fd, NULL, NULL);
			wait_generation[i] = links[i]->conn.net.generation;
		}
	}
	else
		for (int i = 0; i < NLINKS; i++)
			if (interest[i] != made_interest[i])
				ModifyWaitEvent(wait_set, made_positions[i], interest[i], NULL);
	for (int i = 0; i < NLINKS; i++)
	{
		made_interest[i] = interest[i];
		positions[i] = made_positions[i];
	}
}

/*
 * Without its latch nobody has to send a signal to set it; what it was set for is
 * seen to when the moment is over.
 */
static void
wait_for_work(long timeout)
{
	int			gathers = send_gathers_ms();
	uint32		interest[NLINKS];
	int			positions[NLINKS];
	WaitEvent	events[2 + NLINKS];

	for (int i = 0; i < NLINKS; i++)
		interest[i] = wants(links[i]);
	make_wait_set(interest, positions);
	ModifyWaitEvent(wait_set, LATCH_POSITION, WL_LATCH_SET, gathers > 0 ? NULL : MyLatch);
	(void) WaitEventSetWait(wait_set, gathers > 0 ? Min(gathers, timeout) : timeout, events, lengthof(events),
							PG_WAIT_EXTENSION);
}

static void
failed(void)
{
	send_reset();
	read_reset();
	range_reset();
	bus_report("an error in the bus worker, which the server's log tells");
	stats_add(&bus_db->stats, SD_STAT_DISPATCH_ERRORS, 1);
}

void
subdispatch_bus_main(Datum arg)
{
	static const Worker bus_worker = {
		.name = "subdispatch bus",
		.retry_first = ERROR_WAIT,
		.retry_again = ERROR_WAIT,
		.reload = reload,
		.turn = turn,
		.wait_time = wait_time,
		.wait = wait_for_work,
		.failed = failed
	};

	pqsignal(SIGTERM, die);
	bus_db = worker_start(&bus_worker, DatumGetInt32(arg));
	set_up();
	turn_watch = RegisterTimeout(USER_TIMEOUT, turn_takes_long);
	pqsignal(SIGTERM, handle_terminate);
	worker_loop();
}

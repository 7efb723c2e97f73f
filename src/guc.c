/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  The settings: subdispatch.x is the variable subdispatch_x.
 *
 * Who may change what:
 *
 *	  - what sizes shared memory or fixes the number of dispatchers can only be
 *		given at server start (PGC_POSTMASTER);
 *	  - what the dispatchers go by must be the same for everybody, so it comes
 *		from the configuration files (PGC_SIGHUP);
 *	  - what subscribe() and publish() look at in the calling session is the
 *		superuser's (PGC_SUSET), so that nobody lifts the limits set for him,
 *		while ALTER ROLE and ALTER DATABASE can still set different ones;
 *	  - how long a publisher waits, and what then happens to its own
 *		transaction, is up to the publisher (PGC_USERSET).
 *
 * Takes no lock.
 *
 *-------------------------------------------------------------------------
 */
#include "subdispatch.h"

#include <float.h>
#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "bus.h"
#include "guc_secret.h"
#include "security.h"

int			subdispatch_event_bus = SD_BUS_MEMORY;
int			subdispatch_dispatchers = 2;
int			subdispatch_max_subscriptions = 50000;
int			subdispatch_shared_memory_size = 64 * 1024;
int			subdispatch_event_queue_size = 16 * 1024;
int			subdispatch_event_history_size = 4 * 1024;
int			subdispatch_max_event_size = 1024 * 1024;
int			subdispatch_publish_timeout = 1000;
int			subdispatch_on_queue_full = SD_FULL_ERROR;
char	   *subdispatch_listen_channels = NULL;
int			subdispatch_max_listen_channels = 1000;
int			subdispatch_replay_wait_timeout = 5000;
int			subdispatch_resolver_timeout = 1000;
int			subdispatch_resolver_max_timeouts = 3;
int			subdispatch_max_pending = 1000;
int			subdispatch_max_pending_bytes = 10 * 1024 * 1024;
int			subdispatch_overflow = SD_DROP_OLDEST;
double		subdispatch_rate_limit = 0;
int			subdispatch_burst = 0;
double		subdispatch_user_rate_limit = 0;
int			subdispatch_user_burst = 0;
int			subdispatch_max_subscriptions_per_user = 100;
int			subdispatch_max_subscriptions_per_connection = 50;
int			subdispatch_max_subscriptions_per_role = 0;
int			subdispatch_max_subscription_size = 64 * 1024;
int			subdispatch_subscription_idle_timeout = 600;
int			subdispatch_subscription_max_lifetime = 24 * 3600;
char	   *subdispatch_context_settings = NULL;
char	   *subdispatch_redis_key_prefix = NULL;
char	   *subdispatch_redis_ca_file = NULL;
int			subdispatch_redis_max_length = 1000000;
int			subdispatch_redis_timeout = 5000;
int			subdispatch_redis_resume_timeout = 30000;
bool		subdispatch_omit_null_errors = false;
bool		subdispatch_include_event_id = false;
bool		subdispatch_mask_errors = false;
int			subdispatch_debug_hold_commit = 0;
int			subdispatch_debug_idle_end = 60000;
bool		subdispatch_debug_wire = false;

/* The largest rate that the token buckets of ratelimit.c know. */
#define MAX_RATE		1e9

#define MAX_TIMEOUT_MS	(3600 * 1000)

#define MAX_KEY_PREFIX	256

static const struct config_enum_entry event_bus_options[] = {
	{"memory", SD_BUS_MEMORY, false},
	{"notify", SD_BUS_NOTIFY, false},
	{"redis", SD_BUS_REDIS, false},
	{NULL, 0, false}
};

static const struct config_enum_entry on_queue_full_options[] = {
	{"error", SD_FULL_ERROR, false},
	{"gap", SD_FULL_GAP, false},
	{NULL, 0, false}
};

static const struct config_enum_entry overflow_options[] = {
	{"drop_oldest", SD_DROP_OLDEST, false},
	{"drop_newest", SD_DROP_NEWEST, false},
	{"error", SD_OVERFLOW_ERROR, false},
	{NULL, 0, false}
};

static bool
check_listen_channels(char **newval, void **extra, GucSource source)
{
	return notify_check_listen_channels(newval, extra, source);
}

/* An integer setting without hooks. */
static void
define_int(const char *name, const char *short_desc, const char *long_desc,
		   int *variable, int min, int max, GucContext context, int flags)
{
	DefineCustomIntVariable(name, short_desc, long_desc, variable, *variable,
							min, max, context, flags, NULL, NULL, NULL);
}

/* A rate in something per second, 0 meaning none. */
static void
define_rate(const char *name, const char *short_desc, const char *long_desc,
			double *variable, GucContext context)
{
	DefineCustomRealVariable(name, short_desc, long_desc, variable, *variable,
							 0, MAX_RATE, context, 0, NULL, NULL, NULL);
}

static void
define_enum(const char *name, const char *short_desc, const char *long_desc,
			int *variable, const struct config_enum_entry *options, GucContext context)
{
	DefineCustomEnumVariable(name, short_desc, long_desc, variable, *variable,
							 options, context, 0, NULL, NULL, NULL);
}

static void
define_bool(const char *name, const char *short_desc, const char *long_desc, bool *variable)
{
	DefineCustomBoolVariable(name, short_desc, long_desc, variable, *variable,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
}

/* What is laid out once, at server start. */
static void
define_sizes(void)
{
	define_int("subdispatch.dispatchers",
			   "Number of dispatchers for each database in use.",
			   "Channels are spread over them, so that a slow resolver holds up only its own "
			   "dispatcher's channels. Each takes one of max_worker_processes.",
			   &subdispatch_dispatchers, 1, SD_MAX_DISPATCHERS, PGC_POSTMASTER, 0);
	define_int("subdispatch.max_subscriptions",
			   "Number of live subscriptions that the server can hold, over all databases.",
			   "There can be as many consumers. Sizes the hash tables; the subscriptions themselves take their memory from "
			   "subdispatch.shared_memory_size as they come.",
			   &subdispatch_max_subscriptions, 1, 10000000, PGC_POSTMASTER, 0);
	define_int("subdispatch.shared_memory_size",
			   "Shared memory for subscriptions, events and responses of all databases.",
			   "It is asked for at server start and does not grow. A sixteenth of it, at most 16MB, is kept for events and responses.",
			   &subdispatch_shared_memory_size, 8 * 1024, SD_MAX_SHARED_MEMORY, PGC_POSTMASTER, GUC_UNIT_KB);
	define_int("subdispatch.event_queue_size",
			   "How much the committed events may take that one dispatcher has not dispatched yet.",
			   "The memory comes from subdispatch.shared_memory_size. A publisher that finds no room waits "
			   "for subdispatch.publish_timeout.",
			   &subdispatch_event_queue_size, 256, INT_MAX, PGC_POSTMASTER, GUC_UNIT_KB);
}

static void
define_publishing(void)
{
	define_enum("subdispatch.event_bus",
				"What carries events from publish() to the dispatchers.",
				"memory: a queue in shared memory. notify: PostgreSQL's NOTIFY, with its limits of 63 bytes for a "
				"channel and less than 8000 for an event; changes of rows go through memory all the same. redis: Redis "
				"Streams, for several servers.",
				&subdispatch_event_bus, event_bus_options, PGC_SUSET);
	define_int("subdispatch.max_event_size",
			   "The largest event that can be published.",
			   "publish() and publish_change() refuse a larger one.",
			   &subdispatch_max_event_size, 1024, 256 * 1024 * 1024, PGC_SUSET, GUC_UNIT_BYTE);
	define_int("subdispatch.publish_timeout",
			   "How long a transaction waits before its commit for room in a dispatcher's queue.",
			   "After that subdispatch.on_queue_full decides. 0 does not wait.",
			   &subdispatch_publish_timeout, 0, MAX_TIMEOUT_MS, PGC_USERSET, GUC_UNIT_MS);
	define_enum("subdispatch.on_queue_full",
				"What happens to a transaction that found no room for its events.",
				"error: the transaction fails. gap: it commits at once without them, and every subscription "
				"concerned is told that something is missing.",
				&subdispatch_on_queue_full, on_queue_full_options, PGC_USERSET);
	DefineCustomStringVariable("subdispatch.listen_channels",
							   "Channels on which plain NOTIFY reaches the subscriptions.",
							   "Comma-separated names, prefixes such as \"orders.*\", or \"*\" for all. "
							   "Only channels that have subscriptions are listened on.",
							   &subdispatch_listen_channels, "*", PGC_SIGHUP, GUC_LIST_INPUT,
							   check_listen_channels, NULL, NULL);
	define_int("subdispatch.max_listen_channels",
			   "How many channels the dispatchers of a database listen on.",
			   "Each one makes every notification in the database a little slower. A subscription beyond "
			   "gets a warning, and its channel no notifications.",
			   &subdispatch_max_listen_channels, 0, 1000000, PGC_SIGHUP, 0);
}

static void
define_dispatching(void)
{
	define_int("subdispatch.event_history_size",
			   "How much the dispatched events may take that one dispatcher keeps for subscriptions that resume.",
			   "The memory comes from subdispatch.shared_memory_size, and is given up when anything else needs it. "
			   "0 keeps none.",
			   &subdispatch_event_history_size, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_KB);
	define_int("subdispatch.replay_wait_timeout",
			   "How long an event waits on a read replica until its commit has been replayed.",
			   "After that its channel's subscriptions are told that something is missing. 0 does not wait.",
			   &subdispatch_replay_wait_timeout, 0, MAX_TIMEOUT_MS, PGC_SIGHUP, GUC_UNIT_MS);
	define_int("subdispatch.resolver_timeout",
			   "The time that one call of a resolver may take.",
			   "Policies and waiting for locks count, too. The subscriptions that share the call get an error.",
			   &subdispatch_resolver_timeout, 1, MAX_TIMEOUT_MS, PGC_SIGHUP, GUC_UNIT_MS);
	define_int("subdispatch.resolver_max_timeouts",
			   "Timeouts in a row after which the subscriptions of a resolver's call are ended.",
			   NULL,
			   &subdispatch_resolver_max_timeouts, 1, 1000000, PGC_SIGHUP, 0);
	define_rate("subdispatch.user_rate_limit",
				"Responses per second for one user, over all of the user's response streams.",
				"A user is the subscriptions' owner and role together with user_id of the security context. 0 sets none.",
				&subdispatch_user_rate_limit, PGC_SIGHUP);
	define_int("subdispatch.user_burst",
			   "Responses that one user may get at once within subdispatch.user_rate_limit.",
			   "0 is the rate itself.",
			   &subdispatch_user_burst, 0, INT_MAX, PGC_SIGHUP, 0);
	define_bool("subdispatch.omit_null_errors",
				"Leaves \"errors\": null out of responses, as the GraphQL specification has it.",
				NULL,
				&subdispatch_omit_null_errors);
	define_bool("subdispatch.include_event_id",
				"Puts the id of the event into each response: extensions.subdispatch.eventId.",
				"A client that lost its connection goes on after that event: subscribe(..., after_event => id).",
				&subdispatch_include_event_id);
	define_bool("subdispatch.mask_errors",
				"Replaces the message of a failed resolver by a general one in responses.",
				"The server's log has the original.",
				&subdispatch_mask_errors);
}

/* What subscribe() takes as limits, and may only make stricter. */
static void
define_queue_limits(void)
{
	define_int("subdispatch.max_pending",
			   "Responses that a subscription may leave unread.",
			   "subdispatch.overflow tells what happens to more. subscribe() can ask for less.",
			   &subdispatch_max_pending, 1, 10000000, PGC_SUSET, 0);
	define_int("subdispatch.max_pending_bytes",
			   "Bytes of responses that a subscription may leave unread.",
			   "subdispatch.overflow tells what happens to more.",
			   &subdispatch_max_pending_bytes, 1024, INT_MAX, PGC_SUSET, GUC_UNIT_BYTE);
	define_enum("subdispatch.overflow",
				"What happens to a subscription that leaves too many responses unread.",
				"drop_oldest: the oldest are dropped. drop_newest: what comes is dropped until the queue is drained. "
				"error: the subscription ends. What was dropped is told to the reader.",
				&subdispatch_overflow, overflow_options, PGC_SUSET);
	define_rate("subdispatch.rate_limit",
				"Responses per second for one response stream.",
				"0 sets none. subscribe() can ask for less.",
				&subdispatch_rate_limit, PGC_SUSET);
	define_int("subdispatch.burst",
			   "Responses that one response stream may get at once within its rate limit.",
			   "0 sets no bound to what subscribe() asks for, and is the rate itself where it asks for nothing.",
			   &subdispatch_burst, 0, INT_MAX, PGC_SUSET, 0);
}

static void
define_subscription_limits(void)
{
	define_int("subdispatch.max_subscriptions_per_user",
			   "Live subscriptions of one user.",
			   "A user is owner, role and user_id of the security context; without a user_id there is no limit. 0 sets none.",
			   &subdispatch_max_subscriptions_per_user, 0, INT_MAX, PGC_SUSET, 0);
	define_int("subdispatch.max_subscriptions_per_connection",
			   "Live subscriptions of one connection_id of an owner.",
			   "0 sets none.",
			   &subdispatch_max_subscriptions_per_connection, 0, INT_MAX, PGC_SUSET, 0);
	define_int("subdispatch.max_subscriptions_per_role",
			   "Live subscriptions for the rights of one role.",
			   "0 sets none.",
			   &subdispatch_max_subscriptions_per_role, 0, INT_MAX, PGC_SUSET, 0);
	define_int("subdispatch.max_subscription_size",
			   "Size of a subscription's filter, variables and security context together.",
			   NULL,
			   &subdispatch_max_subscription_size, 256, 64 * 1024 * 1024, PGC_SUSET, GUC_UNIT_BYTE);
	define_int("subdispatch.subscription_idle_timeout",
			   "A subscription ends when neither it nor its consumer was polled for this time.",
			   "0 never ends one.",
			   &subdispatch_subscription_idle_timeout, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_S);
	define_int("subdispatch.subscription_max_lifetime",
			   "A subscription ends at this age.",
			   "0 never ends one.",
			   &subdispatch_subscription_max_lifetime, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_S);
	DefineCustomStringVariable("subdispatch.context_settings",
							   "Settings that subscriptions carry to policies and resolvers.",
							   "Comma-separated names such as \"request.jwt.claims\". While user code runs for a "
							   "subscription they have the subscription's values.",
							   &subdispatch_context_settings, "", PGC_SUSET, GUC_LIST_INPUT,
							   security_check_context_settings, NULL, NULL);
}

/* The key of a stream has the database's name between braces: not the prefix. */
static bool
check_key_prefix(char **newval, void **extra, GucSource source)
{
	if (strpbrk(*newval, "{}") == NULL && strlen(*newval) <= MAX_KEY_PREFIX)
		return true;
	GUC_check_errdetail("It must be at most %d bytes long and have no braces.", MAX_KEY_PREFIX);
	return false;
}

static void
define_redis(void)
{
	guc_define_secrets();
	DefineCustomStringVariable("subdispatch.redis_key_prefix",
							   "What the names of the keys in Redis begin with.",
							   "The servers of a group have the same. The stream of a database is <prefix>{<database>}:events.",
							   &subdispatch_redis_key_prefix, "subdispatch:", PGC_SIGHUP, 0,
							   check_key_prefix, NULL, NULL);
	DefineCustomStringVariable("subdispatch.redis_ca_file",
							   "File with the certificates of the authorities that Redis's certificate may be from.",
							   "For rediss:// in subdispatch.redis_url. Empty: the authorities that the system trusts.",
							   &subdispatch_redis_ca_file, "", PGC_SIGHUP, 0, NULL, NULL, NULL);
	define_int("subdispatch.redis_max_length",
			   "How many events Redis keeps of a database's stream, at least.",
			   "Servers that were away for longer are told of a gap. Redis removes older ones in lumps.",
			   &subdispatch_redis_max_length, 1000, INT_MAX, PGC_SIGHUP, 0);
	define_int("subdispatch.redis_timeout",
			   "The time within which Redis has to accept a connection, and to answer.",
			   "After that the connection is given up and made anew.",
			   &subdispatch_redis_timeout, 100, MAX_TIMEOUT_MS, PGC_SIGHUP, GUC_UNIT_MS);
	define_int("subdispatch.redis_resume_timeout",
			   "How long a subscription that resumes waits for what it missed to come from Redis.",
			   "After that it is told that something is missing, and goes on with what is there. 0: it does not wait, nor does it ask.",
			   &subdispatch_redis_resume_timeout, 0, MAX_TIMEOUT_MS, PGC_SIGHUP, GUC_UNIT_MS);
}

/*
 * Defines all settings.  Called by _PG_init, also in a session that loads the
 * library without it having been preloaded: PostgreSQL then refuses to define
 * those of PGC_POSTMASTER, so they are left out, and sd_require_preload() tells
 * at the first call what is missing.
 */
void
guc_init(void)
{
	if (process_shared_preload_libraries_in_progress)
		define_sizes();
	define_publishing();
	define_dispatching();
	define_queue_limits();
	define_subscription_limits();
	define_redis();
#ifdef USE_ASSERT_CHECKING
	define_int("subdispatch.debug_hold_commit",
			   "Holds up each commit of this session between its commit record and what follows.",
			   "For tests of the order of commits.",
			   &subdispatch_debug_hold_commit, 0, MAX_TIMEOUT_MS, PGC_SUSET,
			   GUC_UNIT_MS | GUC_NOT_IN_SAMPLE);
	define_int("subdispatch.debug_idle_end",
			   "How long after its last use a worker ends.",
			   "For tests of workers that end and come back.",
			   &subdispatch_debug_idle_end, 0, MAX_TIMEOUT_MS, PGC_SIGHUP,
			   GUC_UNIT_MS | GUC_NOT_IN_SAMPLE);
	define_bool("subdispatch.debug_wire",
				"Sends each event through its text form before it is dispatched.",
				"For tests of what travels between servers.",
				&subdispatch_debug_wire);
#endif
	MarkGUCPrefixReserved("subdispatch");
}

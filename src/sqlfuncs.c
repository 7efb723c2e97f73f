/*-------------------------------------------------------------------------
 *
 * sqlfuncs.c
 *	  SQL's doors, all but reading: subscribe() and what ends subscriptions.
 *
 * Arguments are checked here, before anything is done; what is behind the door
 * can rely on them.  No locks are taken in this file.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/wait_event.h"

#include "bus.h"
#include "context.h"
#include "dispatcher.h"
#include "grants.h"
#include "resolver.h"
#include "security.h"
#include "sqlfuncs.h"
#include "subscription.h"

PG_FUNCTION_INFO_V1(subdispatch_subscribe);
PG_FUNCTION_INFO_V1(subdispatch_unsubscribe);
PG_FUNCTION_INFO_V1(subdispatch_complete);
PG_FUNCTION_INFO_V1(subdispatch_disconnect);
PG_FUNCTION_INFO_V1(subdispatch_pause);
PG_FUNCTION_INFO_V1(subdispatch_resume);
PG_FUNCTION_INFO_V1(subdispatch_open_consumer);
PG_FUNCTION_INFO_V1(subdispatch_close_consumer);
PG_FUNCTION_INFO_V1(subdispatch_wait_dispatched);

/* ---- arguments ---- */

static void
null_error(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("%s must not be null", what)));
}

char *
arg_name(FunctionCallInfo fcinfo, int n, const char *what)
{
	char	   *name;

	if (PG_ARGISNULL(n))
		null_error(what);
	name = text_to_cstring(PG_GETARG_TEXT_PP(n));
	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", what)));
	if (strlen(name) > SD_MAX_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is too long", what),
				 errdetail("It has %zu bytes, the limit is %d.", strlen(name), SD_MAX_NAME)));
	return name;
}

char *
arg_key(FunctionCallInfo fcinfo, int n, const char *what)
{
	if (PG_ARGISNULL(n))
		null_error(what);
	return text_to_cstring(PG_GETARG_TEXT_PP(n));
}

char *
arg_optional_name(FunctionCallInfo fcinfo, int n, const char *what)
{
	return PG_ARGISNULL(n) ? NULL : arg_name(fcinfo, n, what);
}

TimestampTz
arg_deadline(FunctionCallInfo fcinfo, int n)
{
	Interval   *timeout;
	double		us;

	if (PG_ARGISNULL(n))
		null_error("timeout");
	timeout = PG_GETARG_INTERVAL_P(n);
	us = timeout->time + (double) USECS_PER_DAY * (timeout->day + 30.0 * timeout->month);
	if (us < 0 || us > (double) INT_MAX * 1000)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout is out of range: %s",
						DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(timeout)))),
				 errdetail("It must be between 0 and 24 days.")));
	return us == 0 ? 0 : GetCurrentTimestamp() + (int64) us;
}

void
refuse_in_resolver(const char *function)
{
	if (resolver_running || am_dispatcher)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s cannot be used inside a resolver", function),
				 errdetail("The dispatcher that runs the resolver would wait for itself.")));
}

void
refuse_in_policy(void)
{
	if (security_is_quiet())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("subdispatch's functions cannot be used in a policy")));
}

static Jsonb *
empty_object(void)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
}

/* A jsonb object, flattened. */
static Jsonb *
arg_object(FunctionCallInfo fcinfo, int n, const char *what)
{
	Jsonb	   *j;

	if (PG_ARGISNULL(n))
		null_error(what);
	j = (Jsonb *) PG_DETOAST_DATUM_COPY(PG_GETARG_DATUM(n));
	if (!JB_ROOT_IS_OBJECT(j))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a JSON object", what)));
	return j;
}

static char *
random_id(void)
{
	pg_uuid_t	uuid;

	if (!pg_strong_random(uuid.data, UUID_LEN))
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate a random id")));
	uuid.data[6] = (uuid.data[6] & 0x0f) | 0x40;	/* version 4 of RFC 4122 */
	uuid.data[8] = (uuid.data[8] & 0x3f) | 0x80;
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&uuid)));
}

/* ---- subscribe() ---- */

enum
{
	ARG_CHANNEL, ARG_RESOLVER, ARG_VARIABLES, ARG_FILTER, ARG_CONTEXT, ARG_RUN_AS, ARG_SETTINGS,
	ARG_OPERATION_NAME, ARG_OPERATION_ID, ARG_RESPONSE_KEY, ARG_ID, ARG_CONNECTION, ARG_CONSUMER,
	ARG_RATE_LIMIT, ARG_BURST, ARG_MAX_PENDING, ARG_OVERFLOW, ARG_AFTER_EVENT
};

static void
too_generous(const char *argument, const char *value, const char *limit, const char *setting)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s %s exceeds the limit of %s", argument, value, limit),
			 errdetail("A subscription's limits may only be stricter than the settings."),
			 errhint("The setting is subdispatch.%s.", setting)));
}

static void
get_identity_args(FunctionCallInfo fcinfo, SdSubscribe *what)
{
	what->owner = GetUserId();
	what->role = PG_ARGISNULL(ARG_RUN_AS) ? what->owner : PG_GETARG_OID(ARG_RUN_AS);
	if (!security_role_exists(what->role))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role with OID %u does not exist", what->role)));
	if (!security_may_become(what->owner, what->role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to subscribe as role \"%s\"",
						GetUserNameFromId(what->role, true)),
				 errdetail("The subscriber must be able to SET ROLE to it.")));
	what->context = arg_object(fcinfo, ARG_CONTEXT, "security_context");
	context_check(what->context);
	grants_require(what->role, what->channel, GRANT_SUBSCRIBE, what->context, NULL);
	what->user_key = context_user_key(what->context);
	what->ordinary = !superuser_arg(what->role);
	if (PG_ARGISNULL(ARG_SETTINGS))
		what->settings = security_capture_settings(subdispatch_context_settings);
	else
		what->settings = security_check_settings(arg_object(fcinfo, ARG_SETTINGS, "settings"),
												 subdispatch_context_settings);
	if (what->settings == NULL)
		what->settings = empty_object();
	/* A value that the role may not set must not show at the first event only. */
	if (JB_ROOT_COUNT(what->settings) > 0)
		security_try_settings(security_make_rights(what->role, what->settings,
												   subdispatch_context_settings));
}

static void
get_resolver_args(FunctionCallInfo fcinfo, SdSubscribe *what)
{
	what->variables = arg_object(fcinfo, ARG_VARIABLES, "variables");
	what->resolver = PG_ARGISNULL(ARG_RESOLVER) ? InvalidOid : PG_GETARG_OID(ARG_RESOLVER);
	if (OidIsValid(what->resolver))
	{
		resolver_check(what->resolver, what->role, &what->batched);
		what->immutable = resolver_is_immutable(what->resolver);
	}
	context_check_scope(what->context, what->variables);
	what->filter_json = arg_object(fcinfo, ARG_FILTER, "filter");
	what->filter = filter_compile(what->filter_json);
	what->response_key = arg_optional_name(fcinfo, ARG_RESPONSE_KEY, "response_key");
}

static void
check_size(const SdSubscribe *what)
{
	Size		size = VARSIZE(what->variables) + VARSIZE(what->filter_json) + VARSIZE(what->context);

	if (what->filter)
		size = Max(size, VARSIZE(what->variables) + filter_size(what->filter) + VARSIZE(what->context));
	if (size > (Size) subdispatch_max_subscription_size)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("subscription is too large"),
				 errdetail("Filter, variables and security context have %zu bytes, the limit is %d.",
						   size, subdispatch_max_subscription_size),
				 errhint("The setting is subdispatch.max_subscription_size.")));
}

static void
get_rate_args(FunctionCallInfo fcinfo, SdSubscribe *what)
{
	double		limit = subdispatch_rate_limit;

	what->rate_limit = limit;
	what->burst = subdispatch_burst;
	if (!PG_ARGISNULL(ARG_RATE_LIMIT))
	{
		what->rate_limit = PG_GETARG_FLOAT8(ARG_RATE_LIMIT);
		if (!(what->rate_limit > 0 && what->rate_limit <= 1e9))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("rate_limit must be above 0 and at most 1000000000 per second")));
		if (limit > 0 && what->rate_limit > limit)
			too_generous("rate_limit", psprintf("%g", what->rate_limit), psprintf("%g", limit),
						 "rate_limit");
	}
	if (!PG_ARGISNULL(ARG_BURST))
	{
		what->burst = PG_GETARG_INT32(ARG_BURST);
		if (what->burst < 1)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("burst must be at least 1")));
		if (subdispatch_burst > 0 && what->burst > subdispatch_burst)
			too_generous("burst", psprintf("%d", what->burst), psprintf("%d", subdispatch_burst),
						 "burst");
	}
	if (what->rate_limit == 0)
		what->burst = 0;
	else if (what->burst == 0)
		what->burst = Max(1, (int) Min(what->rate_limit, 1e6));
}

static void
get_queue_args(FunctionCallInfo fcinfo, SdSubscribe *what)
{
	char	   *overflow;

	what->max_pending = subdispatch_max_pending;
	what->max_pending_bytes = subdispatch_max_pending_bytes;
	if (!PG_ARGISNULL(ARG_MAX_PENDING))
	{
		what->max_pending = PG_GETARG_INT32(ARG_MAX_PENDING);
		if (what->max_pending < 1)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("max_pending must be at least 1")));
		if (what->max_pending > subdispatch_max_pending)
			too_generous("max_pending", psprintf("%d", what->max_pending),
						 psprintf("%d", subdispatch_max_pending), "max_pending");
	}
	what->overflow = subdispatch_overflow;
	if (PG_ARGISNULL(ARG_OVERFLOW))
		return;
	overflow = text_to_cstring(PG_GETARG_TEXT_PP(ARG_OVERFLOW));
	if (strcmp(overflow, "drop_oldest") == 0)
		what->overflow = SD_DROP_OLDEST;
	else if (strcmp(overflow, "drop_newest") == 0)
		what->overflow = SD_DROP_NEWEST;
	else if (strcmp(overflow, "error") == 0)
		what->overflow = SD_OVERFLOW_ERROR;
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid overflow: \"%s\"", overflow),
				 errhint("It is one of drop_oldest, drop_newest, error.")));
}

/*
 * Waits until the dispatcher LISTENs on the channel, if it is to.  The
 * subscription exists already, so a NOTIFY that commits from now on arrives.
 */
static void
wait_for_listen(SdDatabase *db, const char *channel)
{
	uint32		hash = channel_hash(channel, strlen(channel));
	SdDispatcher *d = &db->dispatchers[channel_dispatcher(hash)];
	TimestampTz deadline = GetCurrentTimestamp() + 30 * SD_SECOND;
	bool		listening = false;
	uint32		request = pg_atomic_read_u32(&d->listen_requests);

	/* on a replica it will be, once it is promoted */
	if (strcmp(channel, SD_STAR) == 0 || RecoveryInProgress() || !notify_covers(channel))
		return;
	ConditionVariablePrepareToSleep(&db->changed);
	for (;;)
	{
		SdChannel  *c;
		bool		done = (int32) (pg_atomic_read_u32(&d->listen_done) - request) >= 0;

		LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
		c = channel_lookup(MyDatabaseId, channel, strlen(channel), hash);
		listening = c && pg_atomic_read_u32(&c->listening) != 0;
		LWLockRelease(&sd_shared->registry_lock);
		if (listening || done)
			break;
		database_wake(db, channel_dispatcher(hash));
		if (GetCurrentTimestamp() > deadline)
			break;
		(void) ConditionVariableTimedSleep(&db->changed, 1000, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	if (!listening)
		ereport(WARNING,
				(errmsg("subdispatch does not LISTEN on channel \"%s\"", channel),
				 errdetail("%u channels are LISTENed on by its dispatcher; events that are published reach the subscription all the same.",
						   pg_atomic_read_u32(&d->nlistening)),
				 errhint("The setting is subdispatch.max_listen_channels.")));
}

Datum
subdispatch_subscribe(PG_FUNCTION_ARGS)
{
	SdSubscribe what = {0};
	SdDatabase *db;

	sd_require_preload();
	refuse_in_resolver("subdispatch.subscribe()");
	what.channel = arg_name(fcinfo, ARG_CHANNEL, "channel");
	get_identity_args(fcinfo, &what);
	get_resolver_args(fcinfo, &what);
	what.operation_name = arg_optional_name(fcinfo, ARG_OPERATION_NAME, "operation_name");
	what.operation_id = arg_optional_name(fcinfo, ARG_OPERATION_ID, "operation_id");
	what.id = arg_optional_name(fcinfo, ARG_ID, "id");
	what.connection_id = arg_optional_name(fcinfo, ARG_CONNECTION, "connection_id");
	what.consumer = arg_optional_name(fcinfo, ARG_CONSUMER, "consumer");
	get_rate_args(fcinfo, &what);
	get_queue_args(fcinfo, &what);
	what.resumes = !PG_ARGISNULL(ARG_AFTER_EVENT);
	what.after_event = what.resumes ? PG_GETARG_INT64(ARG_AFTER_EVENT) : 0;
	check_size(&what);
	if (what.id == NULL)
		what.id = random_id();
	if (what.operation_id == NULL)
		what.operation_id = what.id;

	db = database_get(true, false);
	database_start_dispatchers(db);
	if (subdispatch_event_bus == SD_BUS_REDIS)
		redis_wait_for_position(db);
	(void) subscription_create(&what);
	wait_for_listen(db, what.channel);
	PG_RETURN_TEXT_P(cstring_to_text(what.id));
}

/* ---- ends ---- */

Datum
subdispatch_unsubscribe(PG_FUNCTION_ARGS)
{
	sd_require_preload();
	refuse_in_policy();
	PG_RETURN_BOOL(subscription_remove(GetUserId(), arg_key(fcinfo, 0, "id")));
}

Datum
subdispatch_complete(PG_FUNCTION_ARGS)
{
	sd_require_preload();
	refuse_in_policy();
	PG_RETURN_BOOL(subscription_complete(GetUserId(), arg_key(fcinfo, 0, "id")));
}

Datum
subdispatch_disconnect(PG_FUNCTION_ARGS)
{
	sd_require_preload();
	refuse_in_policy();
	PG_RETURN_INT64(subscription_disconnect(GetUserId(),
											arg_key(fcinfo, 0, "connection_id"),
											PG_ARGISNULL(1) ? NULL :
											arg_key(fcinfo, 1, "consumer")));
}

/* Those of a slow client; consumer as for disconnect(). */
static int64
pause_or_resume(FunctionCallInfo fcinfo, bool pause)
{
	sd_require_preload();
	refuse_in_policy();
	return connection_pause(GetUserId(), arg_key(fcinfo, 0, "connection_id"),
							PG_ARGISNULL(1) ? NULL : arg_key(fcinfo, 1, "consumer"), pause);
}

Datum
subdispatch_pause(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(pause_or_resume(fcinfo, true));
}

Datum
subdispatch_resume(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(pause_or_resume(fcinfo, false));
}

Datum
subdispatch_open_consumer(PG_FUNCTION_ARGS)
{
	sd_require_preload();
	refuse_in_policy();
	refuse_in_resolver("subdispatch.open_consumer()");
	(void) database_get(true, false);
	PG_RETURN_INT64(consumer_open(GetUserId(), arg_name(fcinfo, 0, "consumer")));
}

Datum
subdispatch_close_consumer(PG_FUNCTION_ARGS)
{
	sd_require_preload();
	refuse_in_policy();
	PG_RETURN_INT64(consumer_close(GetUserId(), arg_key(fcinfo, 0, "consumer")));
}

Datum
subdispatch_wait_dispatched(PG_FUNCTION_ARGS)
{
	TimestampTz deadline;
	SdDatabase *db;

	sd_require_preload();
	refuse_in_resolver("subdispatch.wait_dispatched()");
	deadline = arg_deadline(fcinfo, 0);
	shmem_attach();
	db = database_get(false, true);
	if (db == NULL)
		PG_RETURN_BOOL(true);
	PG_RETURN_BOOL(bus_wait_dispatched(db, deadline ? deadline - GetCurrentTimestamp() : 0));
}

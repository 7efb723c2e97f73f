/*-------------------------------------------------------------------------
 *
 * dispatch_data.c
 *	  What an event says, made when the first stream needs it.
 *
 * A plain event brings its data.  A row image has to be made JSON, which may
 * run casts of users; one of another server has to become a row of a table of
 * this server before that, which may run input functions.  Where users' code
 * may run it is called like a resolver: as the table's owner, within the time
 * limit, and counted as an attempt in case it ends the process.
 *
 * An event of another server that can't be read here is denied to everybody:
 * nobody can tell who might see it.  As it was committed, and its channel's
 * subscriptions are owed it, they are told that something is missing.
 *
 * The same goes for an event whose commit cannot be seen on this replica: what
 * resolvers and policies would say of it might be wrong (replay.c).
 *
 * No locks are taken here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "dispatch.h"
#include "event_wire.h"
#include "image_text.h"
#include "replay.h"
#include "resolver.h"

static void
make_data(void *arg)
{
	DispatchEvent *e = arg;
	MemoryContext old = MemoryContextSwitchTo(dispatch_context);

	e->data = event_data(e->ev);
	MemoryContextSwitchTo(old);
}

/* Runs code of the table's owner, like a resolver; returns its error, or NULL. */
static ErrorData *
run_guarded(DispatchEvent *e, ResolverCode code, void *arg, const SdRights *rights)
{
	Attempt		attempt;
	ErrorData  *error = NULL;

	if (!attempt_code(e, 0, &attempt))
		ereport(ERROR,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("the dispatcher ended each time the row image was cast")));
	(void) resolver_guarded(code, arg, "cast of a row image", rights,
							subdispatch_resolver_timeout, GUARD_SUBTRANSACTION, dispatch_context,
							&error);
	attempt_code_ended(&attempt);
	return error;
}

static void
make_data_quietly(void *arg)
{
	security_be_quiet();
	make_data(arg);
}

static void
make_local_data(DispatchEvent *e)
{
	SdRights	rights = {0};
	ErrorData  *error;

	if (!event_runs_user_code(e->ev, &rights.role))
	{
		make_data(e);
		return;
	}
	error = run_guarded(e, make_data_quietly, e, &rights);
	if (error)
	{
		e->data = NULL;
		ReThrowError(error);
	}
}

/* ---- changes of other servers ---- */

typedef struct Reading
{
	DispatchEvent *e;
	const ImageTable *table;
} Reading;

static void
read_image(void *arg)
{
	Reading    *reading = arg;
	DispatchEvent *e = reading->e;
	SdEvent    *ev = image_read(e->ev, reading->table);

	e->ev = memcpy(MemoryContextAlloc(dispatch_context, ev->size), ev, ev->size);
	pfree(ev);
	make_data(e);
}

static void
read_image_quietly(void *arg)
{
	security_be_quiet();
	read_image(arg);
}

/* Those whom it concerns are told that something is missing. */
static void
give_up(DispatchEvent *e, SdCounter counter, const char *message)
{
	e->data = dispatch_empty_object();
	e->given_up = true;
	if (!e->first_time)
		return;
	if (!e->ev->second)
		stats_add(&dispatch_self()->stats, counter, 1);
	dispatch_log_failure(InvalidOid, NULL, message);
}

static void
deny(DispatchEvent *e, const char *why)
{
	MemoryContext old = MemoryContextSwitchTo(dispatch_context);

	give_up(e, SD_STAT_DENIED_IMAGE,
			psprintf("a change of table \"%s.%s\" on another server is denied: %s",
					 EVENT_STRING(e->ev, schema_name), EVENT_STRING(e->ev, table_name), why));
	MemoryContextSwitchTo(old);
}

/*
 * What PostgreSQL alone reads is read without a subtransaction: if that fails,
 * against all expectation, it is done once more with one.
 */
static void
make_received_data(DispatchEvent *e)
{
	SdRights	rights = {0};
	const char *why;
	Reading		reading = {.e = e, .table = image_find_table(e->ev, &why)};
	ErrorData  *error;

	if (reading.table == NULL)
		deny(e, why);
	else if (!image_needs_care(reading.table, &rights.role) && !e->careful)
		read_image(&reading);
	else if ((error = run_guarded(e, read_image_quietly, &reading, &rights)) != NULL)
		deny(e, error->message);
}

#ifdef USE_ASSERT_CHECKING
static void
loop_back(DispatchEvent *e)
{
	MemoryContext old = MemoryContextSwitchTo(dispatch_context);

	e->ev = event_wire_loop(e->ev);
	MemoryContextSwitchTo(old);
}
#endif

/* It waited in vain, or for what will never come. */
static void
give_up_unreplayed(DispatchEvent *e, ReplayState state)
{
	MemoryContext old = MemoryContextSwitchTo(dispatch_context);
	const char *why = state == REPLAY_LOST ?
		"it was committed before a promotion that has left it out" :
		"its commit was not replayed within subdispatch.replay_wait_timeout";

	give_up(e, SD_STAT_REPLAY_TIMEOUTS,
			psprintf("an event on channel \"%s\" cannot be dispatched: %s",
					 EVENT_CHANNEL(e->ev), why));
	MemoryContextSwitchTo(old);
}

static ReplayState
look_at_replay(const DispatchEvent *e)
{
	ReplayPoint point;

	if (likely(XLogRecPtrIsInvalid(e->ev->commit.lsn)))
		return REPLAY_DONE;
	replay_look(&point);
	return replay_state(&point, &e->ev->commit);
}

void
dispatch_need_data(DispatchEvent *e)
{
	ReplayState state;

	if (e->data)
		return;
	state = look_at_replay(e);
	if (unlikely(state != REPLAY_DONE))
	{
		give_up_unreplayed(e, state);
		return;
	}
#ifdef USE_ASSERT_CHECKING
	if (subdispatch_debug_wire && !image_is_received(e->ev))
		loop_back(e);
#endif
	if (image_is_received(e->ev))
		make_received_data(e);
	else
		make_local_data(e);
}

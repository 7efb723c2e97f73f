/*-------------------------------------------------------------------------
 *
 * publish_sql.c
 *	  SQL's door for publishing: publish() and publish_change().
 *
 * What is refused is refused at the call, whoever subscribes to what.  Takes no
 * lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "bus.h"
#include "grants.h"
#include "publish_change.h"
#include "shmem.h"

/* ---- arguments ---- */

/* Can an event be published there?  Raises 22023 or 54000 if not. */
static void
check_channel(const char *channel)
{
	Size		len = strlen(channel);

	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("channel must not be empty")));
	if (strcmp(channel, SD_STAR) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cannot publish on channel \"%s\"", SD_STAR),
				 errdetail("Its subscriptions get the events of all channels.")));
	if (len > SD_MAX_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("channel is too long"),
				 errdetail("It has %zu bytes, the limit is %d bytes.", len, SD_MAX_NAME)));
}

/* Raises 22004 if the argument is NULL. */
static void
check_not_null(FunctionCallInfo fcinfo, int n, const char *name)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be NULL", name)));
}

/* Bytes of an argument, as a C string would take it; without fetching it. */
static Size
text_size(FunctionCallInfo fcinfo, int n)
{
	if (PG_ARGISNULL(n))
		return 0;
	return toast_raw_datum_size(PG_GETARG_DATUM(n)) - VARHDRSZ + 1;
}

static char *
optional_text(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* ---- publish() ---- */

enum
{
	ARG_CHANNEL, ARG_DATA, ARG_EVENT_TYPE, ARG_CORRELATION_ID, ARG_FEDERATION_ID
};

PG_FUNCTION_INFO_V1(subdispatch_publish);

Datum
subdispatch_publish(PG_FUNCTION_ARGS)
{
	char	   *channel;
	SdEvent    *ev;

	sd_require_preload();
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot publish on a server that is in recovery"),
				 errhint("Publish on the primary server.")));
	check_not_null(fcinfo, ARG_CHANNEL, "channel");
	check_not_null(fcinfo, ARG_DATA, "data");

	/* before anything giant is fetched and copied */
	event_check_size(sizeof(SdEvent) + text_size(fcinfo, ARG_EVENT_TYPE) +
					 text_size(fcinfo, ARG_CORRELATION_ID) +
					 text_size(fcinfo, ARG_FEDERATION_ID) +
					 toast_raw_datum_size(PG_GETARG_DATUM(ARG_DATA)));
	channel = text_to_cstring(PG_GETARG_TEXT_PP(ARG_CHANNEL));
	check_channel(channel);
	grants_require(GetUserId(), channel, GRANT_PUBLISH, NULL, NULL);

	ev = event_make(channel, optional_text(fcinfo, ARG_EVENT_TYPE),
					optional_text(fcinfo, ARG_CORRELATION_ID),
					optional_text(fcinfo, ARG_FEDERATION_ID),
					PG_GETARG_JSONB_P(ARG_DATA), SD_SOURCE_PUBLISH);
	if (subdispatch_event_bus == SD_BUS_NOTIFY)
		notify_publish(ev);
	else
		publish_event(ev);
	pfree(ev);
	PG_RETURN_VOID();
}

/* ---- publish_change() ---- */

/*
 * How to make such a trigger; the same hint for all that can be wrong with
 * one.
 */
static int
trigger_hint(void)
{
	return errhint("CREATE TRIGGER ... AFTER INSERT OR UPDATE OR DELETE ON ... FOR EACH ROW "
				   "EXECUTE FUNCTION subdispatch.publish_change('channel' [, 'event type']); or "
				   "CREATE TRIGGER ... AFTER TRUNCATE ON ... FOR EACH STATEMENT EXECUTE FUNCTION ...");
}

/* Raises 39P01 unless the trigger is one that changes can be taken from. */
static void
check_trigger(FunctionCallInfo fcinfo)
{
	TriggerData *data = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("publish_change() can only be called as a trigger"),
				 trigger_hint()));
	if (!TRIGGER_FIRED_AFTER(data->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" must be an AFTER trigger", data->tg_trigger->tgname),
				 trigger_hint()));
	if (TRIGGER_FIRED_FOR_STATEMENT(data->tg_event) && !TRIGGER_FIRED_BY_TRUNCATE(data->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" must be FOR EACH ROW", data->tg_trigger->tgname),
				 trigger_hint()));
	if (data->tg_trigger->tgnargs < 1 || data->tg_trigger->tgnargs > 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger \"%s\" must have a channel as its argument, and may have an event type",
						data->tg_trigger->tgname),
				 errdetail("It has %d arguments.", data->tg_trigger->tgnargs),
				 trigger_hint()));
	if (data->tg_relation->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("changes of temporary tables cannot be published"),
				 errdetail("Table \"%s\" is temporary: no other session can look at it.",
						   RelationGetRelationName(data->tg_relation)),
				 errhint("Call publish() with the data, or use a table that is not temporary.")));
}

/*
 * What a row image shows is decided by code of the table's owner (policies)
 * that runs with the subscribers' rights: so he must be somebody whom they
 * were told to trust.  The table is the one that the event is about, which for
 * a partition's trigger is the one that it was created on.
 */
static void
check_owner(const SdEvent *ev, Relation rel, const char *channel)
{
	Oid			owner = rel->rd_rel->relowner;

	if (ev->relid != RelationGetRelid(rel))
	{
		HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(ev->relid));

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for relation %u", ev->relid);
		owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
		ReleaseSysCache(tuple);
	}
	grants_require(owner, channel, GRANT_PUBLISH, NULL, EVENT_STRING(ev, table_name));
}

PG_FUNCTION_INFO_V1(subdispatch_publish_change);

Datum
subdispatch_publish_change(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	Trigger    *trigger;
	SdEvent    *ev;

	sd_require_preload();
	check_trigger(fcinfo);
	trigger = data->tg_trigger;
	check_channel(trigger->tgargs[0]);

	ev = change_event(data, trigger->tgargs[0],
					  trigger->tgnargs > 1 ? trigger->tgargs[1] : NULL);
	check_owner(ev, data->tg_relation, trigger->tgargs[0]);
	publish_event(ev);
	pfree(ev);
	return PointerGetDatum(NULL);
}

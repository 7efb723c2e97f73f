/*-------------------------------------------------------------------------
 *
 * sqlexplain.c
 *	  explain_delivery(): how a published event would fare.
 *
 * Goes through the steps of delivery in their order, with the functions that
 * the dispatcher uses, but delivers nothing, calls no resolver and takes no
 * token.  Only the subscription's owner gets an answer, and only about data
 * that he brings himself.
 *
 * Locks: none of ours but allowance.c's; the stream is pinned, and what is read of
 * it is immutable, except for its bucket.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_proc.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

#include "allowance.h"
#include "context.h"
#include "grants.h"
#include "reader.h"
#include "security.h"
#include "sqlfuncs.h"

PG_FUNCTION_INFO_V1(subdispatch_explain_delivery);

typedef struct Explain
{
	ReturnSetInfo *rsinfo;
	SdStream   *stream;
	bool		failed;			/* a step has: the rest is not reached */
} Explain;

static void
put(Explain *x, const char *step, bool passed, const char *detail)
{
	Datum		values[3];
	bool		nulls[3] = {false};

	if (x->failed)
		detail = "not reached";
	values[0] = CStringGetTextDatum(step);
	values[1] = BoolGetDatum(passed);
	nulls[1] = x->failed;
	nulls[2] = detail == NULL;
	values[2] = detail ? CStringGetTextDatum(detail) : (Datum) 0;
	tuplestore_putvalues(x->rsinfo->setResult, x->rsinfo->setDesc, values, nulls);
	x->failed |= !passed;
}

static void
explain_rights(Explain *x, const char *channel)
{
	SdStream   *s = x->stream;
	bool		mine = stream_channel(s)->star || strcmp(channel, stream_channel(s)->name) == 0;

	put(x, "channel", mine, mine ? stream_channel(s)->name : "the subscription is on another channel");
	if (!security_role_exists(stream_identity(s)->role) ||
		!security_may_become(stream_identity(s)->owner, stream_identity(s)->role))
		put(x, "role", false, "the owner may not act as the role");
	else
		put(x, "role", true, GetUserNameFromId(stream_identity(s)->role, true));
	mine = x->failed ||
		grants_allow(stream_identity(s)->role, stream_channel(s)->name, GRANT_SUBSCRIBE,
					 stream_identity(s)->context);
	put(x, "channel grant", mine, mine ? NULL : "the role has no grant that the security context satisfies");
	put(x, "row-level security", true, "published data is no row image");
}

static void
explain_modules(Explain *x, Jsonb *data, const char *federation_id)
{
	Jsonb	   *context = stream_identity(x->stream)->context;
	SdCounter	reason;
	bool		passed = context_passes(context, &data->root, &reason);
	bool		row_filter = passed || reason != SD_STAT_DENIED_ROW_FILTER;

	put(x, "row filter", row_filter, row_filter ? NULL : "user_id is not the context's");
	put(x, "tenant", passed, passed ? NULL : "tenant_id or a field of match is not the context's");
	passed = context_passes_federation(context, federation_id);
	put(x, "federation", passed, passed ? NULL : "federation_id is not the context's");
	put(x, "scope", true, "checked by subscribe()");
}

static void
explain_rest(Explain *x, Jsonb *data)
{
	SdStream   *s = x->stream;
	Jsonb	   *seen = context_visible_fields(stream_identity(s)->context, data);
	Jsonb	   *filter = stream_filter_json(s);
	bool		passed;

	put(x, "fields", seen != NULL,
		seen ? JsonbToCString(NULL, &seen->root, VARSIZE(seen)) : "the data is no object");
	passed = seen && filter_match(stream_filter(s), &seen->root);
	put(x, "filter", passed, JsonbToCString(NULL, &filter->root, VARSIZE(filter)));
	if (!OidIsValid(stream_resolver(s)))
		put(x, "resolver", true, "none");
	else if (!SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(stream_resolver(s))))
		put(x, "resolver", false, "it does not exist any more");
	else
		put(x, "resolver",
			pg_proc_aclcheck(stream_resolver(s), stream_identity(s)->role, ACL_EXECUTE) == ACLCHECK_OK,
			format_procedure(stream_resolver(s)));
	passed = allowance_pass(s, false);
	put(x, "limits", passed, passed ? NULL : "the rate limit's bucket is empty, or the user's");
}

Datum
subdispatch_explain_delivery(PG_FUNCTION_ARGS)
{
	Explain		x = {.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo};
	char	   *id;
	char	   *channel;
	char	   *federation_id;
	Jsonb	   *data;

	sd_require_preload();
	id = arg_key(fcinfo, 0, "id");
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("data must not be null")));
	data = PG_GETARG_JSONB_P(1);
	channel = arg_optional_name(fcinfo, 2, "channel");
	federation_id = arg_optional_name(fcinfo, 3, "federation_id");
	InitMaterializedSRF(fcinfo, 0);

	x.stream = reader_pin(GetUserId(), id);
	explain_rights(&x, channel ? channel : stream_channel(x.stream)->name);
	explain_modules(&x, data, federation_id);
	explain_rest(&x, data);
	reader_release();
	PG_RETURN_NULL();
}

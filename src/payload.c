/*-------------------------------------------------------------------------
 *
 * payload.c
 *	  Which streams share a resolver call, and the payloads that come of it.
 *
 * A call is shared by streams of the same resolver, identity and variables; of
 * a batched resolver by all variables of an identity.  An IMMUTABLE resolver
 * cannot tell identities apart that have the same role and settings and see the
 * same of the event, so they share its calls.
 *
 * No locks are taken, but for DSA's in body_make().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "dispatch.h"
#include "json_compose.h"
#include "response.h"
#include "visible.h"

/* ---- sharing ---- */

static int
compare_jsonb(const Jsonb *a, const Jsonb *b)
{
	if (a == b)
		return 0;
	if (VARSIZE(a) != VARSIZE(b))
		return VARSIZE(a) < VARSIZE(b) ? -1 : 1;
	return memcmp(a, b, VARSIZE(a));
}

static DispatchEvent *comparing;	/* dispatch_compare_for()'s */

void
dispatch_compare_for(DispatchEvent *e)
{
	comparing = e;
}

static int
compare_identity(const SdStream *a, const SdStream *b)
{
	const SdIdentity *x = stream_identity(a);
	const SdIdentity *y = stream_identity(b);
	int			cmp;

	if (x == y)
		return 0;
	if (!a->immutable || !b->immutable)
		return x->serial < y->serial ? -1 : 1;
	if (x->role != y->role)
		return x->role < y->role ? -1 : 1;
	cmp = compare_jsonb(x->settings, y->settings);
	if (cmp != 0)
		return cmp;
	return compare_jsonb(visible_to(comparing, stream_identity(a))->data,
						 visible_to(comparing, stream_identity(b))->data);
}

int
dispatch_compare_variables(const SdStream *a, const SdStream *b)
{
	return compare_jsonb(stream_variables(a), stream_variables(b));
}

/* qsort: streams that share a call, and then a result, stand together. */
int
dispatch_compare_work(const void *pa, const void *pb)
{
	const SdStream *a = *(SdStream *const *) pa;
	const SdStream *b = *(SdStream *const *) pb;
	int			cmp;

	if (stream_resolver(a) != stream_resolver(b))
		return stream_resolver(a) < stream_resolver(b) ? -1 : 1;
	/* A function that was altered may have streams of either label. */
	if (a->immutable != b->immutable)
		return a->immutable ? -1 : 1;
	cmp = compare_identity(a, b);
	return cmp != 0 ? cmp : dispatch_compare_variables(a, b);
}

bool
dispatch_same_call(const SdStream *a, const SdStream *b)
{
	return stream_resolver(a) == stream_resolver(b) && a->batched == b->batched &&
		a->immutable == b->immutable && compare_identity(a, b) == 0 &&
		(a->batched || dispatch_compare_variables(a, b) == 0);
}

/* ---- bodies ---- */

/* What is kept of the buffers' memory for the next payload. */
#define KEEP_BUFFER		(1024 * 1024)

/* A payload is put together here; of this process's own, in TopMemoryContext. */
static RespBuf payload;

/* response.c wants realloc's meaning; out of memory raises an error here. */
static void *
grow(void *old, size_t size)
{
	return old ? repalloc_huge(old, size) : MemoryContextAllocHuge(TopMemoryContext, size);
}

static void
begin_payload(void)
{
	payload.len = 0;
	payload.grow = grow;
}

static SdBody *
end_payload(bool ok, uint64 event_id, bool is_error)
{
	SdBody	   *body;

	if (ok && subdispatch_include_event_id)
		ok = response_payload_add_event_id(&payload, 0, (int64) event_id);
	if (!ok)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	body = body_make(payload.data, payload.len, event_id, is_error, subdispatch_include_event_id);
	if (payload.cap > KEEP_BUFFER)
	{
		pfree(payload.data);
		memset(&payload, 0, sizeof(payload));
	}
	return body;
}

/* The text of a jsonb, valid until the next call. */
static const StringInfoData *
text_of(Jsonb *jsonb)
{
	static StringInfoData text;
	MemoryContext old;

	if (text.data != NULL && text.maxlen > KEEP_BUFFER)
	{
		pfree(text.data);
		text.data = NULL;
	}
	if (text.data == NULL)
	{
		old = MemoryContextSwitchTo(TopMemoryContext);
		initStringInfo(&text);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(&text);
	json_text(&text, &jsonb->root);
	return &text;
}

SdBody *
dispatch_result_body(uint64 event_id, Jsonb *result, const char *response_key)
{
	const StringInfoData *json = text_of(result);

	begin_payload();
	return end_payload(response_payload_data(&payload, json->data, json->len, response_key,
											 subdispatch_omit_null_errors),
					   event_id, false);
}

SdBody *
dispatch_error_body(uint64 event_id, const char *message, int sqlerrcode)
{
	if (subdispatch_mask_errors || message == NULL)
		message = "the resolver failed";
	begin_payload();
	return end_payload(response_payload_error(&payload, message, unpack_sql_state(sqlerrcode)),
					   event_id, true);
}

Jsonb *
dispatch_empty_object(void)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
}

/* ---- the log ---- */

#define LOG_RATE	1.0			/* per second */
#define LOG_BURST	10

void
dispatch_log_failure(Oid fn, ErrorData *edata, const char *message)
{
	static TokenBucket bucket;
	static bool initialized = false;
	static uint64 suppressed = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (!initialized)
	{
		ratelimit_init(&bucket, LOG_RATE, LOG_BURST, now);
		initialized = true;
	}
	if (!ratelimit_take(&bucket, LOG_RATE, LOG_BURST, now))
	{
		suppressed++;
		return;
	}
	if (edata && edata->message)
		message = edata->message;
	ereport(LOG,
			(errcode(edata ? edata->sqlerrcode : ERRCODE_INTERNAL_ERROR),
			 OidIsValid(fn) ?
			 errmsg("subdispatch: resolver with OID %u failed: %s", fn, message ? message : "?") :
			 errmsg("subdispatch: dispatching failed: %s", message ? message : "?"),
			 edata && edata->detail ? errdetail_internal("%s", edata->detail) : 0,
			 suppressed > 0 ? errhint("%llu more failures were not logged.",
									  (unsigned long long) suppressed) : 0,
			 edata && edata->context ? errcontext("%s", edata->context) : 0));
	suppressed = 0;
}

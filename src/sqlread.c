/*-------------------------------------------------------------------------
 *
 * sqlread.c
 *	  SQL's doors for reading: next_response(), poll(), await_responses(), ...
 *
 * Messages are composed here, after the locks of reading were released, from
 * the payload that all subscriptions of a stream share and what is the
 * subscription's own: the operation id, and the losses it has to be told of.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/pquery.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "reader.h"
#include "response.h"
#include "sqlfuncs.h"
#include "subscription.h"

PG_FUNCTION_INFO_V1(subdispatch_next_response);
PG_FUNCTION_INFO_V1(subdispatch_next_responses);
PG_FUNCTION_INFO_V1(subdispatch_poll);
PG_FUNCTION_INFO_V1(subdispatch_poll_shared);
PG_FUNCTION_INFO_V1(subdispatch_await_response);
PG_FUNCTION_INFO_V1(subdispatch_await_responses);

/* ---- messages ---- */

static void *
grow_palloc(void *old, size_t size)
{
	return old ? repalloc(old, size) : palloc(size);
}

static void
composed(bool ok)
{
	if (!ok)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

static bool
has_loss(const SdTaken *taken)
{
	return taken->loss.count > 0 || taken->loss.unknown;
}

static int64
loss_count(const SdTaken *taken)
{
	return taken->loss.unknown ? RESPONSE_DROPPED_UNKNOWN : (int64) taken->loss.count;
}

static const char *
message_type(const SdTaken *taken)
{
	if (taken->end == SD_END_NONE)
		return "next";
	return taken->end == SD_END_COMPLETE ? "complete" : "error";
}

/*
 * The message's payload; NULL if its type has none.  Points into the body, or
 * to palloc'd memory where something had to be put together.
 */
static const char *
make_payload(const SdTaken *taken, size_t *len)
{
	RespBuf		buf = {.grow = grow_palloc};

	if (taken->end == SD_END_COMPLETE)
		return NULL;
	if (taken->end != SD_END_NONE)
		composed(response_payload_end(&buf, stream_end_message(taken->end),
									  unpack_sql_state(stream_end_sqlstate(taken->end))));
	else if (taken->body == NULL)
		composed(response_payload_loss(&buf, loss_count(taken), subdispatch_omit_null_errors));
	else if (has_loss(taken) && taken->body->has_event_id)
		composed(response_payload_merge_dropped(&buf, taken->body->data, taken->body->len,
												loss_count(taken)));
	else if (has_loss(taken))
		composed(response_payload_with_dropped(&buf, taken->body->data, taken->body->len,
											   loss_count(taken)));
	else
	{
		*len = taken->body->len;
		return taken->body->data;
	}
	*len = buf.len;
	return buf.data;
}

/* The whole message, in memory of its exact size. */
static text *
make_message(const ReadBatch *batch, const ReadRow *row)
{
	const char *type = message_type(&row->taken);
	size_t		payload_len = 0;
	const char *payload = make_payload(&row->taken, &payload_len);
	size_t		size = response_message_size(type, row->operation_json_len, payload, payload_len);
	text	   *result = palloc(VARHDRSZ + size);
	RespBuf		buf = {.data = VARDATA(result), .cap = size, .grow = grow_palloc};

	composed(response_message(&buf, type, batch->buf + row->operation_json,
							  row->operation_json_len, payload, payload_len));
	Assert(buf.data == VARDATA(result) && buf.len == size);
	SET_VARSIZE(result, VARHDRSZ + size);
	if (payload && (row->taken.body == NULL || payload != row->taken.body->data))
		pfree(unconstify(char *, payload));
	return result;
}

/* Its last message is in the batch: nothing of the subscription is left. */
static void
forget_ended(const ReadBatch *batch)
{
	for (int i = 0; i < batch->nrows; i++)
		if (batch->rows[i].taken.end != SD_END_NONE)
			subscription_forget(GetUserId(), batch->buf + batch->rows[i].id,
								batch->rows[i].serial);
}

static void
count_delivered(int64 n)
{
	SdDatabase *db = database_get(false, true);

	if (db && n > 0)
		stats_add(&db->stats, SD_STAT_RESPONSES_DELIVERED, n);
}

/* ---- one subscription ---- */

Datum
subdispatch_next_response(PG_FUNCTION_ARGS)
{
	ReadBatch  *batch;
	text	   *message;
	char	   *id;
	TimestampTz deadline;

	sd_require_preload();
	refuse_in_policy();
	id = arg_key(fcinfo, 0, "id");
	deadline = arg_deadline(fcinfo, 1);
	if (deadline != 0)
		refuse_in_resolver("a read that waits");
	batch = reader_batch();
	reader_read(GetUserId(), id, 1, deadline);
	if (batch->nrows == 0)
		PG_RETURN_NULL();
	message = make_message(batch, &batch->rows[0]);
	forget_ended(batch);
	count_delivered(1);
	reader_release();
	PG_RETURN_TEXT_P(message);
}

static int
arg_max(FunctionCallInfo fcinfo, int n, const char *what)
{
	if (PG_ARGISNULL(n) || PG_GETARG_INT32(n) < 1)
		ereport(ERROR,
				(errcode(PG_ARGISNULL(n) ? ERRCODE_NULL_VALUE_NOT_ALLOWED
						 : ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be at least 1", what)));
	return PG_GETARG_INT32(n);
}

Datum
subdispatch_next_responses(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ReadBatch  *batch;
	char	   *id;
	int			max;
	TimestampTz deadline;
	bool		ended = false;

	sd_require_preload();
	refuse_in_policy();
	id = arg_key(fcinfo, 0, "id");
	max = arg_max(fcinfo, 1, "max_responses");
	deadline = arg_deadline(fcinfo, 2);
	if (deadline != 0)
		refuse_in_resolver("a read that waits");
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	batch = reader_batch();
	while (max > 0 && !ended)
	{
		int			n;

		reader_read(GetUserId(), id, Min(max, READ_ROWS), deadline);
		n = batch->nrows;
		if (n == 0)
			break;
		for (int i = 0; i < n; i++)
		{
			Datum		value = PointerGetDatum(make_message(batch, &batch->rows[i]));
			bool		null = false;

			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &null);
			pfree(DatumGetPointer(value));
			ended |= batch->rows[i].taken.end != SD_END_NONE;
		}
		forget_ended(batch);
		count_delivered(n);
		reader_release();
		max -= n;
		deadline = 0;			/* only the first is waited for */
	}
	PG_RETURN_NULL();
}

/* ---- a consumer ---- */

typedef struct PollArgs
{
	char	   *consumer;
	int			max;
	TimestampTz deadline;
	Size		room;
} PollArgs;

typedef void (*PutRow) (ReturnSetInfo *rsinfo, const ReadBatch *batch, const ReadRow *row);

static void
get_poll_args(FunctionCallInfo fcinfo, PollArgs *args)
{
	sd_require_preload();
	refuse_in_policy();
	args->consumer = arg_key(fcinfo, 0, "consumer");
	args->max = arg_max(fcinfo, 1, "max_responses");
	args->deadline = arg_deadline(fcinfo, 2);
	args->room = arg_max(fcinfo, 3, "max_bytes");
	if (args->deadline != 0)
		refuse_in_resolver("a read that waits");
}

static Datum
text_at(const ReadBatch *batch, uint32 offset)
{
	return CStringGetTextDatum(batch->buf + offset);
}

static void
put_poll_row(ReturnSetInfo *rsinfo, const ReadBatch *batch, const ReadRow *row)
{
	Datum		values[6];
	bool		nulls[6] = {false};

	values[0] = text_at(batch, row->id);
	nulls[1] = row->connection == 0;
	values[1] = nulls[1] ? (Datum) 0 : text_at(batch, row->connection);
	values[2] = text_at(batch, row->operation_id);
	nulls[3] = row->taken.event_id == 0;
	values[3] = Int64GetDatum((int64) row->taken.event_id);
	nulls[4] = row->taken.loss.unknown;
	values[4] = Int64GetDatum((int64) row->taken.loss.count);
	values[5] = PointerGetDatum(make_message(batch, row));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* The ids of a row stand one after the other in the batch. */
static Datum
id_array(const ReadBatch *batch, const ReadRow *row)
{
	Datum	   *ids = palloc(sizeof(Datum) * row->nids);
	const char *at = batch->buf + row->id;

	for (uint32 i = 0; i < row->nids; i++)
	{
		ids[i] = CStringGetTextDatum(at);
		at += strlen(at) + 1;
	}
	return PointerGetDatum(construct_array(ids, row->nids, TEXTOID, -1, false, TYPALIGN_INT));
}

static void
put_shared_row(ReturnSetInfo *rsinfo, const ReadBatch *batch, const ReadRow *row)
{
	Datum		values[4];
	bool		nulls[4] = {false};
	size_t		len = 0;
	const char *payload = make_payload(&row->taken, &len);

	values[0] = id_array(batch, row);
	values[1] = CStringGetTextDatum(message_type(&row->taken));
	nulls[2] = row->taken.event_id == 0;
	values[2] = Int64GetDatum((int64) row->taken.event_id);
	nulls[3] = payload == NULL;
	values[3] = payload ? PointerGetDatum(cstring_to_text_with_len(payload, len)) : (Datum) 0;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* Turns the batch into rows; counts the deliveries in it. */
static void
put_batch(ReturnSetInfo *rsinfo, const ReadBatch *batch, PutRow put)
{
	static MemoryContext row_context = NULL;
	int64		delivered = 0;
	MemoryContext old;

	if (row_context == NULL)
		row_context = AllocSetContextCreate(TopMemoryContext, "subdispatch row",
											ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(row_context);
	for (int i = 0; i < batch->nrows; i++)
	{
		old = MemoryContextSwitchTo(row_context);
		put(rsinfo, batch, &batch->rows[i]);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row_context);
		delivered += batch->rows[i].nids;
	}
	forget_ended(batch);
	count_delivered(delivered);
}

/*
 * Rows until max, the bytes or the responses are used up; waits for the first
 * if there is none.
 */
static void
poll_rows(FunctionCallInfo fcinfo, PollArgs *args, PutRow put, bool shared)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ReadBatch  *batch;
	bool		first = true;

	InitMaterializedSRF(fcinfo, 0);
	batch = reader_batch();
	while (args->max > 0)
	{
		int			n;

		reader_poll(GetUserId(), args->consumer, Min(args->max, READ_ROWS), &args->room, first,
					shared);
		n = batch->nrows;
		if (n == 0)
		{
			if (!first || args->deadline == 0)
				break;
			if (!reader_await_consumer(GetUserId(), args->consumer, args->deadline))
				break;
			CHECK_FOR_INTERRUPTS();
			continue;
		}
		put_batch(rsinfo, batch, put);
		reader_release();
		args->max -= n;
		first = false;
		if (args->room == 0)
			break;
		CHECK_FOR_INTERRUPTS();
	}
}

Datum
subdispatch_poll(PG_FUNCTION_ARGS)
{
	PollArgs	args;

	get_poll_args(fcinfo, &args);
	poll_rows(fcinfo, &args, put_poll_row, false);
	PG_RETURN_NULL();
}

Datum
subdispatch_poll_shared(PG_FUNCTION_ARGS)
{
	PollArgs	args;

	get_poll_args(fcinfo, &args);
	poll_rows(fcinfo, &args, put_shared_row, true);
	PG_RETURN_NULL();
}

/* ---- waiting without a snapshot ---- */

static void
cannot_give_up_snapshot(const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg("cannot wait here without holding back vacuum"),
			 errdetail("%s", why),
			 errhint("CALL it at the top level, outside a transaction block or in one at READ COMMITTED that has written nothing.")));
}

/*
 * Lets go of the statement's snapshot, so that the wait holds no xmin back.
 *
 * The only snapshot that may go is the one that the portal of the CALL pushed
 * (PostgreSQL 12 and later: Portal->portalSnapshot; EnsurePortalSnapshotExists
 * makes a new one for what follows).  If any other is active or registered, a
 * query above us needs it, and taking it away would crash the server.
 */
static void
give_up_snapshot(FunctionCallInfo fcinfo)
{
	if (!(fcinfo->context && IsA(fcinfo->context, CallContext)))
		cannot_give_up_snapshot("It was not called by CALL.");
	if (IsolationUsesXactSnapshot())
		cannot_give_up_snapshot("The transaction's isolation level keeps one snapshot throughout.");
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		cannot_give_up_snapshot("The transaction has written something.");
	if (ActiveSnapshotSet())
	{
		Snapshot	snapshot;

		if (ActivePortal == NULL || ActivePortal->portalSnapshot == NULL ||
			ActivePortal->portalSnapshot != GetActiveSnapshot())
			cannot_give_up_snapshot("It was called from a function or another statement.");
		snapshot = RegisterSnapshot(GetActiveSnapshot());
		PopActiveSnapshot();
		ActivePortal->portalSnapshot = NULL;
		if (ActiveSnapshotSet())
		{
			PushActiveSnapshotWithLevel(snapshot, ActivePortal->createLevel);
			ActivePortal->portalSnapshot = GetActiveSnapshot();
			UnregisterSnapshot(snapshot);
			cannot_give_up_snapshot("It was called from a function or another statement.");
		}
		UnregisterSnapshot(snapshot);
	}
	InvalidateCatalogSnapshot();
	if (HaveRegisteredOrActiveSnapshot())
		cannot_give_up_snapshot("A cursor is open.");
}

Datum
subdispatch_await_response(PG_FUNCTION_ARGS)
{
	char	   *id;
	TimestampTz deadline;

	sd_require_preload();
	refuse_in_resolver("subdispatch.await_response()");
	id = arg_key(fcinfo, 0, "id");
	deadline = arg_deadline(fcinfo, 1);
	give_up_snapshot(fcinfo);
	(void) reader_await(GetUserId(), id, deadline);
	PG_RETURN_VOID();
}

Datum
subdispatch_await_responses(PG_FUNCTION_ARGS)
{
	char	   *consumer;
	TimestampTz deadline;

	sd_require_preload();
	refuse_in_resolver("subdispatch.await_responses()");
	consumer = arg_key(fcinfo, 0, "consumer");
	deadline = arg_deadline(fcinfo, 1);
	give_up_snapshot(fcinfo);
	(void) reader_await_consumer(GetUserId(), consumer, deadline);
	PG_RETURN_VOID();
}

/*-------------------------------------------------------------------------
 *
 * sqlread.c
 *	  SQL's doors for reading: next_response(), poll(), ...
 *
 * Messages are composed here, after the locks of reading were released, from
 * the payload that all subscriptions of a stream share and what is the
 * subscription's own: the operation id, and the losses it has to be told of.
 * No locks are taken in this file.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "reader.h"
#include "response.h"
#include "rows.h"
#include "sqlfuncs.h"
#include "subscription.h"

PG_FUNCTION_INFO_V1(subdispatch_next_response);
PG_FUNCTION_INFO_V1(subdispatch_next_responses);
PG_FUNCTION_INFO_V1(subdispatch_poll);
PG_FUNCTION_INFO_V1(subdispatch_poll_shared);

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
 * to palloc'd memory where something had to be put together.  Depends on
 * nothing but the row: a batch that is repeated has the same bytes.
 */
static const char *
make_payload(const ReadRow *row, size_t *len)
{
	const SdTaken *taken = &row->taken;
	RespBuf		buf = {.grow = grow_palloc};

	if (taken->end == SD_END_COMPLETE)
		return NULL;
	if (taken->end != SD_END_NONE)
		composed(response_payload_end(&buf, stream_end_message(taken->end),
									  unpack_sql_state(stream_end_sqlstate(taken->end))));
	else if (taken->body == NULL)
		composed(response_payload_loss(&buf, loss_count(taken), row->omit_null_errors));
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

/* Frees it if it was put together. */
static void
free_payload(const ReadRow *row, const char *payload)
{
	if (payload && (row->taken.body == NULL || payload != row->taken.body->data))
		pfree(unconstify(char *, payload));
}

/* The whole message, in memory of its exact size. */
static text *
make_message(const ReadBatch *batch, const ReadRow *row)
{
	const char *type = message_type(&row->taken);
	size_t		payload_len = 0;
	const char *payload = make_payload(row, &payload_len);
	size_t		size = response_message_size(type, row->operation_json_len, payload, payload_len);
	text	   *result = palloc(VARHDRSZ + size);
	RespBuf		buf = {.data = VARDATA(result), .cap = size, .grow = grow_palloc};

	composed(response_message(&buf, type, batch->buf + row->operation_json,
							  row->operation_json_len, payload, payload_len));
	Assert(buf.data == VARDATA(result) && buf.len == size);
	SET_VARSIZE(result, VARHDRSZ + size);
	free_payload(row, payload);
	return result;
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
	reader_forget_ended(GetUserId(), batch);
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
	rows_begin(fcinfo);
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
		reader_forget_ended(GetUserId(), batch);
		count_delivered(n);
		reader_release();
		max -= n;
		deadline = 0;			/* only the first is waited for */
	}
	PG_RETURN_NULL();
}

/* ---- a consumer ---- */

typedef void (*PutRow) (ReturnSetInfo *rsinfo, const ReadBatch *batch, const ReadRow *row);

static void
get_poll_args(FunctionCallInfo fcinfo, bool shared, ReadPoll *poll, TimestampTz *deadline)
{
	memset(poll, 0, sizeof(ReadPoll));
	poll->owner = GetUserId();
	poll->shared = shared;
	poll->first = true;
	poll->consumer = arg_key(fcinfo, 0, "consumer");
	poll->max = arg_max(fcinfo, 1, "max_responses");
	*deadline = arg_deadline(fcinfo, 2);
	poll->room = arg_max(fcinfo, 3, "max_bytes");
	poll->acking = !PG_ARGISNULL(4);
	if (poll->acking)
		poll->ack = PG_GETARG_INT64(4);
	if (*deadline != 0)
		refuse_in_resolver("a read that waits");
}

static void
put_poll_row(ReturnSetInfo *rsinfo, const ReadBatch *batch, const ReadRow *row)
{
	Datum		values[7];
	bool		nulls[7] = {false};

	values[0] = batch_text(batch, row->id);
	nulls[1] = row->connection == 0;
	values[1] = batch_text(batch, row->connection);
	values[2] = batch_text(batch, row->operation_id);
	nulls[3] = row->taken.event_id == 0;
	values[3] = Int64GetDatum((int64) row->taken.event_id);
	nulls[4] = row->taken.loss.unknown;
	values[4] = Int64GetDatum((int64) row->taken.loss.count);
	values[5] = PointerGetDatum(make_message(batch, row));
	nulls[6] = batch->number == 0;
	values[6] = Int64GetDatum((int64) batch->number);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	pfree(DatumGetPointer(values[5]));
}

/* The ids of a row stand in the batch as they do in an array. */
static ArrayType *
id_array(const ReadBatch *batch, const ReadRow *row)
{
	Size		size = ARR_OVERHEAD_NONULLS(1) + row->ids_size;
	ArrayType  *array = palloc(size);

	memset(array, 0, ARR_OVERHEAD_NONULLS(1));
	SET_VARSIZE(array, size);
	array->ndim = 1;
	array->elemtype = TEXTOID;
	ARR_DIMS(array)[0] = row->nids;
	ARR_LBOUND(array)[0] = 1;
	memcpy(ARR_DATA_PTR(array), batch->buf + row->id, row->ids_size);
	return array;
}

static void
put_shared_row(ReturnSetInfo *rsinfo, const ReadBatch *batch, const ReadRow *row)
{
	Datum		values[5];
	bool		nulls[5] = {false};
	size_t		len = 0;
	const char *payload = make_payload(row, &len);
	ArrayType  *ids = id_array(batch, row);
	text	   *type = cstring_to_text(message_type(&row->taken));
	text	   *copy = payload ? cstring_to_text_with_len(payload, len) : NULL;

	values[0] = PointerGetDatum(ids);
	values[1] = PointerGetDatum(type);
	nulls[2] = row->taken.event_id == 0;
	values[2] = Int64GetDatum((int64) row->taken.event_id);
	nulls[3] = copy == NULL;
	values[3] = PointerGetDatum(copy);
	nulls[4] = batch->number == 0;
	values[4] = Int64GetDatum((int64) batch->number);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	pfree(ids);
	pfree(type);
	if (copy)
		pfree(copy);
	free_payload(row, payload);
}

static void
put_batch(ReturnSetInfo *rsinfo, const ReadBatch *batch, PutRow put)
{
	for (uint32 i = 0; i < batch->nrows; i++)
		put(rsinfo, batch, &batch->rows[i]);
}

/* The batch that is outstanding, as it was given before. */
static void
put_repeated(ReturnSetInfo *rsinfo, const ReadPoll *poll, PutRow put)
{
	ReadBatch	part;

	while (reader_repeat(poll, &part))
	{
		put_batch(rsinfo, &part, put);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Rows that are read now: counted, as they are in their subscriptions, whether
 * or not the reader gets them.  If it acknowledges, what ends in them stays
 * until it has.
 */
static void
put_new(ReturnSetInfo *rsinfo, const ReadPoll *poll, const ReadBatch *batch, PutRow put)
{
	int64		delivered = 0;

	for (uint32 i = 0; i < batch->nrows; i++)
		delivered += batch->rows[i].nids;
	count_delivered(delivered);
	put_batch(rsinfo, batch, put);
	if (!poll->acking)
		reader_forget_ended(poll->owner, batch);
}

/*
 * Rows until max, the bytes or the responses are used up; waits for the first
 * if there is none.
 */
static void
poll_rows(FunctionCallInfo fcinfo, bool shared, PutRow put)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const ReadBatch *batch;
	ReadPoll	poll;
	TimestampTz deadline;

	sd_require_preload();
	refuse_in_policy();
	get_poll_args(fcinfo, shared, &poll, &deadline);
	rows_begin(fcinfo);
	batch = reader_batch();
	do
	{
		CHECK_FOR_INTERRUPTS();
		if (!reader_poll(&poll))
		{
			put_repeated(rsinfo, &poll, put);
			break;
		}
		if (batch->nrows > 0)
		{
			put_new(rsinfo, &poll, batch, put);
			if (!poll.more)
				break;
		}
		else if (!poll.first || deadline == 0 ||
				 !reader_await_consumer(poll.owner, poll.consumer, deadline, true))
			break;
	} while (poll.max > 0 && poll.room > 0);
	reader_release();
}

Datum
subdispatch_poll(PG_FUNCTION_ARGS)
{
	poll_rows(fcinfo, false, put_poll_row);
	PG_RETURN_NULL();
}

Datum
subdispatch_poll_shared(PG_FUNCTION_ARGS)
{
	poll_rows(fcinfo, true, put_shared_row);
	PG_RETURN_NULL();
}

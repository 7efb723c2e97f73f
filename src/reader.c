/*-------------------------------------------------------------------------
 *
 * reader.c
 *	  Reading responses of one subscription, and waiting for them.
 *
 * Reading has three parts.  Under locks, references to what is to be read and
 * copies of a few strings are collected in a batch whose memory was allocated
 * before; no error can be raised meanwhile.  Then, holding no lock, the caller
 * composes messages from the batch.  At last the references are given back:
 * by reader_release(), or by the callbacks here if the caller failed.
 *
 * An empty subscription is found out without the stream's lock: its version
 * has not changed since somebody looked.  The id lock, in shared mode, is all
 * that such a read takes, and no dispatcher ever takes that one but to end a
 * subscription.
 *
 * Waiting: enter the wait point, look, sleep, look again.  The thing waited
 * for is looked up anew each time, so it may go away meanwhile.
 *
 * A consumer's subscriptions are read by consumer_read.c, in the same three
 * parts.
 *
 * Locks: an id lock shared, then the stream's lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "ack.h"
#include "reader_private.h"
#include "subscription.h"

ReadBatch  *read_batch = NULL;
static SdStream *pinned = NULL; /* see reader_pin() */

/* ---- the batch ---- */

/* Empties the batch: its bodies are given back. */
void
reader_clear(void)
{
	if (read_batch == NULL)
		return;
	while (read_batch->nrows > 0)
		body_unref(read_batch->rows[--read_batch->nrows].taken.body);
	read_batch->used = BATCH_FIRST;
}

void
reader_release(void)
{
	if (pinned)
		stream_unpin(pinned);
	pinned = NULL;
	reader_clear();
	ack_release();
	trash_empty();
}

ReadBatch *
reader_batch(void)
{
	shmem_attach();
	if (read_batch == NULL)
	{
		ReadBatch  *made = MemoryContextAllocZero(TopMemoryContext, sizeof(ReadBatch));

		made->rows = MemoryContextAlloc(TopMemoryContext, sizeof(ReadRow) * READ_ROWS);
		made->buf = MemoryContextAlloc(TopMemoryContext, READ_BYTES);
		made->used = BATCH_FIRST;
		read_batch = made;
	}
	reader_release();
	read_batch->max_rows = READ_ROWS;
	read_batch->max_bytes = READ_BYTES;
	read_batch->number = 0;
	return read_batch;
}

void
reader_stop_waiting(void)
{
	if (sd_shared && MyProc)
		sd_shared->slots[MyProc->pgprocno].waiting_on = NULL;
}

static void
at_xact_end(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_COMMIT)
	{
		reader_release();
		reader_stop_waiting();
	}
}

static void
at_subxact_end(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		reader_release();
		reader_stop_waiting();
	}
}

void
reader_init(void)
{
	RegisterXactCallback(at_xact_end, NULL);
	RegisterSubXactCallback(at_subxact_end, NULL);
}

ReadRow *
batch_add_row(SdSubscription *sub, const SdTaken *taken)
{
	ReadRow    *row = &read_batch->rows[read_batch->nrows++];
	const char *operation_id = sub->strings + sub->operation_id;

	row->taken = *taken;
	row->serial = sub->serial;
	row->id = batch_put_text(sub_id(sub), sub->id_len);
	row->ids_size = read_batch->used - row->id;
	row->connection = sub_connection(sub) ?
		batch_put_text(sub_connection(sub)->name, sub_connection(sub)->namelen) : 0;
	row->operation_id = batch_put_text(operation_id, sub->operation_id_len);
	row->operation_json = batch_put_bytes(sub->strings + sub->operation_json,
										  sub->operation_json_len);
	row->operation_json_len = sub->operation_json_len;
	row->nids = 1;
	row->shared = false;
	row->omit_null_errors = subdispatch_omit_null_errors;
	return row;
}

void
reader_no_such(const char *what, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("%s \"%s\" does not exist", what, name)));
}

/* ---- waiting ---- */

/*
 * Waiting counts as polling, so the sleep is short enough for the caller to be
 * seen to look.
 */
bool
reader_sleep(ConditionVariable *cv, TimestampTz deadline, TimestampTz retry_at)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz idle = (TimestampTz) subdispatch_subscription_idle_timeout * SD_SECOND;
	TimestampTz until = Min(deadline, retry_at);
	long		ms;

	if (now >= deadline)
		return false;
	if (idle > 0)
		until = Min(until, now + idle / 4);
	ms = TimestampDifferenceMilliseconds(now, until);
	(void) ConditionVariableTimedSleep(cv, Max(ms, 1), PG_WAIT_EXTENSION);
	return true;
}

/* ---- one subscription ---- */

/*
 * Counts as polling it.  Reads up to max rows into the batch; with max = 0 only
 * looks.  *cv is where to wait for more.
 */
static Look
look_at(Oid owner, const char *id, int max, ConditionVariable **cv, TimestampTz *retry_at)
{
	TimestampTz now = GetCurrentTimestamp();
	LWLock	   *lock;
	SdSubscription *sub = subscription_lookup(owner, id, &lock);
	SdStream   *stream;
	uint64		version;
	Look		look = LOOK_NOTHING;
	SdTaken		taken;

	if (sub == NULL)
		return LOOK_MISSING;
	stream = sub_stream(sub);
	*cv = sd_wait_point(stream);
	pg_atomic_write_u64(&sub->last_polled, now);
	version = pg_atomic_read_u64(&stream->version);
	if (pg_atomic_read_u64(&sub->seen_version) == version)
	{
		LWLockRelease(lock);
		return LOOK_NOTHING;
	}

	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	if (max == 0)
		look = stream_readable(stream, sub, now, retry_at) ? LOOK_SOMETHING : LOOK_NOTHING;
	while (read_batch->nrows < (uint32) max && batch_has_room(sub) &&
		   stream_take(stream, sub, now, SIZE_MAX, &taken, retry_at) == SD_TAKE_ONE)
	{
		(void) batch_add_row(sub, &taken);
		look = LOOK_SOMETHING;
	}
	if (stream_drained(stream, sub))
		pg_atomic_write_u64(&sub->seen_version, pg_atomic_read_u64(&stream->version));
	LWLockRelease(&stream->lock);
	LWLockRelease(lock);
	trash_empty();
	return look;
}

/* Looks, and waits for something until the deadline (0: does not wait). */
static Look
look_or_wait(Oid owner, const char *id, int max, TimestampTz deadline)
{
	ConditionVariable *cv = NULL;
	TimestampTz retry_at = DT_NOEND;
	Look		look = look_at(owner, id, max, &cv, &retry_at);

	if (look != LOOK_NOTHING || deadline == 0)
		return look;
	ConditionVariablePrepareToSleep(cv);
	for (;;)
	{
		retry_at = DT_NOEND;
		look = look_at(owner, id, max, &cv, &retry_at);
		if (look != LOOK_NOTHING)
			break;
		if (!reader_sleep(cv, deadline, retry_at))
			break;
	}
	ConditionVariableCancelSleep();
	return look;
}

SdStream *
reader_pin(Oid owner, const char *id)
{
	LWLock	   *lock;
	SdSubscription *sub;

	(void) reader_batch();
	sub = subscription_lookup(owner, id, &lock);
	if (sub == NULL)
		reader_no_such("subscription", id);
	pinned = stream_pin(sub_stream(sub));
	LWLockRelease(lock);
	return pinned;
}

void
reader_read(Oid owner, const char *id, int max, TimestampTz deadline)
{
	(void) reader_batch();
	if (look_or_wait(owner, id, max, deadline) == LOOK_MISSING)
		reader_no_such("subscription", id);
}

bool
reader_await(Oid owner, const char *id, TimestampTz deadline)
{
	Look		look;

	(void) reader_batch();
	look = look_or_wait(owner, id, 0, deadline);
	if (look == LOOK_MISSING)
		reader_no_such("subscription", id);
	return look == LOOK_SOMETHING;
}

void
reader_forget_ended(Oid owner, const ReadBatch *batch)
{
	for (uint32 i = 0; i < batch->nrows; i++)
		if (batch->rows[i].taken.end != SD_END_NONE)
			subscription_forget(owner, TextDatumGetCString(batch_text(batch, batch->rows[i].id)),
								batch->rows[i].serial);
}

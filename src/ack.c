/*-------------------------------------------------------------------------
 *
 * ack.c
 *	  Outstanding batches: what a consumer was given and has not acknowledged.
 *
 * A consumer that is polled with an acknowledgement has at most one batch
 * outstanding.  What is put into it is taken from the streams under the same
 * locks, into memory that was reserved before: at any moment a response is
 * either queued or outstanding, whatever happens to the reader.
 *
 * One call may fill a batch in several turns, with its locks released between
 * them.  Until then the batch is open; whoever else is to be given it closes
 * it, and the call that was filling it stops with what it has.  So a number
 * stands for the same rows for everybody, also if the call failed half way.
 *
 * A batch is a copy: it does not change with the subscriptions it is about,
 * and refers to bodies only, which it has references of.  It is shared by the
 * consumer, the call that fills it and those that repeat it; the last one that
 * lets go frees it.
 *
 * Numbers rise and are microseconds since 1970 where possible, as those of
 * events: a consumer that is made anew, or a server that was restarted, uses
 * none again, so an acknowledgement that comes too late is found out.
 *
 * Locks: SdConsumer->outstanding, last_batch and acknowledged are guarded by
 * the consumer's reading lock, taken with registry_lock in shared mode, or by
 * registry_lock in exclusive mode.  No errors are raised.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/timestamp.h"

#include "ack.h"
#include "reader_private.h"
#include "subscription.h"

#define RESERVE_BYTES	(64 * 1024)	/* of one turn; less when memory is short */
#define RESERVE_LEAST	1024

/* What one turn has added.  Immutable. */
typedef struct SdBatchPart
{
	struct SdBatchPart *next;	/* set once, while the batch is open */
	uint32		nrows;
	uint32		used;			/* bytes of strings, which follow the rows */
	ReadRow		rows[FLEXIBLE_ARRAY_MEMBER];
} SdBatchPart;

typedef struct SdOutstanding
{
	pg_atomic_uint32 refs;		/* the consumer, processes */
	/* immutable */
	uint64		number;
	bool		shared;			/* made by poll_shared() */
	/* the consumer's reading lock */
	bool		open;			/* the call that made it may add to it */
	uint64		responses;		/* one for each subscription */
	SdBatchPart *first;
	SdBatchPart *last;
	/* of the process that dropped it: see ack_drop() */
	struct SdOutstanding *next_dropped;
} SdOutstanding;

/* All this is the process's own; given back by ack_release(), ack_free(). */
static SdOutstanding *filling = NULL;	/* by the call that is under way */
static SdOutstanding *held = NULL;	/* to be repeated, or acknowledged */
static SdBatchPart *next_part = NULL;	/* of what is held */
static SdOutstanding *dropped = NULL;

/* Memory for a turn; only between ack_reserve() and ack_append(). */
static SdOutstanding *reserved_batch = NULL;
static SdBatchPart *reserved_part = NULL;

/* ---- memory ---- */

static Size
part_size(uint32 nrows, uint32 used)
{
	return offsetof(SdBatchPart, rows) + nrows * sizeof(ReadRow) + used;
}

StaticAssertDecl(sizeof(ReadRow) == MAXALIGN(sizeof(ReadRow)), "strings must be aligned");

static char *
part_strings(SdBatchPart *part, uint32 nrows)
{
	return (char *) &part->rows[nrows];
}

static void
free_batch(SdOutstanding *batch)
{
	SdBatchPart *next;

	for (SdBatchPart *part = batch->first; part; part = next)
	{
		next = part->next;
		for (uint32 i = 0; i < part->nrows; i++)
			body_unref(part->rows[i].taken.body);
		sd_free(part);
	}
	sd_free(batch);
}

static void
let_go(SdOutstanding *batch)
{
	if (batch && pg_atomic_sub_fetch_u32(&batch->refs, 1) == 0)
		free_batch(batch);
}

static void
hold(SdOutstanding *batch)
{
	Assert(held == NULL);
	held = batch;
	next_part = batch->first;
}

void
ack_release(void)
{
	SdOutstanding *batch = held;

	held = NULL;
	next_part = NULL;
	let_go(batch);
	batch = filling;
	filling = NULL;
	let_go(batch);
	ack_free();
}

/* It is the consumer's no more. */
static void
uncount(SdConsumer *consumer, SdOutstanding *batch)
{
	pg_atomic_fetch_sub_u32(&consumer->db->nbatches, 1);
	pg_atomic_fetch_sub_u64(&consumer->db->noutstanding, batch->responses);
}

void
ack_drop(SdConsumer *consumer)
{
	SdOutstanding *batch = consumer->outstanding;

	Assert(LWLockHeldByMeInMode(&sd_shared->registry_lock, LW_EXCLUSIVE));
	consumer->outstanding = NULL;
	consumer->acknowledged = 0;
	if (batch == NULL)
		return;
	uncount(consumer, batch);
	batch->next_dropped = dropped;
	dropped = batch;
}

void
ack_free(void)
{
	while (dropped)
	{
		SdOutstanding *batch = dropped;

		dropped = batch->next_dropped;
		let_go(batch);
	}
}

/* ---- what a call is to do ---- */

AckTurn
ack_begin(SdConsumer *consumer, bool acking, int64 ack, bool shared, AckNumbers *numbers)
{
	SdOutstanding *batch = consumer->outstanding;

	Assert(LWLockHeldByMeInMode(&consumer->reading, LW_EXCLUSIVE));
	numbers->outstanding = batch ? batch->number : 0;
	numbers->acknowledged = consumer->acknowledged;
	if (batch == NULL)
		return !acking || ack == 0 || ack == (int64) consumer->acknowledged ? ACK_READ : ACK_WRONG;
	if (acking && ack == (int64) batch->number)
	{
		consumer->outstanding = NULL;
		consumer->acknowledged = batch->number;
		uncount(consumer, batch);
		hold(batch);			/* with the consumer's reference */
		return ACK_DONE;
	}
	if (acking && ack != 0 && ack != (int64) consumer->acknowledged)
		return ACK_WRONG;
	if (batch->shared != shared)
		return ACK_WRONG_FUNCTION;
	batch->open = false;
	pg_atomic_fetch_add_u32(&batch->refs, 1);
	hold(batch);
	return ACK_REPEAT;
}

AckTurn
ack_continue(SdConsumer *consumer)
{
	Assert(LWLockHeldByMeInMode(&consumer->reading, LW_EXCLUSIVE));
	return filling && filling == consumer->outstanding && filling->open ? ACK_READ : ACK_STOP;
}

/* ---- filling ---- */

bool
ack_reserve(int max)
{
	Size		size = RESERVE_BYTES;
	uint32		rows = Min(max, READ_ROWS);

	Assert(reserved_batch == NULL && reserved_part == NULL);
	if (filling == NULL)
	{
		reserved_batch = sd_alloc(SD_MEM_RESPONSE, sizeof(SdOutstanding));
		if (reserved_batch == NULL)
			return false;
	}
	/* Reading is what gives memory back: with little of it, read a little. */
	while ((reserved_part = sd_alloc(SD_MEM_RESPONSE, size)) == NULL && size > RESERVE_LEAST)
		size /= 2;
	if (reserved_part == NULL)
	{
		sd_free(reserved_batch);
		reserved_batch = NULL;
		return false;
	}
	/* At most half of it rows: they are less than the strings they need. */
	rows = Max(1, Min(rows, size / 2 / sizeof(ReadRow)));
	read_batch->max_rows = rows;
	read_batch->max_bytes = size - part_size(rows, 0);
	return true;
}

/* Copies the batch to where it stays: of the size that it turned out to have. */
static SdBatchPart *
make_part(void)
{
	uint32		nrows = read_batch->nrows;
	SdBatchPart *part = sd_alloc(SD_MEM_RESPONSE, part_size(nrows, read_batch->used));

	if (part == NULL)
	{
		part = reserved_part;
		reserved_part = NULL;
	}
	part->next = NULL;
	part->nrows = nrows;
	part->used = read_batch->used;
	memcpy(part->rows, read_batch->rows, nrows * sizeof(ReadRow));
	memcpy(part_strings(part, nrows), read_batch->buf, read_batch->used);
	for (uint32 i = 0; i < nrows; i++)
		if (part->rows[i].taken.body)
			pg_atomic_fetch_add_u32(&part->rows[i].taken.body->refs, 1);
	return part;
}

/* A new batch becomes the consumer's. */
static void
begin_batch(SdConsumer *consumer, bool shared)
{
	int64		now = GetCurrentTimestamp() +
		(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;

	Assert(consumer->outstanding == NULL);
	filling = reserved_batch;
	reserved_batch = NULL;
	consumer->last_batch = Max(consumer->last_batch + 1, (uint64) now);
	pg_atomic_init_u32(&filling->refs, 2);
	filling->number = consumer->last_batch;
	filling->shared = shared;
	filling->open = true;
	consumer->outstanding = filling;
	pg_atomic_fetch_add_u32(&consumer->db->nbatches, 1);
}

void
ack_append(SdConsumer *consumer, bool shared)
{
	if (read_batch->nrows > 0)
	{
		SdBatchPart *part = make_part();
		uint64		responses = 0;

		if (filling == NULL)
			begin_batch(consumer, shared);
		if (filling->last)
			filling->last->next = part;
		else
			filling->first = part;
		filling->last = part;
		for (uint32 i = 0; i < part->nrows; i++)
			responses += part->rows[i].nids;
		filling->responses += responses;
		pg_atomic_fetch_add_u64(&consumer->db->noutstanding, responses);
		read_batch->number = filling->number;
	}
	sd_free(reserved_part);
	reserved_part = NULL;
	sd_free(reserved_batch);
	reserved_batch = NULL;
}

/* ---- what is held, part by part ---- */

bool
ack_next_part(ReadBatch *part)
{
	if (next_part == NULL)
	{
		next_part = held ? held->first : NULL;
		return false;
	}
	memset(part, 0, sizeof(ReadBatch));
	part->nrows = next_part->nrows;
	part->used = next_part->used;
	part->number = held->number;
	part->rows = next_part->rows;
	part->buf = part_strings(next_part, next_part->nrows);
	next_part = next_part->next;
	return true;
}

uint64
ack_held_number(void)
{
	return held ? held->number : 0;
}

uint64
ack_number(SdConsumer *consumer)
{
	return consumer->outstanding ? consumer->outstanding->number : 0;
}

/* ---- for the views ---- */

void
ack_show(SdConsumer *consumer, uint64 *number, uint64 *responses)
{
	LWLockAcquire(&consumer->reading, LW_SHARED);
	*number = consumer->outstanding ? consumer->outstanding->number : 0;
	*responses = consumer->outstanding ? consumer->outstanding->responses : 0;
	LWLockRelease(&consumer->reading);
}

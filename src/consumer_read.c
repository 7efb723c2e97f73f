/*-------------------------------------------------------------------------
 *
 * consumer_read.c
 *	  Reading a consumer's subscriptions; consumer_wait.c waits for them.
 *
 * The links that may have something stand in the consumer's ready list and
 * take turns, so that none is starved; a link's turn gives one response of each
 * of its subscriptions that may have one.
 *
 * A call that reads much does so in turns of a batch each, and takes the locks
 * anew for each, and within a turn after READ_WORK.  What it reads with an
 * acknowledgement goes into the outstanding batch under these same locks
 * (ack.c): an error may come out between two turns, never within one.  So such
 * a turn ends where others only pause.
 *
 * Locks: registry_lock shared and the consumer's reading lock; then streams'
 * locks, then the consumer's mutex.  None is held while a call waits, composes
 * or raises an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

#include "ack.h"
#include "reader_private.h"
#include "subscription.h"

/* A turn's collecting, or a part of it; all of it under registry_lock in shared mode. */
typedef struct Turn
{
	ReadPoll   *poll;
	SdConsumer *consumer;
	ReadRound  *round;
	bool		full;			/* or, if the round is pausing, only for now */
	TimestampTz now;
	TimestampTz retry_at;		/* when a held back loss notice may be given */
	int			work;			/* while the locks are held */
	SdSharing	sharing;		/* poll_shared(): of the stream whose lock is held */
} Turn;

/*
 * The locks have been held for long enough.  What was read for an acknowledgement
 * must be outstanding before they are let go, so it has no more rows then.
 */
static void
stop_for_now(Turn *t)
{
	t->full = true;
	t->round->pausing = !t->poll->acking || read_batch->nrows == 0;
}

/* ---- taking responses ---- */

static Size
room_left(Turn *t)
{
	return t->poll->first && read_batch->nrows == 0 ? SIZE_MAX : t->poll->room;
}

static void
use_room(Turn *t, const SdBody *body)
{
	Size		len = body ? body->len : 0;

	t->poll->room -= Min(len, t->poll->room);
}

static bool
batch_full(Turn *t, SdSubscription *sub)
{
	return read_batch->nrows >= (uint32) t->poll->max || !batch_has_room(sub);
}

/* Do the strings of one more subscription fit that may join the last row? */
static bool
ids_fit(SdSubscription *sub)
{
	return read_batch->used + BATCH_TEXT_SIZE(sub->id_len) <= read_batch->max_bytes;
}

/*
 * Adds the subscription's id to the last row if that is for the same entry.
 * The ids of a row follow one another in buf, so only the last row can grow.
 */
static bool
join_row(Turn *t, SdStream *stream, SdSubscription *sub)
{
	ReadRow    *row = read_batch->nrows > 0 ? &read_batch->rows[read_batch->nrows - 1] : NULL;

	if (row == NULL || !row->shared || row->taken.body != t->sharing.entry->body ||
		!ids_fit(sub))
		return false;
	(void) batch_put_text(sub_id(sub), sub->id_len);
	row->ids_size = read_batch->used - row->id;
	row->nids++;
	stream_advance(stream, sub, &t->sharing);
	return true;
}

static bool
start_row(Turn *t, SdStream *stream, SdSubscription *sub)
{
	SdBody	   *body = t->sharing.entry->body;
	SdTaken		taken = {.body = body, .event_id = body->event_id};
	ReadRow    *row;

	if (body->len > room_left(t))
		return false;
	use_room(t, body);
	pg_atomic_fetch_add_u32(&body->refs, 1);
	row = &read_batch->rows[read_batch->nrows++];
	memset(row, 0, sizeof(ReadRow));
	row->taken = taken;
	row->id = batch_put_text(sub_id(sub), sub->id_len);
	row->ids_size = read_batch->used - row->id;
	row->nids = 1;
	row->shared = true;
	stream_advance(stream, sub, &t->sharing);
	return true;
}

/*
 * Takes one response of one subscription; false if nothing was taken.  A full
 * batch still lets subscriptions join its last row.
 */
static bool
poll_one(Turn *t, SdStream *stream, SdSubscription *sub)
{
	SdTaken		taken;

	if (t->poll->shared && stream_share(stream, sub, &t->sharing))
	{
		if (join_row(t, stream, sub) ||
			(!batch_full(t, sub) && start_row(t, stream, sub)))
			return true;
		t->full = true;
		return false;
	}
	if (batch_full(t, sub))
	{
		t->full = true;
		return false;
	}
	switch (stream_take(stream, sub, t->now, room_left(t), &taken, &t->retry_at))
	{
		case SD_TAKE_ONE:
			use_room(t, taken.body);
			(void) batch_add_row(sub, &taken);
			if (taken.end != SD_END_NONE)
				sub->end_held = t->poll->acking;
			return true;
		case SD_TAKE_TOO_LARGE:
			t->full = true;
			return false;
		case SD_TAKE_NOTHING:
			break;
	}
	return false;
}

/*
 * One turn of a link: each of its subscriptions that may have something gives
 * one response.  Returns whether some may still have one.
 */
static bool
poll_link(Turn *t, SdLink *link)
{
	SdStream   *stream = link_stream(link);
	SdList		again = {0};
	bool		more;

	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	memset(&t->sharing, 0, sizeof(SdSharing));
	link_settle(link);
	round_enter(t->round, link);
	t->work += READ_WORK_LINK;
	while (!t->full && round_go_on(t->round, link))
	{
		SdSubscription *sub = sd_list_container(SdSubscription, node, sd_list_first(&link->behind));

		(void) poll_one(t, stream, sub);
		if (t->full)
			break;
		t->round->nseen++;
		sd_list_remove(&link->behind, &sub->node);
		sd_list_push_tail(stream_drained(stream, sub) ? &link->current : &again, &sub->node);
		if (++t->work >= READ_WORK)
			stop_for_now(t);
	}
	sd_list_append_all(&link->behind, &again);
	more = !sd_list_is_empty(&link->behind);
	LWLockRelease(&stream->lock);
	return more;
}

/* Last words of ended subscriptions; the list itself stays as it is. */
static void
poll_ended(Turn *t)
{
	if (pg_atomic_read_u32(&t->consumer->nended) == 0)
		return;
	sd_list_foreach(node, &t->consumer->ended)
	{
		SdSubscription *sub = sd_list_container(SdSubscription, node, node);
		SdStream   *stream = sub_stream(sub);

		LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
		memset(&t->sharing, 0, sizeof(SdSharing));
		while (!t->full && poll_one(t, stream, sub))
			if ((t->work += READ_WORK_LINK) >= READ_WORK)
				stop_for_now(t);
		LWLockRelease(&stream->lock);
		if (t->full)
			return;
	}
}

/*
 * Links in their turn until the batch is full or none has anything.  A link
 * whose subscriptions only hold back a loss notice is visited once.
 */
static void
poll_ready(Turn *t)
{
	while (!t->full)
	{
		uint32		used = read_batch->used;
		bool		more;
		SdLink	   *link = ready_pop(t->consumer, t->round);

		if (link == NULL)
		{
			if (t->round->nidle == 0)
				pg_atomic_write_u64(&t->consumer->pending_since, 0);
			break;
		}
		more = poll_link(t, link);
		t->round->took |= read_batch->used > used;
		if (!more)
			continue;			/* it won't come round again */
		if (t->round->pausing)
			round_pause(t->round, t->consumer, link);
		else if (t->round->took || !t->full)
			round_had_turn(t->round, t->consumer, link);
		else
			ready_push_back(t->consumer, link);
	}
}

/* Nothing to read, as far as can be told at once? */
static bool
consumer_drained(SdConsumer *consumer)
{
	bool		drained;

	if (pg_atomic_read_u32(&consumer->nended) != 0)
		return false;
	SpinLockAcquire(&consumer->mutex);
	drained = sd_list_is_empty(&consumer->ready);
	SpinLockRelease(&consumer->mutex);
	return drained;
}

/*
 * Collects into the batch and, if the reader acknowledges, into what is
 * outstanding.  False when there is no memory for that; nothing is taken then.
 */
static bool
collect(Turn *t)
{
	bool		acking = t->poll->acking;

	if (acking && consumer_drained(t->consumer))
	{
		pg_atomic_write_u64(&t->consumer->pending_since, 0);
		return true;
	}
	if (acking && !ack_reserve(t->poll->max))
		return false;
	poll_ended(t);
	poll_ready(t);
	if (acking)
	{
		ack_append(t->consumer, t->poll->shared);
		/* Not even one row's strings fit into what could be had. */
		if (read_batch->nrows == 0 && t->full && !t->round->pausing && t->poll->first)
			return false;
	}
	return true;
}

/* ---- a call ---- */

static void
no_such_batch(const ReadPoll *poll, const AckNumbers *numbers)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("consumer \"%s\" has no batch " INT64_FORMAT " to acknowledge",
					poll->consumer, poll->ack),
			 numbers->outstanding ?
			 errdetail("Batch " UINT64_FORMAT " is outstanding.", numbers->outstanding) :
			 numbers->acknowledged ?
			 errdetail("No batch is outstanding; the last one, " UINT64_FORMAT ", was acknowledged.",
					   numbers->acknowledged) :
			 errdetail("No batch is outstanding."),
			 errhint("ack is the batch that was read last; 0 acknowledges nothing and gives the one that is outstanding, if there is one.")));
}

static void
wrong_function(const ReadPoll *poll, const AckNumbers *numbers)
{
	const char *other = poll->shared ? "poll" : "poll_shared";

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("batch " UINT64_FORMAT " of consumer \"%s\" is outstanding and was read with %s()",
					numbers->outstanding, poll->consumer, other),
			 errhint("Read it again with %s(), or acknowledge it with ack => " UINT64_FORMAT ".",
					 other, numbers->outstanding)));
}

/* What was held is acknowledged: nothing is left of what ended in it. */
static void
forget_acknowledged(Oid owner)
{
	ReadBatch	part;

	while (ack_next_part(&part))
		reader_forget_ended(owner, &part);
	ack_release();
}

/* What a turn, or what is left of one, is to do with the consumer that it found. */
static AckTurn
begin_turn(const ReadPoll *poll, bool goes_on, SdConsumer *consumer, AckNumbers *numbers)
{
	if (poll->acking && !poll->first)
		return ack_continue(consumer);
	if (goes_on)
		return consumer->outstanding ? ACK_STOP : ACK_READ;
	return poll->first ? ack_begin(consumer, poll->acking, poll->ack, poll->shared, numbers) : ACK_READ;
}

/*
 * One turn, or a part of it: the round tells whether it has begun before, and
 * then whether there is more for the same batch.  May fill the batch if it
 * returns ACK_READ.
 */
static AckTurn
take_some(ReadPoll *poll, ReadRound *round, bool *no_memory, AckNumbers *numbers)
{
	bool		goes_on = round->pausing;
	Turn		t = {
		.poll = poll, .round = round, .now = GetCurrentTimestamp(), .retry_at = DT_NOEND
	};
	AckTurn		what = ACK_STOP;

	round->pausing = false;
	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	t.consumer = consumer_lookup(poll->owner, poll->consumer);
	if (t.consumer)
	{
		pg_atomic_write_u64(&t.consumer->last_polled, t.now);
		LWLockAcquire(&t.consumer->reading, LW_EXCLUSIVE);
		what = begin_turn(poll, goes_on, t.consumer, numbers);
		if (what == ACK_READ)
			*no_memory = !collect(&t);
		LWLockRelease(&t.consumer->reading);
	}
	LWLockRelease(&sd_shared->registry_lock);
	trash_empty();
	poll->more = t.full;
	if (t.consumer == NULL && !goes_on)
		reader_no_such("consumer", poll->consumer);
	return what;
}

/*
 * One turn.  It lets the locks go after READ_WORK and goes on where it was, so
 * that a row of very many still is one.
 */
static AckTurn
take_turn(ReadPoll *poll, bool *no_memory, AckNumbers *numbers)
{
	ReadRound	round = {0};
	AckTurn		what = take_some(poll, &round, no_memory, numbers);

	while (round.pausing)
		(void) take_some(poll, &round, no_memory, numbers);
	return what;
}

bool
reader_poll(ReadPoll *poll)
{
	AckNumbers	numbers;
	bool		no_memory = false;
	AckTurn		what;

	reader_clear();
	while ((what = take_turn(poll, &no_memory, &numbers)) == ACK_DONE)
		forget_acknowledged(poll->owner);
	if (what == ACK_WRONG)
		no_such_batch(poll, &numbers);
	if (what == ACK_WRONG_FUNCTION)
		wrong_function(poll, &numbers);
	if (what == ACK_REPEAT)
		return false;
	/* What was read before is the batch then. */
	if (no_memory && poll->first)
		sd_out_of_shared_memory();
	if (read_batch->nrows > 0)
	{
		poll->first = false;
		poll->max -= read_batch->nrows;
	}
	return true;
}

/* Was given for the last time, to a reader that reads at most once. */
static void
acknowledge_held(const ReadPoll *poll)
{
	SdConsumer *consumer;
	uint64		number = ack_held_number();
	AckTurn		what = ACK_STOP;
	AckNumbers	numbers;

	ack_release();
	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	consumer = consumer_lookup(poll->owner, poll->consumer);
	if (consumer)
	{
		LWLockAcquire(&consumer->reading, LW_EXCLUSIVE);
		if (ack_number(consumer) == number)
			what = ack_begin(consumer, true, (int64) number, poll->shared, &numbers);
		LWLockRelease(&consumer->reading);
	}
	LWLockRelease(&sd_shared->registry_lock);
	if (what == ACK_DONE)
		forget_acknowledged(poll->owner);
}

bool
reader_repeat(const ReadPoll *poll, ReadBatch *part)
{
	if (ack_next_part(part))
		return true;
	if (!poll->acking)
		acknowledge_held(poll);
	return false;
}

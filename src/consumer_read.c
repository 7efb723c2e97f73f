/*-------------------------------------------------------------------------
 *
 * consumer_read.c
 *	  Reading a consumer's subscriptions, and waiting for any of them.
 *
 * The links that may have something stand in the consumer's ready list and
 * take turns, so that none is starved; a link's turn gives one response of each
 * of its subscriptions that may have one.
 *
 * A call that reads much does so in turns of a batch each, and takes the locks
 * anew for each.  What it reads with an acknowledgement goes into the
 * outstanding batch under these same locks (ack.c): an error may come out
 * between two turns, never within one.
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

/* One turn's collecting; all of it under registry_lock in shared mode. */
#define SEEN_PER_LOCK	256

typedef struct Turn
{
	ReadPoll   *poll;
	SdConsumer *consumer;
	bool		full;
	TimestampTz now;
	TimestampTz retry_at;		/* when a held back loss notice may be given */
	int			seen;			/* subscriptions, while the locks are held */
	bool		pausing;		/* full only for now: the locks are to be let go */
} Turn;

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
join_row(Turn *t, SdStream *stream, SdSubscription *sub, const SdEntry *entry)
{
	ReadRow    *row = read_batch->nrows > 0 ? &read_batch->rows[read_batch->nrows - 1] : NULL;

	if (row == NULL || !row->shared || row->taken.body != entry->body || !ids_fit(sub))
		return false;
	(void) batch_put_text(sub_id(sub), sub->id_len);
	row->ids_size = read_batch->used - row->id;
	row->nids++;
	stream_advance(stream, sub);
	return true;
}

static bool
start_row(Turn *t, SdStream *stream, SdSubscription *sub, const SdEntry *entry)
{
	SdTaken		taken = {.body = entry->body, .event_id = entry->body->event_id};
	ReadRow    *row;

	if (entry->body->len > room_left(t))
		return false;
	use_room(t, entry->body);
	pg_atomic_fetch_add_u32(&entry->body->refs, 1);
	row = &read_batch->rows[read_batch->nrows++];
	memset(row, 0, sizeof(ReadRow));
	row->taken = taken;
	row->id = batch_put_text(sub_id(sub), sub->id_len);
	row->ids_size = read_batch->used - row->id;
	row->nids = 1;
	row->shared = true;
	stream_advance(stream, sub);
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
	const SdEntry *entry = t->poll->shared ? stream_shared_entry(stream, sub) : NULL;

	if (entry)
	{
		if (join_row(t, stream, sub, entry) ||
			(!batch_full(t, sub) && start_row(t, stream, sub, entry)))
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
	link_settle(link);
	while (!t->full && !sd_list_is_empty(&link->behind))
	{
		SdSubscription *sub = sd_list_container(SdSubscription, node, sd_list_first(&link->behind));

		(void) poll_one(t, stream, sub);
		if (t->full)
			break;
		sd_list_remove(&link->behind, &sub->node);
		sd_list_push_tail(stream_drained(stream, sub) ? &link->current : &again, &sub->node);
		if (++t->seen == SEEN_PER_LOCK && !t->poll->acking)
			t->full = t->pausing = true;
	}
	sd_list_append_all(&link->behind, &again);
	more = !sd_list_is_empty(&link->behind);
	LWLockRelease(&stream->lock);
	return more;
}

static SdLink *
pop_ready(SdConsumer *consumer)
{
	SdLink	   *link = NULL;

	SpinLockAcquire(&consumer->mutex);
	if (!sd_list_is_empty(&consumer->ready))
	{
		link = sd_list_container(SdLink, ready_node, sd_list_pop_head(&consumer->ready));
		link->ready = false;
	}
	SpinLockRelease(&consumer->mutex);
	return link;
}

/* Back it goes: to the end if it had its turn, else to where it was. */
static void
push_ready(SdConsumer *consumer, SdLink *link, bool had_turn)
{
	SpinLockAcquire(&consumer->mutex);
	if (!link->ready)
	{
		if (had_turn)
			sd_list_push_tail(&consumer->ready, &link->ready_node);
		else
			sd_list_push_head(&consumer->ready, &link->ready_node);
		link->ready = true;
	}
	SpinLockRelease(&consumer->mutex);
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
		bool		took = true;

		LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
		while (took && !t->full)
			took = poll_one(t, stream, sub);
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
	SdLink	   *first_idle = NULL;

	while (!t->full)
	{
		uint32		used = read_batch->used;
		bool		took;
		SdLink	   *link = pop_ready(t->consumer);

		if (link == NULL)
		{
			pg_atomic_write_u64(&t->consumer->pending_since, 0);
			break;
		}
		if (!poll_link(t, link))
		{
			/* It won't come round again. */
			if (first_idle == link)
				first_idle = NULL;
			continue;
		}
		took = read_batch->used > used;
		push_ready(t->consumer, link, !t->pausing && (took || !t->full));
		if (took)
			first_idle = NULL;
		else if (first_idle == NULL)
			first_idle = link;
		else if (first_idle == link)
			break;
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
		if (read_batch->nrows == 0 && t->full && t->poll->first)
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

/*
 * One turn, or a part of it: *pausing tells that there is more for the same
 * batch, and then that this goes on.  May fill the batch if it returns ACK_READ.
 */
static AckTurn
take_some(ReadPoll *poll, bool *pausing, bool *no_memory, AckNumbers *numbers)
{
	bool		go_on = *pausing;
	Turn		t = {
		.poll = poll, .now = GetCurrentTimestamp(), .retry_at = DT_NOEND
	};
	AckTurn		what = ACK_STOP;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	t.consumer = consumer_lookup(poll->owner, poll->consumer);
	if (t.consumer)
	{
		pg_atomic_write_u64(&t.consumer->last_polled, t.now);
		LWLockAcquire(&t.consumer->reading, LW_EXCLUSIVE);
		if (go_on)
			what = t.consumer->outstanding ? ACK_STOP : ACK_READ;
		else if (poll->first)
			what = ack_begin(t.consumer, poll->acking, poll->ack, poll->shared, numbers);
		else
			what = poll->acking ? ack_continue(t.consumer) : ACK_READ;
		if (what == ACK_READ)
			*no_memory = !collect(&t);
		LWLockRelease(&t.consumer->reading);
	}
	LWLockRelease(&sd_shared->registry_lock);
	trash_empty();
	poll->more = t.full;
	*pausing = t.pausing;
	if (t.consumer == NULL && !go_on)
		reader_no_such("consumer", poll->consumer);
	return what;
}

/*
 * One turn.  It lets the locks go after SEEN_PER_LOCK subscriptions and goes on
 * where it was, so that a row of very many still is one.
 */
static AckTurn
take_turn(ReadPoll *poll, bool *no_memory, AckNumbers *numbers)
{
	bool		pausing = false;
	AckTurn		what = take_some(poll, &pausing, no_memory, numbers);

	while (pausing)
		(void) take_some(poll, &pausing, no_memory, numbers);
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

/* ---- waiting ---- */

/* Is anything of the link readable?  Moves those that have nothing away. */
static bool
link_readable(SdLink *link, TimestampTz now, TimestampTz *retry_at)
{
	SdStream   *stream = link_stream(link);
	SdListNode *node;
	SdListNode *next;
	bool		readable = false;

	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	link_settle(link);
	for (node = sd_list_first(&link->behind); node; node = next)
	{
		SdSubscription *sub = sd_list_container(SdSubscription, node, node);

		next = sd_list_next(&link->behind, node);
		readable = stream_readable(stream, sub, now, retry_at);
		if (readable)
			break;
		if (stream_drained(stream, sub))
		{
			sd_list_remove(&link->behind, &sub->node);
			sd_list_push_tail(&link->current, &sub->node);
		}
	}
	LWLockRelease(&stream->lock);
	return readable;
}

/*
 * Has any of the ended ones something?  Of those whose last message was read
 * just now there is nothing, until the reader forgets them.
 */
static bool
ended_readable(SdConsumer *consumer, TimestampTz now, TimestampTz *retry_at)
{
	if (pg_atomic_read_u32(&consumer->nended) == 0)
		return false;
	sd_list_foreach(node, &consumer->ended)
	{
		SdSubscription *sub = sd_list_container(SdSubscription, node, node);
		bool		readable;

		LWLockAcquire(&sub_stream(sub)->lock, LW_EXCLUSIVE);
		readable = stream_readable(sub_stream(sub), sub, now, retry_at);
		LWLockRelease(&sub_stream(sub)->lock);
		if (readable)
			return true;
	}
	return false;
}

/* Is any of the links in the ready list readable?  Takes their turns. */
static bool
ready_readable(SdConsumer *consumer, TimestampTz now, TimestampTz *retry_at)
{
	SdLink	   *first_idle = NULL;
	SdLink	   *link;

	while ((link = pop_ready(consumer)) != NULL)
	{
		TimestampTz held = DT_NOEND;
		bool		readable = link_readable(link, now, &held);

		*retry_at = Min(*retry_at, held);
		if (readable || held != DT_NOEND)
			push_ready(consumer, link, !readable);
		if (readable)
			return true;
		if (held == DT_NOEND)
		{
			/* It won't come round again. */
			if (first_idle == link)
				first_idle = NULL;
		}
		else if (first_idle == link)
			break;
		else if (first_idle == NULL)
			first_idle = link;
	}
	return false;
}

/*
 * Looks whether a consumer has anything to read.  A link that has nothing
 * leaves the ready list, but for held back notices.
 */
static Look
look_at_consumer(Oid owner, const char *name, ConditionVariable **cv, TimestampTz *retry_at)
{
	TimestampTz now = GetCurrentTimestamp();
	SdConsumer *consumer;
	Look		look = LOOK_MISSING;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	consumer = consumer_lookup(owner, name);
	if (consumer)
	{
		*cv = sd_wait_point(consumer);
		pg_atomic_write_u64(&consumer->last_polled, now);
		sd_shared->slots[MyProc->pgprocno].waiting_on = consumer;
		LWLockAcquire(&consumer->reading, LW_EXCLUSIVE);
		look = ack_number(consumer) != 0 || ended_readable(consumer, now, retry_at) ||
			ready_readable(consumer, now, retry_at) ? LOOK_SOMETHING : LOOK_NOTHING;
		LWLockRelease(&consumer->reading);
	}
	LWLockRelease(&sd_shared->registry_lock);
	return look;
}

bool
reader_await_consumer(Oid owner, const char *consumer, TimestampTz deadline)
{
	ConditionVariable *cv = NULL;
	TimestampTz retry_at = DT_NOEND;
	Look		look;

	(void) reader_batch();
	look = look_at_consumer(owner, consumer, &cv, &retry_at);
	if (look == LOOK_NOTHING)
	{
		ConditionVariablePrepareToSleep(cv);
		for (;;)
		{
			retry_at = DT_NOEND;
			look = look_at_consumer(owner, consumer, &cv, &retry_at);
			if (look != LOOK_NOTHING)
				break;
			if (!reader_sleep(cv, deadline, retry_at))
				break;
		}
		ConditionVariableCancelSleep();
	}
	reader_stop_waiting();
	if (look == LOOK_MISSING)
		reader_no_such("consumer", consumer);
	return look == LOOK_SOMETHING;
}

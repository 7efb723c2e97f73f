/*-------------------------------------------------------------------------
 *
 * reader.c
 *	  Reading responses, and waiting for them.
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
 * Locks: registry_lock shared and the consumer's reading lock, or an id lock
 * shared (one subscription); then streams' locks, then a consumer's mutex.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "reader.h"
#include "subscription.h"

static ReadBatch *batch = NULL;
static SdStream *pinned = NULL; /* see reader_pin() */

/* ---- the batch ---- */

void
reader_release(void)
{
	if (pinned)
		stream_unpin(pinned);
	pinned = NULL;
	if (batch == NULL)
		return;
	while (batch->nrows > 0)
		body_unref(batch->rows[--batch->nrows].taken.body);
	batch->used = 1;
}

ReadBatch *
reader_batch(void)
{
	shmem_attach();
	if (batch == NULL)
	{
		batch = MemoryContextAlloc(TopMemoryContext, sizeof(ReadBatch));
		batch->nrows = 0;
		batch->used = 1;
	}
	reader_release();
	return batch;
}

static void
stop_waiting(void)
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
		stop_waiting();
	}
}

static void
at_subxact_end(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		reader_release();
		stop_waiting();
	}
}

void
reader_init(void)
{
	RegisterXactCallback(at_xact_end, NULL);
	RegisterSubXactCallback(at_subxact_end, NULL);
}

static uint32
put(const char *s, Size len)
{
	uint32		at = batch->used;

	memcpy(batch->buf + at, s, len);
	batch->buf[at + len] = '\0';
	batch->used += len + 1;
	return at;
}

/* Will the next row's strings fit? */
static bool
has_room(SdSubscription *sub)
{
	Size		need = sub->id_len + 1 + SD_MAX_NAME + 2;

	need += 2 * (Size) (sub->operation_json_len + 1);
	return batch->nrows < READ_ROWS && batch->used + need <= READ_BYTES;
}

static ReadRow *
add_row(SdSubscription *sub, const SdTaken *taken)
{
	ReadRow    *row = &batch->rows[batch->nrows++];

	row->taken = *taken;
	row->serial = sub->serial;
	row->id = put(sub->strings, sub->id_len);
	row->connection = sub->connection ? put(sub->connection->name, sub->connection->namelen) : 0;
	row->operation_id = put(sub->strings + sub->operation_id, sub->operation_id_len);
	row->operation_json = put(sub->strings + sub->operation_json, sub->operation_json_len);
	row->operation_json_len = sub->operation_json_len;
	row->nids = 1;
	row->shared = false;
	return row;
}

static void
no_such(const char *what, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("%s \"%s\" does not exist", what, name)));
}

/* ---- waiting ---- */

/*
 * Sleeps at a wait point that was entered before, until it is woken, retry_at
 * or the deadline; false when that has passed.  Waiting counts as polling, so
 * the sleep is short enough for the caller to be seen to look.
 */
static bool
sleep_until(ConditionVariable *cv, TimestampTz deadline, TimestampTz retry_at)
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

typedef enum Look
{
	LOOK_MISSING,
	LOOK_NOTHING,
	LOOK_SOMETHING
} Look;

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
	stream = sub->stream;
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
	while (batch->nrows < max && has_room(sub) &&
		   stream_take(stream, sub, now, SIZE_MAX, &taken, retry_at) == SD_TAKE_ONE)
	{
		(void) add_row(sub, &taken);
		look = LOOK_SOMETHING;
	}
	if (stream_drained(stream, sub))
		pg_atomic_write_u64(&sub->seen_version, pg_atomic_read_u64(&stream->version));
	LWLockRelease(&stream->lock);
	LWLockRelease(lock);
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
		if (!sleep_until(cv, deadline, retry_at))
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
		no_such("subscription", id);
	pinned = stream_pin(sub->stream);
	LWLockRelease(lock);
	return pinned;
}

void
reader_read(Oid owner, const char *id, int max, TimestampTz deadline)
{
	(void) reader_batch();
	if (look_or_wait(owner, id, max, deadline) == LOOK_MISSING)
		no_such("subscription", id);
}

bool
reader_await(Oid owner, const char *id, TimestampTz deadline)
{
	Look		look;

	(void) reader_batch();
	look = look_or_wait(owner, id, 0, deadline);
	if (look == LOOK_MISSING)
		no_such("subscription", id);
	return look == LOOK_SOMETHING;
}

/* ---- a consumer's subscriptions ---- */

/* One call's collecting; all of it under registry_lock in shared mode. */
typedef struct Poll
{
	SdConsumer *consumer;
	int			max;			/* rows */
	Size	   *room;			/* bytes of payload left */
	bool		first;			/* no row yet: one of any size goes through */
	bool		shared;
	bool		full;
	TimestampTz now;
	TimestampTz retry_at;		/* when a held back loss notice may be given */
} Poll;

static Size
room_left(Poll *p)
{
	return p->first && batch->nrows == 0 ? SIZE_MAX : *p->room;
}

static void
use_room(Poll *p, const SdBody *body)
{
	Size		len = body ? body->len : 0;

	*p->room -= Min(len, *p->room);
}

static bool
batch_full(Poll *p, SdSubscription *sub)
{
	return batch->nrows >= p->max || !has_room(sub);
}

/* Do the strings of one more subscription fit that may join the last row? */
static bool
ids_fit(SdSubscription *sub)
{
	return batch->used + sub->id_len + 1 <= READ_BYTES;
}

/*
 * Adds the subscription's id to the last row if that is for the same entry.
 * The ids of a row follow one another in buf, so only the last row can grow.
 */
static bool
join_row(Poll *p, SdStream *stream, SdSubscription *sub, const SdEntry *entry)
{
	ReadRow    *row = batch->nrows > 0 ? &batch->rows[batch->nrows - 1] : NULL;

	if (row == NULL || !row->shared || row->taken.body != entry->body ||
		row->taken.event_id != entry->event_id || !ids_fit(sub))
		return false;
	(void) put(sub->strings, sub->id_len);
	row->nids++;
	stream_advance(stream, sub);
	return true;
}

static bool
start_row(Poll *p, SdStream *stream, SdSubscription *sub, const SdEntry *entry)
{
	SdTaken		taken = {.body = entry->body, .event_id = entry->event_id};
	ReadRow    *row;

	if (entry->body->len > room_left(p))
		return false;
	use_room(p, entry->body);
	pg_atomic_fetch_add_u32(&entry->body->refs, 1);
	row = &batch->rows[batch->nrows++];
	memset(row, 0, sizeof(ReadRow));
	row->taken = taken;
	row->id = put(sub->strings, sub->id_len);
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
poll_one(Poll *p, SdStream *stream, SdSubscription *sub)
{
	SdTaken		taken;
	const SdEntry *entry = p->shared ? stream_shared_entry(stream, sub) : NULL;

	if (entry)
	{
		if (join_row(p, stream, sub, entry) ||
			(!batch_full(p, sub) && start_row(p, stream, sub, entry)))
			return true;
		p->full = true;
		return false;
	}
	if (batch_full(p, sub))
	{
		p->full = true;
		return false;
	}
	switch (stream_take(stream, sub, p->now, room_left(p), &taken, &p->retry_at))
	{
		case SD_TAKE_ONE:
			use_room(p, taken.body);
			(void) add_row(sub, &taken);
			return true;
		case SD_TAKE_TOO_LARGE:
			p->full = true;
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
poll_link(Poll *p, SdLink *link)
{
	SdStream   *stream = link->stream;
	dlist_head	again;
	bool		more;

	dlist_init(&again);
	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	while (!p->full && !dlist_is_empty(&link->behind))
	{
		SdSubscription *sub = dlist_head_element(SdSubscription, node, &link->behind);

		(void) poll_one(p, stream, sub);
		if (p->full)
			break;
		dlist_delete(&sub->node);
		dlist_push_tail(stream_drained(stream, sub) ? &link->current : &again, &sub->node);
	}
	dlist_append_all(&link->behind, &again);
	more = !dlist_is_empty(&link->behind);
	LWLockRelease(&stream->lock);
	return more;
}

static SdLink *
pop_ready(SdConsumer *consumer)
{
	SdLink	   *link = NULL;

	SpinLockAcquire(&consumer->mutex);
	if (!dlist_is_empty(&consumer->ready))
	{
		link = dlist_container(SdLink, ready_node, dlist_pop_head_node(&consumer->ready));
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
			dlist_push_tail(&consumer->ready, &link->ready_node);
		else
			dlist_push_head(&consumer->ready, &link->ready_node);
		link->ready = true;
	}
	SpinLockRelease(&consumer->mutex);
}

/* Last words of ended subscriptions; the list itself stays as it is. */
static void
poll_ended(Poll *p)
{
	dlist_iter	iter;

	if (pg_atomic_read_u32(&p->consumer->nended) == 0)
		return;
	dlist_foreach(iter, &p->consumer->ended)
	{
		SdSubscription *sub = dlist_container(SdSubscription, node, iter.cur);
		SdStream   *stream = sub->stream;
		bool		took = true;

		LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
		while (took && !p->full)
			took = poll_one(p, stream, sub);
		LWLockRelease(&stream->lock);
		if (p->full)
			return;
	}
}

/*
 * Links in their turn until the batch is full or none has anything.  A link
 * whose subscriptions only hold back a loss notice is visited once.
 */
static void
poll_ready(Poll *p)
{
	SdLink	   *first_idle = NULL;

	while (!p->full)
	{
		uint32		used = batch->used;
		bool		took;
		SdLink	   *link = pop_ready(p->consumer);

		if (link == NULL)
		{
			pg_atomic_write_u64(&p->consumer->pending_since, 0);
			break;
		}
		if (!poll_link(p, link))
		{
			/* It won't come round again. */
			if (first_idle == link)
				first_idle = NULL;
			continue;
		}
		took = batch->used > used;
		push_ready(p->consumer, link, took || !p->full);
		if (took)
			first_idle = NULL;
		else if (first_idle == NULL)
			first_idle = link;
		else if (first_idle == link)
			break;
	}
}

static Look
poll_locked(Oid owner, const char *name, Poll *p)
{
	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	p->consumer = consumer_lookup(owner, name);
	if (p->consumer)
	{
		pg_atomic_write_u64(&p->consumer->last_polled, p->now);
		LWLockAcquire(&p->consumer->reading, LW_EXCLUSIVE);
		poll_ended(p);
		poll_ready(p);
		LWLockRelease(&p->consumer->reading);
	}
	LWLockRelease(&sd_shared->registry_lock);
	return p->consumer ? LOOK_NOTHING : LOOK_MISSING;
}

void
reader_poll(Oid owner, const char *consumer, int max, Size *room, bool first, bool shared)
{
	Poll		p = {
		.max = max, .room = room, .first = first, .shared = shared,
		.now = GetCurrentTimestamp(), .retry_at = DT_NOEND
	};

	(void) reader_batch();
	if (poll_locked(owner, consumer, &p) == LOOK_MISSING)
		no_such("consumer", consumer);
}

/* Is anything of the link readable?  Moves those that have nothing away. */
static bool
link_readable(SdLink *link, TimestampTz now, TimestampTz *retry_at)
{
	SdStream   *stream = link->stream;
	dlist_mutable_iter iter;
	bool		readable = false;

	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	dlist_foreach_modify(iter, &link->behind)
	{
		SdSubscription *sub = dlist_container(SdSubscription, node, iter.cur);

		readable = stream_readable(stream, sub, now, retry_at);
		if (readable)
			break;
		if (stream_drained(stream, sub))
		{
			dlist_delete(&sub->node);
			dlist_push_tail(&link->current, &sub->node);
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
	dlist_iter	iter;

	if (pg_atomic_read_u32(&consumer->nended) == 0)
		return false;
	dlist_foreach(iter, &consumer->ended)
	{
		SdSubscription *sub = dlist_container(SdSubscription, node, iter.cur);
		bool		readable;

		LWLockAcquire(&sub->stream->lock, LW_EXCLUSIVE);
		readable = stream_readable(sub->stream, sub, now, retry_at);
		LWLockRelease(&sub->stream->lock);
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
look_at_consumer(Oid owner, const char *name, ConditionVariable **cv, uint64 *version,
				 TimestampTz *retry_at)
{
	TimestampTz now = GetCurrentTimestamp();
	SdConsumer *consumer;
	Look		look = LOOK_MISSING;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	consumer = consumer_lookup(owner, name);
	if (consumer)
	{
		*cv = sd_wait_point(consumer);
		*version = pg_atomic_read_u64(&consumer->version);
		pg_atomic_write_u64(&consumer->last_polled, now);
		sd_shared->slots[MyProc->pgprocno].waiting_on = consumer;
		LWLockAcquire(&consumer->reading, LW_EXCLUSIVE);
		look = ended_readable(consumer, now, retry_at) ||
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
	uint64		version;
	Look		look;

	(void) reader_batch();
	look = look_at_consumer(owner, consumer, &cv, &version, &retry_at);
	if (look == LOOK_NOTHING)
	{
		ConditionVariablePrepareToSleep(cv);
		for (;;)
		{
			retry_at = DT_NOEND;
			look = look_at_consumer(owner, consumer, &cv, &version, &retry_at);
			if (look != LOOK_NOTHING)
				break;
			if (!sleep_until(cv, deadline, retry_at))
				break;
		}
		ConditionVariableCancelSleep();
	}
	stop_waiting();
	if (look == LOOK_MISSING)
		no_such("consumer", consumer);
	return look == LOOK_SOMETHING;
}

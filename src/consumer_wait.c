/*-------------------------------------------------------------------------
 *
 * consumer_wait.c
 *	  Waiting until a consumer has something to read, and the turns that its
 *	  links take in its ready list, which consumer_read.c needs too.
 *
 * A look at a consumer takes the locks anew after READ_WORK, as reading does.
 *
 * Locks: registry_lock shared and the consumer's reading lock; then streams'
 * locks, then the consumer's mutex.  None is held while a call waits or raises
 * an error.
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

/* ---- the ready list ---- */

SdLink *
ready_pop(SdConsumer *consumer, const ReadRound *round)
{
	SdLink	   *link = NULL;

	SpinLockAcquire(&consumer->mutex);
	if (consumer->nready > round->nidle)
	{
		link = sd_list_container(SdLink, ready_node, sd_list_pop_head(&consumer->ready));
		link->ready = false;
		consumer->nready--;
	}
	SpinLockRelease(&consumer->mutex);
	return link;
}

static void
push(SdConsumer *consumer, SdLink *link, void (*where) (SdList *list, SdListNode *node))
{
	SpinLockAcquire(&consumer->mutex);
	if (!link->ready)
	{
		where(&consumer->ready, &link->ready_node);
		link->ready = true;
		consumer->nready++;
	}
	SpinLockRelease(&consumer->mutex);
}

void
ready_push_back(SdConsumer *consumer, SdLink *link)
{
	push(consumer, link, sd_list_push_head);
}

void
round_pause(ReadRound *round, SdConsumer *consumer, SdLink *link)
{
	ready_push_back(consumer, link);
	round->link = link;
}

void
round_had_turn(ReadRound *round, SdConsumer *consumer, SdLink *link)
{
	push(consumer, link, sd_list_push_tail);
	round->nidle = round->took ? 0 : round->nidle + 1;
}

/* ---- waiting ---- */

/* A look at a consumer, or a part of it. */
typedef struct Looking
{
	ReadRound	round;
	TimestampTz now;
	TimestampTz *retry_at;		/* when the first held back loss notice may be given */
	int			work;			/* while the locks are held */
} Looking;

/* Is anything of the link readable?  Moves those that have nothing away. */
static bool
link_readable(Looking *l, SdLink *link)
{
	SdStream   *stream = link_stream(link);
	SdList		again = {0};
	bool		readable = false;

	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	link_settle(link);
	round_enter(&l->round, link);
	l->work += READ_WORK_LINK;
	while (l->work < READ_WORK && round_go_on(&l->round, link))
	{
		SdSubscription *sub = sd_list_container(SdSubscription, node, sd_list_first(&link->behind));
		TimestampTz held = DT_NOEND;

		readable = stream_readable(stream, sub, l->now, &held);
		if (readable)
			break;
		*l->retry_at = Min(*l->retry_at, held);
		l->round.held |= held != DT_NOEND;
		l->round.nseen++;
		l->work++;
		sd_list_remove(&link->behind, &sub->node);
		sd_list_push_tail(stream_drained(stream, sub) ? &link->current : &again, &sub->node);
	}
	l->round.pausing = !readable && round_go_on(&l->round, link);
	sd_list_append_all(&link->behind, &again);
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

/*
 * Is any of the links in the ready list readable?  Takes their turns.  A link
 * that has nothing leaves the list, but for held back notices.
 */
static bool
ready_readable(Looking *l, SdConsumer *consumer)
{
	SdLink	   *link;

	while (l->work < READ_WORK && (link = ready_pop(consumer, &l->round)) != NULL)
	{
		if (link_readable(l, link))
		{
			ready_push_back(consumer, link);
			return true;
		}
		if (l->round.pausing)
			round_pause(&l->round, consumer, link);
		else if (l->round.held)
			round_had_turn(&l->round, consumer, link);
	}
	l->round.pausing = l->work >= READ_WORK;
	return false;
}

/* A part of a look; the round tells whether there is more to look at. */
static Look
look_at_some(Looking *l, Oid owner, const char *name, ConditionVariable **cv)
{
	SdConsumer *consumer;
	Look		look = LOOK_MISSING;

	l->work = 0;
	l->round.pausing = false;
	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	consumer = consumer_lookup(owner, name);
	if (consumer)
	{
		*cv = sd_wait_point(consumer);
		pg_atomic_write_u64(&consumer->last_polled, l->now);
		sd_shared->slots[MyProc->pgprocno].waiting_on = consumer;
		LWLockAcquire(&consumer->reading, LW_EXCLUSIVE);
		look = ack_number(consumer) != 0 || ended_readable(consumer, l->now, l->retry_at) ||
			ready_readable(l, consumer) ? LOOK_SOMETHING : LOOK_NOTHING;
		LWLockRelease(&consumer->reading);
	}
	LWLockRelease(&sd_shared->registry_lock);
	return look;
}

/* Looks whether a consumer has anything to read. */
static Look
look_at_consumer(Oid owner, const char *name, ConditionVariable **cv, TimestampTz *retry_at)
{
	Looking		l = {.now = GetCurrentTimestamp(), .retry_at = retry_at};
	Look		look = look_at_some(&l, owner, name, cv);

	while (look == LOOK_NOTHING && l.round.pausing)
		look = look_at_some(&l, owner, name, cv);
	return look;
}

/*
 * Who was woken and reads at once finds out by that whether there is something:
 * to look before would only hold it up.
 */
bool
reader_await_consumer(Oid owner, const char *consumer, TimestampTz deadline, bool reads)
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
			if (reads)
			{
				look = LOOK_SOMETHING;
				break;
			}
		}
		ConditionVariableCancelSleep();
	}
	reader_stop_waiting();
	if (look == LOOK_MISSING)
		reader_no_such("consumer", consumer);
	return look == LOOK_SOMETHING;
}

/*-------------------------------------------------------------------------
 *
 * resume.c
 *	  Subscriptions that go on after an event, until they have caught up.
 *
 * subscribe(..., after_event) makes a subscription of its stream that does not
 * read the stream's ring yet.  The channel's dispatcher, who alone writes to
 * the stream, replays the events after that one out of its history, or what
 * Redis still has of them (catchup.c, backfill.c), into a small queue of the subscription's own, and goes on when that was read:
 * a replay never overflows, it goes at its reader's pace.  When the next event
 * would be one that the stream is still to get, the subscription joins the
 * stream at its head: nothing is missed there and nothing comes twice.  What
 * its queue holds then is read first.
 *
 * Losses are kept with the entries, in their place.  A gap that the channel is
 * told of meanwhile is told at the next entry.
 *
 * The dispatcher refers to resumes by a reference of its own, so they may go
 * at any time.
 *
 * Locks: the stream's lock, held by the caller; SdHistory->lock inside of it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "bus.h"
#include "history.h"
#include "resume.h"
#include "stream_private.h"

/* So far the replay runs ahead of the reader. */
#define AHEAD			64

/* ---- memory ---- */

SdResume *
resume_make(uint64 after, uint32 max_pending, uint64 max_bytes)
{
	uint32		size = Min(max_pending, AHEAD);
	SdResume   *r = sd_alloc(SD_MEM_SUBSCRIPTION,
							 offsetof(SdResume, entries) + size * sizeof(SdReplayed));

	if (r == NULL)
		return NULL;
	pg_atomic_init_u32(&r->refs, 1);
	r->after = after;
	r->size = size;
	r->max_bytes = max_bytes;
	return r;
}

static SdReplayed *
entry(SdResume *r, uint32 i)
{
	return &r->entries[(r->first + i) % r->size];
}

void
resume_unref(SdResume *r)
{
	if (pg_atomic_sub_fetch_u32(&r->refs, 1) != 0)
		return;
	for (uint32 i = 0; i < r->n; i++)
		body_unref(entry(r, i)->body);
	if (r->stream)
		stream_unpin(r->stream);
	sd_free(r);
}

/* ---- the dispatcher's list ---- */

static SdHistory *
history_of(SdResume *r)
{
	SdChannel  *channel = stream_channel(r->stream);

	return &channel->db->dispatchers[channel->dispatcher].history;
}

static void
enter_list(SdResume *r)
{
	SdHistory  *h = history_of(r);

	LWLockAcquire(&h->lock, LW_EXCLUSIVE);
	dlist_push_tail(&h->resuming, &r->node);
	h->nresuming++;
	pg_atomic_fetch_add_u32(&h->resume_changes, 1);
	LWLockRelease(&h->lock);
}

static void
leave_list(SdResume *r)
{
	SdHistory  *h = history_of(r);

	LWLockAcquire(&h->lock, LW_EXCLUSIVE);
	dlist_delete(&r->node);
	h->nresuming--;
	pg_atomic_fetch_add_u32(&h->resume_changes, 1);
	LWLockRelease(&h->lock);
}

/* ---- beginning ---- */

void
resume_check(SdDatabase *db, int64 after)
{
	uint64		last;

	if (after < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("after_event must not be negative: %lld", (long long) after)));
	if (bus_skip_ids(db, (uint64) after, &last))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("after_event %lld is not the id of an event", (long long) after),
			 errdetail("The last id that was given is %llu.", (unsigned long long) last)));
}

void
resume_enter(SdStream *stream, SdSubscription *sub, SdResume *r)
{
	Assert(LWLockHeldByMeInMode(&stream->lock, LW_EXCLUSIVE));
	r->stream = stream_pin(stream);
	r->sub = sub;
	r->running = true;
	r->gaps_seen = stream->gaps;
	sub->resume = sd_ref(r);
	sub->lost_seen = stream->lost;
	sub->gaps_seen = stream->gaps;
	sub->limited_from = stream->limited;
	r->behind = r->after < pg_atomic_read_u64(&stream_channel(stream)->kept_from);
	enter_list(r);
}

/* ---- what is lost ---- */

void
resume_note_gap(SdResume *r)
{
	r->gap = true;
	r->sub->dropped++;
	stream_count_dropped(r->stream, 1);
}

static void
tell(SdSubscription *sub, uint32 lost, bool gap)
{
	sub->untold.count += lost;
	sub->untold.unknown |= gap;
}

/* Takes over what the channel was told of meanwhile. */
static void
collect_gaps(SdResume *r)
{
	if (r->gaps_seen == r->stream->gaps || r->behind)
		return;
	r->gaps_seen = r->stream->gaps;
	resume_note_gap(r);
}

/* ---- the end of the run ---- */

/* There is nothing of it left when it doesn't run and is empty. */
static void
free_if_done(SdSubscription *sub)
{
	SdResume   *r = sub_resume(sub);

	if (r->running || r->n > 0)
		return;
	tell(sub, r->lost, r->gap);
	sub->resume = 0;
	r->sub = NULL;
	resume_unref(r);
}

void
resume_stop(SdStream *stream, SdSubscription *sub)
{
	SdResume   *r = sub_resume(sub);

	Assert(LWLockHeldByMeInMode(&stream->lock, LW_EXCLUSIVE));
	Assert(r->running);
	collect_gaps(r);
	r->running = false;
	leave_list(r);
	sub->detached_at = stream->head;
	sub->lost_seen = stream->lost;
	sub->gaps_seen = stream->gaps;
	stream->ndetached++;
	free_if_done(sub);
}

void
resume_join(SdResume *r)
{
	SdSubscription *sub = r->sub;

	Assert(LWLockHeldByMeInMode(&r->stream->lock, LW_EXCLUSIVE));
	Assert(r->running);
	collect_gaps(r);
	r->running = false;
	leave_list(r);
	stream_attach(r->stream, sub);
	free_if_done(sub);
}

void
resume_drop(SdSubscription *sub)
{
	SdResume   *r = sub_resume(sub);

	if (r == NULL)
		return;
	Assert(!r->running);
	sub->resume = 0;
	r->sub = NULL;
	resume_unref(r);
}

/* ---- the queue ---- */

void
resume_push(SdResume *r, SdBody *body)
{
	SdReplayed *e;

	collect_gaps(r);
	if (body == NULL)
	{
		r->lost++;
		r->sub->dropped++;
		stream_count_dropped(r->stream, 1);
		return;
	}
	Assert(r->n < r->size);
	e = entry(r, r->n++);
	e->body = body_ref(body);
	e->lost = r->lost;
	e->gap = r->gap;
	r->lost = 0;
	r->gap = false;
	r->bytes += body->len;
}

SdReplayed *
resume_first(SdSubscription *sub)
{
	SdReplayed *e = entry(sub_resume(sub), 0);

	tell(sub, e->lost, e->gap);
	e->lost = 0;
	e->gap = false;
	return e;
}

/* The body was handed on, or given back. */
void
resume_pop(SdSubscription *sub)
{
	SdResume   *r = sub_resume(sub);

	r->bytes -= entry(r, 0)->body->len;	/* whose reference is the caller's */
	entry(r, 0)->body = NULL;
	r->first = (r->first + 1) % r->size;
	r->n--;
	if (r->full && !resume_is_full(r))
	{
		r->full = false;
		database_wake(stream_channel(r->stream)->db, stream_channel(r->stream)->dispatcher);
	}
	free_if_done(sub);
}

/* They are older than what the ring has. */
void
resume_make_room(SdSubscription *sub, uint64 ring_n, uint64 ring_bytes, bool ring_lost)
{
	while (sub_resume(sub) && sub_resume(sub)->n > 0 &&
		   (ring_lost || sub_resume(sub)->n + ring_n > sub->max_pending ||
			(sub_resume(sub)->n + ring_n > 1 && sub_resume(sub)->bytes + ring_bytes > sub->max_pending_bytes)))
	{
		SdBody	   *body = resume_first(sub)->body;

		cursor_note_loss(sub, 1, 0);
		stream_count_dropped(sub_stream(sub), 1);
		resume_pop(sub);
		body_unref(body);
	}
}

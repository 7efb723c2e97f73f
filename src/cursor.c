/*-------------------------------------------------------------------------
 *
 * cursor.c
 *	  A subscription's place in its stream: cursor, private queue, losses.
 *
 * While attached, a subscription reads the stream's ring at its cursor.  Once
 * detached (it overflowed with drop_newest, or ended) it reads a private queue
 * of what it had pending.  Losses are settled whenever somebody looks: what the
 * ring gave up, what max_pending makes it skip, what the stream lost.
 *
 * Locks: every function is called with the stream's lock held, exclusively
 * except where only the views need it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "resume.h"
#include "stream_private.h"

/* The subscription has passed entry n, or will never read it. */
static void
pass(SdStream *stream, uint64 n)
{
	SdEntry    *entry = ENTRY(stream, n);

	Assert(entry->remaining > 0);
	if (--entry->remaining == 0)
		entry_drop(entry);
}

void
cursor_note_loss(SdSubscription *sub, uint64 lost, uint64 gaps)
{
	if (lost == 0 && gaps == 0)
		return;
	sub->untold.count += lost;
	sub->untold.unknown |= gaps > 0;
	sub->dropped += lost + gaps;
}

/*
 * What is dropped is counted when it is certain that it is, which is mostly
 * long before the subscription looks.
 */
void
stream_count_dropped(SdStream *stream, uint64 n)
{
	if (n > 0)
		stats_add(&stream_channel(stream)->db->stats, SD_STAT_RESPONSES_DROPPED, n);
}

/* Takes over what the stream had lost by the time of an entry, or by now. */
static void
collect_loss(SdSubscription *sub, uint64 lost, uint32 gaps)
{
	cursor_note_loss(sub, lost - sub->lost_seen, (uint32) (gaps - sub->gaps_seen));
	sub->lost_seen = lost;
	sub->gaps_seen = gaps;
}

/* Moves an attached cursor over what its own limits make it lose. */
static void
settle_drop_oldest(SdStream *stream, SdSubscription *sub)
{
	uint64		from = Max(sub->cursor, stream_tail(stream));

	if (sub_resume(sub) && sub->overflow == SD_DROP_OLDEST)
		resume_make_room(sub, stream->head - from,
						 stream->bytes - stream_bytes_before(stream, from), from > sub->cursor);
	/* What the ring no longer has was given up for all who were behind. */
	cursor_note_loss(sub, from - sub->cursor, 0);
	sub->cursor = from;
	if (sub->overflow != SD_DROP_OLDEST)
		return;
	while (stream->head - sub->cursor > sub->max_pending ||
		   (stream->head - sub->cursor > 1 &&
			stream->bytes - stream_bytes_before(stream, sub->cursor) > sub->max_pending_bytes))
	{
		pass(stream, sub->cursor);
		sub->cursor++;
		cursor_note_loss(sub, 1, 0);
		stream_count_dropped(stream, 1);
	}
	stream_trim(stream);
}

/* ---- attaching and detaching; the stream's lock held ---- */

void
cursor_lower_limits(SdStream *stream, SdSubscription *sub)
{
	SdStrict   *strict = stream_strict(stream);
	uint32		n = Min(resume_pending(sub), sub->max_pending);
	uint64		bytes = Min(resume_bytes(sub), sub->max_pending_bytes);

	strict->limit = Min(strict->limit, sub->cursor + sub->max_pending - n);
	strict->limit_bytes = Min(strict->limit_bytes,
							  stream_bytes_before(stream, sub->cursor) +
							  sub->max_pending_bytes - bytes);
}

void
cursor_no_limits(SdStrict *strict)
{
	strict->limit = PG_UINT64_MAX;
	strict->limit_bytes = PG_UINT64_MAX;
}

/* Starts to read at the head: sees what comes from now on. */
static void
join_ring(SdStream *stream, SdSubscription *sub)
{
	sub->attached = true;
	sub->cursor = stream->head;
	stream->nattached++;
	stream->keep = Max(stream->keep, sub->max_pending);
	stream->keep_bytes = Max(stream->keep_bytes, sub->max_pending_bytes);
	if (sub->overflow != SD_DROP_OLDEST)
	{
		if (stream_strict(stream)->n++ == 0)
			cursor_no_limits(stream_strict(stream));
		sd_list_push_tail(&stream_strict(stream)->attached, sub_strict_node(sub));
		cursor_lower_limits(stream, sub);
	}
}

void
stream_attach(SdStream *stream, SdSubscription *sub)
{
	Assert(LWLockHeldByMeInMode(&stream->lock, LW_EXCLUSIVE));
	join_ring(stream, sub);
	sub->lost_seen = stream->lost;
	sub->gaps_seen = stream->gaps;
	sub->limited_from = stream->limited;
}

void
stream_miss(SdStream *stream, SdSubscription *sub)
{
	Assert(LWLockHeldByMeInMode(&stream->lock, LW_EXCLUSIVE));
	cursor_note_loss(sub, 0, 1);
	stream_count_dropped(stream, 1);
}

/* Nobody is left who waits for what is in the ring. */
static void
discard_ring(SdStream *stream)
{
	trash_ring(stream_ring(stream), stream->ring_size, stream_tail(stream),
			   stream->head);
	stream->ring = 0;
	stream->ring_size = 0;
	stream->nkept = 0;
	stream->kept_bytes = 0;
}

static void
leave_ring(SdStream *stream, SdSubscription *sub)
{
	Assert(sub->attached);
	if (stream->nattached == 1)
		discard_ring(stream);
	else
		for (uint64 n = Max(sub->cursor, stream_tail(stream)); n < stream->head; n++)
			pass(stream, n);
	sub->attached = false;
	if (sub->overflow != SD_DROP_OLDEST)
	{
		sd_list_remove(&stream_strict(stream)->attached, sub_strict_node(sub));
		stream_strict(stream)->n--;
	}
	if (--stream->nattached == 0)
	{
		stream->keep = 0;
		stream->keep_bytes = 0;
	}
	stream_trim(stream);
}

static void
free_private_queue(SdSubscription *sub)
{
	if (sub->queue == 0)
		return;
	trash_queue(sub_queue(sub));
	sub->queue = 0;
}

void
stream_leave(SdStream *stream, SdSubscription *sub)
{
	Assert(LWLockHeldByMeInMode(&stream->lock, LW_EXCLUSIVE));
	if (resume_running(sub))
		resume_stop(stream, sub);
	if (sub->attached)
		leave_ring(stream, sub);
	else if (sub->end == SD_END_NONE && !sub->structurally_ended)
		stream->ndetached--;
	free_private_queue(sub);
	resume_drop(sub);
}

/*
 * Moves what an attached subscription has pending to a queue of its own; from
 * then on the stream does without it.  Without memory the pending is lost.
 */
void
cursor_detach(SdStream *stream, SdSubscription *sub)
{
	uint32		n;

	settle_drop_oldest(stream, sub);
	n = stream->head - sub->cursor;
	if (n > 0)
	{
		SdPrivateQueue *queue = sd_alloc(SD_MEM_RESPONSE,
										 offsetof(SdPrivateQueue, entries) + n * sizeof(SdKept));

		sub->queue = sd_ref(queue);
		if (queue)
		{
			queue->n = n;
			for (uint32 i = 0; i < n; i++)
			{
				SdEntry    *entry = ENTRY(stream, sub->cursor + i);
				SdKept	   *kept = &queue->entries[i];

				kept->body = body_ref(entry->body);
				kept->lost = entry_lost(stream, entry);
				kept->gaps = entry->gaps;
			}
		}
		else
		{
			cursor_note_loss(sub, n, 0);
			stream_count_dropped(stream, n);
		}
	}
	leave_ring(stream, sub);
	sub->detached_at = stream->head;
}

/* A drop_newest subscription has read all it had kept: it joins in again. */
static void
reattach(SdStream *stream, SdSubscription *sub)
{
	cursor_note_loss(sub, stream->head - sub->detached_at, 0);
	stream->ndetached--;
	join_ring(stream, sub);
}

void
stream_end_locked(SdStream *stream, SdSubscription *sub, SdEnd end)
{
	uint64		skipped;

	Assert(LWLockHeldByMeInMode(&stream->lock, LW_EXCLUSIVE));
	if (sub->end != SD_END_NONE)
		return;
	if (resume_running(sub))
		resume_stop(stream, sub);
	if (sub->attached)
		cursor_detach(stream, sub);
	else
		stream->ndetached--;
	/* What is queued is told first: the rest was lost after that. */
	skipped = stream->head - sub->detached_at;
	if (sub_queue(sub))
	{
		sub_queue(sub)->end_lost = stream->lost;
		sub_queue(sub)->end_gaps = stream->gaps;
		sub_queue(sub)->end_skipped = skipped;
	}
	else
	{
		collect_loss(sub, stream->lost, stream->gaps);
		cursor_note_loss(sub, skipped, 0);
	}
	sub->rate_limited = stream->limited - sub->limited_from;
	sub->end = end;
	sub->ended_at = GetCurrentTimestamp();
	if (sub->overflow != SD_DROP_OLDEST)
		sd_list_push_tail(&stream_strict(stream)->ending, sub_strict_node(sub));
	pg_atomic_fetch_add_u64(&stream->version, 1);
}

/* ---- reading; the stream's lock held ---- */

/* So many that they would start again at 0 are not counted any more. */
static void
count_error(SdSubscription *sub)
{
	if (sub->errors < PG_UINT32_MAX)
		sub->errors++;
}

/* Hands over an entry's body, whose reference becomes the taker's. */
static void
give(SdSubscription *sub, SdBody *body, SdTaken *taken)
{
	taken->body = body;
	taken->event_id = body->event_id;
	taken->loss = sub->untold;
	taken->end = SD_END_NONE;
	memset(&sub->untold, 0, sizeof(SdLoss));
	sub->delivered++;
	if (body->is_error)
		count_error(sub);
}

static SdTakeResult
take_replayed(SdSubscription *sub, Size room, SdTaken *taken)
{
	SdReplayed *e = resume_first(sub);

	if (e->body->len > room)
		return SD_TAKE_TOO_LARGE;
	give(sub, e->body, taken);
	resume_pop(sub);
	return SD_TAKE_ONE;
}

static SdTakeResult
take_private(SdStream *stream, SdSubscription *sub, Size room, SdTaken *taken)
{
	SdPrivateQueue *q = sub_queue(sub);
	SdKept	   *entry = &q->entries[q->next];

	if (entry->body->len > room)
		return SD_TAKE_TOO_LARGE;
	collect_loss(sub, entry->lost, entry->gaps);
	give(sub, entry->body, taken);
	entry->body = NULL;
	if (++q->next < q->n)
		return SD_TAKE_ONE;
	if (sub->end != SD_END_NONE)
	{
		collect_loss(sub, q->end_lost, q->end_gaps);
		cursor_note_loss(sub, q->end_skipped, 0);
	}
	free_private_queue(sub);
	if (sub->end == SD_END_NONE)
		reattach(stream, sub);
	return SD_TAKE_ONE;
}

static SdTakeResult
take_from_ring(SdStream *stream, SdSubscription *sub, Size room, SdTaken *taken)
{
	SdEntry    *entry = ENTRY(stream, sub->cursor);

	if (entry->body->len > room)
		return SD_TAKE_TOO_LARGE;
	collect_loss(sub, entry_lost(stream, entry), entry->gaps);
	give(sub, body_ref(entry->body), taken);
	pass(stream, sub->cursor);
	sub->cursor++;
	stream_trim(stream);
	return SD_TAKE_ONE;
}

/* Brings up to date what the subscription is owed. */
static void
settle(SdStream *stream, SdSubscription *sub)
{
	if (sub->attached)
		settle_drop_oldest(stream, sub);
	else if (sub->resume == 0 && sub->queue == 0 && sub->end == SD_END_NONE)
		reattach(stream, sub);
}

static bool
has_entry(SdStream *stream, SdSubscription *sub)
{
	return resume_pending(sub) > 0 || sub->queue != 0 || (sub->attached && sub->cursor < stream->head);
}

/* Is there a loss to tell by a notice of its own, and may it be told now? */
static bool
notice_due(SdSubscription *sub, TimestampTz now, TimestampTz *retry_at)
{
	if (sub->untold.count == 0 && !sub->untold.unknown)
		return false;
	if (sub->end == SD_END_NONE && now < sub->last_notice + SD_SECOND && now >= sub->last_notice)
	{
		*retry_at = Min(*retry_at, sub->last_notice + SD_SECOND);
		return false;
	}
	return true;
}

bool
stream_readable(SdStream *stream, SdSubscription *sub, TimestampTz now, TimestampTz *retry_at)
{
	Assert(LWLockHeldByMeInMode(&stream->lock, LW_EXCLUSIVE));
	settle(stream, sub);
	if (has_entry(stream, sub))
		return true;
	if (sub->end == SD_END_NONE && !resume_running(sub))
		collect_loss(sub, stream->lost, stream->gaps);
	return notice_due(sub, now, retry_at) || (sub->end != SD_END_NONE && !sub->end_told);
}

SdTakeResult
stream_take(SdStream *stream, SdSubscription *sub, TimestampTz now, Size room,
			SdTaken *taken, TimestampTz *retry_at)
{
	Assert(LWLockHeldByMeInMode(&stream->lock, LW_EXCLUSIVE));
	settle(stream, sub);
	if (resume_pending(sub) > 0)
		return take_replayed(sub, room, taken);
	if (sub_queue(sub))
		return take_private(stream, sub, room, taken);
	if (has_entry(stream, sub))
		return take_from_ring(stream, sub, room, taken);

	memset(taken, 0, sizeof(SdTaken));
	if (sub->end == SD_END_NONE && !resume_running(sub))
		collect_loss(sub, stream->lost, stream->gaps);
	if (notice_due(sub, now, retry_at))
	{
		taken->loss = sub->untold;
		memset(&sub->untold, 0, sizeof(SdLoss));
		if (sub->end == SD_END_NONE)
			sub->last_notice = now;
		return SD_TAKE_ONE;
	}
	if (sub->end != SD_END_NONE && !sub->end_told)
	{
		taken->end = sub->end;
		sub->end_told = true;
		return SD_TAKE_ONE;
	}
	return SD_TAKE_NOTHING;
}

bool
stream_drained(SdStream *stream, SdSubscription *sub)
{
	return sub->attached && sub->cursor == stream->head && sub->end == SD_END_NONE &&
		sub->resume == 0 &&
		sub->lost_seen == stream->lost && sub->gaps_seen == stream->gaps &&
		sub->untold.count == 0 && !sub->untold.unknown;
}

/* Can it have the entry as the one before could?  Its own limits are kept, too. */
static bool
stands_alike(const SdSubscription *sub, const SdSharing *s)
{
	if (s->entry == NULL || !sub->attached || sub->cursor != s->cursor || sub->resume != 0 ||
		sub->lost_seen != s->lost || sub->gaps_seen != s->gaps ||
		sub->untold.count != 0 || sub->untold.unknown)
		return false;
	return sub->overflow != SD_DROP_OLDEST ||
		(s->pending <= sub->max_pending &&
		 (s->pending == 1 || s->bytes <= sub->max_pending_bytes));
}

bool
stream_share(SdStream *stream, SdSubscription *sub, SdSharing *s)
{
	SdEntry    *entry;

	Assert(LWLockHeldByMeInMode(&stream->lock, LW_EXCLUSIVE));
	if (stands_alike(sub, s))
		return true;
	settle(stream, sub);
	if (sub_resume(sub) || sub_queue(sub) || !has_entry(stream, sub))
		return false;
	entry = ENTRY(stream, sub->cursor);
	if (entry_lost(stream, entry) != sub->lost_seen || entry->gaps != sub->gaps_seen ||
		sub->untold.count != 0 || sub->untold.unknown)
		return false;
	s->entry = entry;
	s->cursor = sub->cursor;
	s->lost = sub->lost_seen;
	s->gaps = sub->gaps_seen;
	s->pending = stream->head - sub->cursor;
	s->bytes = stream->bytes - stream_bytes_before(stream, sub->cursor);
	return true;
}

/* Whoever is the last to pass the entry empties *s: nobody can share it any more. */
void
stream_advance(SdStream *stream, SdSubscription *sub, SdSharing *s)
{
	Assert(s->entry == ENTRY(stream, sub->cursor) && s->entry->remaining > 0);
	if (s->entry->body->is_error)
		count_error(sub);
	sub->cursor++;
	sub->delivered++;
	if (--s->entry->remaining > 0)
		return;
	entry_drop(s->entry);
	s->entry = NULL;
	stream_trim(stream);
}

/* ---- for the views; the stream's lock held in any mode ---- */

/* Without what was replayed. */
static uint64
stream_own_pending(SdStream *stream, SdSubscription *sub)
{
	uint64		n;

	if (!sub->attached)
		return sub_queue(sub) ? sub_queue(sub)->n - sub_queue(sub)->next : 0;
	n = stream->head - Max(sub->cursor, stream_tail(stream));
	return sub->overflow == SD_DROP_OLDEST ? Min(n, sub->max_pending) : n;
}

uint64
stream_pending(SdStream *stream, SdSubscription *sub)
{
	return stream_own_pending(stream, sub) + resume_pending(sub);
}

uint64
stream_dropped(SdStream *stream, SdSubscription *sub)
{
	uint64		n = sub->dropped;

	if (sub->end != SD_END_NONE)
	{
		if (sub_queue(sub))
			n += sub_queue(sub)->end_skipped + sub_queue(sub)->end_lost - sub->lost_seen +
				(uint32) (sub_queue(sub)->end_gaps - sub->gaps_seen);
		return n;
	}
	if (sub->attached)
		n += stream->head - sub->cursor - stream_own_pending(stream, sub);
	else if (resume_running(sub))
		return n;
	else
		n += stream->head - sub->detached_at;
	return n + stream->lost - sub->lost_seen + (uint32) (stream->gaps - sub->gaps_seen);
}

uint64
stream_rate_limited(SdStream *stream, SdSubscription *sub)
{
	return sub->end == SD_END_NONE ? stream->limited - sub->limited_from : sub->rate_limited;
}

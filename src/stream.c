/*-------------------------------------------------------------------------
 *
 * stream.c
 *	  Response streams: their entries, what is stored, who is woken.
 *
 * A stream keeps its entries in a ring of a power-of-two size, numbered
 * without end; number n stands at ring[n % ring_size].  The last nkept of them,
 * up to head - 1, are kept.  Each attached subscription has a cursor; an entry counts
 * how many of them have still to pass it and gives its body back when none
 * has.  What a new response costs does not depend on how many subscriptions
 * there are.
 *
 * Overflow.  drop_oldest is settled when the subscription reads: whatever is
 * more than max_pending behind the head is skipped then, and the ring never
 * keeps more than the largest max_pending.  drop_newest and error have to be
 * settled when the response comes that is too much: the limits in SdStrict say
 * before which head no such subscription can overflow, so that they are looked
 * through only about once in max_pending responses.
 *
 * Locks: each function says what it takes; those that take SdStream->lock
 * hold at most registry_lock or an id lock before, and take a consumer's mutex
 * and DSA's locks inside.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/proclist.h"
#include "utils/errcodes.h"
#include "utils/timestamp.h"

#include "resume.h"
#include "stream_private.h"
#include "subscription.h"

#define STRICT_PER_LOCK		128 /* looked at while the stream's lock is held */
#define COPIES_PER_LOCK		256 /* entries copied meanwhile */
#define LINKS_PER_LOCK		64	/* told of something to read meanwhile */
#define RING_FIRST_SIZE		4
#define RING_KEEP_SIZE		64	/* a larger one is freed when it gets empty */
#define WAKES_AT_ONCE		64	/* until waiters are woken without stream_flush() */

/* ---- small things ---- */

/*
 * A waiter enters the list before it looks at what it waits for, and the
 * caller has changed that before it comes here; both sides pass a full
 * barrier, so an empty list means that nobody can have missed the change.
 */
void
sd_wake(const void *thing)
{
	ConditionVariable *cv = sd_wait_point(thing);

	pg_memory_barrier();
	if (!proclist_is_empty(&cv->wakeup))
		ConditionVariableBroadcast(cv);
}

static const struct
{
	int			sqlstate;
	const char *message;
}			ends[] =
{
	[SD_END_NONE] = {0, ""},
	[SD_END_COMPLETE] = {0, ""},
	[SD_END_IDLE] = {ERRCODE_IDLE_SESSION_TIMEOUT, "subscription was not polled for subdispatch.subscription_idle_timeout"},
	[SD_END_LIFETIME] = {ERRCODE_IDLE_SESSION_TIMEOUT, "subscription reached subdispatch.subscription_max_lifetime"},
	[SD_END_OVERFLOW] = {ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, "subscription was not read fast enough (overflow = error)"},
	[SD_END_RESOLVER_GONE] = {ERRCODE_UNDEFINED_FUNCTION, "the subscription's resolver does not exist any more"},
	[SD_END_RESOLVER_DENIED] = {ERRCODE_INSUFFICIENT_PRIVILEGE, "permission denied for the subscription's resolver"},
	[SD_END_RESOLVER_TIMEOUTS] = {ERRCODE_QUERY_CANCELED, "the subscription's resolver timed out too often (subdispatch.resolver_max_timeouts)"},
	[SD_END_ROLE_GONE] = {ERRCODE_UNDEFINED_OBJECT, "the subscription's role does not exist any more"},
	[SD_END_RUN_AS_REVOKED] = {ERRCODE_INSUFFICIENT_PRIVILEGE, "permission denied to act as the subscription's role"},
	[SD_END_CHANNEL_REVOKED] = {ERRCODE_INSUFFICIENT_PRIVILEGE, "permission denied for the subscription's channel"},
};

const char *
stream_end_message(SdEnd end)
{
	return ends[end].message;
}

int
stream_end_sqlstate(SdEnd end)
{
	return ends[end].sqlstate;
}

/* ---- pins ---- */

void
channel_unref(SdChannel *channel)
{
	if (pg_atomic_sub_fetch_u32(&channel->refs, 1) == 0)
		sd_free(channel);
}

SdStream *
stream_pin(SdStream *stream)
{
	pg_atomic_fetch_add_u32(&stream->refs, 1);
	return stream;
}

void
quota_unref(SdQuota *quota)
{
	if (quota && pg_atomic_sub_fetch_u32(&quota->refs, 1) == 0)
		sd_free(quota);
}

void
identity_unref(SdIdentity *identity)
{
	if (pg_atomic_sub_fetch_u32(&identity->refs, 1) != 0)
		return;
	quota_unref(identity->user);
	quota_unref(identity->role_quota);
	sd_free(identity);
}

/*
 * The last reference is gone: no subscription is left, so no entry is wanted
 * and the ring is empty.
 */
void
stream_unpin(SdStream *stream)
{
	if (pg_atomic_sub_fetch_u32(&stream->refs, 1) != 0)
		return;
	Assert(stream->nattached == 0);
	Assert(stream->nkept == 0);
	channel_unref(stream_channel(stream));
	identity_unref(stream_identity(stream));
	sd_free(stream_strict(stream));
	sd_free(stream_ring(stream));
	sd_free(stream);
}

/* ---- the ring; all with the stream's lock held ---- */

void
entry_drop(SdEntry *entry)
{
	trash_body(entry->body);
	entry->body = NULL;
}

/* Forgets the oldest entry. */
static void
drop_tail(SdStream *stream)
{
	entry_drop(ENTRY(stream, stream_tail(stream)));
	stream->nkept--;
	stream->kept_bytes = (uint32) (stream->bytes - stream_bytes_before(stream, stream_tail(stream)));
}

/* Forgets entries at the old end that nobody waits for. */
void
stream_trim(SdStream *stream)
{
	while (stream->nkept > 0 && ENTRY(stream, stream_tail(stream))->remaining == 0)
		drop_tail(stream);
	if (stream->nkept == 0 && stream->ring_size > RING_KEEP_SIZE)
	{
		sd_free(stream_ring(stream));
		stream->ring = 0;
		stream->ring_size = 0;
	}
}

/*
 * Forgets old entries beyond what any subscription may keep.  Mostly there are
 * none: then the oldest entry, which nobody has touched for long, is not fetched.
 */
static void
trim_to_keep(SdStream *stream)
{
	bool		any = false;

	while (stream->nkept > stream->keep ||
		   (stream->nkept > 1 && stream->kept_bytes > stream->keep_bytes))
	{
		stream_count_dropped(stream, ENTRY(stream, stream_tail(stream))->remaining);
		drop_tail(stream);
		any = true;
	}
	if (any)
		stream_trim(stream);
}

/* Makes room for one more entry; false when shared memory is used up. */
static bool
grow(SdStream *stream)
{
	uint32		size = stream->ring ? stream->ring_size * 2 : RING_FIRST_SIZE;
	SdEntry    *ring;

	if (stream->ring && stream->nkept < stream->ring_size)
		return true;
	ring = sd_alloc(SD_MEM_RESPONSE, size * sizeof(SdEntry));
	if (ring == NULL)
		return false;
	for (uint64 i = stream_tail(stream); i < stream->head; i++)
		ring[i & (size - 1)] = *ENTRY(stream, i);
	sd_free(stream_ring(stream));
	stream->ring = sd_ref(ring);
	stream->ring_size = size;
	return true;
}

/* Payload bytes stored before entry number n. */
uint64
stream_bytes_before(SdStream *stream, uint64 n)
{
	if (n == stream->head)
		return stream->bytes;
	return stream->bytes - (uint32) ((uint32) stream->bytes - ENTRY(stream, n)->bytes_before);
}

/*
 * A response of len bytes is about to be stored: the subscription is detached
 * if that is one too many for it, or else lowers the limits.  Returns how many
 * entries had to be copied.
 */
static uint64
settle_strict(SdStream *stream, SdSubscription *sub, Size len)
{
	uint64		pending = stream->head - sub->cursor + resume_pending(sub);
	uint64		bytes = stream->bytes - stream_bytes_before(stream, sub->cursor) +
		resume_bytes(sub);

	if (pending < sub->max_pending && (pending == 0 || bytes + len <= sub->max_pending_bytes))
	{
		cursor_lower_limits(stream, sub);
		return 0;
	}
	if (sub->overflow == SD_OVERFLOW_ERROR)
	{
		/* Its last message tells of this one, as the reason. */
		sub->dropped++;
		stream_count_dropped(stream, 1);
		stream_end_locked(stream, sub, SD_END_OVERFLOW);
	}
	else
	{
		cursor_detach(stream, sub);
		stream->ndetached++;
	}
	return pending;
}

/*
 * Some of the strict subscriptions, from the head of their list, which go to
 * its tail; *left are still to be seen to.  Caller holds the stream's lock.
 */
static void
settle_some(SdStream *stream, Size len, uint32 *left)
{
	SdList	   *attached = &stream_strict(stream)->attached;
	uint64		copied = 0;

	for (int i = 0; i < STRICT_PER_LOCK && copied < COPIES_PER_LOCK; i++)
	{
		SdListNode *node;

		if (*left == 0 || sd_list_is_empty(attached))
		{
			*left = 0;
			return;
		}
		node = sd_list_pop_head(attached);
		sd_list_push_tail(attached, node);
		copied += settle_strict(stream, sub_of_strict_node(node), len);
		(*left)--;
	}
}

/*
 * Detaches the strict subscriptions for which a response of len bytes is one too
 * many, and finds the new limits.  There may be very many, so the lock is let
 * go in between: only we move the head, so those seen to stay as they are or
 * have less pending, and whoever joins has nothing.  Those that go, or join,
 * make us see some twice, but nobody not at all.
 */
static void
overflow_strict(SdStream *stream, Size len)
{
	SdStrict   *strict = stream_strict(stream);
	uint32		left = 0;
	bool		begun = false;

	if (strict == NULL)
		return;					/* read without the lock: whoever joins has nothing */
	do
	{
		LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
		if (!begun && (stream->head >= strict->limit || stream->bytes + len > strict->limit_bytes))
		{
			left = strict->n;
			cursor_no_limits(strict);
		}
		begun = true;
		settle_some(stream, len, &left);
		LWLockRelease(&stream->lock);
	} while (left > 0);
}

/* ---- writing ---- */

/*
 * The wait points at which somebody may have to be woken: of the things' own
 * addresses, so they may be gone by then.  One bit each, and one for each word
 * that has any.
 */
static uint64 to_wake[SD_WAIT_POINTS / 64];
static uint64 words_to_wake = 0;
static int	nto_wake = 0;		/* calls of wake_later() */

static void
wake_later(const void *thing)
{
	int			point = sd_wait_point_number(thing);

	StaticAssertStmt(lengthof(to_wake) == 64, "one bit for each word");
	to_wake[point / 64] |= UINT64CONST(1) << (point % 64);
	words_to_wake |= UINT64CONST(1) << (point / 64);
	nto_wake++;
}

/* The same barrier as in sd_wake(), for all of them. */
static void
wake_now(void)
{
	if (nto_wake == 0)
		return;
	nto_wake = 0;
	pg_memory_barrier();
	while (words_to_wake != 0)
	{
		int			i = pg_rightmost_one_pos64(words_to_wake);

		words_to_wake &= words_to_wake - 1;
		while (to_wake[i] != 0)
		{
			ConditionVariable *cv = &sd_shared->wait_points[i * 64 + pg_rightmost_one_pos64(to_wake[i])];

			to_wake[i] &= to_wake[i] - 1;
			if (!proclist_is_empty(&cv->wakeup))
				ConditionVariableBroadcast(cv);
		}
	}
}

void
stream_flush(void)
{
	wake_now();
	body_give_back_advance();
}

/*
 * Caller holds the stream's lock.  A link that is in the ready list need not be
 * looked at under the mutex: who takes it out has still to get the stream's lock
 * to read it, or else we see that it is out.
 */
static void
make_ready(SdLink *link)
{
	SdConsumer *consumer = link_consumer(link);

	if (consumer == NULL)
		return;
	if (!link->ready)
	{
		SpinLockAcquire(&consumer->mutex);
		if (!link->ready)
		{
			sd_list_push_tail(&consumer->ready, &link->ready_node);
			link->ready = true;
			consumer->nready++;
		}
		SpinLockRelease(&consumer->mutex);
	}
	if (pg_atomic_read_u64(&consumer->pending_since) == 0)
		pg_atomic_write_u64(&consumer->pending_since, GetCurrentTimestamp());
	wake_later(consumer);
}

void
stream_link_ready(SdLink *link)
{
	make_ready(link);
	wake_now();
}

/*
 * Something can be read that could not, but where all are paused.  Those of a
 * link that had nothing are told so together, without looking at any.
 */
static void
begin_telling(SdStream *stream)
{
	pg_atomic_write_u64(&stream->version, pg_atomic_read_u64(&stream->version) + 1);
	wake_later(stream);
	stream->told = !stream->told;
}

/*
 * Tells some of the links, from the head of their list, which go to its tail;
 * false: that were all.  There may be very many, so the lock may be let go in
 * between: links that come meanwhile go to the tail, too, and have nothing.
 */
static bool
tell_links(SdStream *stream)
{
	for (int i = 0; i < LINKS_PER_LOCK && !sd_list_is_empty(&stream->links); i++)
	{
		SdListNode *node = sd_list_first(&stream->links);
		SdLink	   *link = sd_list_container(SdLink, stream_node, node);

		if (link->told == stream->told)
			return false;
		link->told = stream->told;
		link->fresh = !sd_list_is_empty(&link->current);
		if (link->fresh || !sd_list_is_empty(&link->behind))
			make_ready(link);
		if (sd_list_next(&stream->links, node) == NULL)
			return false;
		sd_list_rotate(&stream->links);
	}
	return !sd_list_is_empty(&stream->links);
}

/* Caller has begun and holds the lock, which this releases. */
static void
finish_telling(SdStream *stream)
{
	while (tell_links(stream))
	{
		LWLockRelease(&stream->lock);
		LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	}
	LWLockRelease(&stream->lock);
	if (nto_wake >= WAKES_AT_ONCE)
		wake_now();
}

void
link_settle(SdLink *link)
{
	if (link->fresh)
		sd_list_append_all(&link->behind, &link->current);
	link->fresh = false;
}

void
link_leave(SdLink *link, SdSubscription *sub, bool was_paused)
{
	if (was_paused)
		sd_list_remove(&link->paused, &sub->node);
	else if (sd_list_first(&link->current) == &sub->node)
		sd_list_remove(&link->current, &sub->node);
	else
		sd_list_remove(&link->behind, &sub->node);
}

void
stream_wake_resumed(SdStream *stream)
{
	begin_telling(stream);
	while (tell_links(stream))
		;
	wake_now();
}

/* Was the event seen to before?  Then the batch is run again. */
static bool
is_done(SdStream *stream, uint64 event_id)
{
	return event_id != 0 && event_id <= stream->last_event_id;
}

/* False if that event was seen to before. */
static bool
advance_progress(SdStream *stream, uint64 event_id)
{
	if (is_done(stream, event_id))
		return false;
	if (event_id != 0)
		stream->last_event_id = event_id;
	return true;
}

/*
 * So many that an entry could not tell them from fewer count as one of unknown
 * size.
 */
static void
count_lost(SdStream *stream, uint32 n)
{
	if (stream->nkept > 0 &&
		n > PG_UINT32_MAX - (uint32) ((uint32) stream->lost - ENTRY(stream, stream_tail(stream))->lost))
		stream->gaps++;
	else
		stream->lost += n;
}

/* Stores an entry, or counts a loss. */
static void
push(SdStream *stream, SdBody *body)
{
	SdEntry    *entry;

	if (body == NULL || (stream->nattached > 0 && !grow(stream)))
	{
		count_lost(stream, 1);
		stream_count_dropped(stream, stream->nattached + stream->ndetached);
		return;
	}
	stream_count_dropped(stream, stream->ndetached);
	if (stream->nattached > 0)
	{
		entry = ENTRY(stream, stream->head);
		entry->body = body_ref_for_entry(body);
		entry->bytes_before = (uint32) stream->bytes;
		entry->lost = (uint32) stream->lost;
		entry->gaps = stream->gaps;
		entry->remaining = stream->nattached;
		stream->head++;
		stream->nkept++;
		stream->bytes += body->len;
		stream->kept_bytes += body->len;
		trim_to_keep(stream);
	}
	else
	{
		/* Only detached ones are left; they count it by the number. */
		Assert(stream->nkept == 0);
		stream->head++;
	}
	stats_add_own(&stream_channel(stream)->db->dispatchers[stream_channel(stream)->dispatcher].stats,
				  SD_STAT_RESPONSES_QUEUED, 1);
}

void
stream_append(SdStream *stream, uint64 event_id, SdBody *body)
{
	bool		ending;

	if (is_done(stream, event_id))
		return;
	overflow_strict(stream, body ? body->len : 0);
	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	(void) advance_progress(stream, event_id);
	push(stream, body);
	begin_telling(stream);
	ending = stream_strict(stream) && !sd_list_is_empty(&stream_strict(stream)->ending);
	finish_telling(stream);
	trash_empty();

	if (ending)
		subscription_finish_ends(stream);
}

/* Caller holds the stream's lock. */
static void
lose(SdStream *stream, uint32 n)
{
	if (n > 0)
		count_lost(stream, n);
	else
		stream->gaps++;
	stream_count_dropped(stream, (uint64) Max(n, 1) * (stream->nattached + stream->ndetached));
	begin_telling(stream);
}

void
stream_lose(SdStream *stream, uint64 event_id, uint32 n)
{
	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	if (advance_progress(stream, event_id))
		lose(stream, n);
	finish_telling(stream);
}

void
stream_limit(SdStream *stream, uint64 event_id)
{
	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	if (advance_progress(stream, event_id))
	{
		stream->limited++;
		lose(stream, 1);
	}
	finish_telling(stream);
}

void
stream_skip(SdStream *stream, uint64 event_id)
{
	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	(void) advance_progress(stream, event_id);
	LWLockRelease(&stream->lock);
}

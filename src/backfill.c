/*-------------------------------------------------------------------------
 *
 * backfill.c
 *	  What subscriptions that resume have missed, read again from Redis.
 *
 * A dispatcher's history reaches back as far as event_history_size goes, and
 * no further than the server's start or its channel's first subscription.
 * With the Redis bus the stream reaches further.  Who resumes after an event
 * that is older than that ("behind", runners.c) is served out of the stream, by
 * windows:
 *
 *	  1. The dispatcher asks for what follows the event of the one who is furthest
 *		 behind, on the channels of all who are (backfill_ask()).  One request is
 *		 under way at a time, and one window is there: so much memory a replay
 *		 takes, however many resume, and however far behind they are.
 *	  2. The bus worker reads a piece of the stream, checks it and hands it over
 *		 (redis_range.c).  One reading serves all dispatchers that ask for that piece.
 *	  3. The dispatcher replays the window to all whom it covers, as it replays the
 *		 history (catchup.c): by rights, filters, resolvers of now, at the pace of
 *		 the readers.  Who has not read what he has does without, and comes later.
 *	  4. When nobody gets any further with it the next one is asked for, again from
 *		 where the last of those stands who could go on.
 *
 * THE SEAM.  Events have the same ids in the stream and in the history, so a
 * replay changes from one to the other by the id at which it is.  One who is
 * behind goes on in the history, and may join his stream, when the windows
 * have brought him to where the history is complete for his channel ("floor").
 * While anybody resumes the history keeps HISTORY_HELD at least, or events would
 * leave it as fast as windows come and he would never get there.
 *
 * GAPS.  A window tells where the stream has lost something.  A gap that a
 * channel is told of as a whole raises its floor to what has been linked by
 * then; who is behind that finds in the stream what it was about, or the gap.
 * An id proves nothing by itself (it may be of before a FLUSHALL, or none of this
 * group): the one that a client gives must be that of an entry, or be named by
 * the one that follows, otherwise the client is told of a gap.  So is one whose
 * event is of before this server last dispatched any by another bus (elsewhere.c).
 *
 * TIME.  If no window comes within redis_resume_timeout (Redis is away, hangs,
 * does not permit it; memory is short), those who wait are told of a gap and
 * go on with the history.
 *
 * Locks: SdHistory->lock for the request and the handing over.  A window is its
 * dispatcher's alone, who frees it at the latest when it ends.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "backfill.h"
#include "elsewhere.h"
#include "history.h"
#include "shmem.h"

/* All this is the process's own. */
static SdDatabase *my_db = NULL;
static int	my_index;
static SdHistory *history = NULL;
static TimestampTz asked_at;

/* ---- the dispatcher ---- */

void
backfill_init(SdDatabase *db, int dispatcher)
{
	my_db = db;
	my_index = dispatcher;
	history = &db->dispatchers[dispatcher].history;
	elsewhere_look(db);
	backfill_end();				/* what a predecessor left */
}

bool
backfill_is_possible(void)
{
	return subdispatch_event_bus == SD_BUS_REDIS && subdispatch_redis_resume_timeout > 0;
}

/* Takes the request back, and the window out.  Returns what was there. */
static SdWindow *
take_window(void)
{
	SdWindow   *window;

	LWLockAcquire(&history->lock, LW_EXCLUSIVE);
	pg_atomic_write_u32(&history->backfill.asked, 0);
	window = history->backfill.window;
	history->backfill.window = NULL;
	LWLockRelease(&history->lock);
	return window;
}

void
backfill_cancel(void)
{
	SdWindow   *window;

	/* the worker changes them only while something is asked for */
	if (!backfill_is_asked(my_db, my_index))
	{
		pg_read_barrier();		/* pairs with backfill_answer() */
		if (history->backfill.window == NULL)
			return;
	}
	window = take_window();
	if (window)
		sd_free(window);
}

void
backfill_end(void)
{
	if (history == NULL)
		return;
	backfill_cancel();
	history_hold(my_db, my_index, false);
}

void
backfill_ask(uint64 from, const ChannelSet *channels)
{
	SdBackfill *b = &history->backfill;

	backfill_cancel();
	LWLockAcquire(&history->lock, LW_EXCLUSIVE);
	if (++b->last_asked == 0)
		b->last_asked = 1;
	b->from = from;
	b->all = channels->all;
	memcpy(b->channels, channels->bits, sizeof(b->channels));
	pg_atomic_write_u32(&b->asked, b->last_asked);
	LWLockRelease(&history->lock);
	asked_at = GetCurrentTimestamp();
	database_wake(my_db, SD_BUS_PLACE);
}

BackfillState
backfill_state(TimestampTz *until)
{
	if (!backfill_is_asked(my_db, my_index))
		return BACKFILL_NONE;
	*until = asked_at + subdispatch_redis_resume_timeout * INT64CONST(1000);
	return GetCurrentTimestamp() < *until ? BACKFILL_ASKED : BACKFILL_TIMED_OUT;
}

const SdWindow *
backfill_window(void)
{
	SdWindow   *window;

	LWLockAcquire(&history->lock, LW_SHARED);
	window = history->backfill.window;
	LWLockRelease(&history->lock);
	return window;
}

/* ---- a window ---- */

bool
window_covers(const SdWindow *w, const SdChannel *channel, uint64 after)
{
	return w->from <= after && after < w->to &&
		(channel->star ? w->channels.all : channels_have(&w->channels, channel->hash));
}

bool
window_gap_concerns(const SdWindow *w, const SdChannel *channel)
{
	return w->gap && (channel->star || channels_have(&w->gap_channels, channel->hash));
}

bool
window_knows(const SdWindow *w, uint64 id)
{
	uint32		low = 0;
	uint32		high = w->nids;

	while (low < high)
	{
		uint32		mid = low + (high - low) / 2;

		if (w->ids[mid] < id)
			low = mid + 1;
		else
			high = mid;
	}
	return low < w->nids && w->ids[low] == id;
}

void
window_walk_begin(WindowWalk *walk, const SdWindow *w, uint64 after)
{
	walk->window = w;
	walk->next = 0;
	while (walk->next < w->nevents && w->events[walk->next].id <= after)
		walk->next++;
}

SdEvent *
window_walk_next(WindowWalk *walk, uint64 *id)
{
	WindowEvent *e;

	if (walk->next >= walk->window->nevents)
		return NULL;
	e = &walk->window->events[walk->next++];
	*id = e->id;
	return e->ev;
}

/* ---- the bus worker ---- */

bool
backfill_request(SdDatabase *db, int dispatcher, BackfillRequest *request)
{
	SdHistory  *h = &db->dispatchers[dispatcher].history;
	SdBackfill *b = &h->backfill;

	if (!backfill_is_asked(db, dispatcher))
		return false;
	LWLockAcquire(&h->lock, LW_SHARED);
	request->number = pg_atomic_read_u32(&b->asked);
	request->from = b->from;
	request->channels.all = b->all;
	memcpy(request->channels.bits, b->channels, sizeof(b->channels));
	LWLockRelease(&h->lock);
	return request->number != 0;
}

void
backfill_answer(SdDatabase *db, int dispatcher, const BackfillRequest *request, SdWindow *window)
{
	SdHistory  *h = &db->dispatchers[dispatcher].history;
	SdBackfill *b = &h->backfill;

	LWLockAcquire(&h->lock, LW_EXCLUSIVE);
	if (pg_atomic_read_u32(&b->asked) == request->number)
	{
		Assert(b->window == NULL);
		b->window = window;
		window = NULL;
		pg_write_barrier();
		pg_atomic_write_u32(&b->asked, 0);
	}
	LWLockRelease(&h->lock);
	if (window)
		sd_free(window);
	else
		database_wake(db, dispatcher);
}

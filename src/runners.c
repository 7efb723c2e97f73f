/*-------------------------------------------------------------------------
 *
 * runners.c
 *	  Those that resume on a dispatcher's channels, and how far each is.
 *
 * The dispatcher's copy of the history's list of resumes, in groups by stream:
 * which event each waits for, what room his queue has, who has come to the seam
 * and joins the stream, and who is behind: with the Redis bus one who needs events
 * that are older than what the history has waits for windows, see backfill.c.
 * Which events there are and what becomes of them is catchup.c's.
 *
 * Each runner is held by a reference, so a subscription may go in between: what
 * is its own (SdResume->running and what follows) is looked at under its
 * stream's lock each time.
 *
 * Locks: the stream's lock; the history's inside of it, and alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "growing.h"
#include "runners.h"
#include "stream_private.h"

/* One that resumes; what is said of it is this slice's. */
typedef struct Runner
{
	SdResume   *r;				/* one reference */
	bool		here;			/* takes part in this slice */
	uint64		after;
	uint32		room;
	uint64		bytes;
	uint64		full_at;		/* its queue is full after this event; 0: isn't */
} Runner;

/* All this is the process's own. */
static SdHistory *history = NULL;
static Runner *runners = NULL;
static int	nrunners = 0;
static int	runners_size = 0;
static RunnerGroup *groups = NULL;
static int	ngroups = 0;
static int	groups_size = 0;
static bool collected = false;
static uint32 seen_changes = 0;
static bool progress = false;	/* somebody is further than at the beginning */
static SliceSource source;
static RunnersBehind behind;

/* ---- who resumes ---- */

void
runners_init(SdHistory *of)
{
	history = of;
}

bool
runners_any(void)
{
	return history->nresuming > 0 || nrunners > 0;
}

void
runners_forget(void)
{
	while (nrunners > 0)
		resume_unref(runners[--nrunners].r);
	ngroups = 0;
	collected = false;
}

static void
make_room(int n)
{
	if (n > runners_size)
		runners = growing_enlarge(runners, &runners_size, n + 64, sizeof(Runner), TopMemoryContext);
}

/* False if there is no room for all of them. */
static bool
copy_list(int *n)
{
	dlist_iter	iter;

	LWLockAcquire(&history->lock, LW_SHARED);
	*n = (int) history->nresuming;
	seen_changes = pg_atomic_read_u32(&history->resume_changes);
	if (*n <= runners_size)
		dlist_foreach(iter, &history->resuming)
		{
			SdResume   *r = dlist_container(SdResume, node, iter.cur);

			pg_atomic_fetch_add_u32(&r->refs, 1);
			memset(&runners[nrunners], 0, sizeof(Runner));
			runners[nrunners++].r = r;
		}
	LWLockRelease(&history->lock);
	return *n <= runners_size;
}

/* By channel, so that those of an event's stand together, and stream. */
static int
compare_streams(const SdStream *a, const SdStream *b)
{
	if (stream_channel(a) != stream_channel(b))
		return stream_channel(a) < stream_channel(b) ? -1 : 1;
	return a < b ? -1 : a > b;
}

static int
compare_runners(const void *a, const void *b)
{
	return compare_streams(((const Runner *) a)->r->stream, ((const Runner *) b)->r->stream);
}

static void
make_groups(void)
{
	if (groups_size < nrunners)
		groups = growing_enlarge(groups, &groups_size, runners_size, sizeof(RunnerGroup), TopMemoryContext);
	ngroups = 0;
	for (int i = 0; i < nrunners; i++)
	{
		if (i == 0 || runners[i].r->stream != runners[i - 1].r->stream)
		{
			groups[ngroups].stream = runners[i].r->stream;
			groups[ngroups].first = i;
			groups[ngroups++].n = 0;
		}
		groups[ngroups - 1].n++;
	}
}

void
runners_collect(void)
{
	int			n = 0;

	if (collected && pg_atomic_read_u32(&history->resume_changes) == seen_changes)
		return;
	runners_forget();
	while (!copy_list(&n))
		make_room(n);
	qsort(runners, nrunners, sizeof(Runner), compare_runners);
	make_groups();
	collected = true;
}

static int
compare_group(const void *stream, const void *group)
{
	return compare_streams(stream, ((const RunnerGroup *) group)->stream);
}

RunnerGroup *
runners_of(SdStream *stream)
{
	return bsearch(stream, groups, ngroups, sizeof(RunnerGroup), compare_group);
}

/* ---- the beginning of a slice ---- */

/* Who has caught up joins the stream.  Caller holds its lock. */
static void
join(Runner *runner)
{
	resume_join(runner->r);
	runner->here = false;
}

/* Up to this id events of the channel may be missing in the history. */
static uint64
floor_of(SdChannel *channel)
{
	uint64		kept_from = pg_atomic_read_u64(&channel->kept_from);

	return Max(history_gone(channel), kept_from > 0 ? kept_from - 1 : 0);
}

/*
 * Told of a gap, it goes on with what the history has.  Caller holds the
 * stream's lock.
 */
static void
waive(const RunnerGroup *g, SdResume *r)
{
	resume_note_gap(r);
	r->behind = false;
	r->waived = g->floor;
	r->gaps_seen = g->stream->gaps;
	r->after = Max(r->after, Min(history_gone(stream_channel(g->stream)), g->seam));
	progress = true;
}

/*
 * Is it behind what the history has?  A gap that the stream was told of raised
 * the floor, so it is about something that is still to come to this one, out
 * of Redis, unless Redis knows nothing of it.  Caller holds the stream's lock.
 */
static bool
is_behind(const RunnerGroup *g, SdResume *r)
{
	SdChannel  *channel = stream_channel(g->stream);
	uint64		elsewhere = pg_atomic_read_u64(&channel->lost_elsewhere);

	if (g->floor == 0)
	{
		/* what the history has is all there is */
		if (r->behind)
			resume_note_gap(r);
		r->behind = false;
	}
	else if (r->after < g->floor && r->waived < g->floor)
	{
		if (r->after < pg_atomic_read_u64(&channel->db->bus.not_in_stream))
			waive(g, r);
		else
		{
			r->behind = true;
			r->gaps_seen = g->stream->gaps;
			if (r->after < elsewhere && r->elsewhere < elsewhere)
				resume_note_gap(r);
			r->elsewhere = elsewhere;
		}
	}
	else
		r->behind = false;
	return r->behind;
}

/* What those need who are behind. */
static void
note_behind(const RunnerGroup *g, const SdResume *r)
{
	const SdChannel *channel = stream_channel(g->stream);

	behind.any = true;
	channels_add(&behind.channels, channel);
	if (r->full)
		return;
	if (r->after >= g->seam)
		behind.early = true;
	else if (source.window && window_covers(source.window, channel, r->after))
		behind.covered = true;
	else
		behind.from = Min(behind.from, r->after);
}

/* Is there anything for it in this slice?  Caller holds the stream's lock. */
static bool
takes_part(const RunnerGroup *g, SdResume *r)
{
	if (r->full || r->after >= g->seam || r->behind != source.from_window)
		return false;
	if (source.from_window)
	{
		if (!window_covers(source.window, stream_channel(g->stream), r->after))
			return false;
		if (!r->known && !window_knows(source.window, r->after))
			resume_note_gap(r);
	}
	r->known = true;
	return true;
}

static void
begin_group(RunnerGroup *g, uint64 done)
{
	SdStream   *stream = g->stream;
	bool		joined = false;

	g->seam = Max(done, stream->last_event_id);
	g->floor = backfill_is_possible() ? floor_of(stream_channel(stream)) : 0;
	g->upto = source.from_window ? Min(g->seam, source.window->to) : g->seam;
	g->behind = PG_UINT64_MAX;
	g->stop = PG_UINT64_MAX;
	LWLockAcquire(&stream->lock, LW_EXCLUSIVE);
	for (int i = 0; i < g->n; i++)
	{
		Runner	   *runner = &runners[g->first + i];
		SdResume   *r = runner->r;

		runner->here = false;
		if (!r->running)
			continue;
		if (is_behind(g, r))
			note_behind(g, r);
		else if (r->after == g->seam)
		{
			join(runner);
			joined = true;
			continue;
		}
		if (!takes_part(g, r))
			continue;
		runner->here = true;
		runner->after = r->after;
		runner->room = r->size - r->n;
		runner->bytes = r->bytes;
		runner->full_at = 0;
		g->behind = Min(g->behind, r->after);
	}
	if (joined)
		stream_wake_resumed(stream);
	LWLockRelease(&stream->lock);
}

uint64
runners_begin(uint64 done, const SliceSource *of, uint64 *limit)
{
	uint64		from = PG_UINT64_MAX;

	*limit = 0;
	progress = false;
	source = *of;
	memset(&behind, 0, sizeof(behind));
	behind.from = PG_UINT64_MAX;
	for (int i = 0; i < ngroups; i++)
	{
		begin_group(&groups[i], done);
		from = Min(from, groups[i].behind);
		if (groups[i].behind != PG_UINT64_MAX)
			*limit = Max(*limit, groups[i].upto);
	}
	return from;
}

static void
skip_gone(RunnerGroup *g)
{
	uint64		gone = history_gone(stream_channel(g->stream));

	if (g->behind >= gone)
		return;
	g->behind = PG_UINT64_MAX;
	LWLockAcquire(&g->stream->lock, LW_EXCLUSIVE);
	for (int i = 0; i < g->n; i++)
	{
		Runner	   *runner = &runners[g->first + i];

		if (!runner->here || !runner->r->running)
			continue;
		if (runner->after < gone && g->floor > 0 && runner->r->waived < gone)
		{
			/* it has fallen behind, and begins anew as such */
			runner->here = false;
			progress = true;
			continue;
		}
		if (runner->after < gone)
		{
			resume_note_gap(runner->r);
			runner->r->after = runner->after = gone;
			progress = true;
		}
		g->behind = Min(g->behind, runner->after);
	}
	LWLockRelease(&g->stream->lock);
}

void
runners_skip_gone(void)
{
	for (int i = 0; i < ngroups; i++)
		skip_gone(&groups[i]);
}

/* ---- one event ---- */

static bool
wants(const RunnerGroup *g, uint64 id)
{
	return g->behind < id && id <= g->upto && id < g->stop;
}

static bool
concerns(const SdChannel *channel, const SdEvent *ev)
{
	if (channel->star)
		return true;
	return ev->own_channel && channel->hash == ev->channel_hash &&
		channel->namelen == ev->channel_len &&
		memcmp(channel->name, EVENT_CHANNEL(ev), channel->namelen) == 0;
}

/* The groups of one channel stand together: the number of the first behind them. */
static int
next_channel(int i)
{
	SdChannel  *channel = stream_channel(groups[i].stream);

	do
		i++;
	while (i < ngroups && stream_channel(groups[i].stream) == channel);
	return i;
}

bool
runners_concerned(const SdEvent *ev, uint64 id)
{
	int			next;

	for (int i = 0; i < ngroups; i = next)
	{
		next = next_channel(i);
		if (!concerns(stream_channel(groups[i].stream), ev))
			continue;
		for (int k = i; k < next; k++)
			if (wants(&groups[k], id))
				return true;
	}
	return false;
}

void
runners_each(DispatchEvent *e, void (*what) (DispatchEvent *, RunnerGroup *))
{
	int			next;

	for (int i = 0; i < ngroups; i = next)
	{
		next = next_channel(i);
		if (!concerns(stream_channel(groups[i].stream), e->ev))
			continue;
		for (int k = i; k < next; k++)
			if (wants(&groups[k], e->id))
				what(e, &groups[k]);
	}
}

int
runners_take_room(RunnerGroup *g, const Outcome *o)
{
	int			n = 0;

	g->behind = PG_UINT64_MAX;
	for (int i = 0; i < g->n; i++)
	{
		Runner	   *runner = &runners[g->first + i];

		if (!runner->here || runner->full_at != 0)
			continue;
		if (runner->after < o->event_id && o->body)
		{
			n++;
			runner->room--;
			runner->bytes += o->body->len;
			if (runner->room == 0 || runner->bytes >= runner->r->max_bytes / 2)
				runner->full_at = o->event_id;
		}
		if (runner->full_at == 0)
			g->behind = Min(g->behind, runner->after);
	}
	return n;
}

/* ---- the end of a slice ---- */

void
runners_deliver(RunnerGroup *g, const Outcome *o)
{
	LWLockAcquire(&g->stream->lock, LW_EXCLUSIVE);
	for (int i = 0; i < g->n; i++)
	{
		Runner	   *runner = &runners[g->first + i];

		if (!runner->here || !runner->r->running || runner->after >= o->event_id ||
			(runner->full_at != 0 && o->event_id > runner->full_at))
			continue;
		if (o->kind == OUTCOME_GAP)
			resume_note_gap(runner->r);
		else
			resume_push(runner->r, o->body);
		runner->r->after = runner->after = o->event_id;
		progress = true;
	}
	LWLockRelease(&g->stream->lock);
}

/*
 * The group's runners are done with everything up to "reached".  What is missing
 * at a window's end may be about what the stream was told of already: who joins
 * it before that end is told, too.
 */
static void
end_group(RunnerGroup *g, uint64 reached)
{
	bool		gap = source.from_window && window_gap_concerns(source.window, stream_channel(g->stream));
	bool		any = false;
	bool		joins;

	reached = Min(reached, g->upto);
	if (g->stop != PG_UINT64_MAX)
		reached = Min(reached, g->stop - 1);
	LWLockAcquire(&g->stream->lock, LW_EXCLUSIVE);
	for (int i = 0; i < g->n; i++)
	{
		Runner	   *runner = &runners[g->first + i];
		SdResume   *r = runner->r;

		if (!runner->here || !r->running)
			continue;
		any = true;
		r->after = Max(r->after, runner->full_at != 0 ? runner->full_at : reached);
		progress |= r->after > runner->after;
		r->full = runner->full_at != 0 && resume_is_full(r);
		joins = r->after == g->seam && !(source.from_window && r->after < g->floor);
		if (gap && (joins || r->after >= source.window->to))
			resume_note_gap(r);
		if (joins)
		{
			r->behind = false;
			join(runner);
		}
	}
	if (any)
		stream_wake_resumed(g->stream);
	LWLockRelease(&g->stream->lock);
}

void
runners_end(uint64 reached)
{
	for (int i = 0; i < ngroups; i++)
		end_group(&groups[i], reached);
}

/* Those that it was shown to are told that something is missing. */
static void
give_up(RunnerGroup *g, uint64 id)
{
	LWLockAcquire(&g->stream->lock, LW_EXCLUSIVE);
	for (int i = 0; i < g->n; i++)
	{
		Runner	   *runner = &runners[g->first + i];

		if (!runner->here || !runner->r->running || runner->after >= id)
			continue;
		resume_note_gap(runner->r);
		runner->r->after = id;
	}
	LWLockRelease(&g->stream->lock);
}

void
runners_give_up(const SdEvent *ev, uint64 id)
{
	for (int i = 0; i < ngroups; i++)
	{
		RunnerGroup *g = &groups[i];

		if (concerns(stream_channel(g->stream), ev) && id <= g->upto && id < g->stop)
			give_up(g, id);
	}
}

bool
runners_progress(void)
{
	return progress;
}

/* ---- those who are behind ---- */

const RunnersBehind *
runners_behind(void)
{
	return &behind;
}

void
runners_waive(void)
{
	for (int i = 0; i < ngroups; i++)
	{
		RunnerGroup *g = &groups[i];

		LWLockAcquire(&g->stream->lock, LW_EXCLUSIVE);
		for (int k = 0; k < g->n; k++)
		{
			SdResume   *r = runners[g->first + k].r;

			if (r->running && r->behind && !r->full && r->after < g->seam)
				waive(g, r);
		}
		LWLockRelease(&g->stream->lock);
	}
}

/*-------------------------------------------------------------------------
 *
 * catchup.c
 *	  The dispatcher's side of resuming: events out of the history, for
 *	  subscriptions that go on after an event.
 *
 * Between two batches the dispatcher works on one slice of all that resumes on
 * its channels: it walks through the history from where the one that is
 * furthest behind stands, asks for each event what the streams concerned would
 * get of it now (rights, filter and resolver as for an event that is new, and
 * each resolver called once for all that share the call), and puts each
 * response, made once for a stream, into the queues of those that resume on it
 * and have come to that event.  Who is further ahead waits for the others; who
 * has not read what is in its queue does without, and comes later.
 *
 * THE SEAM.  A stream's position is the last event that it is done with: all
 * that the dispatcher has dispatched, or what the stream has been shown beyond
 * that of a batch that is not finished.  Nobody but this process moves it, and
 * not during a slice.  Whoever has replayed up to there joins the stream at its
 * head.  If events beyond one's own are not there yet (it knows an event of
 * another channel's dispatcher), it waits until they are.
 *
 * Limits.  A replay takes tokens of the rate limits.  Where there are none it
 * waits for them: what is replayed is not lost by a limit.
 *
 * ERRORS.  What was replayed is in the queues when the slice's transaction has
 * committed; each subscription records how far it is done.  After an error the
 * slice is done again event by event, and an event that fails by itself
 * becomes a gap.  So it is after a death, and with an event over which the
 * dispatcher died too often.
 *
 * Locks: streams' locks; the history's; order_lock (shared).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "audience.h"
#include "dispatcher.h"
#include "history.h"
#include "respond.h"
#include "resume.h"
#include "security.h"
#include "stream_private.h"
#include "subscription.h"
#include "visible.h"

#define SLICE				(2 * 1000)	/* us until other events have their turn */
#define SLICE_EVENTS		256
#define SLICE_LOOKS			20000	/* events of other channels passed over */
#define SLICE_ENTRIES		20000	/* responses put into queues */
#define RETRY				(SD_SECOND / 100)	/* when a limit stands in the way */

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

/* Those that resume on one stream, which they pin. */
typedef struct Group
{
	SdStream   *stream;
	int			first;			/* its runners */
	int			n;
	uint64		seam;			/* the stream is done with events up to this */
	uint64		behind;			/* the lowest "after" of those who take part */
	uint64		stop;			/* event that it gets no more in this slice */
} Group;

/* All this is the process's own. */
static SdHistory *history = NULL;
static Runner *runners = NULL;
static int	nrunners = 0;
static int	runners_size = 0;
static Group *groups = NULL;
static int	ngroups = 0;
static int	groups_size = 0;
static bool collected = false;
static uint32 seen_changes = 0;

static uint64 careful_until = 0;	/* event by event up to this one */

/* The slice that is under way. */
static uint64 current = 0;		/* event */
static int	nhandled = 0;		/* events that concerned anybody */
static int	nentries = 0;
static bool resolved = false;	/* resolvers were called */
static bool walking = false;
static bool progress = false;	/* somebody is further than before */

/* ---- who resumes ---- */

static void
forget_runners(void)
{
	while (nrunners > 0)
		resume_unref(runners[--nrunners].r);
	ngroups = 0;
	collected = false;
}

static void
at_exit(int code, Datum arg)
{
	LWLockReleaseAll();
	if (walking)
		history_unpin(dispatch_db, dispatch_me);
	walking = false;
	forget_runners();
}

static void
make_room(int n)
{
	if (n <= runners_size)
		return;
	n += n / 2 + 64;
	if (runners)
		runners = repalloc_huge(runners, n * sizeof(Runner));
	else
		runners = MemoryContextAllocHuge(TopMemoryContext, n * sizeof(Runner));
	runners_size = n;
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
	if (a->channel != b->channel)
		return a->channel < b->channel ? -1 : 1;
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
	{
		groups_size = runners_size;
		if (groups)
			groups = repalloc_huge(groups, groups_size * sizeof(Group));
		else
			groups = MemoryContextAllocHuge(TopMemoryContext, groups_size * sizeof(Group));
	}
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

static void
collect(void)
{
	int			n = 0;

	if (collected && pg_atomic_read_u32(&history->resume_changes) == seen_changes)
		return;
	forget_runners();
	while (!copy_list(&n))
		make_room(n);
	qsort(runners, nrunners, sizeof(Runner), compare_runners);
	make_groups();
	collected = true;
}

static int
compare_group(const void *stream, const void *group)
{
	return compare_streams(stream, ((const Group *) group)->stream);
}

static Group *
group_of(SdStream *stream)
{
	return bsearch(stream, groups, ngroups, sizeof(Group), compare_group);
}

/* ---- how far this dispatcher is ---- */

static uint64
first_undone(SdBlock *block)
{
	SdEvent    *ev = block_first(block);

	for (uint32 i = 0; i < block->ndone; i++)
		ev = event_next(ev);
	return event_id(block, ev);
}

/* Every event up to this id that it will ever get is dispatched. */
static uint64
dispatched_up_to(void)
{
	SdDispatcher *d = dispatch_self();
	uint64		id;

	LWLockAcquire(&dispatch_db->order_lock, LW_SHARED);
	if (!dlist_is_empty(&d->inhand))
		id = first_undone(dlist_head_element(SdBlock, node, &d->inhand)) - 1;
	else if (!dlist_is_empty(&d->queue))
		id = first_undone(dlist_head_element(SdBlock, node, &d->queue)) - 1;
	else
		id = dispatch_db->last_id;
	LWLockRelease(&dispatch_db->order_lock);
	return id;
}

/* ---- the beginning of a slice ---- */

/* Who has caught up joins the stream.  Caller holds its lock. */
static void
join(Group *g, Runner *runner)
{
	resume_join(runner->r);
	runner->here = false;
}

static void
begin_group(Group *g, uint64 done)
{
	SdStream   *stream = g->stream;
	bool		joined = false;

	g->seam = Max(done, stream->last_event_id);
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
		if (r->after == g->seam)
		{
			join(g, runner);
			joined = true;
			continue;
		}
		if (r->full || r->after > g->seam)
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

/*
 * From which event on there is something to do; PG_UINT64_MAX: nothing.  *limit
 * is the last event that anybody wants.
 */
static uint64
begin_groups(uint64 done, uint64 *limit)
{
	uint64		from = PG_UINT64_MAX;

	*limit = 0;
	for (int i = 0; i < ngroups; i++)
	{
		begin_group(&groups[i], done);
		from = Min(from, groups[i].behind);
		if (groups[i].behind != PG_UINT64_MAX)
			*limit = Max(*limit, groups[i].seam);
	}
	return from;
}

/* What was given up before it could be replayed is a gap. */
static void
skip_gone(Group *g)
{
	uint64		gone = history_gone(g->stream->channel);

	if (g->behind >= gone)
		return;
	g->behind = PG_UINT64_MAX;
	LWLockAcquire(&g->stream->lock, LW_EXCLUSIVE);
	for (int i = 0; i < g->n; i++)
	{
		Runner	   *runner = &runners[g->first + i];

		if (!runner->here || !runner->r->running)
			continue;
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

/* ---- one event ---- */

static bool
wants(const Group *g, uint64 id)
{
	return g->behind < id && id <= g->seam && id < g->stop;
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
	SdChannel  *channel = groups[i].stream->channel;

	do
		i++;
	while (i < ngroups && groups[i].stream->channel == channel);
	return i;
}

static bool
concerns_anybody(const SdEvent *ev, uint64 id)
{
	int			next;

	for (int i = 0; i < ngroups; i = next)
	{
		next = next_channel(i);
		if (!concerns(groups[i].stream->channel, ev))
			continue;
		for (int k = i; k < next; k++)
			if (wants(&groups[k], id))
				return true;
	}
	return false;
}

/* Calls what() for each group that the event concerns. */
static void
for_each_group(DispatchEvent *e, void (*what) (DispatchEvent *, Group *))
{
	int			next;

	for (int i = 0; i < ngroups; i = next)
	{
		next = next_channel(i);
		if (!concerns(groups[i].stream->channel, e->ev))
			continue;
		for (int k = i; k < next; k++)
			if (wants(&groups[k], e->id))
				what(e, &groups[k]);
	}
}

static void
show(DispatchEvent *e, Group *g)
{
	/* Rights are looked up anew: an event comes by more than once. */
	static uint64 lookups = PG_UINT64_MAX;

	switch (respond_replay(e, g->stream, lookups--))
	{
		case FATE_NOTHING:
		case FATE_GAP:
		case FATE_RESPONSE:
			break;
		case FATE_ENDED:
		case FATE_LIMITED:
			g->stop = e->id;
			break;
	}
}

/* Its queue holds one more response after this event. */
static void
take_room(Group *g, const Outcome *o)
{
	g->behind = PG_UINT64_MAX;
	for (int i = 0; i < g->n; i++)
	{
		Runner	   *runner = &runners[g->first + i];

		if (!runner->here || runner->full_at != 0)
			continue;
		if (runner->after < o->event_id && o->body)
		{
			nentries++;
			runner->room--;
			runner->bytes += o->body->len;
			if (runner->room == 0 || runner->bytes >= runner->r->max_bytes / 2)
				runner->full_at = o->event_id;
		}
		if (runner->full_at == 0)
			g->behind = Min(g->behind, runner->after);
	}
}

/* What the event brought, from outcome number "from" on. */
static void
account(DispatchEvent *e, int from, int resolved)
{
	int			n;
	Outcome    *outcomes = respond_outcomes(&n);

	for (int i = from; i < n; i++)
	{
		Group	   *g = group_of(outcomes[i].stream);

		if (outcomes[i].kind == OUTCOME_RESPONSE)
			take_room(g, &outcomes[i]);
		else if (outcomes[i].kind == OUTCOME_LIMITED || outcomes[i].kind == OUTCOME_END)
			g->stop = Min(g->stop, e->id);
	}
	/* Those whose resolver was not called any more are left for the next slice. */
	for (int i = resolved; i < e->nwork; i++)
		group_of(e->work[i])->stop = e->id;
}

/*
 * Remembers, beyond this process's life, which event it is about.  Raises an
 * error if it died of it too often.
 */
static void
begin_attempt(DispatchEvent *e)
{
	SdDispatcher *d = dispatch_self();

	if (d->replay_id != e->id)
	{
		d->replay_id = e->id;
		d->replay_attempts = 0;
	}
	if (++d->replay_attempts > DISPATCH_MAX_ATTEMPTS)
		ereport(ERROR,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("the dispatcher ended each time event %llu was replayed",
						(unsigned long long) e->id)));
}

/*
 * Shows the event to all whom it concerns.  When it has to be careful, those
 * without a resolver first, then one resolver in each slice, so that only
 * those pay for an error who share the cause.
 */
static void
handle(SdEvent *ev, uint64 id, TimestampTz until)
{
	DispatchEvent e = {.ev = ev, .id = id, .careful = id <= careful_until};
	int			before;
	int			n;
	int			at = 0;

	current = id;
	nhandled++;
	begin_attempt(&e);
	(void) respond_outcomes(&before);
	PushActiveSnapshot(GetTransactionSnapshot());
	dispatch_need_data(&e);
	for_each_group(&e, show);
	PopActiveSnapshot();
	(void) respond_outcomes(&n);
	if (e.nwork > 0 && (!e.careful || n == before))
	{
		resolved = true;
		respond_resolve(&e, &at, e.careful ? 0 : until);
	}
	account(&e, before, at);
	dispatch_fault(&e, "replayed");
}

/* ---- a slice ---- */

/*
 * No policies are to run in a transaction in which a resolver has: as for new
 * events they come first.
 */
static bool
used_up(TimestampTz until)
{
	if (resolved || (nhandled > 0 && current <= careful_until))
		return true;
	return nhandled >= SLICE_EVENTS || nentries >= SLICE_ENTRIES ||
		GetCurrentTimestamp() >= until;
}

/* Returns the event up to which everybody got what he wanted. */
static uint64
walk(uint64 from, uint64 limit)
{
	TimestampTz until = GetCurrentTimestamp() + SLICE;
	uint64		reached = limit;
	SdHistoryWalk w;
	SdEvent    *ev;
	uint64		id;
	int			looks = 0;

	walking = true;
	history_walk_begin(&w, dispatch_db, dispatch_me, from);
	for (int i = 0; i < ngroups; i++)
		skip_gone(&groups[i]);
	while ((ev = history_walk_next(&w, &id)) != NULL && id <= limit)
	{
		if (concerns_anybody(ev, id))
			handle(ev, id, until);
		else if (++looks < SLICE_LOOKS)
			continue;
		if (looks >= SLICE_LOOKS || used_up(until))
		{
			reached = id;
			break;
		}
	}
	history_walk_end(&w);
	walking = false;
	return reached;
}

/* Puts one response into the queues of those that are at it. */
static void
deliver(Group *g, const Outcome *o)
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
			resume_push(runner->r, o->event_id, o->body);
		runner->r->after = runner->after = o->event_id;
		progress = true;
	}
	LWLockRelease(&g->stream->lock);
	if (o->kind == OUTCOME_RESPONSE)
		stats_add(&dispatch_self()->stats, SD_STAT_RESPONSES_REPLAYED, 1);
}

static void
release_outcomes(void)
{
	int			n;
	Outcome    *outcomes = respond_outcomes(&n);

	for (int i = 0; i < n; i++)
	{
		Outcome    *o = &outcomes[i];
		Group	   *g = group_of(o->stream);

		o->took_tokens = false; /* for good */
		if ((o->kind == OUTCOME_RESPONSE || o->kind == OUTCOME_GAP) && o->event_id < g->stop)
			deliver(g, o);
		else if (o->kind == OUTCOME_END)
			subscription_end_stream(o->stream, o->end);
		respond_count_timeouts(o);
	}
	respond_forget();
}

/* The group's runners are done with everything up to "reached". */
static void
end_group(Group *g, uint64 reached)
{
	bool		any = false;

	reached = Min(reached, g->seam);
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
		r->full = runner->full_at != 0 && r->n > r->size / 2;
		if (r->after == g->seam)
			join(g, runner);
	}
	if (any)
		stream_wake_resumed(g->stream);
	LWLockRelease(&g->stream->lock);
}

/* After the commit nothing may come between it and the queues. */
static void
run_slice(uint64 from, uint64 limit)
{
	uint64		reached;

	current = 0;
	nhandled = nentries = 0;
	resolved = false;
	progress = false;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	reached = walk(from, limit);
	CommitTransactionCommand();
	HOLD_INTERRUPTS();
	release_outcomes();
	for (int i = 0; i < ngroups; i++)
		end_group(&groups[i], reached);
	dispatch_self()->replay_attempts = 0;
	RESUME_INTERRUPTS();
}

/* ---- errors ---- */

/* Those that it was shown to are told that something is missing. */
static void
give_up(Group *g)
{
	LWLockAcquire(&g->stream->lock, LW_EXCLUSIVE);
	for (int i = 0; i < g->n; i++)
	{
		Runner	   *runner = &runners[g->first + i];

		if (!runner->here || !runner->r->running || runner->after >= current)
			continue;
		resume_note_gap(runner->r);
		runner->r->after = current;
	}
	LWLockRelease(&g->stream->lock);
}

/* An event failed by itself. */
static void
give_up_current(void)
{
	SdHistoryWalk w;
	SdEvent    *ev;
	uint64		id;

	history_walk_begin(&w, dispatch_db, dispatch_me, current - 1);
	ev = history_walk_next(&w, &id);
	if (ev && id == current)
		for (int i = 0; i < ngroups; i++)
			if (concerns(groups[i].stream->channel, ev) && id <= groups[i].seam &&
				id < groups[i].stop)
				give_up(&groups[i]);
	history_walk_end(&w);
}

static void
after_error(void)
{
	HOLD_INTERRUPTS();
	AbortCurrentTransaction();
	LWLockReleaseAll();
	security_reset();
	respond_forget();
	visible_note_error();
	if (walking)
		history_unpin(dispatch_db, dispatch_me);
	walking = false;
	dispatch_self()->replay_attempts = 0;
	stats_add(&dispatch_self()->stats, SD_STAT_DISPATCH_ERRORS, 1);
	if (current != 0 && nhandled == 1 && current <= careful_until)
		give_up_current();
	else
		careful_until = Max(careful_until, current);
	RESUME_INTERRUPTS();
}

/* An error is logged; false then. */
static bool
try_slice(uint64 from, uint64 limit)
{
	MemoryContext old = CurrentMemoryContext;
	volatile bool ok = true;

	PG_TRY();
	{
		run_slice(from, limit);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(dispatch_context);
		error = CopyErrorData();
		FlushErrorState();
		after_error();
		dispatch_log_failure(InvalidOid, error, NULL);
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	return ok;
}

/* ---- the dispatcher's step ---- */

static void
init(SdDatabase *db, int dispatcher)
{
	SdDispatcher *d = &db->dispatchers[dispatcher];

	if (history)
		return;
	history = &d->history;
	history_unpin(db, dispatcher);
	/* A predecessor died over one of the events of its slice. */
	if (d->replay_attempts > 0)
		careful_until = d->replay_id;
	before_shmem_exit(at_exit, 0);
}

bool
catchup_step(SdDatabase *db, int dispatcher, TimestampTz *retry_at)
{
	uint64		from;
	uint64		limit;

	init(db, dispatcher);
	/* Read without the lock: who comes now wakes us. */
	if (history->nresuming == 0 && nrunners == 0)
		return false;
	dispatch_prepare(db, dispatcher);
	collect();
	from = begin_groups(dispatched_up_to(), &limit);
	if (from == PG_UINT64_MAX)
		return false;
	if (!try_slice(from, limit))
		progress = false;
	if (!progress)
		*retry_at = Min(*retry_at, GetCurrentTimestamp() + RETRY);
	return progress;
}

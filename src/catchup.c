/*-------------------------------------------------------------------------
 *
 * catchup.c
 *	  The dispatcher's side of resuming: events out of the history, for
 *	  subscriptions that go on after an event (runners.c: who they are).
 *
 * Between two batches the dispatcher works on one slice of all that resumes on
 * its channels: it walks through the history from where the one that is
 * furthest behind stands, asks for each event what the streams concerned would
 * get of it now (rights, filter and resolver as for an event that is new, and
 * each resolver called once for all that share the call), and puts each
 * response, made once for a stream, into the queues of those that resume on it
 * and have come to that event.  Who is further ahead waits for the others; who
 * has not read what is in its queue does without, and comes later.  With the
 * Redis bus those for whom the history does not reach back far enough have a
 * slice of their own, out of a window (backfill.c) instead of the history.
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
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "dispatcher.h"
#include "runners.h"
#include "security.h"
#include "subscription.h"
#include "visible.h"

#define SLICE				(2 * 1000)	/* us until other events have their turn */
#define SLICE_EVENTS		256
#define SLICE_LOOKS			20000	/* events of other channels passed over */
#define SLICE_ENTRIES		20000	/* responses put into queues */
#define RETRY				(SD_SECOND / 100)	/* when a limit stands in the way */

/* All this is the process's own. */
static SdHistory *history = NULL;
static uint64 careful_until = 0;	/* event by event up to this one */
static SliceSource source;

/* The slice that is under way. */
static uint64 current = 0;		/* event */
static int	nhandled = 0;		/* events that concerned anybody */
static int	nentries = 0;
static bool resolved = false;	/* resolvers were called */
static bool walking = false;

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

/* ---- one event ---- */

static void
show(DispatchEvent *e, RunnerGroup *g)
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

/* What the event brought, from outcome number "from" on. */
static void
account(DispatchEvent *e, int from, int resolved)
{
	int			n;
	Outcome    *outcomes = respond_outcomes(&n);

	for (int i = from; i < n; i++)
	{
		RunnerGroup *g = runners_of(outcomes[i].stream);

		if (outcomes[i].kind == OUTCOME_RESPONSE)
			nentries += runners_take_room(g, &outcomes[i]);
		else if (outcomes[i].kind == OUTCOME_LIMITED || outcomes[i].kind == OUTCOME_END)
			g->stop = Min(g->stop, e->id);
	}
	/* Those whose resolver was not called any more are left for the next slice. */
	for (int i = resolved; i < e->nwork; i++)
		runners_of(e->work[i])->stop = e->id;
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
	runners_each(&e, show);
	PopActiveSnapshot();
	(void) respond_outcomes(&n);
	if (e.nwork > 0 && (!e.careful || n == before))
	{
		resolved = true;
		respond_resolve(&e, &at, e.careful ? 0 : until, false);
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

/* Through the window, or the history. */
typedef struct Walk
{
	SdHistoryWalk history;
	WindowWalk	window;
} Walk;

static void
walk_begin(Walk *w, uint64 from)
{
	if (source.from_window)
	{
		window_walk_begin(&w->window, source.window, from);
		return;
	}
	walking = true;
	history_walk_begin(&w->history, dispatch_db, dispatch_me, from);
}

static SdEvent *
walk_next(Walk *w, uint64 *id)
{
	return source.from_window ? window_walk_next(&w->window, id) :
		history_walk_next(&w->history, id);
}

static void
walk_end(Walk *w)
{
	if (walking)
		history_walk_end(&w->history);
	walking = false;
}

/* Returns the event up to which everybody got what he wanted. */
static uint64
walk(uint64 from, uint64 limit)
{
	TimestampTz until = GetCurrentTimestamp() + SLICE;
	uint64		reached = limit;
	Walk		w;
	SdEvent    *ev;
	uint64		id;
	int			looks = 0;

	walk_begin(&w, from);
	if (!source.from_window)
		runners_skip_gone();
	while ((ev = walk_next(&w, &id)) != NULL && id <= limit)
	{
		if (runners_concerned(ev, id))
			handle(ev, id, until);
		else if (++looks < SLICE_LOOKS)
			continue;
		if (looks >= SLICE_LOOKS || used_up(until))
		{
			reached = id;
			break;
		}
	}
	walk_end(&w);
	return reached;
}

static void
release_outcomes(void)
{
	int			n;
	Outcome    *outcomes = respond_outcomes(&n);

	for (int i = 0; i < n; i++)
	{
		Outcome    *o = &outcomes[i];
		RunnerGroup *g = runners_of(o->stream);

		o->took_tokens = false; /* for good */
		if ((o->kind == OUTCOME_RESPONSE || o->kind == OUTCOME_GAP) && o->event_id < g->stop)
		{
			runners_deliver(g, o);
			if (o->kind == OUTCOME_RESPONSE)
				stats_add(&dispatch_self()->stats, SD_STAT_RESPONSES_REPLAYED, 1);
		}
		else if (o->kind == OUTCOME_END)
			subscription_end_stream(o->stream, o->end);
		respond_count_timeouts(o);
	}
	respond_forget();
}

/* After the commit nothing may come between it and the queues. */
static void
run_slice(uint64 from, uint64 limit)
{
	uint64		reached;

	current = 0;
	nhandled = nentries = 0;
	resolved = false;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	reached = walk(from, limit);
	CommitTransactionCommand();
	HOLD_INTERRUPTS();
	release_outcomes();
	runners_end(reached);
	dispatch_self()->replay_attempts = 0;
	RESUME_INTERRUPTS();
}

/* ---- errors ---- */

/* An event failed by itself. */
static void
give_up_current(void)
{
	Walk		w;
	SdEvent    *ev;
	uint64		id;

	walk_begin(&w, current - 1);
	ev = walk_next(&w, &id);
	if (ev && id == current)
		runners_give_up(ev, id);
	walk_end(&w);
}

static void
after_error(void)
{
	HOLD_INTERRUPTS();
	AbortOutOfAnyTransaction();
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
at_exit(int code, Datum arg)
{
	LWLockReleaseAll();
	if (walking)
		history_unpin(dispatch_db, dispatch_me);
	walking = false;
	runners_forget();
	backfill_end();
}

static void
init(SdDatabase *db, int dispatcher)
{
	SdDispatcher *d = &db->dispatchers[dispatcher];

	if (history)
		return;
	history = &d->history;
	runners_init(history);
	backfill_init(db, dispatcher);
	history_unpin(db, dispatcher);
	/* A predecessor died over one of the events of its slice. */
	if (d->replay_attempts > 0)
		careful_until = d->replay_id;
	before_shmem_exit(at_exit, 0);
}

/* True if anybody got further. */
static bool
serve(bool from_window, TimestampTz *retry_at)
{
	uint64		from;
	uint64		limit;

	source.from_window = from_window;
	dispatch_prepare(dispatch_db, dispatch_me);
	runners_collect();
	from = runners_begin(dispatched_up_to(), &source, &limit);
	if (from == PG_UINT64_MAX)
		return runners_progress();
	if (try_slice(from, limit) && runners_progress())
		return true;
	*retry_at = Min(*retry_at, GetCurrentTimestamp() + RETRY);
	return false;
}

/*
 * After a slice out of the history: sees to it that those go on who are behind.
 * Stuck: the window has brought nobody further (a rate limit stands in the way).
 */
static bool
see_to_those_behind(bool stuck, TimestampTz *retry_at)
{
	const RunnersBehind *b = runners_behind();
	TimestampTz until;

	if (!b->any)
		backfill_cancel();
	if (b->early)
		*retry_at = Min(*retry_at, GetCurrentTimestamp() + RETRY);
	switch (backfill_state(&until))
	{
		case BACKFILL_NONE:
			if (b->from != PG_UINT64_MAX && (!b->covered || stuck))
				backfill_ask(b->from, &b->channels);
			return false;
		case BACKFILL_ASKED:
			*retry_at = Min(*retry_at, until);
			return false;
		case BACKFILL_TIMED_OUT:
			break;
	}
	backfill_cancel();
	runners_waive();
	dispatch_log_failure(InvalidOid, NULL,
						 "subscriptions that resume are told of a gap: what they missed did not come from Redis within subdispatch.redis_resume_timeout");
	return true;
}

bool
catchup_step(SdDatabase *db, int dispatcher, TimestampTz *retry_at)
{
	bool		worked = false;
	bool		stuck = false;

	init(db, dispatcher);
	/* Read without the lock: who comes now wakes us. */
	if (!runners_any())
	{
		backfill_end();
		return false;
	}
	dispatch_prepare(db, dispatcher);
	if (backfill_is_possible())
		history_hold(db, dispatcher, true);
	else
		backfill_end();
	source.window = backfill_window();
	if (source.window)
	{
		worked = serve(true, retry_at);
		stuck = !worked;
	}
	worked |= serve(false, retry_at);
	worked |= see_to_those_behind(stuck, retry_at);
	return worked;
}

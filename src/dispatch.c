/*-------------------------------------------------------------------------
 *
 * dispatch.c
 *	  One batch of events: what its streams get.
 *
 * What a dispatcher has in hand is worked off in batches.  A batch has two
 * phases.  First every event is shown to the streams without a resolver, whose
 * responses can be read at once.  Then resolvers are called, event by event,
 * each once for all streams that share its call; their responses are kept back
 * until the transaction in which they were made has committed, which happens
 * after RESOLVER_SLICE of work at the latest.  Each call has a subtransaction
 * of its own; the only call of an event that is alone has the transaction.
 *
 * If anything raises an error, the transaction is rolled back and the batch is
 * done again event by event; an event that fails alone is done once more with
 * a transaction for each resolver call, so that only those pay who share the
 * cause.  Every stream knows the last event it is done with, so nothing is
 * queued twice, here or after the death of a dispatcher.
 *
 * audience.c finds the streams, respond.c makes their responses.
 *
 * No locks are taken here.
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
#include "bus.h"
#include "dispatcher.h"
#include "history.h"
#include "replay.h"
#include "respond.h"
#include "security.h"
#include "visible.h"

#define BATCH_EVENTS		256
#define MAX_CONFLICTS		10	/* with recovery, over one piece of work */
/* What dispatch_context keeps from batch to batch: most need no more. */
#define KEPT_MEMORY			(512 * 1024)
#define RESOLVER_SLICE		(5 * 1000)	/* us of resolving until a commit */

SdDatabase *dispatch_db;
int			dispatch_me;
MemoryContext dispatch_context = NULL;

SdDispatcher *
dispatch_self(void)
{
	return &dispatch_db->dispatchers[dispatch_me];
}

static void
at_exit(int code, Datum arg)
{
	LWLockReleaseAll();
	respond_forget();
	audience_release();
}

static void
init(void)
{
	if (dispatch_context)
		return;
	dispatch_context = AllocSetContextCreate(TopMemoryContext, "subdispatch batch", KEPT_MEMORY,
											 ALLOCSET_DEFAULT_INITSIZE,
											 ALLOCSET_DEFAULT_MAXSIZE);
	before_shmem_exit(at_exit, 0);
}

#ifdef USE_ASSERT_CHECKING
void
dispatch_fault(DispatchEvent *e, const char *stage)
{
	SdDispatcher *d = dispatch_self();
	JsonbValue	value;
	char	   *fault;
	bool		fatal;

	if (e->data == NULL || !JB_ROOT_IS_OBJECT(e->data) || d->fault_id == e->id ||
		getKeyJsonValueFromContainer(&e->data->root, "fault", 5, &value) == NULL ||
		value.type != jbvString)
		return;
	fault = pnstrdup(value.val.string.val, value.val.string.len);
	fatal = strcmp(fault, psprintf("%s fatal", stage)) == 0;
	if (!fatal && strcmp(fault, psprintf("%s error", stage)) != 0)
		return;
	d->fault_id = e->id;
	ereport(fatal ? FATAL : ERROR,
			(errcode(ERRCODE_INTERNAL_ERROR), errmsg("test of a fault: %s", fault)));
}
#endif

/* ---- attempts ---- */

/* Remembers, beyond this process's life, what it is about to try. */
static void
attempt_begin(DispatchEvent *e)
{
	SdDispatcher *d = dispatch_self();

	if (d->current_id != e->id)
	{
		d->current_id = e->id;
		d->attempts = 0;
		d->current_resolver = InvalidOid;
	}
	d->current_identity = 0;
	d->attempts++;
}

/* An attempt is a run that may die; one that ends, in whatever way, is none. */
static void
attempt_end(void)
{
	dispatch_self()->attempts = 0;
}

bool
attempt_code(DispatchEvent *e, uint64 identity, Attempt *attempt)
{
	SdDispatcher *d = dispatch_self();

	attempt->id = d->current_id;
	attempt->identity = d->current_identity;
	attempt->attempts = d->attempts;
	attempt->resolver = d->current_resolver;
	attempt->again = d->current_id == e->id && d->current_identity == identity &&
		!OidIsValid(d->current_resolver);
	if (attempt->again && d->attempts >= DISPATCH_MAX_ATTEMPTS)
		return false;
	d->attempts = attempt->again ? d->attempts + 1 : 1;
	d->current_id = e->id;
	d->current_identity = identity;
	d->current_resolver = InvalidOid;
	return true;
}

void
attempt_code_ended(const Attempt *attempt)
{
	SdDispatcher *d = dispatch_self();

	d->current_id = attempt->id;
	d->current_identity = attempt->identity;
	d->current_resolver = attempt->resolver;
	d->attempts = attempt->again ? 0 : attempt->attempts;
}

/* ---- transactions ---- */

static void
begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
}

/*
 * Nothing may come between the commit and the release: a resolver whose
 * effects are committed must not run again because we were told to end.  The
 * commit itself holds interrupts from its record on, and looks at none after
 * it; before, where NOTIFY may have to wait for a lock, it must be possible to
 * end us.
 */
static void
commit_and_release(void)
{
	CommitTransactionCommand();
	HOLD_INTERRUPTS();
	respond_release();
	RESUME_INTERRUPTS();
}

static void
measure(DispatchEvent *e)
{
	if (e->measured)
		return;
	e->measured = true;
	if (e->ev->second)
		return;
	stats_dispatch_time(&dispatch_self()->stats, Max(GetCurrentTimestamp() - e->taken_at, 0));
	stats_add(&dispatch_self()->stats, SD_STAT_EVENTS_DISPATCHED, 1);
}

/* Calls an event's resolvers, with a commit whenever a slice is used up. */
static void
resolve_in_slices(DispatchEvent *e, TimestampTz *slice_end, bool lone)
{
	int			at = 0;

	attempt_begin(e);
	for (;;)
	{
		respond_resolve(e, &at, *slice_end, lone);
		if (at >= e->nwork)
			break;
		commit_and_release();
		*slice_end = GetCurrentTimestamp() + RESOLVER_SLICE;
		begin();
	}
}

/*
 * The whole of a batch; an error leaves the transaction to be aborted.  Returns
 * how many events are done with: when resolvers have used up a slice the rest
 * is left for the next batch, so that events that came meanwhile are shown to
 * the streams without a resolver first.
 */
static int
run_together(DispatchEvent *events, int n)
{
	TimestampTz slice_end;

	begin();
	PushActiveSnapshot(GetTransactionSnapshot());
	for (int i = 0; i < n; i++)
	{
		respond_show(&events[i]);
		dispatch_fault(&events[i], "shown");
	}
	PopActiveSnapshot();
	slice_end = GetCurrentTimestamp() + RESOLVER_SLICE;
	for (int i = 0; i < n; i++)
	{
		if (events[i].nwork == 0)
			continue;
		resolve_in_slices(&events[i], &slice_end, n == 1);
		dispatch_fault(&events[i], "resolved");
		if (GetCurrentTimestamp() >= slice_end)
			n = i + 1;
	}
	commit_and_release();
	attempt_end();
	for (int i = 0; i < n; i++)
	{
		measure(&events[i]);
		dispatch_fault(&events[i], "committed");
	}
	return n;
}

typedef struct Try
{
	DispatchEvent *events;
	int			n;
	enum
	{
		TRY_TOGETHER, TRY_SHOW, TRY_RESOLVE
	}			what;
	int			at;				/* TRY_RESOLVE: work item to begin with */
	int			ndone;			/* TRY_TOGETHER: events done with */
	ErrorData  *error;			/* if it failed */
} Try;

static void
run_try(Try *t)
{
	switch (t->what)
	{
		case TRY_TOGETHER:
			t->ndone = run_together(t->events, t->n);
			break;
		case TRY_SHOW:
			begin();
			PushActiveSnapshot(GetTransactionSnapshot());
			respond_show(t->events);
			PopActiveSnapshot();
			commit_and_release();
			break;
		case TRY_RESOLVE:
			begin();
			attempt_begin(t->events);
			respond_resolve(t->events, &t->at, 0, false);
			commit_and_release();
			attempt_end();
			break;
	}
}

/*
 * Runs it; an error is logged, its transaction rolled back.  False then.
 */
static bool
attempt(Try *t)
{
	MemoryContext old = CurrentMemoryContext;
	volatile bool ok = true;

	t->error = NULL;
	PG_TRY();
	{
		run_try(t);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(dispatch_context);
		t->error = CopyErrorData();
		FlushErrorState();
		HOLD_INTERRUPTS();
		/* also out of subtransactions that user code left open */
		AbortOutOfAnyTransaction();
		LWLockReleaseAll();
		security_reset();
		respond_forget();
		/* else all is shown anew */
		if (t->what == TRY_RESOLVE)
			stream_flush();
		else
			audience_release();
		visible_note_error();
		attempt_end();
		stats_add(&dispatch_self()->stats, SD_STAT_DISPATCH_ERRORS, 1);
		if (t->what == TRY_TOGETHER)
			dispatch_log_failure(InvalidOid, t->error, NULL);
		RESUME_INTERRUPTS();
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	return ok;
}

static void
lose(DispatchEvent *e, SdStream *stream)
{
	stream_lose(stream, e->id, 0);
}

/*
 * Nobody can be shown the event (its data cannot be made, say): all whom it
 * may concern are told that something is missing.
 */
static void
give_up_event(DispatchEvent *e)
{
	MemoryContext old = MemoryContextSwitchTo(dispatch_context);

	if (e->data == NULL)
	{
		e->data = dispatch_empty_object();
		e->given_up = true;
	}
	MemoryContextSwitchTo(old);
	audience_visit(e, lose);
}

/*
 * On a replica recovery may cancel whoever is in its way, which says nothing
 * about the event: it is tried again.
 */
static bool
attempt_unless_conflict(Try *t)
{
	for (int tries = 1;; tries++)
	{
		int			at = t->at;

		if (attempt(t))
			return true;
		if (!replay_is_conflict(t->error) || tries == MAX_CONFLICTS)
			return false;
		t->at = at;
		stats_add(&dispatch_self()->stats, SD_STAT_EVENTS_RETRIED, 1);
	}
}

/* An event that fails by itself: piece by piece. */
static void
run_isolated(DispatchEvent *e)
{
	Try			t = {.events = e, .n = 1, .what = TRY_SHOW};

	e->careful = true;
	visible_forget(e);
	if (!attempt_unless_conflict(&t))
	{
		dispatch_log_failure(InvalidOid, t.error, NULL);
		give_up_event(e);
		measure(e);
		return;
	}
	t.what = TRY_RESOLVE;
	while (t.at < e->nwork)
	{
		int			from = t.at;

		if (attempt_unless_conflict(&t))
			continue;
		dispatch_log_failure(stream_resolver(e->work[from]), t.error, NULL);
		if (t.at == from)		/* it failed before it called anything */
			t.at = from + 1;
		respond_failure(e, e->work + from, t.at - from, RESOLVER_FAILED,
					t.error->sqlerrcode, t.error->message);
		respond_release();
	}
	measure(e);
}

static uint32 blocks_done = 0;	/* since the last question */

uint32
dispatch_blocks_done(void)
{
	uint32		n = blocks_done;

	blocks_done = 0;
	return n;
}

/* n events from the beginning of what is in hand are done with. */
static void
done(int n)
{
	uint32		nblocks = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &dispatch_self()->inhand)
	{
		SdBlock    *block = dlist_container(SdBlock, node, iter.cur);
		int			some = Min(n, (int) (block->nevents - block->ndone));

		block->ndone += some;
		n -= some;
		if (block->ndone < block->nevents)
			break;
		nblocks++;
		if (n == 0)
			break;
	}
	bus_done(dispatch_db, dispatch_me, nblocks);
	blocks_done += nblocks;
}

/*
 * All of the events, or some from the first on.  One that was run alone is done
 * with at once: a process that dies over the next leaves it behind.
 */
static void
run_batch(DispatchEvent *events, int n)
{
	Try			t = {.events = events, .n = n, .what = TRY_TOGETHER};
	SdDispatcher *d = dispatch_self();
	bool		died_here = false;

	/* A predecessor died over one of them: find out over which call. */
	for (int i = 0; i < n; i++)
		died_here |= d->attempts > 0 && d->current_id == events[i].id;
	if (!died_here && attempt(&t))
	{
		done(t.ndone);
		return;
	}
	stats_add(&d->stats, SD_STAT_EVENTS_RETRIED, n);
	for (int i = 0; i < n; i++)
		if (n == 1 || died_here)
		{
			run_isolated(&events[i]);
			done(1);
		}
		else
			run_batch(&events[i], 1);
}

/* ---- in hand ---- */

/*
 * Must the event wait until what it is about can be seen here?  Those behind it
 * wait, too, since they may be of its channel.  It waits since it was linked,
 * so what has queued up in the meantime does not wait anew.
 */
static bool
must_wait(const SdBlock *block, const SdEvent *ev, TimestampTz now)
{
	static uint64 last_waited = 0;
	uint64		id = event_id(block, ev);
	ReplayPoint point;

	if (likely(XLogRecPtrIsInvalid(ev->commit.lsn)))
		return false;
	replay_look(&point);
	if (replay_state(&point, &ev->commit) != REPLAY_PENDING)
		return false;
	if (now - block->linked_at >= subdispatch_replay_wait_timeout * INT64CONST(1000))
	{
		replay_give_up(dispatch_db, &point, &ev->commit);
		return false;
	}
	if (id > last_waited && !ev->second)
		stats_add(&dispatch_self()->stats, SD_STAT_REPLAY_WAITS, 1);
	last_waited = Max(last_waited, id);
	return true;
}

/*
 * Collects the next events in hand, from as many blocks as fill a batch.
 * Returns how many; none if the first of them has to wait.
 */
static int
next_batch(DispatchEvent *events)
{
	int			n = 0;
	bool		wait = false;
	dlist_iter	iter;
	TimestampTz now = GetCurrentTimestamp();

	/* Only we change the list and its blocks. */
	dlist_foreach(iter, &dispatch_self()->inhand)
	{
		SdBlock    *block = dlist_container(SdBlock, node, iter.cur);
		SdEvent    *ev = block_first(block);

		for (uint32 i = 0; i < block->nevents && n < BATCH_EVENTS; i++, ev = event_next(ev))
		{
			if (i < block->ndone)
				continue;
			wait = must_wait(block, ev, now);
			if (unlikely(wait))
				break;
			memset(&events[n], 0, sizeof(DispatchEvent));
			events[n].ev = ev;
			events[n].id = block->base_id + ev->ordinal;
			events[n].taken_at = now;
			n++;
		}
		if (n == BATCH_EVENTS || wait)
			break;
	}
	return n;
}

void
dispatch_prepare(SdDatabase *database, int dispatcher)
{
	dispatch_db = database;
	dispatch_me = dispatcher;
	init();
	/* what an error left that could not be dealt with */
	respond_forget();
	audience_release();
	MemoryContextReset(dispatch_context);
}

/*
 * Works off one batch of what is in hand.  Whatever a single event does, this
 * returns normally and at least one event is done with; false if all of them have
 * to wait for replay.
 */
bool
dispatch_inhand(SdDatabase *database, int dispatcher)
{
	DispatchEvent *events;
	int			n;

	dispatch_prepare(database, dispatcher);
	events = MemoryContextAlloc(dispatch_context, sizeof(DispatchEvent) * BATCH_EVENTS);
	n = next_batch(events);
	if (n > 0)
		run_batch(events, n);
	audience_release();
	return n > 0;
}

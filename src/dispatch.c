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
 * after RESOLVER_SLICE of work at the latest.
 *
 * If anything raises an error, the transaction is rolled back and the batch is
 * done again event by event; an event that fails alone is done once more with
 * a transaction for each resolver call, so that only those pay who share the
 * cause.  Every stream knows the last event it is done with, so nothing is
 * queued twice, here or after the death of a dispatcher.
 *
 * Streams are pinned while the batch looks at them; the pins are given back by
 * release_pins(), which also runs at process exit.
 *
 * Locks: registry_lock shared, for a piece of a channel's streams at a time;
 * streams' locks inside stream.c.  None is held while anything else happens.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "bus.h"
#include "dispatch.h"
#include "dispatcher.h"
#include "registry.h"
#include "resolver.h"
#include "security.h"

#define BATCH_EVENTS		256
#define STREAMS_PER_LOCK	128
#define RESOLVER_SLICE		(5 * 1000)	/* us of resolving until a commit */
#define MAX_ATTEMPTS		3	/* deaths over one event before it is given up */

/* One event of the batch. */
typedef struct Event
{
	SdEvent    *ev;
	uint64		id;
	Jsonb	   *data;			/* NULL until somebody needs it */
	SdBody	   *body;			/* data as a payload without a key, or NULL */
	SdStream  **work;			/* streams whose resolver is to be called */
	int			nwork;
	int			work_size;
	TimestampTz taken_at;
	bool		measured;
} Event;

/* Done when the transaction has committed. */
typedef struct Outcome
{
	SdStream   *stream;
	uint64		event_id;
	SdBody	   *body;			/* one reference; NULL without memory */
	enum
	{
		OUTCOME_RESPONSE, OUTCOME_NOTHING, OUTCOME_LIMITED, OUTCOME_END
	}			kind;
	SdEnd		end;
	bool		timed_out;
} Outcome;

static SdDatabase *db;
static int	me;
static MemoryContext batch_context = NULL;

static SdStream **pins = NULL;
static int	npins = 0;
static int	pins_size = 0;

static SdChannel *pinned_channel = NULL;

static Outcome *outcomes = NULL;
static int	noutcomes = 0;
static int	outcomes_size = 0;

static SdDispatcher *
self(void)
{
	return &db->dispatchers[me];
}

/* ---- pins and outcomes: process-wide, so that nothing leaks ---- */

static void
forget_outcomes(void)
{
	while (noutcomes > 0)
		body_unref(outcomes[--noutcomes].body);
}

static void
unpin_channel(void)
{
	if (pinned_channel)
		channel_unref(pinned_channel);
	pinned_channel = NULL;
}

static void
release_pins(void)
{
	forget_outcomes();
	unpin_channel();
	while (npins > 0)
		stream_unpin(pins[--npins]);
}

static void
at_exit(int code, Datum arg)
{
	LWLockReleaseAll();
	release_pins();
}

/* Makes room for n more pins, so that pinning cannot fail under a lock. */
static void
reserve_pins(int n)
{
	if (npins + n <= pins_size)
		return;
	pins_size = Max(pins_size * 2, npins + n + STREAMS_PER_LOCK);
	if (pins)
		pins = repalloc_huge(pins, pins_size * sizeof(SdStream *));
	else
		pins = MemoryContextAllocHuge(TopMemoryContext, pins_size * sizeof(SdStream *));
}

static Outcome *
add_outcome(SdStream *stream, uint64 event_id)
{
	Outcome    *o;

	if (noutcomes == outcomes_size)
	{
		outcomes_size = outcomes_size ? outcomes_size * 2 : 64;
		if (outcomes)
			outcomes = repalloc_huge(outcomes, outcomes_size * sizeof(Outcome));
		else
			outcomes = MemoryContextAllocHuge(TopMemoryContext, outcomes_size * sizeof(Outcome));
	}
	o = &outcomes[noutcomes++];
	memset(o, 0, sizeof(Outcome));
	o->stream = stream;
	o->event_id = event_id;
	return o;
}

static void
init(void)
{
	if (batch_context)
		return;
	batch_context = AllocSetContextCreate(TopMemoryContext, "subdispatch batch",
										  ALLOCSET_DEFAULT_SIZES);
	before_shmem_exit(at_exit, 0);
}

/* ---- which streams an event concerns ---- */

/* One set of streams of a channel; path NULL: those without an index key. */
typedef struct Place
{
	char	   *path;
	int			pathlen;
	uint64		value_hash;
} Place;

typedef void (*StreamVisitor) (Event *e, SdStream *stream);

/*
 * Copies the channel's index paths into memory that was allocated for "room"
 * of them; returns how many there are, which may be more.  The channel is
 * pinned.
 */
static int
copy_paths(SdChannel *channel, Place *places, int room)
{
	int			n = 0;
	dlist_iter	iter;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	dlist_foreach(iter, &channel->paths)
	{
		SdIndexPath *p = dlist_container(SdIndexPath, node, iter.cur);

		if (n < room)
		{
			memcpy(places[n].path, p->path, p->pathlen);
			places[n].pathlen = p->pathlen;
		}
		n++;
	}
	LWLockRelease(&sd_shared->registry_lock);
	return n;
}

/* All index paths of the channel, and how many. */
static Place *
get_paths(SdChannel *channel, int *n)
{
	static Place *places = NULL;
	static int	room = 0;

	while ((*n = copy_paths(channel, places, room)) > room)
	{
		int			more = *n + 16;

		if (places == NULL)
			places = MemoryContextAlloc(TopMemoryContext, sizeof(Place) * more);
		else
			places = repalloc_huge(places, sizeof(Place) * more);
		while (room < more)
		{
			places[room].path = MemoryContextAlloc(TopMemoryContext, FILTER_INDEX_PATH_MAX);
			room++;
		}
	}
	return places;
}

/*
 * Visits the streams of one place.  Pins a piece at a time, from the end of
 * the array: one that goes is replaced by the last, which was visited before,
 * so none that was there at the beginning is missed.
 */
static void
visit_place(Event *e, SdChannel *channel, const Place *place, StreamVisitor visit)
{
	uint32		at = PG_UINT32_MAX;

	do
	{
		int			first;
		SdStreamVec *vec;

		reserve_pins(STREAMS_PER_LOCK);
		first = npins;
		LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
		vec = registry_streams(channel, place->path, place->pathlen, place->value_hash);
		at = Min(at, vec ? vec->n : 0);
		while (at > 0 && npins - first < STREAMS_PER_LOCK)
			pins[npins++] = stream_pin(vec->items[--at]);
		LWLockRelease(&sd_shared->registry_lock);

		for (int i = first; i < npins; i++)
			visit(e, pins[i]);
	} while (at > 0);
}

/* A TRUNCATE has no row: filters have nothing to look at and let it pass. */
static bool
ignores_filters(const Event *e)
{
	return e->ev->source == SD_SOURCE_CHANGE && e->ev->op == SD_OP_TRUNCATE;
}

/*
 * Copies which values (their hashes) streams ask for at the path, and counts
 * them; false if there are more than there is room for.
 */
static bool
copy_values(SdChannel *channel, const Place *place, uint64 *values, int room, int *n)
{
	dlist_iter	p;
	dlist_iter	b;

	*n = 0;
	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	dlist_foreach(p, &channel->paths)
	{
		SdIndexPath *path = dlist_container(SdIndexPath, node, p.cur);

		if (path->pathlen != place->pathlen || memcmp(path->path, place->path, place->pathlen) != 0)
			continue;
		dlist_foreach(b, &path->buckets)
		{
			if (*n < room)
				values[*n] = dlist_container(SdBucket, node, b.cur)->value_hash;
			(*n)++;
		}
	}
	LWLockRelease(&sd_shared->registry_lock);
	return *n <= room;
}

/* Visits the streams of a path whatever value they ask for. */
static void
visit_all_values(Event *e, SdChannel *channel, Place *place, StreamVisitor visit)
{
	uint64	   *values = NULL;
	int			room = 0;
	int			n;

	while (!copy_values(channel, place, values, room, &n))
	{
		room = n + 64;
		values = MemoryContextAllocHuge(batch_context, room * sizeof(uint64));
	}
	for (int i = 0; i < n; i++)
	{
		place->value_hash = values[i];
		visit_place(e, channel, place, visit);
	}
}

static void need_data(Event *e);

static void
visit_channel(Event *e, const char *name, Size len, uint32 hash, StreamVisitor visit)
{
	SdChannel  *channel;
	Place	   *places;
	Place		plain = {NULL, 0, 0};
	int			npaths;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	channel = channel_lookup(db->dboid, name, len, hash);
	if (channel)
		pg_atomic_fetch_add_u32(&channel->refs, 1);
	LWLockRelease(&sd_shared->registry_lock);
	if (channel == NULL)
		return;

	pinned_channel = channel;
	pg_atomic_fetch_add_u64(&channel->events, 1);
	need_data(e);
	places = get_paths(channel, &npaths);
	for (int i = 0; i < npaths; i++)
	{
		if (ignores_filters(e))
			visit_all_values(e, channel, &places[i], visit);
		else if (filter_event_key(&e->data->root, places[i].path, places[i].pathlen,
								  &places[i].value_hash))
			visit_place(e, channel, &places[i], visit);
	}
	visit_place(e, channel, &plain, visit);
	unpin_channel();
}

static void
visit_streams(Event *e, StreamVisitor visit)
{
	uint32		star = channel_hash(SD_STAR, 1);

	if (e->ev->own_channel)
		visit_channel(e, EVENT_CHANNEL(e->ev), e->ev->channel_len, e->ev->channel_hash, visit);
	if (channel_dispatcher(star) == me && pg_atomic_read_u32(&db->nstar) > 0)
		visit_channel(e, SD_STAR, 1, star, visit);
}

/* ---- the first phase ---- */

static void
make_data(void *arg)
{
	Event	   *e = arg;
	MemoryContext old = MemoryContextSwitchTo(batch_context);

	e->data = event_data(e->ev);
	MemoryContextSwitchTo(old);
}

/* Where that runs code of the table's owner, it does so like a resolver. */
static void
need_data(Event *e)
{
	SdRights	rights = {0};
	ErrorData  *error = NULL;

	if (e->data)
		return;
	if (!event_runs_user_code(e->ev, &rights.role))
	{
		make_data(e);
		return;
	}
	if (resolver_guarded(make_data, e, "cast of a row image", &rights, subdispatch_resolver_timeout,
						 false, batch_context, &error) != RESOLVER_OK)
	{
		e->data = NULL;
		ReThrowError(error);
	}
}

static void
add_work(Event *e, SdStream *stream)
{
	if (e->nwork == e->work_size)
	{
		e->work_size = e->work_size ? e->work_size * 2 : 8;
		if (e->work)
			e->work = repalloc_huge(e->work, e->work_size * sizeof(SdStream *));
		else
			e->work = MemoryContextAllocHuge(batch_context, e->work_size * sizeof(SdStream *));
	}
	e->work[e->nwork++] = stream;
}

/*
 * The event's data as a stored payload.  Streams without a response_key share
 * one; the caller gets a reference of its own, or NULL without memory.
 */
static SdBody *
data_body(Event *e, SdStream *stream)
{
	if (stream->response_key)
		return dispatch_result_body(e->data, stream->response_key);
	if (e->body == NULL)
		e->body = dispatch_result_body(e->data, NULL);
	if (e->body)
		pg_atomic_fetch_add_u32(&e->body->refs, 1);
	return e->body;
}

static void
count_limited(SdStream *stream)
{
	stats_add(&self()->stats, SD_STAT_RATE_LIMITED, 1);
}

/* Does the stream's bucket have a token?  Takes it if take is true. */
static bool
within_rate(SdStream *stream, bool take)
{
	if (stream->rate_limit <= 0)
		return true;
	if (take)
		return ratelimit_take(&stream->tokens, stream->rate_limit, stream->burst,
							  GetCurrentTimestamp());
	return ratelimit_peek(&stream->tokens, stream->rate_limit, stream->burst,
						  GetCurrentTimestamp());
}

/* Shows the event to one stream. */
static void
show(Event *e, SdStream *stream)
{
	SdEnd		end;
	SdBody	   *body;

	if (e->id <= stream->last_event_id)
		return;
	end = dispatch_identity_end(stream->identity, e->id);
	if (end != SD_END_NONE)
	{
		subscription_end_stream(stream, end);
		return;
	}
	if (!dispatch_may_see(stream->identity, e->ev))
	{
		stats_add(&self()->stats, SD_STAT_DENIED_RLS, 1);
		return;
	}
	if (stream->filter && !ignores_filters(e) && !filter_match(stream->filter, &e->data->root))
		return;
	if (!within_rate(stream, !OidIsValid(stream->resolver)))
	{
		count_limited(stream);
		stream_lose(stream, e->id, 1);
		return;
	}
	if (OidIsValid(stream->resolver))
	{
		add_work(e, stream);
		return;
	}
	body = data_body(e, stream);
	stream_append(stream, e->id, body);
	body_unref(body);
}

static void
free_body(Event *e)
{
	body_unref(e->body);
	e->body = NULL;
}

static void
show_to_streams(Event *e)
{
	e->nwork = 0;
	visit_streams(e, show);
	free_body(e);
}

/* ---- the second phase ---- */

static void
add_response(SdStream *stream, uint64 event_id, SdBody *body)
{
	Outcome    *o = add_outcome(stream, event_id);

	if (within_rate(stream, true))
	{
		o->kind = OUTCOME_RESPONSE;
		o->body = body;
		if (body)
			pg_atomic_fetch_add_u32(&body->refs, 1);
	}
	else
		o->kind = OUTCOME_LIMITED;
}

/* A result for some streams of a call that asked with the same variables. */
static void
add_result(Event *e, SdStream **streams, int n, Jsonb *result)
{
	const char *key = NULL;
	SdBody	   *body = NULL;
	bool		made = false;

	for (int i = 0; i < n; i++)
	{
		const char *its_key = streams[i]->response_key;

		streams[i]->timeouts = 0;
		if (result == NULL)
		{
			add_outcome(streams[i], e->id)->kind = OUTCOME_NOTHING;
			continue;
		}
		if (!made || (key != its_key && (!key || !its_key || strcmp(key, its_key) != 0)))
		{
			body_unref(body);
			body = dispatch_result_body(result, its_key);
			key = its_key;
			made = true;
		}
		add_response(streams[i], e->id, body);
	}
	body_unref(body);
}

static void
add_failure(Event *e, SdStream **streams, int n, ResolverStatus status,
			int sqlerrcode, const char *message)
{
	SdBody	   *body = dispatch_error_body(message, sqlerrcode);

	for (int i = 0; i < n; i++)
	{
		SdEnd		end = SD_END_NONE;

		if (status == RESOLVER_GONE)
			end = SD_END_RESOLVER_GONE;
		else if (status == RESOLVER_DENIED)
			end = SD_END_RESOLVER_DENIED;
		else if (status == RESOLVER_TIMED_OUT)
		{
			if (++streams[i]->timeouts >= subdispatch_resolver_max_timeouts &&
				subdispatch_resolver_max_timeouts > 0)
				end = SD_END_RESOLVER_TIMEOUTS;
		}
		else
			streams[i]->timeouts = 0;

		if (status == RESOLVER_FAILED || status == RESOLVER_TIMED_OUT)
			add_response(streams[i], e->id, body);
		if (end != SD_END_NONE)
		{
			Outcome    *o = add_outcome(streams[i], e->id);

			o->kind = OUTCOME_END;
			o->end = end;
		}
	}
	body_unref(body);
}

/* One resolver call and all that share it: streams[0 .. n). */
static void
call_resolver(Event *e, SdStream **streams, int n)
{
	SdStream   *first = streams[0];
	ResolverCall call = {
		.fn = first->resolver, .batched = first->batched,
		.timeout_ms = subdispatch_resolver_timeout, .result_context = batch_context
	};
	int		   *starts = palloc(sizeof(int) * (n + 1));
	TimestampTz begin = GetCurrentTimestamp();
	SdStats    *stats = &self()->stats;

	call.rights = security_make_rights(first->identity->role, first->identity->settings,
									   subdispatch_context_settings);
	call.event = event_envelope(e->ev, e->id, e->data);
	call.variables = palloc(sizeof(Jsonb *) * n);
	for (int i = 0; i < n; i++)
		if (i == 0 || dispatch_compare_variables(streams[i - 1], streams[i]) != 0)
		{
			starts[call.nvariables] = i;
			call.variables[call.nvariables++] = streams[i]->variables;
		}
	starts[call.nvariables] = n;

	self()->current_resolver = call.fn;
	resolver_call(&call);
	stats_add(stats, SD_STAT_RESOLVER_CALLS, 1);
	stats_add(stats, SD_STAT_RESOLVER_TIME_US, GetCurrentTimestamp() - begin);

	if (call.status == RESOLVER_OK)
	{
		for (int i = 0; i < call.nvariables; i++)
			add_result(e, streams + starts[i], starts[i + 1] - starts[i], call.results[i]);
		return;
	}
	stats_add(stats, SD_STAT_RESOLVER_ERRORS, 1);
	if (call.status == RESOLVER_TIMED_OUT)
		stats_add(stats, SD_STAT_RESOLVER_TIMEOUTS, 1);
	dispatch_log_failure(call.fn, call.edata, call.message);
	add_failure(e, streams, n, call.status, call.sqlerrcode, call.message);
}

/* Killed the dispatcher MAX_ATTEMPTS times: not once more. */
static bool
given_up(Event *e, SdStream **streams, int n)
{
	SdDispatcher *d = self();

	if (d->current_id != e->id || d->attempts <= MAX_ATTEMPTS ||
		d->current_resolver != streams[0]->resolver)
		return false;
	add_failure(e, streams, n, RESOLVER_FAILED, ERRCODE_ADMIN_SHUTDOWN,
				"the dispatcher ended each time the resolver ran");
	return true;
}

/* Remembers, beyond this process's life, what it is about to try. */
static void
begin_attempt(Event *e)
{
	SdDispatcher *d = self();

	if (d->current_id != e->id)
	{
		d->current_id = e->id;
		d->attempts = 0;
		d->current_resolver = InvalidOid;
	}
	d->attempts++;
}

/* An attempt is a run that may die; one that ends, in whatever way, is none. */
static void
end_attempt(void)
{
	self()->attempts = 0;
}

/*
 * Calls the event's resolvers; isolated: only the call that begins at work
 * item *at, which moves on to the next.
 */
static void
resolve(Event *e, int *at, bool isolated)
{
	MemoryContext old;

	if (*at == 0)
		qsort(e->work, e->nwork, sizeof(SdStream *), dispatch_compare_work);
	old = MemoryContextSwitchTo(batch_context);
	PushActiveSnapshot(GetTransactionSnapshot());
	while (*at < e->nwork)
	{
		SdStream  **streams = e->work + *at;
		int			n = 1;

		while (*at + n < e->nwork && dispatch_same_call(streams[0], streams[n]))
			n++;
		*at += n;
		if (!given_up(e, streams, n))
			call_resolver(e, streams, n);
		if (isolated)
			break;
	}
	PopActiveSnapshot();
	MemoryContextSwitchTo(old);
}

/* ---- transactions ---- */

static void
begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
}

/* Makes readable what the transaction that has just committed brought. */
static void
release_outcomes(void)
{
	for (int i = 0; i < noutcomes; i++)
	{
		Outcome    *o = &outcomes[i];

		switch (o->kind)
		{
			case OUTCOME_RESPONSE:
				stream_append(o->stream, o->event_id, o->body);
				break;
			case OUTCOME_NOTHING:
				stream_skip(o->stream, o->event_id);
				break;
			case OUTCOME_LIMITED:
				count_limited(o->stream);
				stream_lose(o->stream, o->event_id, 1);
				break;
			case OUTCOME_END:
				subscription_end_stream(o->stream, o->end);
				break;
		}
	}
	forget_outcomes();
}

/*
 * Nothing may come between the commit and the release: a resolver whose
 * effects are committed must not run again because we were told to end.
 */
static void
commit_and_release(void)
{
	HOLD_INTERRUPTS();
	CommitTransactionCommand();
	release_outcomes();
	RESUME_INTERRUPTS();
}

static void
measure(Event *e)
{
	if (e->measured)
		return;
	e->measured = true;
	stats_dispatch_time(&self()->stats, Max(GetCurrentTimestamp() - e->taken_at, 0));
	stats_add(&self()->stats, SD_STAT_EVENTS_DISPATCHED, 1);
}

/* The whole of a batch; an error leaves the transaction to be aborted. */
static void
run_together(Event *events, int n)
{
	TimestampTz slice;
	bool		resolvers = false;

	begin();
	PushActiveSnapshot(GetTransactionSnapshot());
	for (int i = 0; i < n; i++)
	{
		show_to_streams(&events[i]);
		resolvers |= events[i].nwork > 0;
	}
	PopActiveSnapshot();
	slice = GetCurrentTimestamp();
	for (int i = 0; i < n && resolvers; i++)
	{
		int			at = 0;

		if (events[i].nwork == 0)
			continue;
		begin_attempt(&events[i]);
		resolve(&events[i], &at, false);
		if (GetCurrentTimestamp() - slice > RESOLVER_SLICE)
		{
			commit_and_release();
			for (int k = 0; k <= i; k++)
				measure(&events[k]);
			begin();
			slice = GetCurrentTimestamp();
		}
	}
	commit_and_release();
	for (int i = 0; i < n; i++)
		measure(&events[i]);
	end_attempt();
}

typedef struct Try
{
	Event	   *events;
	int			n;
	enum
	{
		TRY_TOGETHER, TRY_SHOW, TRY_RESOLVE
	}			what;
	int			at;				/* TRY_RESOLVE: work item to begin with */
	ErrorData  *error;			/* if it failed */
} Try;

static void
run_try(Try *t)
{
	switch (t->what)
	{
		case TRY_TOGETHER:
			run_together(t->events, t->n);
			break;
		case TRY_SHOW:
			begin();
			PushActiveSnapshot(GetTransactionSnapshot());
			show_to_streams(t->events);
			PopActiveSnapshot();
			commit_and_release();
			break;
		case TRY_RESOLVE:
			begin();
			begin_attempt(t->events);
			resolve(t->events, &t->at, true);
			commit_and_release();
			end_attempt();
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
		MemoryContextSwitchTo(batch_context);
		t->error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		LWLockReleaseAll();
		security_reset();
		forget_outcomes();
		unpin_channel();
		for (int i = 0; i < t->n; i++)
			free_body(&t->events[i]);
		end_attempt();
		stats_add(&self()->stats, SD_STAT_DISPATCH_ERRORS, 1);
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	return ok;
}

static void
lose(Event *e, SdStream *stream)
{
	stream_lose(stream, e->id, 0);
}

/*
 * Nobody can be shown the event (its data cannot be made, say): all whom it
 * may concern are told that something is missing.
 */
static void
give_up_event(Event *e)
{
	MemoryContext old = MemoryContextSwitchTo(batch_context);

	if (e->data == NULL)
		e->data = dispatch_empty_object();
	MemoryContextSwitchTo(old);
	visit_streams(e, lose);
}

/* An event that fails by itself: piece by piece. */
static void
run_isolated(Event *e)
{
	Try			t = {.events = e, .n = 1, .what = TRY_SHOW};

	if (!attempt(&t))
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

		if (attempt(&t))
			continue;
		dispatch_log_failure(e->work[from]->resolver, t.error, NULL);
		if (t.at == from)		/* it failed before it called anything */
			t.at = from + 1;
		add_failure(e, e->work + from, t.at - from, RESOLVER_FAILED,
					t.error->sqlerrcode, t.error->message);
		release_outcomes();
	}
	measure(e);
}

static void
run_batch(Event *events, int n)
{
	Try			t = {.events = events, .n = n, .what = TRY_TOGETHER};
	SdDispatcher *d = self();
	bool		died_here = false;

	/* A predecessor died over one of them: find out over which call. */
	for (int i = 0; i < n; i++)
		died_here |= d->attempts > 0 && d->current_id == events[i].id;
	if (!died_here && attempt(&t))
		return;
	stats_add(&d->stats, SD_STAT_EVENTS_RETRIED, n);
	for (int i = 0; i < n; i++)
		if (n == 1 || died_here)
			run_isolated(&events[i]);
		else
			run_batch(&events[i], 1);
}

/* ---- in hand ---- */

/*
 * Collects the next events in hand, from as many blocks as fill a batch.
 * Returns how many; *blocks tells from how many blocks.
 */
static int
next_batch(Event *events)
{
	int			n = 0;
	dlist_iter	iter;
	TimestampTz now = GetCurrentTimestamp();

	/* Only we change the list and its blocks. */
	dlist_foreach(iter, &self()->inhand)
	{
		SdBlock    *block = dlist_container(SdBlock, node, iter.cur);
		SdEvent    *ev = block_first(block);

		for (uint32 i = 0; i < block->nevents && n < BATCH_EVENTS; i++, ev = event_next(ev))
		{
			if (i < block->ndone)
				continue;
			memset(&events[n], 0, sizeof(Event));
			events[n].ev = ev;
			events[n].id = block->base_id + ev->ordinal;
			events[n].taken_at = now;
			n++;
		}
		if (n == BATCH_EVENTS)
			break;
	}
	return n;
}

/* n events from the beginning of what is in hand are done with. */
static void
done(int n)
{
	while (n > 0)
	{
		SdBlock    *block = dlist_head_element(SdBlock, node, &self()->inhand);
		int			some = Min(n, (int) (block->nevents - block->ndone));

		block->ndone += some;
		n -= some;
		if (block->ndone == block->nevents)
			bus_done(db, me, block);
	}
}

/*
 * Works off one batch of what is in hand.  Whatever a single event does, this
 * returns normally and the event is done with.
 */
void
dispatch_inhand(SdDatabase *database, int dispatcher)
{
	Event	   *events;
	int			n;

	db = database;
	me = dispatcher;
	init();
	release_pins();
	MemoryContextReset(batch_context);
	events = MemoryContextAlloc(batch_context, sizeof(Event) * BATCH_EVENTS);
	n = next_batch(events);
	if (n > 0)
		run_batch(events, n);
	release_pins();
	done(n);
}

/* ---- gaps ---- */

/* A channel of mine that has gaps to tell, pinned, or NULL. */
static SdChannel *
next_gapped(uint32 *bucket)
{
	SdHash	   *table = &sd_shared->channels;
	SdChannel  *found = NULL;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	for (; *bucket <= table->mask && found == NULL; (*bucket)++)
		for (SdHashNode *node = table->buckets[*bucket]; node; node = node->next)
		{
			SdChannel  *channel = (SdChannel *) node;

			if (channel->dboid == db->dboid && channel->dispatcher == me &&
				pg_atomic_exchange_u32(&channel->gaps, 0) > 0)
			{
				found = channel;
				pg_atomic_fetch_add_u32(&found->refs, 1);
				(*bucket)--;	/* its chain may have another */
				break;
			}
		}
	LWLockRelease(&sd_shared->registry_lock);
	return found;
}

static void
tell_gap_in(SdStreamVec *vec)
{
	for (uint32 i = 0; i < vec->n; i++)
		stream_lose(vec->items[i], 0, 0);
}

/* Tells all streams of the channel that something is missing. */
static void
tell_gap(SdChannel *channel)
{
	dlist_iter	p;
	dlist_iter	b;

	LWLockAcquire(&sd_shared->registry_lock, LW_SHARED);
	tell_gap_in(&channel->plain);
	dlist_foreach(p, &channel->paths)
	{
		SdIndexPath *path = dlist_container(SdIndexPath, node, p.cur);

		dlist_foreach(b, &path->buckets)
			tell_gap_in(&dlist_container(SdBucket, node, b.cur)->vec);
	}
	LWLockRelease(&sd_shared->registry_lock);
}

/*
 * Committed events that found no room were noted at their channels, with
 * gap_requests as the sign that there are any.
 */
void
dispatch_gaps(SdDatabase *database, int dispatcher)
{
	static uint32 seen = 0;
	uint32		requests = pg_atomic_read_u32(&database->dispatchers[dispatcher].gap_requests);
	SdChannel  *channel;
	uint32		bucket = 0;

	if (requests == seen)
		return;
	db = database;
	me = dispatcher;
	while ((channel = next_gapped(&bucket)) != NULL)
	{
		tell_gap(channel);
		channel_unref(channel);
	}
	seen = requests;
}

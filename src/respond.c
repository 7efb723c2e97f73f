/*-------------------------------------------------------------------------
 *
 * respond.c
 *	  What an event's streams get.
 *
 * First phase, respond_show(): every stream of the audience that may see the
 * event and whose filter it passes gets its response, or stands in the event's
 * work list if it has a resolver.  Second phase, respond_resolve(): each
 * resolver is called once for all streams that share the call; what comes of
 * it are outcomes, which respond_release() makes readable once the transaction
 * has committed.
 *
 * Locks: streams' locks inside stream.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "allowance.h"
#include "audience.h"
#include "growing.h"
#include "registry.h"
#include "resolver.h"
#include "respond.h"
#include "security.h"
#include "visible.h"

static Outcome *outcomes = NULL;
static int	noutcomes = 0;
static int	outcomes_size = 0;

/* The data of the event that is shown, as a payload without a key, or NULL. */
static SdBody *data_payload = NULL;
static Jsonb *data_of_payload = NULL;

/* ---- outcomes: process-wide, so that nothing leaks ---- */

static void
forget_payload(void)
{
	body_unref(data_payload);
	data_payload = NULL;
}

/* Backwards, so that a bucket gets what it had first. */
void
respond_forget(void)
{
	while (noutcomes > 0)
	{
		Outcome    *o = &outcomes[--noutcomes];

		if (o->took_tokens)
			allowance_give_back(o->stream, &o->before);
		body_unref(o->body);
	}
	forget_payload();
}

static Outcome *
add_outcome(SdStream *stream, uint64 event_id)
{
	Outcome    *o;

	if (noutcomes == outcomes_size)
		outcomes = growing_enlarge(outcomes, &outcomes_size, 64, sizeof(Outcome), TopMemoryContext);
	o = &outcomes[noutcomes++];
	memset(o, 0, sizeof(Outcome));
	o->stream = stream;
	o->event_id = event_id;
	return o;
}

/* ---- the first phase ---- */

static void
add_work(DispatchEvent *e, SdStream *stream)
{
	if (e->nwork == e->work_size)
		e->work = growing_enlarge(e->work, &e->work_size, 8, sizeof(SdStream *), dispatch_context);
	e->work[e->nwork++] = stream;
}

/*
 * The event's data as a stored payload, which all streams without a
 * response_key share.  The reference is ours; NULL without memory.
 */
static SdBody *
shared_body(DispatchEvent *e, Jsonb *data)
{
	if (data_payload == NULL || data_of_payload != data)
	{
		forget_payload();
		data_payload = dispatch_result_body(e->id, data, NULL);
		data_of_payload = data;
	}
	return data_payload;
}

static void
append_data(DispatchEvent *e, Jsonb *data, SdStream *stream)
{
	SdBody	   *body;

	if (stream_response_key(stream) == NULL)
	{
		stream_append(stream, e->id, shared_body(e, data));
		return;
	}
	body = dispatch_result_body(e->id, data, stream_response_key(stream));
	stream_append(stream, e->id, body);
	body_unref(body);
}

static void
count_limited(SdStream *stream)
{
	stats_add(&dispatch_self()->stats, SD_STAT_RATE_LIMITED, 1);
}

/* May the stream have the event?  What its resolver says is decided later. */
static RespondFate
decide(DispatchEvent *e, SdStream *stream, uint64 lookup, Visible **visible)
{
	SdEnd		end = dispatch_stream_end(stream, lookup);

	if (end != SD_END_NONE)
	{
		if (end == SD_END_CHANNEL_REVOKED)
			stats_add(&dispatch_self()->stats, SD_STAT_DENIED_CHANNEL, 1);
		subscription_end_stream(stream, end);
		return FATE_ENDED;
	}
	if (e->given_up)
		return FATE_GAP;
	*visible = visible_in(e, stream);
	if ((*visible)->denied)
		return FATE_NOTHING;
	if (stream_filter(stream) && !(*visible)->leave && !audience_ignores_filters(e) &&
		!filter_match(stream_filter(stream), &(*visible)->data->root))
		return FATE_NOTHING;
	return allowance_pass(stream, false) ? FATE_RESPONSE : FATE_LIMITED;
}

/*
 * Shows the event to one stream.  If nobody reads the stream but some that
 * resume, they get the event when they have come that far.
 */
static void
show(DispatchEvent *e, SdStream *stream)
{
	Visible    *visible;
	RespondFate fate;

	if (e->id <= stream->last_event_id || !stream_has_readers(stream))
		return;
	dispatch_fault(e, "showing");
	fate = decide(e, stream, e->id, &visible);
	/* Another dispatcher may take a token of the user's meanwhile. */
	if (fate == FATE_RESPONSE && !OidIsValid(stream_resolver(stream)) && !allowance_pass(stream, true))
		fate = FATE_LIMITED;
	switch (fate)
	{
		case FATE_NOTHING:
		case FATE_ENDED:
			break;
		case FATE_GAP:
			stream_lose(stream, e->id, 0);
			break;
		case FATE_LIMITED:
			count_limited(stream);
			stream_limit(stream, e->id);
			break;
		case FATE_RESPONSE:
			if (OidIsValid(stream_resolver(stream)))
				add_work(e, stream);
			else
				append_data(e, visible->data, stream);
			break;
	}
}

void
respond_show(DispatchEvent *e)
{
	e->nwork = 0;
	audience_visit(e, show);
	forget_payload();
}

/* ---- the second phase ---- */

static Outcome *
add_response(SdStream *stream, uint64 event_id, SdBody *body)
{
	Outcome    *o = add_outcome(stream, event_id);

	if (stream_rate(stream))
		o->before = stream_rate(stream)->tokens;
	if (allowance_pass(stream, true))
	{
		o->kind = OUTCOME_RESPONSE;
		o->took_tokens = true;
		o->body = body;
		if (body)
			pg_atomic_fetch_add_u32(&body->refs, 1);
	}
	else
		o->kind = OUTCOME_LIMITED;
	return o;
}

RespondFate
respond_replay(DispatchEvent *e, SdStream *stream, uint64 lookup)
{
	Visible    *visible;
	RespondFate fate = decide(e, stream, lookup, &visible);

	if (fate == FATE_GAP)
		add_outcome(stream, e->id)->kind = OUTCOME_GAP;
	if (fate != FATE_RESPONSE)
		return fate;
	if (OidIsValid(stream_resolver(stream)))
		add_work(e, stream);
	else if (stream_response_key(stream) == NULL)
		(void) add_response(stream, e->id, shared_body(e, visible->data));
	else
	{
		SdBody	   *body = dispatch_result_body(e->id, visible->data, stream_response_key(stream));

		(void) add_response(stream, e->id, body);
		body_unref(body);
	}
	return fate;
}

Outcome *
respond_outcomes(int *n)
{
	*n = noutcomes;
	return outcomes;
}

/* A result for some streams of a call that asked with the same variables. */
static void
add_result(DispatchEvent *e, SdStream **streams, int n, Jsonb *result)
{
	const char *key = NULL;
	SdBody	   *body = NULL;
	bool		made = false;

	for (int i = 0; i < n; i++)
	{
		const char *its_key = stream_response_key(streams[i]);

		if (result == NULL)
		{
			add_outcome(streams[i], e->id)->kind = OUTCOME_NOTHING;
			continue;
		}
		if (!made || (key != its_key && (!key || !its_key || strcmp(key, its_key) != 0)))
		{
			body_unref(body);
			body = dispatch_result_body(e->id, result, its_key);
			key = its_key;
			made = true;
		}
		add_response(streams[i], e->id, body);
	}
	body_unref(body);
}

void
respond_failure(DispatchEvent *e, SdStream **streams, int n, ResolverStatus status,
			int sqlerrcode, const char *message)
{
	SdBody	   *body = dispatch_error_body(e->id, message, sqlerrcode);

	for (int i = 0; i < n; i++)
	{
		Outcome    *o;

		if (status == RESOLVER_FAILED || status == RESOLVER_TIMED_OUT)
		{
			o = add_response(streams[i], e->id, body);
			o->timed_out = status == RESOLVER_TIMED_OUT;
			continue;
		}
		o = add_outcome(streams[i], e->id);
		o->kind = OUTCOME_END;
		o->end = status == RESOLVER_GONE ? SD_END_RESOLVER_GONE : SD_END_RESOLVER_DENIED;
	}
	body_unref(body);
}

/*
 * One resolver call and all that share it: streams[0 .. n).  What it allocates
 * is the caller's to free: an event may have a great many calls.
 */
static void
call_resolver(DispatchEvent *e, SdStream **streams, int n, ResolverGuard guard)
{
	SdStream   *first = streams[0];
	ResolverCall call = {
		.fn = stream_resolver(first), .batched = first->batched, .guard = guard,
		.timeout_ms = subdispatch_resolver_timeout, .result_context = CurrentMemoryContext
	};
	int		   *starts = palloc(sizeof(int) * (n + 1));
	TimestampTz begin = GetCurrentTimestamp();
	SdStats    *stats = &dispatch_self()->stats;

	call.rights = visible_rights(stream_identity(first));
	call.event = event_envelope(e->ev, e->id, visible_to(e, stream_identity(first))->data);
	call.variables = palloc(sizeof(Jsonb *) * n);
	for (int i = 0; i < n; i++)
		if (i == 0 || dispatch_compare_variables(streams[i - 1], streams[i]) != 0)
		{
			starts[call.nvariables] = i;
			call.variables[call.nvariables++] = stream_variables(streams[i]);
		}
	starts[call.nvariables] = n;

	dispatch_self()->current_resolver = call.fn;
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
	respond_failure(e, streams, n, call.status, call.sqlerrcode, call.message);
}

/* Killed the dispatcher DISPATCH_MAX_ATTEMPTS times: not once more. */
static bool
given_up(DispatchEvent *e, SdStream **streams, int n)
{
	SdDispatcher *d = dispatch_self();

	if (d->current_id != e->id || d->attempts <= DISPATCH_MAX_ATTEMPTS ||
		d->current_resolver != stream_resolver(streams[0]))
		return false;
	respond_failure(e, streams, n, RESOLVER_FAILED, ERRCODE_ADMIN_SHUTDOWN,
				"the dispatcher ended each time the resolver ran");
	return true;
}

/* Nobody who shares the call could get its response: it is left out. */
static bool
all_limited(DispatchEvent *e, SdStream **streams, int n)
{
	for (int i = 0; i < n; i++)
		if (allowance_pass(streams[i], false))
			return false;
	for (int i = 0; i < n; i++)
	{
		Outcome    *o = add_outcome(streams[i], e->id);

		o->kind = OUTCOME_LIMITED;
		o->no_call = true;
	}
	return true;
}

/*
 * Streams whose subscriptions have gone since the event was shown need no
 * call.  Read without a lock: one that goes a moment later is called for.
 */
static void
leave_out_ended(DispatchEvent *e)
{
	int			n = 0;

	for (int i = 0; i < e->nwork; i++)
		if (e->work[i]->nsubscriptions > 0)
			e->work[n++] = e->work[i];
	e->nwork = n;
}

void
respond_resolve(DispatchEvent *e, int *at, TimestampTz until, bool lone)
{
	static MemoryContext call_context = NULL;
	MemoryContext old;

	if (call_context == NULL)
		call_context = AllocSetContextCreate(TopMemoryContext, "subdispatch resolver call",
											 ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(call_context);	/* what an error left */
	dispatch_compare_for(e);
	if (*at == 0)
	{
		leave_out_ended(e);
		qsort(e->work, e->nwork, sizeof(SdStream *), dispatch_compare_work);
	}
	old = MemoryContextSwitchTo(call_context);
	PushActiveSnapshot(GetTransactionSnapshot());
	while (*at < e->nwork)
	{
		SdStream  **streams = e->work + *at;
		int			n = 1;

		while (*at + n < e->nwork && dispatch_same_call(streams[0], streams[n]))
			n++;
		*at += n;
		if (!all_limited(e, streams, n) && !given_up(e, streams, n))
			call_resolver(e, streams, n,
						  lone && n == e->nwork ? GUARD_TRANSACTION : GUARD_SUBTRANSACTION);
		MemoryContextReset(call_context);
		if (GetCurrentTimestamp() >= until)
			break;
	}
	PopActiveSnapshot();
	MemoryContextSwitchTo(old);
}

/* ---- after the commit ---- */

/*
 * Counted here and not before, for a batch that is done again must not count
 * the same call twice.
 */
void
respond_count_timeouts(Outcome *o)
{
	SdStreamExtras *extras = stream_extras(o->stream);

	if (o->no_call || extras == NULL)
		return;
	extras->timeouts = o->timed_out ? extras->timeouts + 1 : 0;
	if (subdispatch_resolver_max_timeouts > 0 &&
		extras->timeouts >= subdispatch_resolver_max_timeouts)
		subscription_end_stream(o->stream, SD_END_RESOLVER_TIMEOUTS);
}

/* Makes readable what the transaction that has just committed brought. */
void
respond_release(void)
{
	for (int i = 0; i < noutcomes; i++)
	{
		Outcome    *o = &outcomes[i];

		o->took_tokens = false; /* for good */
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
				stream_limit(o->stream, o->event_id);
				break;
			case OUTCOME_END:
				subscription_end_stream(o->stream, o->end);
				break;
			case OUTCOME_GAP:
				stream_lose(o->stream, o->event_id, 0);
				break;
		}
		respond_count_timeouts(o);
	}
	stream_flush();
	respond_forget();
}

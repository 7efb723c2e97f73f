/*-------------------------------------------------------------------------
 *
 * respond.h
 *	  What an event's streams get.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_RESPOND_H
#define SD_RESPOND_H

#include "dispatch.h"
#include "resolver.h"

/* Done when the transaction has committed. */
typedef struct Outcome
{
	SdStream   *stream;
	uint64		event_id;
	SdBody	   *body;			/* one reference; NULL without memory */
	enum
	{
		OUTCOME_RESPONSE, OUTCOME_NOTHING, OUTCOME_LIMITED, OUTCOME_END, OUTCOME_GAP
	}			kind;
	SdEnd		end;
	bool		no_call;		/* the resolver was not called */
	bool		timed_out;
	bool		took_tokens;	/* the stream's, and its user's */
	TokenBucket before;			/* if so: the stream's bucket, without that */
} Outcome;

typedef enum RespondFate
{
	FATE_NOTHING,				/* the stream gets nothing of the event */
	FATE_ENDED,					/* its subscriptions lost their rights */
	FATE_GAP,					/* nobody knows what it gets: an outcome */
	FATE_LIMITED,				/* not now */
	FATE_RESPONSE				/* an outcome, or work for a resolver */
} RespondFate;

/* The first phase.  Needs a transaction with a snapshot. */
extern void respond_show(DispatchEvent *e);

/*
 * The second phase: calls the event's resolvers from work item *at on, which
 * moves, until all were called or, after the first, the time has come.  Needs a
 * transaction.  lone: there is nothing in it for other events, so if a single
 * call is all that the event needs, its failure may roll back all of it.
 */
extern void respond_resolve(DispatchEvent *e, int *at, TimestampTz until, bool lone);
/* The outcome of a call that failed, for the n streams that share it. */
extern void respond_failure(DispatchEvent *e, SdStream **streams, int n, ResolverStatus status,
							int sqlerrcode, const char *message);

/*
 * What one stream would get of an event that it is done with, for those that
 * resume: an outcome without a resolver, else an item of work for
 * respond_resolve().  "lookup" is never the same twice.  Needs e->data, a
 * transaction and a snapshot.
 */
extern RespondFate respond_replay(DispatchEvent *e, SdStream *stream, uint64 lookup);
/* What came of it: to be dealt with by the caller, after the commit. */
extern Outcome *respond_outcomes(int *n);
extern void respond_count_timeouts(Outcome *o);

/* Makes the outcomes readable: after the commit. */
extern void respond_release(void);
/* Forgets them, and what is left of the first phase: after an error. */
extern void respond_forget(void);

#endif							/* SD_RESPOND_H */

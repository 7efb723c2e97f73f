/*-------------------------------------------------------------------------
 *
 * dispatch.h
 *	  What the files that dispatch a batch share: dispatch.c, audience.c,
 *	  dispatch_data.c, respond.c, visibility.c, payload.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_DISPATCH_H
#define SD_DISPATCH_H

#include "database.h"
#include "event.h"
#include "stream.h"

/* One event of a batch; lives in dispatch_context. */
typedef struct DispatchEvent
{
	SdEvent    *ev;
	uint64		id;
	Jsonb	   *data;			/* NULL until somebody needs it */
	SdStream  **work;			/* streams whose resolver is to be called */
	int			nwork;
	int			work_size;
	TimestampTz taken_at;
	bool		measured;
	bool		first_time;		/* not shown before, by this process */
	bool		careful;		/* a policy's error is to cost only its identity */
	struct Visible *seen_first; /* see visible_to() */
	int			nseen_first;
	struct HTAB *seen;
	SdStream  **peers;			/* those visited with this one, pinned */
	int			npeers;
	struct RlsAnswers *answers;	/* rls.c's, of the peers */
	bool		given_up;		/* data is not the event's: nobody knows whom it
								 * concerns */
} DispatchEvent;

/* This process's own, set by dispatch_inhand(). */
extern SdDatabase *dispatch_db;
extern int	dispatch_me;
extern MemoryContext dispatch_context;	/* reset for every batch */
extern SdDispatcher *dispatch_self(void);
/* Begins anew: nothing of an earlier batch is left. */
extern void dispatch_prepare(SdDatabase *database, int dispatcher);

/*
 * For tests, in builds with assertions: an event whose data is an object with a
 * member "fault" like "shown error" or "resolved fatal" makes the dispatcher
 * fail at that stage, the first time it gets there.
 */
#ifdef USE_ASSERT_CHECKING
extern void dispatch_fault(DispatchEvent *e, const char *stage);
#else
#define dispatch_fault(e, stage)	((void) 0)
#endif

/* ---- attempts (dispatch.c) ---- */

#define DISPATCH_MAX_ATTEMPTS	3	/* deaths over one thing before it is given up */

/* What was noted when the attempt began. */
typedef struct Attempt
{
	uint64		id;
	uint64		identity;
	uint32		attempts;
	Oid			resolver;
	bool		again;
} Attempt;

/*
 * Before code other than a resolver's is run for an event, which may end the
 * process: notes it beyond the process's life.  identity: whose policies they
 * are, 0 for a cast.  False if dispatchers have died of it often enough: it is
 * not to be run.  What is noted of other attempts comes back at the end, as that
 * may be the one that the event's dispatchers die of.
 */
extern bool attempt_code(DispatchEvent *e, uint64 identity, Attempt *attempt);
extern void attempt_code_ended(const Attempt *attempt);

/* ---- what an event says (dispatch_data.c) ---- */

/*
 * Makes e->data, under the time limit of resolvers if that runs users' code;
 * may raise any error.  e->given_up: there is none that anybody could see.
 */
extern void dispatch_need_data(DispatchEvent *e);

/* ---- who may see (visibility.c) ---- */

/*
 * Must the stream end, because its identity's role is gone, its owner may not
 * act as it any more, or it has lost its grant on the channel?  Looked up anew
 * for every event.
 */
extern SdEnd dispatch_stream_end(SdStream *stream, uint64 event_id);

/* ---- which streams share a resolver call (payload.c) ---- */

/* For qsort; of the event that dispatch_compare_for() named. */
extern int	dispatch_compare_work(const void *a, const void *b);
extern void dispatch_compare_for(DispatchEvent *e);
extern int	dispatch_compare_variables(const SdStream *a, const SdStream *b);
extern bool dispatch_same_call(const SdStream *a, const SdStream *b);

/* ---- bodies; one reference, NULL when shared memory is used up ---- */

extern SdBody *dispatch_result_body(uint64 event_id, Jsonb *result, const char *response_key);
extern SdBody *dispatch_error_body(uint64 event_id, const char *message, int sqlerrcode);
extern Jsonb *dispatch_empty_object(void);

/* Logs a failure, at a limited rate.  fn InvalidOid: not a resolver's. */
extern void dispatch_log_failure(Oid fn, ErrorData *edata, const char *message);

#endif							/* SD_DISPATCH_H */

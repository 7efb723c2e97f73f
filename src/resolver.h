/*-------------------------------------------------------------------------
 *
 * resolver.h
 *	  One call of user code in a dispatcher: rights, time limit, errors.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_RESOLVER_H
#define SD_RESOLVER_H

#include "security.h"
#include "subdispatch.h"

#include "utils/jsonb.h"

typedef enum ResolverStatus
{
	RESOLVER_OK,
	RESOLVER_FAILED,			/* raised an error, or the result is wrong */
	RESOLVER_TIMED_OUT,
	RESOLVER_GONE,				/* the function was dropped */
	RESOLVER_DENIED				/* no EXECUTE right any more, or no such role */
} ResolverStatus;

/* What is rolled back when user code fails. */
typedef enum ResolverGuard
{
	/* no boolean's value: those who pass one are found by an Assert */
	GUARD_SUBTRANSACTION = 2,	/* the code's own subtransaction */
	GUARD_TRANSACTION,			/* the whole transaction, which holds nothing to
								 * be kept; a new one is begun, with a snapshot
								 * in place of the one that was active */
	GUARD_NONE					/* nothing: whatever is not RESOLVER_OK is raised
								 * as an error, after which the caller must abort
								 * its transaction */
} ResolverGuard;

typedef struct ResolverCall
{
	/* in */
	Oid			fn;
	bool		batched;
	ResolverGuard guard;
	const SdRights *rights;
	Jsonb	   *event;
	int			nvariables;		/* 1 unless batched */
	Jsonb	  **variables;
	int			timeout_ms;		/* <= 0: none */
	MemoryContext result_context;	/* of all that is below */

	/* out */
	Jsonb	  **results;		/* nvariables of them, NULL = SQL NULL; or NULL
								 * unless RESOLVER_OK */
	ResolverStatus status;
	bool		failed;			/* status is not RESOLVER_OK */
	bool		timed_out;		/* status is RESOLVER_TIMED_OUT */
	int			sqlerrcode;		/* if failed */
	char	   *message;		/* if failed */
	ErrorData  *edata;			/* if failed: all there is, for the log */
} ResolverCall;

/* True while user code runs in this process: it may then wait for nothing. */
extern bool resolver_running;

/*
 * subscribe()'s check: raises an error unless fn can be a resolver that role
 * may execute.  Tells whether it is of the batched form.
 */
extern void resolver_check(Oid fn, Oid role, bool *batched);

/* False too if there is no such function. */
extern bool resolver_is_immutable(Oid fn);

/*
 * Calls a resolver.  Needs a transaction with an active snapshot; errors of
 * the resolver's come back in *call, its database changes rolled back, as
 * call->guard says.  A request to end the process is not an error of the
 * resolver's: it ends the process here.  A batched resolver that returns SQL
 * NULL has nothing for any of its variables.
 */
extern void resolver_call(ResolverCall *call);

/*
 * The same for any other user code (policies): runs code(arg) as *rights,
 * within the time limit.  Returns RESOLVER_OK, RESOLVER_FAILED,
 * RESOLVER_TIMED_OUT or RESOLVER_DENIED (no such role); *edata then has the
 * error, in result_context.  "what" names it in messages.  What code(arg)
 * allocates in CurrentMemoryContext is gone on return.  With GUARD_TRANSACTION
 * the current context and result_context must outlive the transaction.
 */
typedef void (*ResolverCode) (void *arg);
extern ResolverStatus resolver_guarded(ResolverCode code, void *arg, const char *what,
									   const SdRights *rights, int timeout_ms, ResolverGuard guard,
									   MemoryContext result_context, ErrorData **edata);

/*
 * To be called by the dispatcher's handlers of SIGTERM and SIGINT, after the
 * pending flags were set: makes user code notice.  Async-signal-safe.
 */
extern void resolver_interrupt(void);

#endif							/* SD_RESOLVER_H */

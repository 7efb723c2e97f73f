/*-------------------------------------------------------------------------
 *
 * resolver.c
 *	  One call of user code in a dispatcher: rights, time limit, errors.
 *
 * User code is a resolver or a table's policies.  Whatever it does, the
 * dispatcher goes on: what it did is rolled back if it fails, it has the
 * identity's rights (security.c), and runs for a limited time.
 *
 * What is rolled back is a subtransaction, or the whole transaction where that
 * holds nothing else: a lone event that few want is then spared a good part of
 * what surrounds its resolver.
 *
 * THE TIME LIMIT.  A timer of the process's own calls on_timeout() when the
 * time is over and every TICK_MS from then on, until the code has ended:
 *
 *	- SQL, and whatever looks at PostgreSQL's interrupts, is cancelled as by
 *	  pg_cancel_backend().
 *	- Python code is interrupted; see pytimeout.c.
 *	- Code that catches the cancellation (plpgsql's WHEN query_canceled) is
 *	  cancelled again while its handler runs: every error that is raised after
 *	  the limit passes through error_context(), which asks for the next
 *	  cancellation.  So a handler is left at its first statement.
 *	- Code that is still there GRACE_MS later, but looks at interrupts, ends
 *	  with the process.  The dispatcher that follows knows from the shared
 *	  count of attempts which event its predecessor died of.
 *	- Code that looks at nothing, such as a C function that never returns,
 *	  can't be ended by any means short of a restart of the server.
 *
 * The timer and all that it may have set off are taken back before anything
 * else happens, so that they can't hit what follows.  Code that has returned
 * when its time was over counts as timed out.
 *
 * A request to end the process that comes meanwhile ends the code in the same
 * way, and then, here, the process; pg_cancel_backend() fails the call.
 *
 * Locks: none; none may be held.  Not reentrant.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "pytimeout.h"
#include "replay.h"
#include "resolver.h"

/* Between two attempts to end code whose time is over. */
#define TICK_MS			10
/* How long after its time code may go on before the process is ended. */
#define GRACE_MS		5000

/* Memory that a function keeps in its FmgrInfo before it is looked up anew. */
#define MAX_FUNCTION_MEMORY	(1024 * 1024)

/* A function that was called before. */
typedef struct ResolverFn
{
	Oid			fn;				/* hash key */
	uint32		hash;			/* in the syscache, for invalidation */
	bool		valid;			/* all below is as in the catalog */
	bool		batched;
	MemoryContext context;		/* what the function keeps, and its name */
	FmgrInfo	flinfo;
	char	   *name;			/* with argument types, qualified */
} ResolverFn;

bool		resolver_running = false;

static HTAB *functions = NULL;	/* of ResolverFn, by OID */
static uint64 function_changes = 0; /* any function's */
static MemoryContext work_context = NULL;	/* empty between calls */
static TimeoutId timeout_id;

/* The code under way. */
static struct
{
	const char *what;			/* names it in messages */
	const char *where;			/* more exactly, for their context; or NULL */
	ResolverStatus status;		/* what an error means: set before it is raised */
	int			timeout_ms;
	/* shared with signal handlers */
	volatile sig_atomic_t expired;	/* its time is over */
	volatile sig_atomic_t ticks;	/* since then */
	volatile sig_atomic_t given_up; /* the process is to end for it */
	volatile sig_atomic_t canceled; /* somebody sent a signal */
}			run;

/* ---- the time limit ---- */

/* Runs in a signal handler. */
static void
on_timeout(void)
{
	run.expired = true;
	if (++run.ticks > GRACE_MS / TICK_MS)
	{
		run.given_up = true;
		ProcDiePending = true;
	}
	QueryCancelPending = true;
	InterruptPending = true;
	pytimeout_interrupt();
}

void
resolver_interrupt(void)
{
	int			save_errno = errno;

	run.canceled = true;
	pytimeout_interrupt();
	errno = save_errno;
}

static void
arm(void)
{
	pytimeout_enter();
	resolver_running = true;
	if (run.timeout_ms > 0)
		enable_timeout_every(timeout_id,
							 TimestampTzPlusMilliseconds(GetCurrentTimestamp(), run.timeout_ms),
							 TICK_MS);
}

/*
 * The code has ended, and with it the reason for any cancellation that is
 * still pending: ours, or one of pg_cancel_backend() that was meant for it.
 */
static void
disarm(void)
{
	if (!resolver_running)
		return;
	if (run.timeout_ms > 0)
		disable_timeout(timeout_id, false);
	pytimeout_leave();
	QueryCancelPending = false;
	resolver_running = false;
}

/* Called for every message that is raised while the code runs. */
static void
error_context(void *arg)
{
	if (run.expired && resolver_running)
	{
		/* whoever catches this is cancelled again; see the file's head */
		QueryCancelPending = true;
		InterruptPending = true;
	}
	if (run.given_up)
		errcontext("%s did not end %d ms after its time limit of %d ms",
				   run.where ? run.where : run.what, GRACE_MS, run.timeout_ms);
	else
		errcontext("%s", run.where ? run.where : run.what);
}

/* ---- user code in general ---- */

static void
initialize(void)
{
	if (work_context != NULL)
		return;
	timeout_id = RegisterTimeout(USER_TIMEOUT, on_timeout);
	work_context = AllocSetContextCreate(TopMemoryContext, "subdispatch user code",
										 ALLOCSET_DEFAULT_SIZES);
}

/* Raises an error unless all of it went well. */
static void
run_code(ResolverCode code, void *arg, const SdRights *rights)
{
	ErrorContextCallback callback;
	SdGuard		guard;
	int			nest_level = GetCurrentTransactionNestLevel();

	if (!security_role_exists(rights->role))
		run.status = RESOLVER_DENIED;	/* for security_enter's error */
	security_enter(&guard, rights);

	callback.callback = error_context;
	callback.arg = NULL;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	arm();
	code(arg);
	disarm();
	if (run.expired)
		ereport(ERROR,			/* completed by translate_error */
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("time limit exceeded")));
	/* first, for settings are rolled back by the level */
	if (GetCurrentTransactionNestLevel() != nest_level)
		elog(ERROR, "user code left a subtransaction open");
	security_leave(&guard);
	error_context_stack = callback.previous;
}

/*
 * What is told of an error after the limit, or after pg_cancel_backend(): not
 * the exception that happened to end the code.  Where it was, which its
 * context tells, is kept.
 */
static void
translate_error(ErrorData *edata, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	edata->sqlerrcode = ERRCODE_QUERY_CANCELED;
	edata->detail = NULL;
	edata->detail_log = NULL;
	edata->hint = NULL;
	if (run.expired)
	{
		edata->message = psprintf("%s timed out after %d ms", run.what, run.timeout_ms);
		edata->hint = pstrdup("The time limit is set by \"subdispatch.resolver_timeout\".");
	}
	else
		edata->message = psprintf("%s canceled by a user's request", run.what);
	MemoryContextSwitchTo(old);
}

/*
 * Undoes what the code did.  A transaction may have inner ones open, of a
 * language that an error left in its own error handling: all are rolled back.
 */
static void
roll_back(ResolverGuard guard, int nest_level)
{
	switch (guard)
	{
		case GUARD_SUBTRANSACTION:
			while (GetCurrentTransactionNestLevel() > nest_level)
				RollbackAndReleaseCurrentSubTransaction();
			break;
		case GUARD_TRANSACTION:
			AbortOutOfAnyTransaction();
			break;
		case GUARD_NONE:
			break;
	}
}

/*
 * After an error was raised and is still on the error stack: gives it to the
 * caller, and makes the session what it was before the code.
 */
static ErrorData *
recover(MemoryContext result_context, int nest_level, ResolverGuard guard)
{
	ErrorData  *edata;

	disarm();
	MemoryContextSwitchTo(result_context);
	edata = CopyErrorData();
	FlushErrorState();
	if (run.expired)
		run.status = RESOLVER_TIMED_OUT;
	if (run.expired || run.canceled)
		translate_error(edata, result_context);
	roll_back(guard, nest_level);
	security_reset();
	if (guard == GUARD_TRANSACTION)
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
	}
	return edata;
}

ResolverStatus
resolver_guarded(ResolverCode code, void *arg, const char *what,
				 const SdRights *rights, int timeout_ms, ResolverGuard guard,
				 MemoryContext result_context, ErrorData **edata)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int			nest_level = GetCurrentTransactionNestLevel();
	ErrorData  *volatile error = NULL;

	Assert(guard >= GUARD_SUBTRANSACTION && guard <= GUARD_NONE);
	if (resolver_running)
		elog(ERROR, "user code is running already");
	initialize();
	pytimeout_prepare();

	run.what = what;
	run.where = NULL;
	run.status = RESOLVER_FAILED;
	run.timeout_ms = timeout_ms;
	run.expired = false;
	run.ticks = 0;
	run.given_up = false;
	run.canceled = false;

	if (guard == GUARD_SUBTRANSACTION)
		BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(work_context);
	PG_TRY();
	{
		run_code(code, arg, rights);
		if (guard == GUARD_SUBTRANSACTION)
			ReleaseCurrentSubTransaction();
		run.status = RESOLVER_OK;
	}
	PG_CATCH();
	{
		error = recover(result_context, nest_level, guard);
	}
	PG_END_TRY();

	MemoryContextSwitchTo(context);
	if (error == NULL || guard != GUARD_TRANSACTION)
		CurrentResourceOwner = owner;
	MemoryContextReset(work_context);
	*edata = error;

	/* a request to end the process, which ended only the code so far */
	if (unlikely(ProcDiePending))
		CHECK_FOR_INTERRUPTS();
	if (unlikely(error != NULL && (guard == GUARD_NONE || replay_is_conflict(error))))
		ReThrowError(error);
	return run.status;
}

/* ---- the functions ---- */

/*
 * Is it f(jsonb, jsonb) RETURNS jsonb, or, batched, f(jsonb, jsonb[]) RETURNS
 * jsonb[]?
 */
static bool
has_resolver_form(Form_pg_proc proc, bool *batched)
{
	if (proc->prokind != PROKIND_FUNCTION || proc->proretset || proc->pronargs != 2 ||
		proc->proargtypes.values[0] != JSONBOID)
		return false;
	*batched = proc->prorettype == JSONBARRAYOID;
	if (*batched)
		return proc->proargtypes.values[1] == JSONBARRAYOID;
	return proc->prorettype == JSONBOID && proc->proargtypes.values[1] == JSONBOID;
}

void
resolver_check(Oid fn, Oid role, bool *batched)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(fn));
	bool		fits;
	char	   *name;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("resolver with OID %u does not exist", fn)));
	fits = has_resolver_form((Form_pg_proc) GETSTRUCT(tuple), batched);
	name = pstrdup(NameStr(((Form_pg_proc) GETSTRUCT(tuple))->proname));
	ReleaseSysCache(tuple);

	if (!fits)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("%s cannot be a resolver", format_procedure(fn)),
				 errdetail("A resolver is a function f(event jsonb, variables jsonb) RETURNS jsonb, or, to get all variables in one call, f(event jsonb, variables jsonb[]) RETURNS jsonb[]."),
				 errhint("If the name is overloaded, write '%s(jsonb,jsonb)'::regprocedure.",
						 quote_identifier(name))));
	if (pg_proc_aclcheck(fn, role, ACL_EXECUTE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", format_procedure(fn)),
				 errdetail("Role \"%s\" needs EXECUTE on the resolver.",
						   GetUserNameFromId(role, true))));
}

bool
resolver_is_immutable(Oid fn)
{
	return SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(fn)) &&
		func_volatile(fn) == PROVOLATILE_IMMUTABLE;
}

/*
 * A function was changed.  It may be the one that runs, so nothing is freed
 * here.
 */
static void
function_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	HASH_SEQ_STATUS seq;
	ResolverFn *f;

	function_changes++;
	hash_seq_init(&seq, functions);
	while ((f = hash_seq_search(&seq)) != NULL)
	{
		if (hashvalue == 0 || f->hash == hashvalue)
			f->valid = false;
	}
}

static void
make_function_cache(void)
{
	HASHCTL		ctl = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(ResolverFn),
		.hcxt = TopMemoryContext
	};

	functions = hash_create("subdispatch resolvers", 32, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterSyscacheCallback(PROCOID, function_changed, (Datum) 0);
}

static void
forget_function(ResolverFn *f)
{
	if (f->context != NULL)
		MemoryContextDelete(f->context);
	(void) hash_search(functions, &f->fn, HASH_REMOVE, NULL);
}

/* Raises an error, with the status set to RESOLVER_GONE, if there is none. */
static void
load_function(ResolverFn *f)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(f->fn));
	Oid			fn = f->fn;
	bool		fits = false;
	MemoryContext old;

	if (HeapTupleIsValid(tuple))
	{
		fits = has_resolver_form((Form_pg_proc) GETSTRUCT(tuple), &f->batched);
		ReleaseSysCache(tuple);
	}
	if (!fits)
	{
		run.status = RESOLVER_GONE;
		forget_function(f);
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("resolver with OID %u does not exist", fn)));
	}

	if (f->context == NULL)
		f->context = AllocSetContextCreate(TopMemoryContext, "subdispatch resolver",
										   ALLOCSET_SMALL_SIZES);
	else
		MemoryContextReset(f->context);
	old = MemoryContextSwitchTo(f->context);
	f->name = psprintf("resolver %s", format_procedure_qualified(fn));
	MemoryContextSwitchTo(old);
	fmgr_info_cxt(fn, &f->flinfo, f->context);
}

/* The function, ready to be called; errors as load_function's. */
static ResolverFn *
get_function(Oid fn)
{
	ResolverFn *f;
	bool		found;

	if (functions == NULL)
		make_function_cache();
	f = hash_search(functions, &fn, HASH_ENTER, &found);
	if (!found)
	{
		f->hash = GetSysCacheHashValue1(PROCOID, ObjectIdGetDatum(fn));
		f->valid = false;
		f->context = NULL;
	}
	if (f->valid && MemoryContextMemAllocated(f->context, true) > MAX_FUNCTION_MEMORY)
		f->valid = false;
	if (!f->valid)
	{
		uint64		changes = function_changes;

		load_function(f);
		/* if it was changed meanwhile, this once is all it is good for */
		f->valid = (changes == function_changes);
	}
	return f;
}

/* ---- one call ---- */

static Datum
make_variables(const ResolverCall *call)
{
	Datum	   *elements;
	int			i;

	if (!call->batched)
		return JsonbPGetDatum(call->variables[0]);

	elements = palloc(call->nvariables * sizeof(Datum));
	for (i = 0; i < call->nvariables; i++)
		elements[i] = JsonbPGetDatum(call->variables[i]);
	return PointerGetDatum(construct_array(elements, call->nvariables, JSONBOID,
										   -1, false, TYPALIGN_INT));
}

/*
 * A batched resolver's results: as many as there were variables, in an array
 * of one dimension.  Raises 39000 for any other array.
 */
static void
take_array(ResolverCall *call, Datum value)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	Datum	   *elements;
	bool	   *nulls;
	int			n;
	int			i;
	MemoryContext old;

	deconstruct_array(array, JSONBOID, -1, false, TYPALIGN_INT, &elements, &nulls, &n);
	if (n != call->nvariables || ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_INVOCATION_EXCEPTION),
				 errmsg("resolver returned %d results in %d dimensions for %d variables",
						n, ARR_NDIM(array), call->nvariables),
				 errhint("A batched resolver must return an array with one result per element of its variables, in their order.")));

	old = MemoryContextSwitchTo(call->result_context);
	for (i = 0; i < n; i++)
	{
		if (!nulls[i])
			call->results[i] = DatumGetJsonbPCopy(elements[i]);
	}
	MemoryContextSwitchTo(old);
}

/* The code that a resolver_call guards: checks, call, results. */
static void
call_function(void *arg)
{
	ResolverCall *call = arg;
	ResolverFn *f = get_function(call->fn);
	PgStat_FunctionCallUsage usage;
	Datum		result;

	LOCAL_FCINFO(fcinfo, 2);

	run.where = f->name;
	if (pg_proc_aclcheck(call->fn, call->rights->role, ACL_EXECUTE) != ACLCHECK_OK)
	{
		run.status = RESOLVER_DENIED;
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", format_procedure(call->fn))));
	}
	InvokeFunctionExecuteHook(call->fn);
	if (f->batched != call->batched)
		elog(ERROR, "resolver %u is called in the wrong form", call->fn);

	InitFunctionCallInfoData(*fcinfo, &f->flinfo, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = JsonbPGetDatum(call->event);
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = make_variables(call);
	fcinfo->args[1].isnull = false;
	pgstat_init_function_usage(fcinfo, &usage);
	result = FunctionCallInvoke(fcinfo);
	pgstat_end_function_usage(&usage, true);

	call->results = MemoryContextAllocZero(call->result_context,
										   call->nvariables * sizeof(Jsonb *));
	if (fcinfo->isnull)
		return;					/* nothing for this event, for any of them */
	if (call->batched)
		take_array(call, result);
	else
	{
		MemoryContext old = MemoryContextSwitchTo(call->result_context);

		call->results[0] = DatumGetJsonbPCopy(result);
		MemoryContextSwitchTo(old);
	}
}

void
resolver_call(ResolverCall *call)
{
	Assert(call->batched || call->nvariables == 1);

	call->results = NULL;
	call->sqlerrcode = 0;
	call->message = NULL;
	call->status = resolver_guarded(call_function, call, "resolver", call->rights,
									call->timeout_ms, call->guard,
									call->result_context, &call->edata);
	call->failed = call->status != RESOLVER_OK;
	call->timed_out = call->status == RESOLVER_TIMED_OUT;
	if (call->failed)
	{
		call->results = NULL;
		call->sqlerrcode = call->edata->sqlerrcode;
		call->message = call->edata->message;
	}
}

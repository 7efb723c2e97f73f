/*-------------------------------------------------------------------------
 *
 * rls_many.c
 *	  One question about an event for all identities that are visited together.
 *
 * The streams of a channel are visited in pieces.  The first identity of a piece
 * whose policies must be asked by a query has all of its role asked with it, if
 * rls_set.c can do that; the answers are kept for when they are visited.
 *
 * This runs within a batch that has raised no error so far: when it is done
 * again, everybody is asked by himself, so that errors cost no others.
 *
 * Locks: those of running a query, until the end of the transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "resolver.h"
#include "rls_job.h"
#include "rls_set.h"
#include "visible.h"

/* What a query told of some of the event's identities. */
typedef struct RlsAnswers
{
	int			n;
	int			next;			/* most likely to be asked for */
	int			size;
	uint64	   *identities;
	bool	   *row;
	bool	   *old;
} RlsAnswers;

/* Fewer are not worth the rows that stand for them. */
#define FEWEST	2

/* As which identity's the attempt counts: nobody's, since serials begin at 1. */
#define OF_MANY	PG_UINT64_MAX

static bool
find_answer(const DispatchEvent *e, uint64 identity, bool *row_visible, bool *old_visible)
{
	RlsAnswers *a = e->answers;

	if (a == NULL)
		return false;
	for (int tries = 0; tries < a->n; tries++)
	{
		int			i = a->next;

		a->next = i + 1 < a->n ? i + 1 : 0;
		if (a->identities[i] != identity)
			continue;
		*row_visible = a->row[i];
		*old_visible = a->old[i];
		return true;
	}
	return false;
}

static void
make_answers(DispatchEvent *e)
{
	RlsAnswers *a = e->answers;

	if (a == NULL)
	{
		a = MemoryContextAllocZero(dispatch_context, sizeof(RlsAnswers));
		e->answers = a;
	}
	a->n = 0;
	a->next = 0;
	if (a->size >= e->npeers)
		return;
	a->size = 0;				/* until all are there */
	a->identities = MemoryContextAlloc(dispatch_context, sizeof(uint64) * e->npeers);
	a->row = MemoryContextAllocZero(dispatch_context, sizeof(bool) * e->npeers);
	a->old = MemoryContextAllocZero(dispatch_context, sizeof(bool) * e->npeers);
	a->size = e->npeers;
}

static bool
is_among(const RlsAnswers *a, uint64 identity)
{
	for (int i = a->n - 1; i >= 0; i--)
		if (a->identities[i] == identity)
			return true;
	return false;
}

/* Has it no settings but an application's?  See rls_cache_key(). */
static bool
has_plan(const RlsJob *job, const SdRights *rights)
{
	RlsPlanKey	key;
	char	   *settings;

	rls_cache_key(job->key.relid, rights, &key, &settings);
	return settings == NULL;
}

/*
 * Collects the identities that can be asked together with the job's, and have
 * not been yet.  Computing one's parts may make the others' be forgotten, so
 * who is known is told at the end.
 */
static int
collect_peers(RlsJob *job, RlsSplit *split)
{
	DispatchEvent *e = job->e;
	RlsAnswers *a;
	int			known = 0;

	make_answers(e);
	a = e->answers;
	for (int i = 0; i < e->npeers; i++)
	{
		SdIdentity *identity = stream_identity(e->peers[i]);

		if (identity->role != job->identity->role || is_among(a, identity->serial))
			continue;
		if (!split_knows_identity(split, identity->serial))
		{
			const SdRights *rights = visible_rights(identity);

			if (!has_plan(job, rights))
				continue;
			rls_need_identity(split, identity->serial, rights, job->timeout_ms);
		}
		a->identities[a->n++] = identity->serial;
	}
	/* that may have had the identities' rights made anew */
	job->rights = visible_rights(job->identity);
	for (int i = 0; i < a->n; i++)
		if (split_identity_values(split, a->identities[i]))
			a->identities[known++] = a->identities[i];
	return a->n = known;
}

static void
ask_set(void *arg)
{
	RlsJob	   *job = arg;
	RlsPlan    *plan = job->entry->plan;
	RlsAnswers *a = job->e->answers;
	const HeapTupleHeaderData *row = rls_image(job->ev, job->ev->row);
	const HeapTupleHeaderData *old = rls_image(job->ev, job->ev->old);
	ErrorContextCallback callback;

	security_be_quiet();
	rls_report_policies(job, &callback);
	if (!rls_cache_is_fresh() || !rls_lock_tables(plan->set_stmt))
		a->n = 0;
	if (row && a->n > 0)
		set_run(plan->set, job->table, row, a->identities, a->n, a->row);
	if (row && old && rls_plan_same_images(plan, job->table, job->e->id, row, old))
		memcpy(a->old, a->row, sizeof(bool) * a->n);
	else if (old && a->n > 0)
		set_run(plan->set, job->table, old, a->identities, a->n, a->old);
	error_context_stack = callback.previous;
}

/* The role, and the settings as they are for somebody who has none. */
static SdRights *
bare_rights(const SdRights *rights)
{
	SdRights   *bare = palloc(sizeof(SdRights));

	*bare = *rights;
	bare->values = palloc0(sizeof(char *) * Max(rights->nsettings, 1));
	return bare;
}

/* Runs the query for those that were collected; false if it told nothing. */
static bool
run_set(RlsJob *job, RlsSet *set)
{
	ErrorData  *edata = NULL;
	Attempt		attempt;
	bool		ok;

	if (!attempt_code(job->e, OF_MANY, &attempt))
		return false;
	ok = resolver_guarded(ask_set, job, "policy", bare_rights(job->rights), job->timeout_ms,
						  GUARD_SUBTRANSACTION, CurrentMemoryContext, &edata) == RESOLVER_OK;
	attempt_code_ended(&attempt);
	if (!ok)
		set_note_error(set);
	if (edata)
		FreeErrorData(edata);
	return ok;
}

bool
rls_ask_many(RlsJob *job)
{
	RlsSet	   *set = job->entry && job->table ? job->entry->plan->set : NULL;
	DispatchEvent *e = job->e;

	if (find_answer(e, job->identity->serial, &job->row_visible, &job->old_visible))
		return true;
	if (set == NULL || job->settings || e->npeers < FEWEST || !set_usable(set))
		return false;
	if (collect_peers(job, set_identities(set)) < FEWEST || !set_usable(set) ||
		!run_set(job, set))
	{
		/* who was collected has no answer */
		e->answers->n = 0;
		return false;
	}
	elog(DEBUG2, "policies of %d identities were asked by one query", e->answers->n);
	return find_answer(e, job->identity->serial, &job->row_visible, &job->old_visible);
}

/*-------------------------------------------------------------------------
 *
 * rls.c
 *	  What a role may see of the row images of a table's changes.
 *
 * What counts is what PostgreSQL would show of that row to a SELECT by the
 * same role with the same settings, by the table as it is now: USAGE on the
 * schema, SELECT on the table or on columns, and, unless the role is exempt
 * from it, row-level security.  The policies are those of the table that the
 * trigger was created on, as in a query of that table.  Each image is looked
 * at by itself, so they hold for what was deleted, too.  (How policies
 * become something to ask, rls_plan.c tells; rls_split.c and rls_many.c, what of
 * it is asked once for many.)
 *
 * What cannot be evaluated is denied: images with another layout than the
 * table has by now, or with values of a row type that was altered; policies
 * that raise an error, take too long or try to write (they run read-only).
 *
 * What is known of rights, tables and plans is kept by rls_cache.c.
 *
 * Locks: none of ours.  While a plan is made the table is locked with an
 * AccessShareLock, as are the tables in policies' sub-selects when it runs, to
 * the end of the (sub)transaction; the rest goes without, for an image is
 * only ever read with the layout that travelled with it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/rel.h"

#include "event_image.h"
#include "resolver.h"
#include "rls.h"
#include "rls_cache.h"
#include "rls_job.h"
#include "rls_set.h"
#include "rls_split.h"
#include "visible.h"

/* ---- rights ---- */

/* SELECT on every column that the event's images have? */
static bool
covers_images(const RlsRights *r, const SdEvent *ev)
{
	const SdEventAtt *atts = (const SdEventAtt *) ((const char *) ev + ev->atts);

	if (r->whole || ev->natts == 0)
		return r->every_column;
	for (uint32 i = 0; i < ev->natts; i++)
		if (OidIsValid(atts[i].type) && !bms_is_member(i + 1, r->columns))
			return false;
	return true;
}

/* ---- tables ---- */

/*
 * Have the images the layout that the table has now?  Then it can be trusted,
 * too, that their bytes are what the types say.  Names count, for policies that
 * look at the whole row.
 */
static bool
has_layout(const SdEvent *ev, const RlsTable *table)
{
	const SdEventAtt *atts = (const SdEventAtt *) ((const char *) ev + ev->atts);
	const SdEventTable *layout = table->layout;

	if (ev->natts != layout->natts)
		return false;
	if (!table->has_rows)
		return memcmp(atts, layout->atts, sizeof(SdEventAtt) * ev->natts) == 0;
	for (uint32 i = 0; i < ev->natts; i++)
	{
		SdEventAtt	now = layout->atts[i];

		/* the row type can have been altered without the table */
		if (OidIsValid(now.type))
			now.shape = event_type_shape(now.type);
		if (memcmp(&atts[i], &now, sizeof(SdEventAtt)) != 0)
			return false;
	}
	return true;
}

/* ---- evaluation, with the identity's rights ---- */

static void
look_at_images(RlsJob *job, RlsPlan *plan, RlsTable *table, MemoryContext context)
{
	const SdEvent *ev = job->ev;
	const HeapTupleHeaderData *row = rls_image(ev, ev->row);
	const HeapTupleHeaderData *old = rls_image(ev, ev->old);

	if (!has_layout(ev, table))
		return;
	if (row)
		job->row_visible = rls_plan_run(plan, table, row, context);
	if (row && old && rls_plan_same_images(plan, table, job->e->id, row, old))
		job->old_visible = job->row_visible;
	else if (old)
		job->old_visible = rls_plan_run(plan, table, old, context);
}

/* The plan isn't there, or not to be trusted. */
static void
plan_and_look(RlsJob *job)
{
	Relation	rel;
	RlsTable   *table;
	RlsPlan    *plan;
	RlsPlanEntry *entry = NULL;

	rls_cache_making(true);
	rel = try_table_open(job->ev->relid, AccessShareLock);
	if (rel == NULL)
	{
		rls_cache_making(false);
		return;
	}
	table = rls_cache_table(rel);
	if (has_layout(job->ev, table))
	{
		plan = rls_plan_make(rel, table);
		if (plan->shareable && rls_cache_is_fresh())
			entry = rls_cache_keep_plan(&job->key, job->settings, plan);
		if (entry && plan->steady && job->settings == NULL)
			entry->plan->split = split_make(entry->plan, entry->context);
		if (entry && entry->plan->set_stmt && job->settings == NULL)
			entry->plan->set = set_make(entry->plan, entry->context);
		rls_cache_making(false);
		if (entry)
			look_at_images(job, entry->plan, table, entry->context);
		else
			look_at_images(job, plan, table, CurrentMemoryContext);
	}
	rls_cache_making(false);
	table_close(rel, NoLock);
}

bool
rls_lock_tables(const PlannedStmt *stmt)
{
	ListCell   *lc;

	if (stmt == NULL)
		return true;
	foreach(lc, stmt->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		if (rte->rtekind == RTE_RELATION)
			LockRelationOid(rte->relid, rte->rellockmode);
	}
	return rls_cache_is_fresh();
}

static void
report_table(void *arg)
{
	const SdEvent *ev = arg;

	errcontext("row-level security of table \"%s.%s\"",
			   EVENT_STRING(ev, schema_name), EVENT_STRING(ev, table_name));
}

void
rls_report_policies(RlsJob *job, ErrorContextCallback *callback)
{
	callback->callback = report_table;
	callback->arg = unconstify(SdEvent *, job->ev);
	callback->previous = error_context_stack;
	error_context_stack = callback;
}

static void
evaluate(void *arg)
{
	RlsJob	   *job = arg;
	ErrorContextCallback callback;

	security_be_quiet();
	rls_report_policies(job, &callback);
	if (likely(job->entry && job->table && rls_cache_is_fresh() &&
			   rls_lock_tables(job->entry->plan->stmt)))
		look_at_images(job, job->entry->plan, job->table, job->entry->context);
	else
		plan_and_look(job);
	error_context_stack = callback.previous;
}

/* ---- by parts ---- */

typedef struct Computing
{
	RlsSplit   *split;
	uint64		identity;
} Computing;

static void
compute_identity(void *arg)
{
	Computing  *c = arg;

	security_be_quiet();
	split_compute_identity(c->split, c->identity);
}

static void
compute_row(void *arg)
{
	RlsJob	   *job = arg;

	split_compute_row(job->entry->plan->split, job->table, job->e->id, job->ev);
}

static void
compute_row_quietly(void *arg)
{
	ErrorContextCallback callback;

	security_be_quiet();
	rls_report_policies(arg, &callback);
	compute_row(arg);
	error_context_stack = callback.previous;
}

void
rls_need_identity(RlsSplit *split, uint64 identity, const SdRights *rights, int timeout_ms)
{
	ErrorData  *edata = NULL;
	Computing	c = {.split = split, .identity = identity};

	if (likely(split_knows_identity(split, identity)))
		return;
	(void) resolver_guarded(compute_identity, &c, "policy", rights, timeout_ms,
							GUARD_SUBTRANSACTION, CurrentMemoryContext, &edata);
	if (edata)
		FreeErrorData(edata);
}

/* An error of the row's has the batch done again, without parts. */
static void
need_row(RlsJob *job, RlsSplit *split)
{
	ErrorData  *edata = NULL;

	if (likely(split_knows_row(split, job->e->id, job->ev)))
		return;
	if (split_row_is_code(split))
		(void) resolver_guarded(compute_row_quietly, job, "policy", job->rights, job->timeout_ms,
								GUARD_NONE, CurrentMemoryContext, &edata);
	else
		compute_row(job);
}

/*
 * Asks the policies by parts, if they can be; false if not.  The table's layout
 * is known to be the images'.
 */
static bool
ask_parts(RlsJob *job)
{
	RlsSplit   *split = job->entry && job->table ? job->entry->plan->split : NULL;

	if (split == NULL || !split_usable(split))
		return false;
	rls_need_identity(split, job->identity->serial, job->rights, job->timeout_ms);
	if (!split_usable(split))
		return false;
	need_row(job, split);
	return split_ask(split, job->identity->serial, job->ev->row != 0, job->ev->old != 0,
					 &job->row_visible, &job->old_visible);
}

#ifdef USE_ASSERT_CHECKING
/* The same, asked for the identity alone; what fails there is not compared. */
static void
check_answer(RlsJob *job)
{
	RlsJob		alone = *job;
	ErrorData  *edata = NULL;

	alone.row_visible = alone.old_visible = false;
	if (resolver_guarded(evaluate, &alone, "policy", job->rights, job->timeout_ms,
						 GUARD_SUBTRANSACTION, CurrentMemoryContext, &edata) == RESOLVER_OK)
		Assert(alone.row_visible == job->row_visible && alone.old_visible == job->old_visible);
}
#else
#define check_answer(job)	((void) 0)
#endif

/* ---- what others call ---- */

/*
 * The same if all parts are known, which is the usual case: an identity whose
 * part is known has no settings of PostgreSQL's own.
 */
static bool
ask_known_parts(DispatchEvent *e, SdIdentity *identity, bool *row_visible, bool *old_visible)
{
	RlsPlanKey	key = {.relid = e->ev->relid, .role = identity->role};
	RlsPlanEntry *entry = rls_cache_find_plan(&key, NULL);
	RlsSplit   *split = entry ? entry->plan->split : NULL;

	if (split == NULL || !split_usable(split) || !split_knows_row(split, e->id, e->ev))
		return false;
	return split_ask(split, identity->serial, e->ev->row != 0, e->ev->old != 0,
					 row_visible, old_visible);
}

/*
 * Can the answer be told without running anything?  What failed to be planned
 * is tried again.
 */
static bool
known_answer(RlsJob *job)
{
	RlsPlan    *plan;

	job->table = rls_cache_find_table(job->key.relid);
	job->entry = rls_cache_find_plan(&job->key, job->settings);
	if (job->table == NULL)
		return false;
	plan = job->entry ? job->entry->plan : NULL;
	/* then it was looked at for this event */
	if (plan && plan->split && split_knows_row(plan->split, job->e->id, job->ev))
		return false;
	if (!has_layout(job->ev, job->table))
		return true;
	if (plan == NULL)
		return false;
	if (plan->kind == RLS_EVERYTHING)
	{
		job->row_visible = job->ev->row != 0;
		job->old_visible = job->ev->old != 0;
	}
	return plan->kind == RLS_EVERYTHING || plan->kind == RLS_NOTHING;
}

/* Raises errors only if bare; else *failed tells. */
static void
ask_policies(RlsJob *job, bool bare, bool *failed)
{
	ErrorData  *edata = NULL;
	Attempt		attempt;
	const char *message = "the dispatcher ended each time the policy ran";

	if (known_answer(job) || (bare && ask_parts(job)))
		return;
	if (bare && rls_ask_many(job))
	{
		check_answer(job);
		return;
	}
	*failed = true;
	if (attempt_code(job->e, job->identity->serial, &attempt))
	{
		*failed = resolver_guarded(evaluate, job, "policy", job->rights, job->timeout_ms,
								   bare ? GUARD_NONE : GUARD_SUBTRANSACTION,
								   CurrentMemoryContext, &edata) != RESOLVER_OK;
		attempt_code_ended(&attempt);
		message = "policy failed";
	}
	if (*failed)
	{
		stats_add(&dispatch_self()->stats, SD_STAT_POLICY_ERRORS, 1);
		dispatch_log_failure(InvalidOid, edata, message);
		if (edata)
			FreeErrorData(edata);
	}
}

void
rls_view(DispatchEvent *e, SdIdentity *identity, bool bare, int timeout_ms, RlsView *view)
{
	const SdEvent *ev = e->ev;
	const RlsRights *r;

	Assert(ev->source == SD_SOURCE_CHANGE);
	memset(view, 0, sizeof(RlsView));
	rls_cache_refresh();
	r = rls_cache_rights(ev->relid, identity->role);
	view->allowed = r->any;
	view->all_columns = covers_images(r, ev);
	if (!view->all_columns)
		view->columns = bms_copy(r->columns);

	if (ev->op == SD_OP_TRUNCATE)
		view->allowed = view->all_columns;
	else if (!view->allowed)
		return;
	else if (!r->policies)
	{
		view->row_visible = ev->row != 0;
		view->old_visible = ev->old != 0;
	}
	else if (!bare || !ask_known_parts(e, identity, &view->row_visible, &view->old_visible))
	{
		RlsJob		job = {
			.e = e, .ev = ev, .identity = identity, .timeout_ms = timeout_ms,
			.rights = visible_rights(identity)
		};

		rls_cache_key(ev->relid, job.rights, &job.key, &job.settings);
		ask_policies(&job, bare, &view->failed);
		view->allowed = !view->failed;
		view->row_visible = !view->failed && job.row_visible;
		view->old_visible = !view->failed && job.old_visible;
	}
}

bool
rls_sees_all(const SdEvent *ev, Oid role)
{
	const RlsRights *r;

	rls_cache_refresh();
	r = rls_cache_rights(ev->relid, role);
	return r->any && covers_images(r, ev) && (!r->policies || ev->op == SD_OP_TRUNCATE);
}

bool
rls_column_visible(const SdEvent *ev, const RlsView *view, int attno)
{
	Assert(attno > 0 && attno <= (int) ev->natts);
	return view->allowed && (view->all_columns || bms_is_member(attno, view->columns));
}

Bitmapset *
rls_key_columns(Oid relid)
{
	RlsTable   *table;
	Relation	rel;
	Bitmapset  *keys;

	rls_cache_refresh();
	table = rls_cache_find_table(relid);
	if (likely(table))
		return bms_copy(table->keys);

	rls_cache_making(true);
	rel = try_table_open(relid, AccessShareLock);
	keys = rel ? bms_copy(rls_cache_table(rel)->keys) : NULL;
	rls_cache_making(false);
	if (rel)
		table_close(rel, AccessShareLock);
	return keys;
}

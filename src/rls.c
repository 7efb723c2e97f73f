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
 * become something to ask, rls_plan.c tells; rls_split.c, what of it is asked
 * once for many.)
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

/* One event for one identity. */
typedef struct Job
{
	DispatchEvent *e;
	const SdEvent *ev;
	SdIdentity *identity;
	const SdRights *rights;
	int			timeout_ms;
	RlsPlanEntry *entry;		/* NULL: none in the cache */
	RlsTable   *table;			/* likewise */
	RlsPlanKey	key;
	char	   *settings;
	bool		row_visible;
	bool		old_visible;
} Job;

static const void *
image(const SdEvent *ev, uint32 offset)
{
	return offset ? (const char *) ev + offset : NULL;
}

static void
look_at_images(Job *job, RlsPlan *plan, RlsTable *table, MemoryContext context)
{
	const SdEvent *ev = job->ev;
	const HeapTupleHeaderData *row = image(ev, ev->row);
	const HeapTupleHeaderData *old = image(ev, ev->old);

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
plan_and_look(Job *job)
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
		rls_cache_making(false);
		if (entry)
			look_at_images(job, entry->plan, table, entry->context);
		else
			look_at_images(job, plan, table, CurrentMemoryContext);
	}
	rls_cache_making(false);
	table_close(rel, NoLock);
}

/* Locks a query's tables; false if the plan isn't good any more. */
static bool
lock_tables(const RlsPlan *plan)
{
	ListCell   *lc;

	if (plan->kind != RLS_QUERY)
		return true;
	foreach(lc, plan->stmt->rtable)
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

static void
report_policies(Job *job, ErrorContextCallback *callback)
{
	callback->callback = report_table;
	callback->arg = unconstify(SdEvent *, job->ev);
	callback->previous = error_context_stack;
	error_context_stack = callback;
}

static void
evaluate(void *arg)
{
	Job		   *job = arg;
	ErrorContextCallback callback;

	security_be_quiet();
	report_policies(job, &callback);
	if (likely(job->entry && job->table && rls_cache_is_fresh() && lock_tables(job->entry->plan)))
		look_at_images(job, job->entry->plan, job->table, job->entry->context);
	else
		plan_and_look(job);
	error_context_stack = callback.previous;
}

/* ---- by parts ---- */

static void
compute_identity(void *arg)
{
	Job		   *job = arg;

	security_be_quiet();
	split_compute_identity(job->entry->plan->split, job->identity->serial);
}

static void
compute_row(void *arg)
{
	Job		   *job = arg;

	split_compute_row(job->entry->plan->split, job->table, job->e->id, job->ev);
}

static void
compute_row_quietly(void *arg)
{
	ErrorContextCallback callback;

	security_be_quiet();
	report_policies(arg, &callback);
	compute_row(arg);
	error_context_stack = callback.previous;
}

/*
 * What the identity cannot compute is no failure: the whole conditions may not
 * come to it.
 */
static void
need_identity(Job *job, RlsSplit *split)
{
	ErrorData  *edata = NULL;

	if (likely(split_knows_identity(split, job->identity->serial)))
		return;
	(void) resolver_guarded(compute_identity, job, "policy", job->rights, job->timeout_ms, false,
							CurrentMemoryContext, &edata);
	if (edata)
		FreeErrorData(edata);
}

/* An error of the row's has the batch done again, without parts. */
static void
need_row(Job *job, RlsSplit *split)
{
	ErrorData  *edata = NULL;

	if (likely(split_knows_row(split, job->e->id, job->ev)))
		return;
	if (split_row_is_code(split))
		(void) resolver_guarded(compute_row_quietly, job, "policy", job->rights, job->timeout_ms,
								true, CurrentMemoryContext, &edata);
	else
		compute_row(job);
}

/*
 * Asks the policies by parts, if they can be; false if not.  The table's layout
 * is known to be the images'.
 */
static bool
ask_parts(Job *job)
{
	RlsSplit   *split = job->entry && job->table ? job->entry->plan->split : NULL;

	if (split == NULL || !split_usable(split))
		return false;
	need_identity(job, split);
	if (!split_usable(split))
		return false;
	need_row(job, split);
	return split_ask(split, job->identity->serial, job->ev->row != 0, job->ev->old != 0,
					 &job->row_visible, &job->old_visible);
}

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
known_answer(Job *job)
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
ask_policies(Job *job, bool bare, bool *failed)
{
	ErrorData  *edata = NULL;
	Attempt		attempt;
	const char *message = "the dispatcher ended each time the policy ran";

	if (known_answer(job) || (bare && ask_parts(job)))
		return;
	*failed = true;
	if (attempt_code(job->e, job->identity->serial, &attempt))
	{
		*failed = resolver_guarded(evaluate, job, "policy", job->rights, job->timeout_ms, bare,
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
		Job			job = {
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

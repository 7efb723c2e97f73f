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
 * at by itself, so they hold for what was deleted, too.  (What an evaluation
 * is, and what it cannot do, rls_plan.c tells.)
 *
 * What cannot be evaluated is denied: images with another layout than the
 * table has by now, or with values of a row type that was altered; policies
 * that raise an error, take too long or try to write (they run read-only).
 *
 * THE CACHE.  Rights, tables' layouts and plans are kept until something
 * changes on which any of them depends; then all of them are forgotten:
 *
 *	- a role, a membership, a function, an operator or its properties, a
 *	  schema or the database's owner: whichever it was;
 *	- a relation that some entry was made from.  ALTER TABLE, all about
 *	  policies, and GRANT on a table or its columns count as such changes;
 *	- a type among the dependencies of a plan.
 *
 * As in PostgreSQL's plan cache, invalidations may come at any moment, while
 * an entry is in use: they only count up "changes".  The cache is emptied when
 * it is asked the next time, before which messages are collected, so that what
 * committed before an event does holds for that event.  What was made while
 * changes came in is used once.
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
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"

#include "dispatch.h"
#include "event_image.h"
#include "resolver.h"
#include "rls.h"
#include "rls_plan.h"

/* Entries of all kinds, beyond which the cache is emptied. */
#define MAX_ENTRIES		8192

/* A role's rights on a table, and whether its policies concern the role. */
typedef struct Rights
{
	/* key */
	Oid			relid;
	Oid			role;

	bool		any;			/* USAGE on the schema, SELECT on some column */
	bool		whole;			/* SELECT on the table, or superuser */
	bool		every_column;	/* SELECT on each column that there is */
	bool		policies;		/* row-level security applies */
	Bitmapset  *columns;		/* unless whole: with SELECT */
} Rights;

/*
 * Plans are good for all settings, but for those that are PostgreSQL's own:
 * parsing the body of a function that is inlined can depend on them.
 */
typedef struct PlanKey
{
	Oid			relid;
	Oid			role;
	uint64		settings;		/* hash of PlanEntry->settings */
} PlanKey;

typedef struct PlanEntry
{
	PlanKey		key;
	char	   *settings;
	MemoryContext context;		/* of the plan and settings */
	RlsPlan    *plan;
} PlanEntry;

/* What an invalidation message can name that matters. */
typedef struct Dependency
{
	int			cache;			/* a syscache, or RELATION */
	uint32		value;			/* hash of the key, or OID of the relation */
} Dependency;

#define RELATION	(-1)

static uint64 changes = 0;		/* counted up by invalidations */
static bool making = false;		/* dependencies aren't known yet: all count */

static struct
{
	uint64		changes;		/* when it was last emptied */
	MemoryContext context;		/* all of it; NULL at first */
	HTAB	   *rights;			/* of Rights */
	HTAB	   *tables;			/* of RlsTable */
	HTAB	   *plans;			/* of PlanEntry */
	HTAB	   *dependencies;	/* of Dependency */
	int			entries;
}			cache;

/* ---- invalidation ---- */

static bool
depends_on(int which, uint32 value)
{
	Dependency	key = {.cache = which, .value = value};

	return making || cache.context == NULL ||
		hash_search(cache.dependencies, &key, HASH_FIND, NULL) != NULL;
}

static void
relation_changed(Datum arg, Oid relid)
{
	if (changes == cache.changes && (!OidIsValid(relid) || depends_on(RELATION, relid)))
		changes++;
}

static void
type_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	if (changes == cache.changes && (hashvalue == 0 || depends_on(cacheid, hashvalue)))
		changes++;
}

static void
anything_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	if (changes == cache.changes)
		changes++;
}

static void
watch_changes(void)
{
	static const int all[] = {
		AUTHOID, AUTHMEMROLEMEM, AUTHMEMMEMROLE, DATABASEOID, NAMESPACEOID, PROCOID,
		OPEROID, AMOPOPID, FOREIGNSERVEROID, FOREIGNDATAWRAPPEROID
	};
	static bool watching = false;

	if (watching)
		return;
	watching = true;
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(TYPEOID, type_changed, (Datum) 0);
	for (int i = 0; i < (int) lengthof(all); i++)
		CacheRegisterSyscacheCallback(all[i], anything_changed, (Datum) 0);
}

static void
add_dependency(int which, uint32 value)
{
	Dependency	key = {.cache = which, .value = value};

	(void) hash_search(cache.dependencies, &key, HASH_ENTER, NULL);
}

/* ---- the cache ---- */

static HTAB *
make_table(const char *name, Size keysize, Size entrysize)
{
	HASHCTL		ctl = {.keysize = keysize, .entrysize = entrysize, .hcxt = cache.context};

	return hash_create(name, 32, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Everything in the cache is as in the catalogs on return; nothing in it may
 * be in use.
 */
static void
refresh_cache(void)
{
	AcceptInvalidationMessages();
	making = false;				/* left by an error */
	if (likely(cache.context && cache.changes == changes && cache.entries < MAX_ENTRIES))
		return;

	if (cache.context)
	{
		MemoryContext context = cache.context;

		/* no entries, if what follows fails */
		cache.context = NULL;
		MemoryContextDelete(context);
	}
	cache.entries = 0;
	cache.context = AllocSetContextCreate(TopMemoryContext, "subdispatch policies",
										  ALLOCSET_DEFAULT_SIZES);
	PG_TRY();
	{
		cache.rights = make_table("subdispatch rights", 2 * sizeof(Oid), sizeof(Rights));
		cache.tables = make_table("subdispatch tables", sizeof(Oid), sizeof(RlsTable));
		cache.plans = make_table("subdispatch policies", sizeof(PlanKey), sizeof(PlanEntry));
		cache.dependencies = make_table("subdispatch dependencies", sizeof(Dependency),
										sizeof(Dependency));
	}
	PG_CATCH();
	{
		MemoryContextDelete(cache.context);
		cache.context = NULL;
		PG_RE_THROW();
	}
	PG_END_TRY();
	cache.changes = changes;
	watch_changes();
}

/* Has nothing changed since? */
static inline bool
cache_is_fresh(void)
{
	return cache.changes == changes;
}

/* ---- rights ---- */

/* Which columns the role may SELECT; *every: all that the table has. */
static Bitmapset *
selectable_columns(Oid relid, Oid role, bool *every)
{
	Bitmapset  *columns = NULL;
	int			natts = 0;
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));

	if (HeapTupleIsValid(tuple))
	{
		natts = ((Form_pg_class) GETSTRUCT(tuple))->relnatts;
		ReleaseSysCache(tuple);
	}
	*every = natts > 0;
	for (int attno = 1; attno <= natts; attno++)
	{
		bool		missing = false;

		if (pg_attribute_aclcheck_ext(relid, attno, role, ACL_SELECT, &missing) == ACLCHECK_OK)
			columns = bms_add_member(columns, attno);
		else if (!missing)		/* nor dropped */
			*every = false;
	}
	if (columns == NULL)
		*every = false;
	return columns;
}

/* Leaves everything denied unless it finds that it isn't. */
static void
look_up_rights(Rights *r)
{
	Oid			schema;
	bool		missing = false;

	if (!security_role_exists(r->role))
		return;
	if (superuser_arg(r->role))
	{
		r->any = r->whole = r->every_column = true;
		return;
	}
	schema = get_rel_namespace(r->relid);
	if (!OidIsValid(schema) ||
		pg_namespace_aclcheck(schema, r->role, ACL_USAGE) != ACLCHECK_OK)
		return;
	r->policies = check_enable_rls(r->relid, r->role, true) == RLS_ENABLED;
	if (pg_class_aclcheck_ext(r->relid, r->role, ACL_SELECT, &missing) == ACLCHECK_OK)
		r->any = r->whole = r->every_column = !missing;
	else if (!missing)
	{
		r->columns = selectable_columns(r->relid, r->role, &r->every_column);
		r->any = r->columns != NULL;
	}
}

/* The cache must be fresh. */
static const Rights *
get_rights(Oid relid, Oid role)
{
	Rights		new = {.relid = relid, .role = role};
	Rights	   *r = hash_search(cache.rights, &new, HASH_FIND, NULL);
	MemoryContext old;

	if (likely(r))
		return r;

	/* for what changes meanwhile */
	add_dependency(RELATION, relid);
	old = MemoryContextSwitchTo(cache.context);
	look_up_rights(&new);
	MemoryContextSwitchTo(old);
	r = hash_search(cache.rights, &new, HASH_ENTER, NULL);
	*r = new;
	cache.entries++;
	return r;
}

/* SELECT on every column that the event's images have? */
static bool
covers_images(const Rights *r, const SdEvent *ev)
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

/* Kept in the cache, unless that is out of date already. */
static RlsTable *
get_table(Relation rel)
{
	Oid			relid = RelationGetRelid(rel);
	RlsTable   *table;
	RlsTable   *kept;
	MemoryContext old;

	if (!cache_is_fresh())
		return rls_table_make(rel);
	table = hash_search(cache.tables, &relid, HASH_FIND, NULL);
	if (table)
		return table;

	add_dependency(RELATION, relid);
	old = MemoryContextSwitchTo(cache.context);
	table = rls_table_make(rel);
	MemoryContextSwitchTo(old);
	kept = hash_search(cache.tables, &relid, HASH_ENTER, NULL);
	*kept = *table;
	cache.entries++;
	return kept;
}

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

/* ---- plans ---- */

/*
 * Settings on which a plan can depend: PostgreSQL's and not an application's,
 * whose names have a dot.  NULL for none, as a rule.
 */
static char *
plan_settings(const SdRights *rights)
{
	StringInfoData buf;
	bool		any = false;

	for (int i = 0; i < rights->nsettings; i++)
	{
		if (rights->values[i] == NULL || strchr(rights->names[i], '.') != NULL)
			continue;
		if (!any)
			initStringInfo(&buf);
		any = true;
		appendStringInfo(&buf, "%s=%zu:%s;", rights->names[i], strlen(rights->values[i]),
						 rights->values[i]);
	}
	return any ? buf.data : NULL;
}

static bool
same_settings(const char *a, const char *b)
{
	return a == NULL ? b == NULL : b != NULL && strcmp(a, b) == 0;
}

/* One event for one identity. */
typedef struct Job
{
	const SdEvent *ev;
	PlanKey		key;
	char	   *settings;
	bool		row_visible;
	bool		old_visible;
} Job;

static void
make_key(Job *job, const SdRights *rights)
{
	job->settings = plan_settings(rights);
	job->key.relid = job->ev->relid;
	job->key.role = rights->role;
	job->key.settings = job->settings ?
		hash_bytes_extended((unsigned char *) job->settings, strlen(job->settings), 0) : 0;
}

static PlanEntry *
find_plan(const Job *job)
{
	PlanEntry  *entry = hash_search(cache.plans, &job->key, HASH_FIND, NULL);

	return entry && same_settings(entry->settings, job->settings) ? entry : NULL;
}

/* All that the plan was made from is known, and locked, or still as it was. */
static PlanEntry *
keep_plan(const Job *job, const RlsPlan *plan)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "subdispatch policy",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	RlsPlan    *copy = rls_plan_copy(plan);
	char	   *settings = job->settings ? pstrdup(job->settings) : NULL;
	PlanEntry  *entry;
	bool		found;
	ListCell   *lc;

	MemoryContextSwitchTo(old);
	foreach(lc, plan->relids)
		add_dependency(RELATION, lfirst_oid(lc));
	foreach(lc, plan->items)
	{
		PlanInvalItem *item = lfirst_node(PlanInvalItem, lc);

		add_dependency(item->cacheId, item->hashValue);
	}

	entry = hash_search(cache.plans, &job->key, HASH_ENTER, &found);
	if (found)					/* other settings of the same hash */
		MemoryContextDelete(entry->context);
	else
		cache.entries++;
	entry->settings = settings;
	entry->plan = copy;
	entry->context = context;
	MemoryContextSetParent(context, cache.context);
	return entry;
}

/* ---- evaluation, with the identity's rights ---- */

static void
look_at_images(Job *job, RlsPlan *plan, RlsTable *table, MemoryContext context)
{
	const SdEvent *ev = job->ev;
	const char *base = (const char *) ev;

	if (!has_layout(ev, table))
		return;
	if (ev->row)
		job->row_visible = rls_plan_run(plan, table, (const void *) (base + ev->row), context);
	if (ev->old)
		job->old_visible = rls_plan_run(plan, table, (const void *) (base + ev->old), context);
}

/* The plan isn't there, or not to be trusted. */
static void
plan_and_look(Job *job)
{
	Relation	rel;
	RlsTable   *table;
	RlsPlan    *plan;
	PlanEntry  *entry = NULL;

	making = true;
	rel = try_table_open(job->ev->relid, AccessShareLock);
	if (rel == NULL)
	{
		making = false;
		return;
	}
	table = get_table(rel);
	if (has_layout(job->ev, table))
	{
		plan = rls_plan_make(rel, table);
		if (plan->shareable && cache_is_fresh())
			entry = keep_plan(job, plan);
		making = false;
		if (entry)
			look_at_images(job, entry->plan, table, entry->context);
		else
			look_at_images(job, plan, table, CurrentMemoryContext);
	}
	making = false;
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
	return cache_is_fresh();
}

static void
report_table(void *arg)
{
	const SdEvent *ev = arg;

	errcontext("row-level security of table \"%s.%s\"",
			   EVENT_STRING(ev, schema_name), EVENT_STRING(ev, table_name));
}

static void
evaluate(void *arg)
{
	Job		   *job = arg;
	PlanEntry  *entry = find_plan(job);
	RlsTable   *table = hash_search(cache.tables, &job->key.relid, HASH_FIND, NULL);
	ErrorContextCallback callback = {
		.callback = report_table,
		.arg = unconstify(SdEvent *, job->ev),
		.previous = error_context_stack
	};

	security_be_quiet();
	error_context_stack = &callback;
	if (likely(entry && table && cache_is_fresh() && lock_tables(entry->plan)))
		look_at_images(job, entry->plan, table, entry->context);
	else
		plan_and_look(job);
	error_context_stack = callback.previous;
}

/* ---- what others call ---- */

/*
 * Can the answer be told without running anything?  What failed to be planned
 * is tried again.
 */
static bool
known_answer(Job *job)
{
	RlsTable   *table = hash_search(cache.tables, &job->key.relid, HASH_FIND, NULL);
	PlanEntry  *entry;

	if (table == NULL)
		return false;
	if (!has_layout(job->ev, table))
		return true;
	entry = find_plan(job);
	if (entry == NULL)
		return false;
	if (entry->plan->kind == RLS_EVERYTHING)
	{
		job->row_visible = job->ev->row != 0;
		job->old_visible = job->ev->old != 0;
	}
	return entry->plan->kind == RLS_EVERYTHING || entry->plan->kind == RLS_NOTHING;
}

/* Raises errors only if bare; else *failed tells. */
static void
ask_policies(DispatchEvent *e, SdIdentity *identity, Job *job, const SdRights *rights, bool bare,
			 int timeout_ms, bool *failed)
{
	ErrorData  *edata = NULL;
	Attempt		attempt;
	const char *message = "the dispatcher ended each time the policy ran";

	if (known_answer(job))
		return;
	*failed = true;
	if (attempt_code(e, identity->serial, &attempt))
	{
		*failed = resolver_guarded(evaluate, job, "policy", rights, timeout_ms, bare,
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
rls_view(DispatchEvent *e, SdIdentity *identity, const SdRights *rights, bool bare,
		 int timeout_ms, RlsView *view)
{
	const SdEvent *ev = e->ev;
	const Rights *r;

	Assert(ev->source == SD_SOURCE_CHANGE);
	memset(view, 0, sizeof(RlsView));
	refresh_cache();
	r = get_rights(ev->relid, rights->role);
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
	else
	{
		Job			job = {.ev = ev};

		make_key(&job, rights);
		ask_policies(e, identity, &job, rights, bare, timeout_ms, &view->failed);
		view->allowed = !view->failed;
		view->row_visible = !view->failed && job.row_visible;
		view->old_visible = !view->failed && job.old_visible;
	}
}

bool
rls_sees_all(const SdEvent *ev, Oid role)
{
	const Rights *r;

	refresh_cache();
	r = get_rights(ev->relid, role);
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

	refresh_cache();
	table = hash_search(cache.tables, &relid, HASH_FIND, NULL);
	if (likely(table))
		return bms_copy(table->keys);

	making = true;
	rel = try_table_open(relid, AccessShareLock);
	keys = rel ? bms_copy(get_table(rel)->keys) : NULL;
	making = false;
	if (rel)
		table_close(rel, AccessShareLock);
	return keys;
}

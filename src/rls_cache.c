/*-------------------------------------------------------------------------
 *
 * rls_cache.c
 *	  What is kept of rights, tables' layouts and plans of their policies.
 *
 * All of it is kept until something changes on which any of it depends; then
 * all of it is forgotten:
 *
 *	- a role, a membership, a function, an operator or its properties, a
 *	  schema or the database's owner: whichever it was;
 *	- a relation that some entry was made from.  ALTER TABLE, all about
 *	  policies, and GRANT on a table or its columns count as such changes;
 *	- a type among the dependencies of a plan;
 *	- the server's configuration, in which are the list of settings that
 *	  identities have and what those are that an identity does not set.
 *
 * As in PostgreSQL's plan cache, invalidations may come at any moment, while
 * an entry is in use: they only count up "changes".  The cache is emptied when
 * it is asked the next time, before which messages are collected, so that what
 * committed before an event does holds for that event.  What was made while
 * changes came in is used once.
 *
 * Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "rls_cache.h"

/* Entries of all kinds, beyond which the cache is emptied. */
#define MAX_ENTRIES		8192

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
	char	   *context_settings;	/* that it is good for */
	TimestampTz configured_at;	/* likewise */
	HTAB	   *rights;			/* of RlsRights */
	HTAB	   *tables;			/* of RlsTable */
	HTAB	   *plans;			/* of RlsPlanEntry */
	HTAB	   *dependencies;	/* of Dependency */
	int			entries;

	/* found last, since the next identity is likely to ask for the same */
	RlsRights  *last_rights;
	RlsTable   *last_table;
	RlsPlanEntry *last_plan;
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

void
rls_cache_making(bool on)
{
	making = on;
}

/* ---- the cache ---- */

static HTAB *
make_table(const char *name, Size keysize, Size entrysize)
{
	HASHCTL		ctl = {.keysize = keysize, .entrysize = entrysize, .hcxt = cache.context};

	return hash_create(name, 32, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

void
rls_cache_refresh(void)
{
	AcceptInvalidationMessages();
	making = false;				/* left by an error */
	if (likely(cache.context && cache.changes == changes && cache.entries < MAX_ENTRIES &&
			   cache.configured_at == PgReloadTime &&
			   strcmp(cache.context_settings, subdispatch_context_settings) == 0))
		return;

	if (cache.context)
	{
		MemoryContext context = cache.context;

		/* no entries, if what follows fails */
		cache.context = NULL;
		MemoryContextDelete(context);
	}
	cache.entries = 0;
	cache.last_rights = NULL;
	cache.last_table = NULL;
	cache.last_plan = NULL;
	cache.context = AllocSetContextCreate(TopMemoryContext, "subdispatch policies",
										  ALLOCSET_DEFAULT_SIZES);
	PG_TRY();
	{
		cache.configured_at = PgReloadTime;
		cache.context_settings = MemoryContextStrdup(cache.context, subdispatch_context_settings);
		cache.rights = make_table("subdispatch rights", 2 * sizeof(Oid), sizeof(RlsRights));
		cache.tables = make_table("subdispatch tables", sizeof(Oid), sizeof(RlsTable));
		cache.plans = make_table("subdispatch policies", sizeof(RlsPlanKey), sizeof(RlsPlanEntry));
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

bool
rls_cache_is_fresh(void)
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
look_up_rights(RlsRights *r)
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

const RlsRights *
rls_cache_rights(Oid relid, Oid role)
{
	RlsRights	new = {.relid = relid, .role = role};
	RlsRights  *r = cache.last_rights;
	MemoryContext old;

	if (likely(r && r->relid == relid && r->role == role))
		return r;
	r = hash_search(cache.rights, &new, HASH_FIND, NULL);
	if (r)
		return cache.last_rights = r;

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

/* ---- tables ---- */

RlsTable *
rls_cache_find_table(Oid relid)
{
	if (unlikely(cache.last_table == NULL || cache.last_table->relid != relid))
		cache.last_table = hash_search(cache.tables, &relid, HASH_FIND, NULL);
	return cache.last_table;
}

RlsTable *
rls_cache_table(Relation rel)
{
	Oid			relid = RelationGetRelid(rel);
	RlsTable   *table;
	RlsTable   *kept;
	MemoryContext old;

	if (!rls_cache_is_fresh())
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

void
rls_cache_key(Oid relid, const SdRights *rights, RlsPlanKey *key, char **settings)
{
	*settings = plan_settings(rights);
	memset(key, 0, sizeof(RlsPlanKey));
	key->relid = relid;
	key->role = rights->role;
	key->settings = *settings ?
		hash_bytes_extended((unsigned char *) *settings, strlen(*settings), 0) : 0;
}

RlsPlanEntry *
rls_cache_find_plan(const RlsPlanKey *key, const char *settings)
{
	RlsPlanEntry *entry = cache.last_plan;

	if (unlikely(entry == NULL || memcmp(&entry->key, key, sizeof(RlsPlanKey)) != 0))
		entry = cache.last_plan = hash_search(cache.plans, key, HASH_FIND, NULL);
	return entry && same_settings(entry->settings, settings) ? entry : NULL;
}

RlsPlanEntry *
rls_cache_keep_plan(const RlsPlanKey *key, const char *settings, const RlsPlan *plan)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "subdispatch policy",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	RlsPlan    *copy = rls_plan_copy(plan);
	char	   *own_settings = settings ? pstrdup(settings) : NULL;
	RlsPlanEntry *entry;
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

	entry = hash_search(cache.plans, key, HASH_ENTER, &found);
	if (found)					/* other settings of the same hash */
		MemoryContextDelete(entry->context);
	else
		cache.entries++;
	entry->settings = own_settings;
	entry->plan = copy;
	entry->context = context;
	MemoryContextSetParent(context, cache.context);
	return entry;
}

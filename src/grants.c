/*-------------------------------------------------------------------------
 *
 * grants.c
 *	  Who may publish on and subscribe to which channels.
 *
 * Grants are rows of the table subdispatch.channel_grants, of which every
 * process that asks keeps a copy: patterns by name in one hash table, prefixes
 * in another (a channel has as many prefixes as dots), and what is granted on
 * '*'.  Whether a role is a member of a grantee is PostgreSQL's to know, and
 * its caches are invalidated with the memberships.
 *
 * The copy is good for as long as a number in shared memory stays the same.
 * A transaction that changed the table raises it in its commit callback, which
 * runs before that of publish.c: an event that is published in the transaction
 * that revokes a grant is dispatched without it already.  An invalidation of
 * the relation cache would come too late for that; it tells of DROP EXTENSION
 * and the like.  Then the dispatchers are asked to LISTEN anew, for a channel
 * that a grant covers is not LISTENed on through a pattern.
 *
 * What the current transaction changed counts for itself at once, and is
 * forgotten when it rolls back.
 *
 * Locks: AccessShareLock on the table while it is read.  None of ours, and
 * none may be held.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "grants.h"
#include "shmem.h"

/* Columns of channel_grants. */
enum
{
	COL_CHANNEL = 1, COL_GRANTEE, COL_PRIVILEGE, COL_REQUIRED, NCOLS = COL_REQUIRED
};

const char *const grants_context_keys[GRANT_CONTEXT_KEYS] = {
	"user_id", "tenant_id", "match", "federation_id", "fields"
};

typedef struct Grant
{
	struct Grant *next;			/* of the same pattern */
	Oid			grantee;		/* InvalidOid: PUBLIC */
	GrantPrivilege privilege;
	uint32		required;		/* bits of grants_context_keys */
} Grant;

/* A channel, or a prefix with its dot and without its star. */
typedef struct Pattern
{
	struct Pattern *next;		/* in the bucket */
	uint32		hash;
	Size		len;
	Grant	   *grants;
	char		name[FLEXIBLE_ARRAY_MEMBER];
} Pattern;

typedef struct Patterns
{
	int			n;
	uint32		mask;
	Size		longest;
	Pattern   **buckets;		/* NULL: there are none */
} Patterns;

/* The table's contents, in one memory context. */
typedef struct Contents
{
	MemoryContext context;
	Patterns	names;
	Patterns	prefixes;
	Grant	   *star;
} Contents;

/* All of this is the process's own. */
static Contents *contents = NULL;	/* NULL: nothing is granted */
static bool valid = false;		/* but for the version */
static uint64 version = 0;		/* sd_shared->grants_version before it was read */
static Oid	table = InvalidOid; /* that it was read from */
static uint64 invalidations = 0;	/* how many there were */
static bool changed = false;	/* by the current transaction */

const char *
grants_privilege_name(GrantPrivilege privilege)
{
	return privilege == GRANT_PUBLISH ? "publish" : "subscribe";
}

/* ---- patterns ---- */

static Pattern *
find_pattern(const Patterns *patterns, const char *name, Size len)
{
	uint32		hash;

	if (patterns->n == 0 || len > patterns->longest)
		return NULL;
	hash = sd_hash_bytes(name, len, 0);
	for (Pattern *p = patterns->buckets[hash & patterns->mask]; p; p = p->next)
		if (p->hash == hash && p->len == len && memcmp(p->name, name, len) == 0)
			return p;
	return NULL;
}

static Pattern *
get_pattern(Patterns *patterns, const char *name, Size len)
{
	Pattern    *p = find_pattern(patterns, name, len);

	if (p)
		return p;
	p = palloc0(offsetof(Pattern, name) + len);
	p->hash = sd_hash_bytes(name, len, 0);
	p->len = len;
	memcpy(p->name, name, len);
	p->next = patterns->buckets[p->hash & patterns->mask];
	patterns->buckets[p->hash & patterns->mask] = p;
	patterns->n++;
	patterns->longest = Max(patterns->longest, len);
	return p;
}

static void
make_buckets(Patterns *patterns, int room)
{
	uint32		n = 16;

	while (n < (uint32) room)
		n *= 2;
	patterns->mask = n - 1;
	patterns->buckets = palloc0(sizeof(Pattern *) * n);
}

/* ---- reading the table ---- */

/* A table of that name that is not the extension's counts for nothing. */
Oid
grants_table(void)
{
	Oid			schema = get_namespace_oid(SD_SCHEMA, true);
	Oid			relid = OidIsValid(schema) ? get_relname_relid("channel_grants", schema) : InvalidOid;
	Oid			extension;

	if (!OidIsValid(relid))
		return InvalidOid;
	extension = getExtensionOfObject(RelationRelationId, relid);
	if (!OidIsValid(extension) || extension != get_extension_oid(SD_EXTENSION, true))
		return InvalidOid;
	return relid;
}

static void
check_columns(TupleDesc desc)
{
	static const Oid types[NCOLS] = {TEXTOID, REGROLEOID, TEXTOID, TEXTARRAYOID};

	for (int i = 0; i < NCOLS; i++)
		if (desc->natts <= i || TupleDescAttr(desc, i)->atttypid != types[i])
			elog(ERROR, "table subdispatch.channel_grants has unexpected columns");
}

/* False for keys that no context can have, so that nobody satisfies them. */
static bool
required_keys(Datum array, uint32 *required)
{
	Datum	   *keys;
	bool	   *nulls;
	int			n;

	*required = 0;
	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT, &keys, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		int			k = 0;

		while (k < GRANT_CONTEXT_KEYS &&
			   (nulls[i] || strcmp(TextDatumGetCString(keys[i]), grants_context_keys[k]) != 0))
			k++;
		if (k == GRANT_CONTEXT_KEYS)
			return false;
		*required |= 1u << k;
	}
	return true;
}

static void
add_grant(Contents *c, const char *channel, const Grant *grant)
{
	Size		len = strlen(channel);
	Grant	  **list;
	Grant	   *copy = palloc(sizeof(Grant));

	if (strcmp(channel, SD_STAR) == 0)
		list = &c->star;
	else if (len > 2 && strcmp(channel + len - 2, ".*") == 0)
		list = &get_pattern(&c->prefixes, channel, len - 1)->grants;
	else
		list = &get_pattern(&c->names, channel, len)->grants;
	*copy = *grant;
	copy->next = *list;
	*list = copy;
}

static void
add_row(Contents *c, HeapTuple tuple, TupleDesc desc)
{
	Datum		values[NCOLS];
	bool		nulls[NCOLS];
	Grant		grant = {0};
	char	   *privilege;

	for (int i = 0; i < NCOLS; i++)
		values[i] = heap_getattr(tuple, i + 1, desc, &nulls[i]);
	if (nulls[COL_CHANNEL - 1] || nulls[COL_GRANTEE - 1] || nulls[COL_PRIVILEGE - 1])
		return;
	grant.grantee = DatumGetObjectId(values[COL_GRANTEE - 1]);
	privilege = TextDatumGetCString(values[COL_PRIVILEGE - 1]);
	if (strcmp(privilege, "publish") == 0)
		grant.privilege = GRANT_PUBLISH;
	else if (strcmp(privilege, "subscribe") == 0)
		grant.privilege = GRANT_SUBSCRIBE;
	else
		return;
	if (!nulls[COL_REQUIRED - 1] && !required_keys(values[COL_REQUIRED - 1], &grant.required))
		return;
	add_grant(c, TextDatumGetCString(values[COL_CHANNEL - 1]), &grant);
}

/* In a memory context of its own, a child of the current one. */
static Contents *
read_table(Relation rel)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "subdispatch grants",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Contents   *c = palloc0(sizeof(Contents));
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *rows = NIL;
	ListCell   *lc;

	c->context = context;
	check_columns(RelationGetDescr(rel));
	/* Its snapshot is a new one, whatever the transaction's isolation level. */
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		rows = lappend(rows, heap_copytuple(tuple));
	make_buckets(&c->names, list_length(rows));
	make_buckets(&c->prefixes, list_length(rows));
	foreach(lc, rows)
		add_row(c, lfirst(lc), RelationGetDescr(rel));
	systable_endscan(scan);
	list_free_deep(rows);
	MemoryContextSwitchTo(old);
	return c;
}

static void
replace_contents(Contents *c)
{
	if (contents)
		MemoryContextDelete(contents->context);
	contents = c;
	if (c)
		MemoryContextSetParent(c->context, CacheMemoryContext);
}

/*
 * Locks the table and opens it.  NULL if it is gone, or if *keep: it need not
 * be read.  Whoever has an exclusive lock on it (a DROP EXTENSION that is not
 * decided yet) shall not hold up those who know what is in it: an invalidation
 * of the relation cache does not mean that it has changed.
 */
static Relation
open_table(Oid relid, uint64 now, bool *keep)
{
	Relation	rel;

	*keep = false;
	if (contents && table == relid && version == now && !changed)
	{
		if (!ConditionalLockRelationOid(relid, AccessShareLock))
		{
			*keep = true;
			return NULL;
		}
	}
	else
		LockRelationOid(relid, AccessShareLock);
	rel = try_relation_open(relid, NoLock);
	if (rel == NULL)
		UnlockRelationOid(relid, AccessShareLock);
	return rel;
}

static void
relcache_callback(Datum arg, Oid relid)
{
	if (OidIsValid(relid) && relid != table)
		return;
	invalidations++;
	valid = false;
}

static void
load(void)
{
	static bool registered = false;
	uint64		now = pg_atomic_read_u64(&sd_shared->grants_version);
	uint64		before = invalidations;
	Oid			relid = grants_table();
	Relation	rel;
	bool		keep = false;

	Assert(IsTransactionState());
	if (!registered)
	{
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
		registered = true;
	}
	/* The version is read before the table is. */
	pg_read_barrier();
	valid = false;
	rel = OidIsValid(relid) ? open_table(relid, now, &keep) : NULL;
	if (rel == NULL)
	{
		/* Nobody tells us when it is made: it is looked for again. */
		if (!keep)
			replace_contents(NULL);
		return;
	}
	table = relid;
	replace_contents(read_table(rel));
	relation_close(rel, AccessShareLock);
	version = now;
	valid = before == invalidations;
}

void
grants_refresh(void)
{
	if (likely(valid && version == pg_atomic_read_u64(&sd_shared->grants_version)))
		return;
	load();
}

/* ---- asking ---- */

typedef struct Question
{
	Oid			role;
	GrantPrivilege privilege;
	Jsonb	   *context;
	bool		anybody;		/* grants_cover(): the rest is unset */
} Question;

static bool
has_keys(Jsonb *context, uint32 required)
{
	for (int i = 0; required >> i != 0; i++)
	{
		JsonbValue	value;

		if ((required & (1u << i)) != 0 &&
			(context == NULL || !JB_ROOT_IS_OBJECT(context) ||
			 getKeyJsonValueFromContainer(&context->root, grants_context_keys[i],
										  strlen(grants_context_keys[i]), &value) == NULL))
			return false;
	}
	return true;
}

static bool
any_grant(const Grant *grant, const Question *q)
{
	for (; grant; grant = grant->next)
		if (q->anybody ||
			(grant->privilege == q->privilege &&
			 (grant->grantee == InvalidOid || grant->grantee == q->role ||
			  has_privs_of_role(q->role, grant->grantee)) &&
			 (grant->required == 0 || has_keys(q->context, grant->required))))
			return true;
	return false;
}

static bool
ask(const char *channel, const Question *q)
{
	Size		len = strlen(channel);
	Pattern    *p;

	grants_refresh();
	if (contents == NULL)
		return false;
	if (any_grant(contents->star, q))
		return true;
	p = find_pattern(&contents->names, channel, len);
	if (p && any_grant(p->grants, q))
		return true;
	if (contents->prefixes.n == 0)
		return false;
	for (Size i = 1; i < Min(len, contents->prefixes.longest); i++)
	{
		if (channel[i] != '.')
			continue;
		p = find_pattern(&contents->prefixes, channel, i + 1);
		if (p && any_grant(p->grants, q))
			return true;
	}
	return false;
}

bool
grants_allow(Oid role, const char *channel, GrantPrivilege privilege, Jsonb *context)
{
	Question	q = {.role = role, .privilege = privilege, .context = context};

	return superuser_arg(role) || ask(channel, &q);
}

bool
grants_cover(const char *channel)
{
	Question	q = {.anybody = true};

	return ask(channel, &q);
}

void
grants_require(Oid role, const char *channel, GrantPrivilege privilege, Jsonb *context,
			   const char *table_name)
{
	SdDatabase *db;
	const char *name = grants_privilege_name(privilege);
	char	   *role_name;

	if (likely(grants_allow(role, channel, privilege, context)))
		return;
	db = database_get(false, true);
	if (db)
		stats_add(&db->stats, SD_STAT_DENIED_CHANNEL, 1);
	role_name = GetUserNameFromId(role, true);
	if (role_name == NULL)
		role_name = psprintf("%u", role);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 privilege == GRANT_PUBLISH ?
			 errmsg("permission denied to publish on channel \"%s\"", channel) :
			 errmsg("permission denied to subscribe to channel \"%s\"", channel),
			 table_name ?
			 errdetail("Role \"%s\", which owns table \"%s\", has no privilege \"%s\" on the channel.",
					   role_name, table_name, name) :
			 privilege == GRANT_PUBLISH ?
			 errdetail("Role \"%s\" has no privilege \"%s\" on the channel.", role_name, name) :
			 errdetail("Role \"%s\" has no privilege \"%s\" on the channel, or none whose required_context the security context has.",
					   role_name, name),
			 errhint("SELECT subdispatch.grant_channel(%s, %s, '%s');",
					 quote_literal_cstr(channel), quote_literal_cstr(quote_identifier(role_name)),
					 name)));
}

/* ---- changes ---- */

/* Replicas hear of it by the invalidation, when they replay the commit. */
void
grants_changed(Relation rel)
{
	changed = true;
	valid = false;
	CacheInvalidateRelcache(rel);
}

/* After the commit record; nothing in here can fail. */
static void
tell_others(void)
{
	SdDatabase *db = database_find(MyDatabaseId);

	pg_atomic_fetch_add_u64(&sd_shared->grants_version, 1);
	if (db == NULL)
		return;
	for (int i = 0; i < subdispatch_dispatchers; i++)
		pg_atomic_fetch_add_u32(&db->dispatchers[i].listen_requests, 1);
	database_wake_all(db);
}

static void
at_xact_end(XactEvent event, void *arg)
{
	if (!changed)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot PREPARE a transaction that has changed channel grants")));
			break;
		case XACT_EVENT_COMMIT:
			tell_others();
			changed = false;
			break;
		case XACT_EVENT_ABORT:
			changed = false;
			valid = false;
			break;
		default:
			break;
	}
}

/* Whether the part that is rolled back changed anything is not known. */
static void
at_subxact_end(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	if (changed && event == SUBXACT_EVENT_ABORT_SUB)
		valid = false;
}

void
grants_init(void)
{
	RegisterXactCallback(at_xact_end, NULL);
	RegisterSubXactCallback(at_subxact_end, NULL);
}

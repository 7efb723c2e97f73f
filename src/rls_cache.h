/*-------------------------------------------------------------------------
 *
 * rls_cache.h
 *	  Between rls.c and rls_cache.c.
 *
 * Entries are good until rls_cache_refresh() is called the next time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_RLS_CACHE_H
#define SD_RLS_CACHE_H

#include "rls_plan.h"
#include "security.h"

/* A role's rights on a table, and whether its policies concern the role. */
typedef struct RlsRights
{
	/* key */
	Oid			relid;
	Oid			role;

	bool		any;			/* USAGE on the schema, SELECT on some column */
	bool		whole;			/* SELECT on the table, or superuser */
	bool		every_column;	/* SELECT on each column that there is */
	bool		policies;		/* row-level security applies */
	Bitmapset  *columns;		/* unless whole: with SELECT */
} RlsRights;

/*
 * Plans are good for all settings, but for those that are PostgreSQL's own:
 * parsing the body of a function that is inlined can depend on them.
 */
typedef struct RlsPlanKey
{
	Oid			relid;
	Oid			role;
	uint64		settings;		/* hash of RlsPlanEntry->settings */
} RlsPlanKey;

typedef struct RlsPlanEntry
{
	RlsPlanKey	key;
	char	   *settings;		/* PostgreSQL's own; NULL: none, as a rule */
	MemoryContext context;		/* of the plan and settings */
	RlsPlan    *plan;
} RlsPlanEntry;

/*
 * Everything in the cache is as in the catalogs on return; nothing in it may
 * be in use.
 */
extern void rls_cache_refresh(void);
/* Has nothing changed since? */
extern bool rls_cache_is_fresh(void);

/*
 * While something is made whose dependencies aren't known yet, whatever changes
 * makes the cache stale.  An error may leave it on.
 */
extern void rls_cache_making(bool on);

/* The cache must be fresh. */
extern const RlsRights *rls_cache_rights(Oid relid, Oid role);

extern RlsTable *rls_cache_find_table(Oid relid);
/* Kept in the cache, unless that is out of date already. */
extern RlsTable *rls_cache_table(Relation rel);

extern void rls_cache_key(Oid relid, const SdRights *rights, RlsPlanKey *key, char **settings);
extern RlsPlanEntry *rls_cache_find_plan(const RlsPlanKey *key, const char *settings);
/*
 * Keeps a copy of the plan.  All that it was made from is known, and locked, or
 * still as it was.
 */
extern RlsPlanEntry *rls_cache_keep_plan(const RlsPlanKey *key, const char *settings,
										 const RlsPlan *plan);

#endif							/* SD_RLS_CACHE_H */

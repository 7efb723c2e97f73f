/*-------------------------------------------------------------------------
 *
 * rls_job.h
 *	  Between rls.c and rls_many.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_RLS_JOB_H
#define SD_RLS_JOB_H

#include "dispatch.h"
#include "rls_cache.h"
#include "rls_split.h"
#include "security.h"

/* One event for one identity. */
typedef struct RlsJob
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
} RlsJob;

static inline const void *
rls_image(const SdEvent *ev, uint32 offset)
{
	return offset ? (const char *) ev + offset : NULL;
}

/* ---- rls.c ---- */

/* Locks a query's tables; false if its plan isn't good any more.  NULL: nothing. */
extern bool rls_lock_tables(const PlannedStmt *stmt);

/* Errors tell whose policies ran; callback is on the caller's stack, and his to pop. */
extern void rls_report_policies(RlsJob *job, ErrorContextCallback *callback);

/*
 * Computes an identity's parts, unless they are known.  What it cannot compute
 * is no failure: the whole conditions may not come to it.
 */
extern void rls_need_identity(RlsSplit *split, uint64 identity, const SdRights *rights,
							  int timeout_ms);

/* ---- rls_many.c ---- */

/*
 * Asks for all that are visited together with the job's identity, unless that
 * has been done.  False if it can't be done, or failed, or the identity is not
 * among them.  The table's layout is known to be the images'.
 */
extern bool rls_ask_many(RlsJob *job);

#endif							/* SD_RLS_JOB_H */

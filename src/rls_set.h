/*-------------------------------------------------------------------------
 *
 * rls_set.h
 *	  Policies with sub-selects, asked for many identities at once.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_RLS_SET_H
#define SD_RLS_SET_H

#include "rls_plan.h"
#include "rls_split.h"

typedef struct RlsSet RlsSet;

/*
 * Plans the query, as rewritten, for a set of identities; NULL if it cannot be
 * asked so.  *parts: the expressions of an identity that it needs.  In the
 * current memory context.  May raise any error that planning raises.
 */
extern PlannedStmt *set_plan(const Query *rewritten, List **parts);

/* Of a plan that has a set_stmt; all of it is to live in context, as the plan does. */
extern RlsSet *set_make(const RlsPlan *plan, MemoryContext context);

/* What is to be known of each identity before it is asked for. */
extern RlsSplit *set_identities(RlsSet *set);

/* After an error it is left alone for a while: one identity's fault is all's. */
extern bool set_usable(const RlsSet *set);
extern void set_note_error(RlsSet *set);

/*
 * Is the image, of the table's layout, visible to each of n identities of one
 * role, which is to be the current user, with none of their settings?  Their
 * parts must be known.  Looks at tables, whose locks the caller has; may raise
 * any error.
 */
extern void set_run(RlsSet *set, RlsTable *table, const HeapTupleHeaderData *image,
					const uint64 *identities, int n, bool *visible);

#endif							/* SD_RLS_SET_H */

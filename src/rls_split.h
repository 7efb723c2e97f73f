/*-------------------------------------------------------------------------
 *
 * rls_split.h
 *	  Policies of which each part is computed once for all that share it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_RLS_SPLIT_H
#define SD_RLS_SPLIT_H

#include "rls_plan.h"

typedef struct RlsSplit RlsSplit;

/*
 * Splits the conditions of a steady plan, or returns NULL.  All of it is to live
 * in context, in which the plan lives too.
 */
extern RlsSplit *split_make(const RlsPlan *plan, MemoryContext context);

/*
 * Nothing but parts of the identity, for rls_set.c.  The part's number in the
 * order of an identity's values is returned.
 */
extern RlsSplit *split_make_empty(MemoryContext context);
extern int	split_add_identity_part(RlsSplit *split, Node *expr);

/* Does it depend on nothing but what stays the same for an identity, and on that? */
extern bool split_is_identitys(Node *expr);

/* Is it of use: no error has shown that it must not be split? */
extern bool split_usable(const RlsSplit *split);

/* ---- the identities' part ---- */

/*
 * Is an identity's part known?  If not, split_compute_identity() is to be called
 * with the identity's rights; it may raise any error, and then it is known that
 * the identity has none: the whole conditions are to be asked for it.
 */
extern bool split_knows_identity(RlsSplit *split, uint64 identity);
extern void split_compute_identity(RlsSplit *split, uint64 identity);
/* Of its parts, in their order; NULL if it is not known or has none. */
extern const NullableDatum *split_identity_values(RlsSplit *split, uint64 identity);

/* ---- the row's part ---- */

/*
 * The same for the images of an event, as it lies in memory now.  Columns as
 * they are are taken without further ado, and without the rights: false then
 * from split_row_is_code().
 */
extern bool split_knows_row(const RlsSplit *split, uint64 event_id, const SdEvent *ev);
extern bool split_row_is_code(const RlsSplit *split);
extern void split_compute_row(RlsSplit *split, RlsTable *table, uint64 event_id,
							  const SdEvent *ev);

/* ---- the answer ---- */

/*
 * For the images of the event whose part was computed last, as far as it has
 * them.  False if the identity's part is not known, or it has none.  Runs no
 * user code, and looks at no rights.
 */
extern bool split_ask(RlsSplit *split, uint64 identity, bool row, bool old,
					  bool *row_visible, bool *old_visible);

#endif							/* SD_RLS_SPLIT_H */

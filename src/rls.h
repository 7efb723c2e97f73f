/*-------------------------------------------------------------------------
 *
 * rls.h
 *	  What a role may see of the row images of a table's changes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_RLS_H
#define SD_RLS_H

#include "nodes/bitmapset.h"

#include "dispatch.h"
#include "security.h"

/*
 * What is not set is not to be seen.  columns is allocated in the memory
 * context current at the call; with all_columns it is NULL.
 */
typedef struct RlsView
{
	bool		allowed;		/* some SELECT right, and nothing failed */
	bool		row_visible;	/* there is a "row" image, and policies pass it */
	bool		old_visible;	/* likewise "old" */
	bool		failed;			/* a policy raised an error or timed out */
	bool		all_columns;	/* SELECT right on every column of the images */
	Bitmapset  *columns;		/* otherwise: numbers of those with the right */
} RlsView;

/*
 * Looks at an event of publish_change() with the rights of an identity, and
 * runs the table's policies for SELECT on its images.  A TRUNCATE, which has
 * none, is allowed to whom may SELECT every column.
 *
 * Needs a transaction with an active snapshot, in which no rights are entered.
 * An error of a policy's, its time being over too, denies all and is counted,
 * and logged at a limited rate; bare: it is raised, and the caller must abort
 * its transaction.  bare saves the subtransaction.
 */
extern void rls_view(DispatchEvent *e, SdIdentity *identity, bool bare, int timeout_ms,
					 RlsView *view);

/*
 * Is all of the event there for the role to see, whatever the row: SELECT on
 * every column, and no row-level security that applies to it?  Runs no user
 * code.  Superusers see images of tables that are gone, too.
 */
extern bool rls_sees_all(const SdEvent *ev, Oid role);

/* attno: counts from 1, in the event's atts */
extern bool rls_column_visible(const SdEvent *ev, const RlsView *view, int attno);

/*
 * Numbers of the columns of the table's primary key, or, if it has none, of
 * its replica identity index; NULL if it has neither or is gone.  A new set in
 * the current memory context.  Needs a transaction; takes an AccessShareLock,
 * and may so raise an error, if it isn't known from before.
 */
extern Bitmapset *rls_key_columns(Oid relid);

#endif							/* SD_RLS_H */

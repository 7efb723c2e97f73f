/*-------------------------------------------------------------------------
 *
 * rls_plan.h
 *	  Between rls.c, rls_plan.c, which makes plans, and rls_run.c and
 *	  rls_split.c, which run them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_RLS_PLAN_H
#define SD_RLS_PLAN_H

#include "access/htup.h"
#include "executor/tuptable.h"
#include "nodes/bitmapset.h"
#include "nodes/execnodes.h"
#include "nodes/plannodes.h"
#include "utils/tuplestore.h"

#include "event.h"

#define RLS_IMAGE_NAME	"subdispatch_image"	/* in place of the table, in queries */

/* A table as it is now, and a slot for one image of it. */
typedef struct RlsTable
{
	Oid			relid;			/* hash key */
	TupleDesc	desc;			/* a copy, with the table's row type */
	SdEventTable *layout;		/* as an event would carry it */
	bool		has_rows;		/* some columns are, or hold, row types */
	Bitmapset  *keys;			/* see rls_key_columns() */
	TupleTableSlot *slot;
	HeapTupleData tuple;		/* what the slot holds */
} RlsTable;

typedef enum RlsPlanKind
{
	RLS_NOTHING,				/* shows no row */
	RLS_EVERYTHING,				/* shows every row */
	RLS_EXPRESSION,				/* quals tell */
	RLS_QUERY					/* stmt tells */
} RlsPlanKind;

/* A table's policies for one role. */
typedef struct RlsPlan
{
	RlsPlanKind kind;
	bool		shareable;		/* holds for other settings, too */
	bool		steady;			/* quals keep nothing between evaluations */
	bool		repeatable;		/* calls no VOLATILE function */
	Bitmapset  *columns;		/* that it looks at; 0: the whole row */
	List	   *quals;			/* RLS_EXPRESSION: all of them must be true */
	PlannedStmt *stmt;			/* RLS_QUERY: a row for a visible image */
	/* what it was made from, besides what rls.c looks at anyway */
	List	   *relids;			/* an OID list */
	List	   *items;			/* of PlanInvalItem */

	PlannedStmt *set_stmt;		/* RLS_QUERY for many at once; NULL: can't be */
	List	   *set_parts;		/* its expressions of the identities */

	struct RlsSplit *split;		/* rls_split.c's; NULL: can't be split */
	struct RlsSet *set;			/* rls_set.c's; NULL: can't be asked for many */

	/* rls_plan_run()'s: a steady expression, ready to run */
	ExprState  *state;
	MemoryContext state_context;
	bool		running;		/* still set: an error ended its last run */

	uint64		compared_id;	/* event of which "same" is known */
	bool		same;			/* both images are the same to it */
} RlsPlan;

/* In the current memory context; needs a lock on the table. */
extern RlsTable *rls_table_make(Relation rel);

/*
 * Makes a plan of the policies that apply to the current user, who must not be
 * exempt from them.  In the current memory context; needs a lock on the table
 * and an active snapshot.  May run user code, and raise any error.
 */
extern RlsPlan *rls_plan_make(Relation rel, const RlsTable *table);

/* Does the expression keep nothing between evaluations? */
extern bool rls_plan_is_steady(Node *expr);
/* Is it an expression that computes a value of its parts, of a kind that we know? */
extern bool rls_plan_is_plain(const Node *node);
/* Does the function run nothing but PostgreSQL's own code in C? */
extern bool rls_plan_is_internal(Oid function);

/* A copy in the current memory context, without what belongs to running it. */
extern RlsPlan *rls_plan_copy(const RlsPlan *plan);

/* ---- rls_run.c ---- */

/*
 * Is the plan's answer for both images of the event sure to be the same?  They
 * have the table's layout.
 */
extern bool rls_plan_same_images(RlsPlan *plan, const RlsTable *table, uint64 event_id,
								 const HeapTupleHeaderData *row, const HeapTupleHeaderData *old);

/* The table's slot, with the image in it: until the slot is cleared. */
extern TupleTableSlot *rls_table_slot(RlsTable *table, const HeapTupleHeaderData *image);

/* Puts the image into a tuplestore. */
extern void rls_table_put(RlsTable *table, const HeapTupleHeaderData *image,
						  Tuplestorestate *store);

/*
 * Is this image, of the table's layout, visible to the current user, whose
 * plan it must be?  context: what a steady expression's state is to live in.
 * Runs user code, and may raise any error.
 */
extern bool rls_plan_run(RlsPlan *plan, RlsTable *table, const HeapTupleHeaderData *image,
						 MemoryContext context);

#endif							/* SD_RLS_PLAN_H */

/*-------------------------------------------------------------------------
 *
 * rls_run.c
 *	  Running a plan of policies on a row image, for one identity.
 *
 * Conditions without sub-selects run as an expression on a slot that holds the
 * image.  Others run as a query, whose table is a tuplestore with the image.
 *
 * An expression's run-time state is kept only if the plan is "steady".  Its
 * functions may keep what they like in it, so after an error it is made anew.
 *
 * Locks: those of running a query, until the end of the transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "executor/executor.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "rls_plan.h"

/* A steady expression's state.  After an error it is not trusted any more. */
static ExprState *
steady_state(RlsPlan *plan, MemoryContext context)
{
	MemoryContext old;

	if (likely(plan->state && !plan->running))
		return plan->state;
	plan->state = NULL;
	if (plan->state_context)
		MemoryContextReset(plan->state_context);
	else
		plan->state_context = AllocSetContextCreate(context, "subdispatch policies' state",
													ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(plan->state_context);
	plan->state = ExecInitQual(plan->quals, NULL);
	MemoryContextSwitchTo(old);
	return plan->state;
}

static bool
run_steady(RlsPlan *plan, TupleTableSlot *slot, MemoryContext context)
{
	/* holds nothing but the slot and memory that is reset */
	static ExprContext *econtext = NULL;
	ExprState  *state = steady_state(plan, context);
	bool		visible;

	if (unlikely(econtext == NULL))
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		econtext = CreateStandaloneExprContext();
		MemoryContextSwitchTo(old);
	}
	plan->running = true;
	econtext->ecxt_scantuple = slot;
	ResetExprContext(econtext);
	visible = ExecQual(state, econtext);
	plan->running = false;
	return visible;
}

/* The current memory context is the caller's to reset. */
static bool
run_expression(RlsPlan *plan, TupleTableSlot *slot)
{
	ExprContext *econtext = CreateStandaloneExprContext();
	ExprState  *state = ExecInitQual(plan->quals, NULL);
	bool		visible;

	econtext->ecxt_scantuple = slot;
	visible = ExecQualAndReset(state, econtext);
	FreeExprContext(econtext, true);
	return visible;
}

static bool
run_query(RlsPlan *plan, RlsTable *table)
{
	QueryEnvironment *env = create_queryEnv();
	EphemeralNamedRelation relation = palloc0(sizeof(EphemeralNamedRelationData));
	Tuplestorestate *store = tuplestore_begin_heap(false, false, 64);
	QueryDesc  *desc;
	bool		visible;

	tuplestore_puttuple(store, &table->tuple);
	relation->md.name = pstrdup(RLS_IMAGE_NAME);
	relation->md.reliddesc = InvalidOid;
	relation->md.tupdesc = table->desc;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = 1;
	relation->reldata = store;
	register_ENR(env, relation);

	desc = CreateQueryDesc(plan->stmt, "", GetActiveSnapshot(), InvalidSnapshot,
						   None_Receiver, NULL, env, 0);
	ExecutorStart(desc, 0);
	ExecutorRun(desc, ForwardScanDirection, 1, true);
	visible = desc->estate->es_processed > 0;
	ExecutorFinish(desc);
	ExecutorEnd(desc);
	FreeQueryDesc(desc);
	tuplestore_end(store);
	return visible;
}

static bool
same_column(const RlsTable *table, HeapTuple a, HeapTuple b, int attno)
{
	Form_pg_attribute att = TupleDescAttr(table->desc, attno - 1);
	bool		a_null;
	bool		b_null;
	Datum		x = heap_getattr(a, attno, table->desc, &a_null);
	Datum		y = heap_getattr(b, attno, table->desc, &b_null);

	if (a_null || b_null)
		return a_null && b_null;
	return datumIsEqual(x, y, att->attbyval, att->attlen);
}

static void
fake_tuple(HeapTuple tuple, const HeapTupleHeaderData *image)
{
	tuple->t_data = (HeapTupleHeader) unconstify(HeapTupleHeaderData *, image);
	tuple->t_len = HeapTupleHeaderGetDatumLength(image);
}

/*
 * Byte for byte: values that are equal and lie there in another form count as
 * different, which costs no more than a second run.
 */
static bool
same_columns(const RlsPlan *plan, const RlsTable *table, const HeapTupleHeaderData *row,
			 const HeapTupleHeaderData *old)
{
	HeapTupleData a = {0};
	HeapTupleData b = {0};
	int			attno = -1;

	fake_tuple(&a, row);
	fake_tuple(&b, old);
	while ((attno = bms_next_member(plan->columns, attno)) >= 0)
		if (attno == 0 || !same_column(table, &a, &b, attno))
			return false;
	return true;
}

bool
rls_plan_same_images(RlsPlan *plan, const RlsTable *table, uint64 event_id,
					 const HeapTupleHeaderData *row, const HeapTupleHeaderData *old)
{
	if (!plan->repeatable)
		return false;
	if (plan->compared_id != event_id)
	{
		plan->same = same_columns(plan, table, row, old);
		plan->compared_id = event_id;
	}
	return plan->same;
}

/* Only read, though neither the slot nor the tuplestore say so. */
static void
set_tuple(RlsTable *table, const HeapTupleHeaderData *image)
{
	table->tuple.t_data = (HeapTupleHeader) unconstify(HeapTupleHeaderData *, image);
	table->tuple.t_len = HeapTupleHeaderGetDatumLength(image);
	ItemPointerSetInvalid(&table->tuple.t_self);
	table->tuple.t_tableOid = table->relid;
}

TupleTableSlot *
rls_table_slot(RlsTable *table, const HeapTupleHeaderData *image)
{
	set_tuple(table, image);
	return ExecStoreHeapTuple(&table->tuple, table->slot, false);
}

void
rls_table_put(RlsTable *table, const HeapTupleHeaderData *image, Tuplestorestate *store)
{
	set_tuple(table, image);
	tuplestore_puttuple(store, &table->tuple);
}

bool
rls_plan_run(RlsPlan *plan, RlsTable *table, const HeapTupleHeaderData *image,
			 MemoryContext context)
{
	bool		visible = false;

	if (plan->kind == RLS_NOTHING || plan->kind == RLS_EVERYTHING)
		return plan->kind == RLS_EVERYTHING;

	if (plan->kind == RLS_QUERY)
	{
		set_tuple(table, image);
		return run_query(plan, table);
	}

	(void) rls_table_slot(table, image);
	if (plan->steady)
		visible = run_steady(plan, table->slot, context);
	else
		visible = run_expression(plan, table->slot);
	ExecClearTuple(table->slot);
	return visible;
}

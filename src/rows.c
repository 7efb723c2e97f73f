/*-------------------------------------------------------------------------
 *
 * rows.c
 *	  Memory for the rows that a reading function returns.
 *
 * A consumer's backend does hardly anything but return rows, call after call.
 * In the query's own memory they would come from the operating system, page by
 * page, and go back to it at each query's end, which takes a fifth of all that
 * a read takes.  So this process keeps ROWS_KEPT bytes for the rows of one call
 * at a time; what a call returns beyond that, and calls while an earlier one's
 * query is not done, use memory that goes at the query's end.
 *
 * The query's memory owns ours while it uses it: however it ends, by an error
 * too, its reset callback empties ours for the next one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

#include "rows.h"

#define ROWS_KEPT	(1024 * 1024)

static MemoryContext kept = NULL;
static bool in_use = false;

static void
give_back(void *arg)
{
	MemoryContextReset(kept);
	in_use = false;
}

static MemoryContext
borrow(MemoryContext query)
{
	MemoryContextCallback *callback;

	if (in_use)
		return query;
	/* A reset leaves the first block, which is as large as we say. */
	if (kept == NULL)
		kept = AllocSetContextCreate(TopMemoryContext, "subdispatch rows",
									 ROWS_KEPT, ROWS_KEPT, ALLOCSET_DEFAULT_MAXSIZE);
	callback = MemoryContextAllocZero(query, sizeof(MemoryContextCallback));
	callback->func = give_back;
	MemoryContextRegisterResetCallback(query, callback);
	in_use = true;
	return kept;
}

void
rows_begin(FunctionCallInfo fcinfo)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext old;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	tuplestore_end(rsinfo->setResult);
	rsinfo->setResult = NULL;
	old = MemoryContextSwitchTo(borrow(rsinfo->econtext->ecxt_per_query_memory));
	rsinfo->setResult = tuplestore_begin_heap((rsinfo->allowedModes & SFRM_Materialize_Random) != 0,
											  false, work_mem);
	MemoryContextSwitchTo(old);
}

/*-------------------------------------------------------------------------
 *
 * sqlawait.c
 *	  SQL's doors for waiting without a snapshot: await_response(),
 *	  await_responses().
 *
 * They are procedures, called at the top level: a function called in a query
 * could not give up the query's snapshot.  No locks are taken in this file.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "tcop/pquery.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "reader.h"
#include "sqlfuncs.h"

PG_FUNCTION_INFO_V1(subdispatch_await_response);
PG_FUNCTION_INFO_V1(subdispatch_await_responses);

static void
cannot_give_up_snapshot(const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg("cannot wait here without holding back vacuum"),
			 errdetail("%s", why),
			 errhint("CALL it at the top level, outside a transaction block or in one at READ COMMITTED that has written nothing.")));
}

/*
 * Lets go of the statement's snapshot, so that the wait holds no xmin back.
 *
 * The only snapshot that may go is the one that the portal of the CALL pushed
 * (PostgreSQL 12 and later: Portal->portalSnapshot; EnsurePortalSnapshotExists
 * makes a new one for what follows).  If any other is active or registered, a
 * query above us needs it, and taking it away would crash the server.
 */
static void
give_up_snapshot(FunctionCallInfo fcinfo)
{
	if (!(fcinfo->context && IsA(fcinfo->context, CallContext)))
		cannot_give_up_snapshot("It was not called by CALL.");
	if (IsolationUsesXactSnapshot())
		cannot_give_up_snapshot("The transaction's isolation level keeps one snapshot throughout.");
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		cannot_give_up_snapshot("The transaction has written something.");
	if (ActiveSnapshotSet())
	{
		Snapshot	snapshot;

		if (ActivePortal == NULL || ActivePortal->portalSnapshot == NULL ||
			ActivePortal->portalSnapshot != GetActiveSnapshot())
			cannot_give_up_snapshot("It was called from a function or another statement.");
		snapshot = RegisterSnapshot(GetActiveSnapshot());
		PopActiveSnapshot();
		ActivePortal->portalSnapshot = NULL;
		if (ActiveSnapshotSet())
		{
			PushActiveSnapshotWithLevel(snapshot, ActivePortal->createLevel);
			ActivePortal->portalSnapshot = GetActiveSnapshot();
			UnregisterSnapshot(snapshot);
			cannot_give_up_snapshot("It was called from a function or another statement.");
		}
		UnregisterSnapshot(snapshot);
	}
	InvalidateCatalogSnapshot();
	if (HaveRegisteredOrActiveSnapshot())
		cannot_give_up_snapshot("A cursor is open.");
}

Datum
subdispatch_await_response(PG_FUNCTION_ARGS)
{
	char	   *id;
	TimestampTz deadline;

	sd_require_preload();
	refuse_in_resolver("subdispatch.await_response()");
	id = arg_key(fcinfo, 0, "id");
	deadline = arg_deadline(fcinfo, 1);
	give_up_snapshot(fcinfo);
	(void) reader_await(GetUserId(), id, deadline);
	PG_RETURN_VOID();
}

Datum
subdispatch_await_responses(PG_FUNCTION_ARGS)
{
	char	   *consumer;
	TimestampTz deadline;

	sd_require_preload();
	refuse_in_resolver("subdispatch.await_responses()");
	consumer = arg_key(fcinfo, 0, "consumer");
	deadline = arg_deadline(fcinfo, 1);
	give_up_snapshot(fcinfo);
	(void) reader_await_consumer(GetUserId(), consumer, deadline, false);
	PG_RETURN_VOID();
}

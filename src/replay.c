/*-------------------------------------------------------------------------
 *
 * replay.c
 *	  Read replicas: has a commit been replayed here?
 *
 * Redis can be faster than replication.  Resolvers and policies must see what
 * the event is about (DESIGN 4.6), so an event that travels through Redis tells
 * where its transaction committed: the system identifier, the timeline and the
 * end of its commit record.  A server whose data has the same origin dispatches
 * it only when it has replayed that.  PostgreSQL announces replay to nobody
 * outside of its startup process, so a dispatcher that waits looks again every
 * few milliseconds.
 *
 * TIMELINES.  A promotion begins a new timeline, and may leave commits of the
 * old one out.  A position on an older timeline than the server's is replayed
 * if it is in the history of the server's own, and lost otherwise: there will
 * never be anything to see.  A newer timeline than that of a server in recovery
 * is one that it has still to follow.  On a server that is not in recovery it
 * belongs to a clone that has gone its own way: that is another server, whose
 * rows nobody expects here.
 *
 * WHAT IS GIVEN UP.  An event that was not replayed in time is told as missing
 * to those who subscribe to its channel.  Who subscribes after that, and before
 * it is replayed, doesn't see in a query what it was about, and gets no event.
 * So the highest position that was given up is kept (SdDatabase->unseen_until),
 * and until replay has passed it whoever subscribes, to whatever, is told that
 * something is missing.  Who gives up writes it before he looks for
 * subscriptions, and who subscribes reads it when his can be found (both under
 * registry_lock), so that one sees the other.  The position has no timeline: of
 * those that follow each other the later one goes on above it.  What a promotion
 * has left out was lost; nobody needs to hear of that who comes later.
 *
 * Takes no lock of ours.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/timeline.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogrecovery.h"
#include "utils/memutils.h"

#include "replay.h"

/*
 * The end of all WAL so far.  The function tells where the next record begins,
 * which at a page's start is behind the page's header; a replayed record ends
 * before that.
 */
static XLogRecPtr
insert_end(void)
{
	XLogRecPtr	at = GetXLogInsertRecPtr();

	if (XLogSegmentOffset(at, wal_segment_size) == SizeOfXLogLongPHD)
		return at - SizeOfXLogLongPHD;
	if (at % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		return at - SizeOfXLogShortPHD;
	return at;
}

static void
note(SdPosition *commit, XLogRecPtr lsn)
{
	commit->system = GetSystemIdentifier();
	commit->timeline = GetWALInsertionTimeLine();
	commit->lsn = lsn;
}

void
replay_note_now(SdPosition *commit)
{
	note(commit, insert_end());
}

/*
 * A transaction without an id has no commit record.  What it has seen has been
 * committed by now.
 */
void
replay_note_commit(SdPosition *commit)
{
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		note(commit, XactLastCommitEnd);
	else
		replay_note_now(commit);
}

void
replay_look(ReplayPoint *point)
{
	point->recovery = RecoveryInProgress();
	point->replayed = InvalidXLogRecPtr;
	if (point->recovery)
		point->replayed = GetXLogReplayRecPtr(&point->timeline);
	else
		point->timeline = GetWALInsertionTimeLine();
}

/* Is what is before that position part of the history of "now"? */
static bool
in_history(TimeLineID now, const SdPosition *commit)
{
	static TimeLineID known = 0;
	static List *history = NIL;

	if (known != now)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
		List	   *read = readTimeLineHistory(now);

		MemoryContextSwitchTo(old);
		list_free_deep(history);
		history = read;
		known = now;
	}
	return tliOfPointInHistory(commit->lsn - 1, history) == commit->timeline;
}

/* All conflicts are reported as this, which else only a user's code would raise. */
bool
replay_is_conflict(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE && RecoveryInProgress();
}

ReplayState
replay_state(const ReplayPoint *point, const SdPosition *commit)
{
	if (XLogRecPtrIsInvalid(commit->lsn) || commit->system != GetSystemIdentifier())
		return REPLAY_DONE;
	if (commit->timeline < point->timeline)
		return in_history(point->timeline, commit) ? REPLAY_DONE : REPLAY_LOST;
	if (!point->recovery)
		return REPLAY_DONE;
	return commit->timeline == point->timeline && commit->lsn <= point->replayed ?
		REPLAY_DONE : REPLAY_PENDING;
}

/*
 * What is on a timeline that we have still to follow may be below what is
 * replayed, and is ahead of it all the same.
 */
void
replay_give_up(SdDatabase *db, const ReplayPoint *point, const SdPosition *commit)
{
	XLogRecPtr	lsn = Max(commit->lsn, point->replayed + 1);
	uint64		now = pg_atomic_read_u64(&db->unseen_until);

	while (now < lsn && !pg_atomic_compare_exchange_u64(&db->unseen_until, &now, lsn))
		;
}

bool
replay_lacks_event(SdDatabase *db)
{
	uint64		until = pg_atomic_read_u64(&db->unseen_until);

	return unlikely(until != 0) && RecoveryInProgress() && GetXLogReplayRecPtr(NULL) < until;
}

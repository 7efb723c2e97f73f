/*-------------------------------------------------------------------------
 *
 * gather.c
 *	  Workers let events gather while many transactions commit.
 *
 * To sleep after each event and to be woken for the next one costs more than
 * its dispatch, on both sides: the committing backend sends a signal, and the
 * dispatcher, on a busy machine, takes its processor and its caches away.
 * Consumers, which every batch wakes, pay the same again.
 *
 * So a dispatcher that has dispatched all there was looks whether more is about
 * to come: transactions that hold a ticket are in the midst of a commit that
 * brings events, and where commits are too fast to be seen at it, several came
 * together just now.  Then it stays away for a moment, in which nobody has to
 * wake it, and takes what has gathered.  The first event after a rest is
 * dispatched at once, and so are those that come one by one, however fast:
 * whoever waits for the answer to one before he sends the next is not held up.
 * It is what commit_delay and commit_siblings do for the WAL.
 *
 * The bus worker does the same between two batches that it sends, but goes on
 * reading meanwhile, so it waits in its own manner (redis_send.c).
 *
 * Takes no lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/latch.h"
#include "utils/wait_event.h"

#include "dispatcher.h"

#define GATHER_COMMITS	4		/* in progress */
#define GATHER_BLOCKS	3		/* done with since it was last asked */
#define GATHER_ENOUGH	64		/* events that do not wait for others */

bool
gather_expects_more(SdDatabase *db, uint32 blocks_done)
{
	return blocks_done >= GATHER_BLOCKS || pg_atomic_read_u32(&db->ntaken) >= GATHER_COMMITS;
}

/*
 * Called after events were dispatched and before more are looked for.  Waits
 * without its latch, which others so need not set for it; signals are seen to
 * afterwards.  Ends the process if the postmaster is gone.
 */
void
gather_events(SdDatabase *db, int dispatcher)
{
	SdDispatcher *me = &db->dispatchers[dispatcher];
	uint32		blocks_done = dispatch_blocks_done();

	/* Only we put anything in our hand. */
	if (!dlist_is_empty(&me->inhand) ||
		pg_atomic_read_u64(&me->queue_events) >= GATHER_ENOUGH ||
		!gather_expects_more(db, blocks_done))
		return;
	(void) WaitLatch(NULL, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, GATHER_MS, PG_WAIT_EXTENSION);
}

/*-------------------------------------------------------------------------
 *
 * resume.h
 *	  Subscriptions that go on after an event, until they have caught up.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_RESUME_H
#define SD_RESUME_H

#include "stream.h"

/* A replayed response; one reference to its body. */
typedef struct SdReplayed
{
	SdBody	   *body;
	uint32		lost;			/* responses lost before it */
	bool		gap;			/* and something of unknown size */
} SdReplayed;

/*
 * A subscription runs after its stream, without being attached to it: the
 * dispatcher puts replayed responses here.  When it has caught up it joins the
 * stream; this stays until what is in it was read.
 */
typedef struct SdResume
{
	dlist_node	node;			/* in SdHistory->resuming while running; its lock */
	pg_atomic_uint32 refs;		/* the subscription, the dispatcher */
	SdStream   *stream;			/* immutable; one reference */

	/* stream's lock */
	SdSubscription *sub;		/* NULL: gone */
	bool		running;
	bool		full;			/* the dispatcher waits for the reader */
	bool		behind;			/* the history does not reach back to it; what the
								 * stream is told of meanwhile is not in "gap" */
	bool		known;			/* "after" needs no proof any more */
	bool		gap;			/* told with what comes next */
	uint32		lost;			/* likewise */
	uint32		gaps_seen;		/* stream's gaps that are in "gap", or don't
								 * concern it */
	uint64		waived;			/* what is older is not waited for */
	uint64		elsewhere;		/* what was lost before is told; see SdChannel */
	uint64		after;			/* done with events up to this; single writer:
								 * the dispatcher, once it runs */
	uint64		bytes;			/* of the entries' payloads */
	uint64		max_bytes;		/* immutable */
	uint32		size;			/* immutable */
	uint32		first;
	uint32		n;
	SdReplayed	entries[FLEXIBLE_ARRAY_MEMBER]; /* a ring */
} SdResume;

/* Not yet that of a subscription; NULL when shared memory is used up. */
extern SdResume *resume_make(uint64 after, uint32 max_pending, uint64 max_bytes);
extern void resume_unref(SdResume *r);

/*
 * May it begin after this event?  Raises 22023 for one that is still to come,
 * and sees to it that those to come have higher ids.
 */
extern void resume_check(SdDatabase *db, int64 after);

/* ---- caller holds the stream's lock exclusively ---- */

/* Begins to run; takes over the caller's reference. */
extern void resume_enter(SdStream *stream, SdSubscription *sub, SdResume *r);
/* Stops to run, as if it were detached now; the stream is not read. */
extern void resume_stop(SdStream *stream, SdSubscription *sub);
/* What is queued goes. */
extern void resume_drop(SdSubscription *sub);

/* The dispatcher: adds a response (takes a reference of its own; NULL: lost). */
extern void resume_push(SdResume *r, SdBody *body);
extern void resume_note_gap(SdResume *r);
/* It has caught up: reads the stream from now on. */
extern void resume_join(SdResume *r);

/* The reader: the oldest entry, and what follows taking its body out of it. */
extern SdReplayed *resume_first(SdSubscription *sub);
extern void resume_pop(SdSubscription *sub);
/*
 * drop_oldest, attached: so much is pending in the ring, from which something
 * was lost already if ring_lost.
 */
extern void resume_make_room(SdSubscription *sub, uint64 ring_n, uint64 ring_bytes,
							 bool ring_lost);

/* More than half of what it may hold is there: the dispatcher waits for the reader. */
static inline bool
resume_is_full(const SdResume *r)
{
	return r->n > r->size / 2 || r->bytes >= r->max_bytes / 2;
}

/* In any mode. */
static inline bool
resume_running(const SdSubscription *sub)
{
	return sub->resume != 0 && sub_resume(sub)->running;
}

static inline uint32
resume_pending(const SdSubscription *sub)
{
	return sub->resume != 0 ? sub_resume(sub)->n : 0;
}

static inline uint64
resume_bytes(const SdSubscription *sub)
{
	return sub->resume != 0 ? sub_resume(sub)->bytes : 0;
}

#endif							/* SD_RESUME_H */

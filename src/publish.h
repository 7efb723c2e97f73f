/*-------------------------------------------------------------------------
 *
 * publish.h
 *	  What a transaction has published: shared by publish.c (its way through
 *	  the transaction's end), publish_copies.c (whom events concern) and
 *	  publish_blocks.c (events in shared memory).
 *
 * COPIES.  A channel has its home dispatcher, and so has '*'.  An event goes to
 * the first if the channel has subscriptions and to the second if '*' has any.
 * If the two are the same dispatcher, one copy (COPY_HOME) serves both.  With the
 * Redis bus there is one copy of each event, for the bus worker (COPY_BUS), whoever
 * subscribes here: others may elsewhere.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_PUBLISH_H
#define SD_PUBLISH_H

#include "bus.h"

/* Which copies of an event. */
#define COPY_HOME		0x01	/* for the channel's dispatcher */
#define COPY_STAR		0x02	/* for that of '*', if it is another one */
#define COPY_BUS		0x04	/* for the bus worker, instead of the others */

typedef struct Pending
{
	SdEvent    *ev;
	SubTransactionId subid;
	uint8		home;			/* the channel's dispatcher */
	uint8		copies;			/* to be linked */
	uint8		gap;			/* needed, but there was no room */
	uint8		late;			/* needed since the commit: not decided yet */
	uint32		ordinal;		/* within what is linked together */
	bool		for_all;		/* all copies, whoever subscribes by now */
} Pending;

/*
 * All of it is this backend's own.  What it holds elsewhere (room, blocks, a
 * ticket) is recorded here before anything else can fail.
 */
typedef struct PublishTx
{
	MemoryContext context;		/* of the events; NULL: nothing published yet */
	Pending    *events;			/* in the order of publication */
	uint32		n;
	uint32		size;			/* of events[] */
	Size		bytes;			/* of all events */

	bool		committed;		/* to be linked when the locks are released */
	SdPosition	commit;			/* if by_redis */

	/* set by publish_attach() */
	SdDatabase *db;				/* NULL: nothing is held */
	uint8		star_home;
	bool		by_redis;		/* all copies are COPY_BUS */
	Size		reserved[SD_PLACES];	/* what "blocks" take, or will */
	dlist_head	blocks;			/* those that are not linked yet */
} PublishTx;

/* Is this one of the copies that dispatcher d gets? */
static inline bool
goes_to(const PublishTx *tx, const Pending *p, uint8 copies, int d)
{
	return ((copies & COPY_HOME) && p->home == d) ||
		((copies & COPY_STAR) && tx->star_home == d) ||
		((copies & COPY_BUS) && d == SD_BUS_PLACE);
}

static inline uint32
dispatcher_bit(int d)
{
	return UINT32_C(1) << d;
}

/* ---- publish_copies.c ---- */

/* What the sketch says: may be too much, never too little. */
extern void copies_choose(PublishTx *tx);
extern void copies_choose_bus(PublishTx *tx);
/* Takes back what no subscription asks for. */
extern void copies_choose_exactly(PublishTx *tx);
/* After the commit: what is needed by now, and is neither a copy nor a gap. */
extern uint32 copies_find_late(PublishTx *tx);
extern void copies_give_up(PublishTx *tx);	/* all become gaps */
extern void copies_count_gaps(PublishTx *tx);
extern void copies_count_published(PublishTx *tx);

/* ---- publish_blocks.c ---- */

extern void publish_attach(PublishTx *tx, SdDatabase *db);
/* What the copies take in each queue; returns the dispatchers as bits. */
extern uint32 blocks_size(const PublishTx *tx, Size *bytes);
/* All or none; false when shared memory is used up.  Raises no error. */
extern bool blocks_make(PublishTx *tx, uint32 mask);
extern void blocks_add_late(PublishTx *tx, int d);
extern void blocks_free(PublishTx *tx);
extern void blocks_release_room(PublishTx *tx);

#endif							/* SD_PUBLISH_H */

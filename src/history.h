/*-------------------------------------------------------------------------
 *
 * history.h
 *	  Dispatched events, kept for subscriptions that come back.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_HISTORY_H
#define SD_HISTORY_H

#include "event.h"
#include "stream.h"

/* An event's id, once its block is sequenced. */
static inline uint64
event_id(const SdBlock *block, const SdEvent *ev)
{
	return block->base_id + ev->ordinal;
}

/* ---- by the dispatcher ---- */

/* Takes over a block that is in no list any more. */
extern void history_keep(SdDatabase *db, int dispatcher, SdBlock *block);
/* Gives up what is more than subdispatch.event_history_size. */
extern void history_trim(SdDatabase *db, int dispatcher);
/* What comes from now on stays for some time, however small that is; or no more. */
extern void history_hold(SdDatabase *db, int dispatcher, bool hold);

/* ---- by anybody ---- */

/*
 * Gives up old events to make room for an allocation of that size; false if
 * there are none left.  May be called under any lock but a history's.
 */
extern bool history_reclaim(Size size);
/* Gives up all of them. */
extern void history_clear(SdDatabase *db, int dispatcher);
extern void history_clear_all(SdDatabase *db);

/*
 * Events of the channel up to this id may be missing.  What is pinned before
 * the call is not given up after it.
 */
extern uint64 history_gone(const SdChannel *channel);

extern uint64 history_bytes(const SdDispatcher *disp);

/*
 * Walking through what a dispatcher is done with, oldest first: the history,
 * and the events at the beginning of what is in hand.  Only by the dispatcher,
 * one walk at a time, which pins what it has not passed yet.
 */
typedef struct SdHistoryWalk
{
	SdDatabase *db;
	int			dispatcher;
	SdBlock    *block;			/* NULL: at the end */
	bool		inhand;
	uint32		at;				/* number of the next event in the block */
	SdEvent    *next;
	uint64		after;			/* events up to this are passed over */
} SdHistoryWalk;

extern void history_walk_begin(SdHistoryWalk *walk, SdDatabase *db, int dispatcher, uint64 after);
/* The next event, which may be in hand and not done with yet; NULL at the end. */
extern SdEvent *history_walk_next(SdHistoryWalk *walk, uint64 *id);
extern void history_walk_end(SdHistoryWalk *walk);
/* What a walk left pinned that did not come to its end. */
extern void history_unpin(SdDatabase *db, int dispatcher);

/* ---- lingering channels (linger.c); caller holds registry_lock exclusive ---- */

/* Its last subscription is about to go. */
extern void linger_begin(SdChannel *channel);
/* It has a subscription again. */
extern void linger_revive(SdChannel *channel);

static inline bool
channel_lingers(const SdChannel *channel)
{
	return channel->lingers_since != 0;
}

/* These take registry_lock themselves. */
extern void linger_sweep(SdDatabase *db, TimestampTz now);
extern void linger_purge(SdDatabase *db);

#endif							/* SD_HISTORY_H */

/*-------------------------------------------------------------------------
 *
 * redis_entry.h
 *	  An entry of the stream in Redis, as it was read: events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_REDIS_ENTRY_H
#define SD_REDIS_ENTRY_H

#include "bus_batch.h"
#include "event.h"
#include "redis_conn.h"
#include "replay.h"

/* What is found out about an event before it is linked. */
typedef enum Verdict
{
	ENTRY_GOOD,
	ENTRY_BAD,					/* not ours, or not as we would have made it */
	ENTRY_REPEATED,				/* seen before, or too old to tell */
	ENTRY_OLD					/* of before we began, and replayed */
} Verdict;

typedef struct Item
{
	Verdict		verdict;
	const char *why;			/* ENTRY_BAD */
	uint64		id;
	uint64		part;			/* second half of the id; 0 unless it is a bad one */
	uint64		prev;
	BusEntry	entry;
	SdEvent    *ev;				/* NULL: concerns nobody here, or is unusable */
	bool		unusable;		/* good, but we cannot make an event of it */
	SdPosition	commit;			/* of the event, or of what is missing, on a replica */
	bool		pending;		/* which has not been replayed here */
	bool		gap;			/* something before it is missing */
	bool		last;			/* of its entry */
} Item;

/*
 * Whose events are in an entry?  The items have all but the events, and point
 * into the reply.
 *
 * Returns how many items it has written, at most BATCH_MAX_EVENTS: those of
 * events with an id above "after", or a single one, ENTRY_BAD, for an entry that
 * is none, or has no such events.
 */
extern int entry_check(const redisReply *reply, uint64 after, Item *items);

/*
 * Which event is it, an item of BUS_EVENT that is not bad?  Whatever is wrong
 * with it costs this one only.  In the current memory context, and in a
 * transaction; what this server has sent itself may point elsewhere, until the
 * next own_forget().
 */
extern void entry_read_event(Item *item);

/* Which channels it is about that something is missing, by the hash of their names. */
extern void entry_gap_channels(const BusEntry *entry, uint32 *bits);

/*
 * Both, but of events only those that somebody here subscribes to.
 *
 * What a replica has not replayed concerns also those who subscribe before that:
 * their queries cannot see it.  "point" tells what was replayed before; what is
 * replayed later counts as if it weren't.
 */
extern int entry_examine(const redisReply *reply, const ReplayPoint *point, uint64 after,
						 Item *items);

/* Has this server sent it? */
extern bool entry_is_own(const BusEntry *entry);

#endif							/* SD_REDIS_ENTRY_H */

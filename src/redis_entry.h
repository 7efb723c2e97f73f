/*-------------------------------------------------------------------------
 *
 * redis_entry.h
 *	  One entry of the stream in Redis, as it was read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_REDIS_ENTRY_H
#define SD_REDIS_ENTRY_H

#include "bus_mac.h"
#include "event.h"
#include "redis_conn.h"
#include "replay.h"

/* What is found out about an entry before it is linked. */
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
	bool		pending;		/* its commit has not been replayed here */
	bool		gap;			/* something before it is missing */
} Item;

/*
 * Finds out what an entry is worth by itself: is it ours, and if somebody here
 * subscribes to its channel, which event is it?  Whatever is wrong with it costs
 * this one only.  In the current memory context, and in a transaction; the
 * item points into the reply.
 *
 * What a replica has not replayed concerns also those who subscribe before that:
 * their queries cannot see it.  "point" tells what was replayed before; what is
 * replayed later counts as if it weren't.
 */
extern void entry_examine(const redisReply *reply, const ReplayPoint *point, Item *item);

/* All of a string of digits; false for anything else. */
extern bool entry_number(const char *s, Size len, uint64 *value);

#endif							/* SD_REDIS_ENTRY_H */

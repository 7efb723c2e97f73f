/*-------------------------------------------------------------------------
 *
 * redis_progress.h
 *	  How far the stream in Redis was read, and what of it is new.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_REDIS_PROGRESS_H
#define SD_REDIS_PROGRESS_H

#include "database.h"
#include "redis_entry.h"

/* A place for a sender that is not there yet: at once, as it may take another's. */
extern SdBusSender *progress_add_sender(SdBusProgress *progress, const char *name);
extern void progress_set(SdBusProgress *progress, uint64 id, uint64 part);

/*
 * Moves past an entry that was examined.  Gives the item its verdict, and tells
 * whether anything before it is missing.
 */
extern void progress_advance(SdBusProgress *progress, Item *item);

#endif							/* SD_REDIS_PROGRESS_H */

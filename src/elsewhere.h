/*-------------------------------------------------------------------------
 *
 * elsewhere.h
 *	  What outlives a restart: were events published by another bus than Redis?
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_ELSEWHERE_H
#define SD_ELSEWHERE_H

#include "database.h"

extern void elsewhere_look(SdDatabase *db);
extern void elsewhere_open(SdDatabase *db);
extern void elsewhere_settle(SdDatabase *db, TimestampTz now);
extern void elsewhere_forget(Oid dboid);

/*
 * Something is about to be published here that will not be in the stream in
 * Redis.  May write a file, once in a while.  Raises no error; not under a lock.
 */
static inline void
elsewhere_begin(SdDatabase *db)
{
	if (unlikely(pg_atomic_read_u32(&db->bus.elsewhere) != SD_ELSEWHERE_OPEN))
		elsewhere_open(db);
}

/* It was, or nobody subscribed to it.  Cannot fail. */
static inline void
elsewhere_note(SdDatabase *db)
{
	if (unlikely(pg_atomic_read_u32(&db->bus.elsewhere_used) == 0))
		pg_atomic_write_u32(&db->bus.elsewhere_used, 1);
}

#endif							/* SD_ELSEWHERE_H */

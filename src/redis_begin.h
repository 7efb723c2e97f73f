/*-------------------------------------------------------------------------
 *
 * redis_begin.h
 *	  Between redis_read.c and redis_begin.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_REDIS_BEGIN_H
#define SD_REDIS_BEGIN_H

#include "redis_conn.h"

#define FUTURE_TOLERANCE	INT64CONST(86400000000) /* us; as the script has it */

typedef enum BeginResult
{
	BEGIN_FAILED,				/* it is no reply to what was asked */
	BEGIN_ASKED,				/* there is another reply to come */
	BEGIN_DONE					/* the position is known: reading can begin */
} BeginResult;

/* Asks, over the connection that reads, what the stream's state is. */
extern void begin_ask(void);
extern BeginResult begin_take(const redisReply *reply);

/* ---- redis_read.c ---- */

/* Something is missing: to the channels of a sketch, or, with NULL, to all. */
extern void read_tell_gap(const uint32 *bits);
/* Something before an event with this id, or a later one, is lost to everybody. */
extern void read_tell_break(uint64 id);

#endif							/* SD_REDIS_BEGIN_H */

/*-------------------------------------------------------------------------
 *
 * event_build.h
 *	  Between event.c and image_received.c: filling an event in.
 *
 * First all sizes are added up, then the event is allocated and filled from
 * its beginning on; *at is how far it is filled.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_EVENT_BUILD_H
#define SD_EVENT_BUILD_H

#include "event.h"

static inline uint32
event_string_size(const char *s)
{
	return s ? strlen(s) + 1 : 0;
}

/* Copies s to *at, advances *at, and returns its offset. */
static inline uint32
event_put_string(SdEvent *ev, uint32 *at, const char *s)
{
	uint32		offset = *at;
	uint32		size = event_string_size(s);

	if (size == 0)
		return SD_NO_STRING;
	memcpy((char *) ev + offset, s, size);
	*at += size;
	return offset;
}

/* An event with its head filled in; size is the sum of all that belongs to it. */
extern SdEvent *event_make_head(Size size, const char *channel, SdSource source, uint32 *at);

/* Takes desc over. */
extern SdEventTable *event_table_of(Oid relid, char *schema_name, char *table_name,
									TupleDesc desc);

#endif							/* SD_EVENT_BUILD_H */

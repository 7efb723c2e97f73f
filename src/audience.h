/*-------------------------------------------------------------------------
 *
 * audience.h
 *	  Which streams an event concerns.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_AUDIENCE_H
#define SD_AUDIENCE_H

#include "dispatch.h"

typedef void (*AudienceVisitor) (DispatchEvent *e, SdStream *stream);

/*
 * Calls visit() for every stream of the event's channel and of '*' that this
 * dispatcher serves, but for those whose filter asks for another value than the
 * event's.  No lock is held meanwhile; the streams stay pinned.  May raise the
 * errors of making the event's data, and visit()'s.
 */
extern void audience_visit(DispatchEvent *e, AudienceVisitor visit);

/* The highest id of an event that this process has shown to anybody; 0: none. */
extern uint64 audience_last_shown(void);

/* A TRUNCATE has no row: filters have nothing to look at and let it pass. */
extern bool audience_ignores_filters(const DispatchEvent *e);

/* Gives back all pins, also those that an error left. */
extern void audience_release(void);

#endif							/* SD_AUDIENCE_H */

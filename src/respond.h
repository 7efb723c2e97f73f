/*-------------------------------------------------------------------------
 *
 * respond.h
 *	  What an event's streams get.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_RESPOND_H
#define SD_RESPOND_H

#include "dispatch.h"
#include "resolver.h"

/* The first phase.  Needs a transaction with a snapshot. */
extern void respond_show(DispatchEvent *e);

/*
 * The second phase: calls the event's resolvers from work item *at on, which
 * moves, until all were called or, after the first, the time has come.  Needs a
 * transaction.
 */
extern void respond_resolve(DispatchEvent *e, int *at, TimestampTz until);
/* The outcome of a call that failed, for the n streams that share it. */
extern void respond_failure(DispatchEvent *e, SdStream **streams, int n, ResolverStatus status,
							int sqlerrcode, const char *message);

/* Makes the outcomes readable: after the commit. */
extern void respond_release(void);
/* Forgets them, and what is left of the first phase: after an error. */
extern void respond_forget(void);

#endif							/* SD_RESPOND_H */

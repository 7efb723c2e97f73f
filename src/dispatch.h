/*-------------------------------------------------------------------------
 *
 * dispatch.h
 *	  What dispatch.c needs of visibility.c and payload.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_DISPATCH_H
#define SD_DISPATCH_H

#include "event.h"
#include "stream.h"

/* ---- who may see (visibility.c) ---- */

/*
 * Must the streams of this identity end, because the role is gone or the owner
 * may not act as it any more?  Looked up anew for every event.
 */
extern SdEnd dispatch_identity_end(SdIdentity *identity, uint64 event_id);
/* May the identity see the event at all? */
extern bool dispatch_may_see(SdIdentity *identity, const SdEvent *ev);

/* ---- which streams share a resolver call (payload.c) ---- */

extern int	dispatch_compare_work(const void *a, const void *b);
extern int	dispatch_compare_variables(const SdStream *a, const SdStream *b);
extern bool dispatch_same_call(const SdStream *a, const SdStream *b);

/* ---- bodies; one reference, NULL when shared memory is used up ---- */

extern SdBody *dispatch_result_body(Jsonb *result, const char *response_key);
extern SdBody *dispatch_error_body(const char *message, int sqlerrcode);
extern Jsonb *dispatch_empty_object(void);

/* Logs a failure, at a limited rate.  fn InvalidOid: not a resolver's. */
extern void dispatch_log_failure(Oid fn, ErrorData *edata, const char *message);

#endif							/* SD_DISPATCH_H */

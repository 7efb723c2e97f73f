/*-------------------------------------------------------------------------
 *
 * event_wire.h
 *	  An event between the servers of a group.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_EVENT_WIRE_H
#define SD_EVENT_WIRE_H

#include "event.h"

/*
 * An event as text: a JSON object, palloc'd, of *len bytes and a NUL; NULL,
 * and *why, if it cannot be sent.  commit is where its transaction committed.
 *
 * A row image needs a transaction in a process that has called
 * image_text_init().  Raises what PostgreSQL's own code may raise about memory
 * or a damaged value; what other types' code raises is in *why.
 */
extern char *event_wire_out(const SdEvent *ev, const SdPosition *commit, Size *len,
							const char **why);

/*
 * The event of such a text, palloc'd, its timestamp that of its publication,
 * its commit zero if the text does not tell.  NULL, and *why, for whatever is
 * none, or is too large for subdispatch.max_event_size: raises no error for any
 * input.  Needs no transaction.
 *
 * authenticated: the text was made by a server of the group, which is more than
 * that it came from Redis.  Otherwise row images are refused.  One that is
 * received takes up to eight times what max_event_size allows, which may be
 * more than a queue can hold.
 */
extern SdEvent *event_wire_in(const char *text, Size len, bool authenticated,
							  const char **why);

#ifdef USE_ASSERT_CHECKING
extern SdEvent *event_wire_loop(const SdEvent *ev); /* there and back */
#endif

#endif							/* SD_EVENT_WIRE_H */

/*-------------------------------------------------------------------------
 *
 * visible.h
 *	  What an identity sees of an event.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_VISIBLE_H
#define SD_VISIBLE_H

#include "dispatch.h"
#include "security.h"

typedef struct Visible
{
	uint64		identity;		/* serial */
	bool		known;			/* false: an error came before that */
	bool		denied;			/* sees nothing of it; all else is unset then */
	SdCounter	reason;			/* which step denied it */
	bool		leave;			/* a row left its sight: whatever filters say */
	Jsonb	   *data;			/* the visible event's data */
} Visible;

/*
 * Computed once per event and identity; good as long as the event.  Needs the
 * event's data, a transaction and a snapshot.  Policies are run: their errors
 * are raised, or, when e->careful, deny the event to this identity alone.
 */
extern Visible *visible_to(DispatchEvent *e, SdIdentity *identity);
/* The same for the stream's identity. */
extern Visible *visible_in(DispatchEvent *e, const SdStream *stream);
/* What was computed for the event so far is computed anew. */
extern void visible_forget(DispatchEvent *e);

/* The identity's rights; kept for a later event, but not for longer than a batch. */
extern const SdRights *visible_rights(SdIdentity *identity);

/* An error ended the batch: remembers whose policies ran, if any did. */
extern void visible_note_error(void);

/*
 * May somebody see that a row left his sight?  Then filters don't say who is
 * concerned.
 */
extern bool visible_may_leave(const DispatchEvent *e);
/* Has the table of a row image row-level security? */
extern bool visible_table_has_policies(const DispatchEvent *e);

#endif							/* SD_VISIBLE_H */

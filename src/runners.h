/*-------------------------------------------------------------------------
 *
 * runners.h
 *	  Those that resume on a dispatcher's channels, and how far each is.
 *
 * All of it is the dispatcher's own, and for one slice of work at a time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_RUNNERS_H
#define SD_RUNNERS_H

#include "backfill.h"
#include "history.h"
#include "respond.h"
#include "resume.h"

/* Those that resume on one stream, which they pin. */
typedef struct RunnerGroup
{
	SdStream   *stream;
	int			first;			/* its runners */
	int			n;
	uint64		seam;			/* the stream is done with events up to this */
	uint64		floor;			/* the history has all behind this; 0: all it gets */
	uint64		upto;			/* what this slice can bring */
	uint64		behind;			/* the lowest "after" of those who take part */
	uint64		stop;			/* event that it gets no more in this slice; the
								 * caller's to set */
} RunnerGroup;

extern void runners_init(SdHistory *history);
/* Gives back what is held of them; does nothing before runners_init(). */
extern void runners_forget(void);
/* Is there anybody?  Reads without a lock. */
extern bool runners_any(void);
/* Looks who they are, if that has changed. */
extern void runners_collect(void);

/* ---- a slice ---- */

/* What the slice is made of. */
typedef struct SliceSource
{
	const SdWindow *window;		/* what there is of the stream in Redis, or NULL */
	bool		from_window;	/* it, for those who are behind; or the history */
} SliceSource;

/*
 * Begins one, where the dispatcher has dispatched everything up to "done": who
 * has caught up joins his stream.  From which event on there is something to
 * do; PG_UINT64_MAX: nothing.  *limit is the last event that anybody wants.
 */
extern uint64 runners_begin(uint64 done, const SliceSource *source, uint64 *limit);
/* The history is pinned: what was given up before it could be replayed is a gap. */
extern void runners_skip_gone(void);
/* Does anybody want the event? */
extern bool runners_concerned(const SdEvent *ev, uint64 id);
/* Calls what() for each group that the event concerns. */
extern void runners_each(DispatchEvent *e, void (*what) (DispatchEvent *, RunnerGroup *));
extern RunnerGroup *runners_of(SdStream *stream);
/* Keeps room in queues for a response; in how many. */
extern int	runners_take_room(RunnerGroup *g, const Outcome *o);
/* Puts one response, or a gap, into the queues of those that are at it. */
extern void runners_deliver(RunnerGroup *g, const Outcome *o);
/* Ends it: everybody is done with everything up to "reached", as far as he takes part. */
extern void runners_end(uint64 reached);
/* Ends it without having come anywhere, but for an event that becomes a gap. */
extern void runners_give_up(const SdEvent *ev, uint64 id);
/* Is anybody further than at the slice's beginning? */
extern bool runners_progress(void);

/* ---- those who are behind what the history has, at the slice's beginning ---- */

typedef struct RunnersBehind
{
	bool		any;
	bool		early;			/* some wait until more is dispatched */
	bool		covered;		/* the window is of use to somebody */
	uint64		from;			/* where the last of those stands who could go on, but
								 * not with the window; PG_UINT64_MAX: nobody */
	ChannelSet	channels;		/* of all of them */
} RunnersBehind;

extern const RunnersBehind *runners_behind(void);
/* They get what they need no more: those who could go on are told of a gap. */
extern void runners_waive(void);

#endif							/* SD_RUNNERS_H */

/*-------------------------------------------------------------------------
 *
 * backfill.h
 *	  What subscriptions that resume have missed, read again from Redis.
 *
 * The dispatcher asks, the bus worker answers with a window: see backfill.c and
 * redis_range.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_BACKFILL_H
#define SD_BACKFILL_H

#include "event.h"
#include "stream.h"

/* A set of channels, by the hash of their names. */
typedef struct ChannelSet
{
	bool		all;			/* whatever there is: for '*' */
	uint32		bits[SD_SKETCH_SIZE / 32];
} ChannelSet;

typedef struct WindowEvent
{
	uint64		id;
	SdEvent    *ev;
} WindowEvent;

/*
 * A piece of the stream: all events of the channels with from < id <= to, in one
 * piece of shared memory.  The worker makes it, after that it is the
 * dispatcher's alone.
 */
typedef struct SdWindow
{
	uint64		from;
	uint64		to;
	ChannelSet	channels;
	bool		gap;			/* at its end something is missing */
	ChannelSet	gap_channels;	/* of these */
	uint32		nids;
	uint64	   *ids;			/* of all entries, whatever their channel; and
								 * "from", if that is known to be one */
	uint32		nevents;
	WindowEvent *events;
} SdWindow;

static inline bool
channels_have(const ChannelSet *set, uint32 hash)
{
	uint32		bit = hash % SD_SKETCH_SIZE;

	return set->all || (set->bits[bit / 32] & (UINT32_C(1) << (bit % 32))) != 0;
}

static inline void
channels_add(ChannelSet *set, const SdChannel *channel)
{
	uint32		bit = channel->hash % SD_SKETCH_SIZE;

	set->all |= channel->star;
	set->bits[bit / 32] |= UINT32_C(1) << (bit % 32);
}

/* ---- the dispatcher (backfill.c) ---- */

extern void backfill_init(SdDatabase *db, int dispatcher);

/* Can be read again what is not in the history any more? */
extern bool backfill_is_possible(void);
/* The window that has come, or NULL. */
extern const SdWindow *backfill_window(void);
extern bool window_covers(const SdWindow *w, const SdChannel *channel, uint64 after);
/* Is it the id of one of the stream's entries? */
extern bool window_knows(const SdWindow *w, uint64 id);
/* Is something missing at its end, for this channel? */
extern bool window_gap_concerns(const SdWindow *w, const SdChannel *channel);

/* Asks for the next one; what there was is given up. */
extern void backfill_ask(uint64 from, const ChannelSet *channels);
typedef enum BackfillState
{
	BACKFILL_NONE,				/* nothing is asked for */
	BACKFILL_ASKED,
	BACKFILL_TIMED_OUT
} BackfillState;
extern BackfillState backfill_state(TimestampTz *until);
/* What was asked for, and the window, are not needed any more. */
extern void backfill_cancel(void);
/* Nobody resumes any more, or only out of the history. */
extern void backfill_end(void);

/* Walking through a window, as through the history. */
typedef struct WindowWalk
{
	const SdWindow *window;
	uint32		next;
} WindowWalk;

extern void window_walk_begin(WindowWalk *walk, const SdWindow *w, uint64 after);
extern SdEvent *window_walk_next(WindowWalk *walk, uint64 *id);

/* ---- the bus worker ---- */

/* What a dispatcher asks for. */
typedef struct BackfillRequest
{
	uint32		number;
	uint64		from;
	ChannelSet	channels;
} BackfillRequest;

/* False if it asks for nothing. */
extern bool backfill_request(SdDatabase *db, int dispatcher, BackfillRequest *request);
static inline bool
backfill_is_asked(SdDatabase *db, int dispatcher)
{
	return pg_atomic_read_u32(&db->dispatchers[dispatcher].history.backfill.asked) != 0;
}

/*
 * Hands over the window, from sd_alloc(), that was made for the request; frees
 * it if that was taken back.
 */
extern void backfill_answer(SdDatabase *db, int dispatcher, const BackfillRequest *request,
							SdWindow *window);

#endif							/* SD_BACKFILL_H */

/*-------------------------------------------------------------------------
 *
 * stream.h
 *	  Response streams and the subscriptions that read them: what can be done
 *	  with them.  What they are is in stream_struct.h.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_STREAM_H
#define SD_STREAM_H

#include "stream_struct.h"

extern const char *stream_end_message(SdEnd end);
extern int	stream_end_sqlstate(SdEnd end);

/* ---- writing (stream.c); caller is the channel's dispatcher ---- */

/* A body with one reference, or NULL when shared memory is used up. */
extern SdBody *body_make(const char *data, Size len, uint64 event_id, bool is_error,
						 bool has_event_id);
extern void body_unref(SdBody *body);

/*
 * Appends a response (takes a reference of its own); who waits for it is woken
 * by stream_flush().  Does nothing if the stream is done with the event already.
 * A NULL body, or no memory, becomes a loss of one.
 */
extern void stream_append(SdStream *stream, uint64 event_id, SdBody *body);

/*
 * Records that n responses (0: nobody knows how many) got lost.  event_id 0:
 * whatever the stream is done with.
 */
extern void stream_lose(SdStream *stream, uint64 event_id, uint32 n);

/* The rate limit refuses the event's response: one is lost. */
extern void stream_limit(SdStream *stream, uint64 event_id);

/* Does anybody read the stream, but for those that resume?  Without a lock. */
static inline bool
stream_has_readers(const SdStream *stream)
{
	return stream->nattached + stream->ndetached > 0;
}

/* Those that resume, or have just joined, have something to read; under lock. */
extern void stream_wake_resumed(SdStream *stream);

/* Marks the event as done with: nothing for this stream. */
extern void stream_skip(SdStream *stream, uint64 event_id);

/*
 * Ends a run of appends and losses: wakes who waits for what came since the last
 * call, so that many streams of a consumer are worth one look.  The caller holds
 * no lock and calls it before it does anything long.  Raises no error.
 */
extern void stream_flush(void);

/*
 * Two hints to the processor that the stream will be appended to, some streams
 * ahead of its turn: where to look first, and what is found there.
 */
static inline void
stream_fetch(const SdStream *stream)
{
	__builtin_prefetch(&stream->hnode, 1);
	__builtin_prefetch(&stream->lock, 1);
	__builtin_prefetch(&stream->gaps, 1);
}

static inline void
stream_fetch_parts(const SdStream *stream, bool needs_identity)
{
	const SdEntry *ring = (const SdEntry *) sd_at(stream->ring);

	if (needs_identity)
		__builtin_prefetch(sd_at(stream->identity));
	if (ring)
		__builtin_prefetch(&ring[stream->head & (stream->ring_size - 1)], 1);
}

extern SdStream *stream_pin(SdStream *stream);
extern void stream_unpin(SdStream *stream);
extern void channel_unref(SdChannel *channel);
extern void identity_unref(SdIdentity *identity);
extern void quota_unref(struct SdQuota *quota);

/* ---- a subscription's place in its stream; caller holds the stream's lock ---- */

extern void stream_attach(SdStream *stream, SdSubscription *sub);
/* It has just been attached, and something is missing before it. */
extern void stream_miss(SdStream *stream, SdSubscription *sub);
/* Leaves the ring and drops what it had pending. */
extern void stream_leave(SdStream *stream, SdSubscription *sub);
/* Ends it as far as the stream is concerned: detached, last message to come. */
extern void stream_end_locked(SdStream *stream, SdSubscription *sub, SdEnd end);

/* What a reader takes; body is NULL for a loss notice or a last message. */
typedef struct SdTaken
{
	SdBody	   *body;			/* one reference, to be given back */
	uint64		event_id;		/* 0: none */
	SdLoss		loss;			/* to be told with it */
	SdEnd		end;			/* a last message */
} SdTaken;

typedef enum SdTakeResult
{
	SD_TAKE_NOTHING,
	SD_TAKE_TOO_LARGE,			/* more than room bytes: left where it is */
	SD_TAKE_ONE
} SdTakeResult;

/*
 * Takes the oldest thing the subscription has to read.  *retry_at is lowered
 * to the time when a loss notice that is held back may be given.
 */
extern SdTakeResult stream_take(SdStream *stream, SdSubscription *sub, TimestampTz now,
								Size room, SdTaken *taken, TimestampTz *retry_at);
/* Would stream_take() give something?  Then the same, taking nothing. */
extern bool stream_readable(SdStream *stream, SdSubscription *sub, TimestampTz now,
							TimestampTz *retry_at);
/* Surely nothing to read, as far as is known under the lock? */
extern bool stream_drained(SdStream *stream, SdSubscription *sub);

/*
 * An entry of a ring that several subscriptions are given at once, and where
 * those stand that can have it.  Empty (all zero) at first, and to be emptied
 * when the stream's lock is let go.
 */
typedef struct SdSharing
{
	SdEntry    *entry;			/* NULL: none */
	uint64		cursor;			/* its number */
	uint64		lost;			/* of the stream's when it was stored, */
	uint32		gaps;			/* which they know of */
	uint64		pending;		/* entries from it on */
	uint64		bytes;			/* of these */
} SdSharing;

/*
 * Is the subscription's next response a plain entry of the ring, without a loss
 * to tell?  Then it is in *s, and stream_advance() takes it.  Of who stands as
 * the one before did, as most do, nothing more has to be looked at.
 */
extern bool stream_share(SdStream *stream, SdSubscription *sub, SdSharing *s);
extern void stream_advance(SdStream *stream, SdSubscription *sub, SdSharing *s);

/*
 * Frees what was given up under locks since the last call; caller holds none.
 * Full: not much more of that can be put off.
 */
extern void trash_empty(void);
extern bool trash_is_full(void);

/* For the views. */
extern uint64 stream_pending(SdStream *stream, SdSubscription *sub);
extern uint64 stream_dropped(SdStream *stream, SdSubscription *sub);
extern uint64 stream_rate_limited(SdStream *stream, SdSubscription *sub);

/* The link's consumer has something to read.  Caller holds the stream's lock. */
extern void stream_link_ready(SdLink *link);
/* Brings the link's lists up to date.  Caller holds the stream's lock exclusively. */
extern void link_settle(SdLink *link);
/* Takes one out of the list that it is in.  Likewise. */
extern void link_leave(SdLink *link, SdSubscription *sub, bool was_paused);

/* Wakes whoever waits for the thing, if anybody does. */
extern void sd_wake(const void *thing);

#endif							/* SD_STREAM_H */

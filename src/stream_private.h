/*-------------------------------------------------------------------------
 *
 * stream_private.h
 *	  What body.c (payloads), stream.c (the ring) and cursor.c (its readers) need
 *	  of each other.
 *
 * The caller holds the stream's lock exclusively, but for what is body.c's.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_STREAM_PRIVATE_H
#define SD_STREAM_PRIVATE_H

#include "stream.h"

static inline SdEntry *
stream_ring(const SdStream *stream)
{
	return (SdEntry *) sd_at(stream->ring);
}

#define ENTRY(stream, n)	(&stream_ring(stream)[(n) & ((stream)->ring_size - 1)])

/* ---- body.c ---- */

extern SdBody *body_ref(SdBody *body);
/* The same for an entry: some in advance if the body comes a second time. */
extern SdBody *body_ref_for_entry(SdBody *body);
extern void body_give_back_advance(void);

/* ---- stream.c ---- */

extern void entry_drop(SdEntry *entry);
/* Forgets entries at the old end that nobody waits for. */
extern void stream_trim(SdStream *stream);
/* Number of the oldest entry kept; the head if there is none. */
static inline uint64
stream_tail(const SdStream *stream)
{
	return stream->head - stream->nkept;
}

/* Payload bytes stored before entry number n. */
extern uint64 stream_bytes_before(SdStream *stream, uint64 n);

/* What had been lost when an entry of the ring was stored. */
static inline uint64
entry_lost(const SdStream *stream, const SdEntry *entry)
{
	return stream->lost - (uint32) ((uint32) stream->lost - entry->lost);
}

/* ---- trash.c; see trash_empty() in stream.h ---- */

extern void trash_body(SdBody *body);	/* a reference */
extern void trash_ring(SdEntry *ring, uint32 size, uint64 from, uint64 to);
extern void trash_queue(SdPrivateQueue *queue);

/* ---- cursor.c ---- */

extern void stream_count_dropped(SdStream *stream, uint64 n);
extern void cursor_note_loss(SdSubscription *sub, uint64 lost, uint64 gaps);
/* Moves what is pending to a private queue; the stream does without it then. */
extern void cursor_detach(SdStream *stream, SdSubscription *sub);
extern void cursor_no_limits(SdStrict *strict);
extern void cursor_lower_limits(SdStream *stream, SdSubscription *sub);

#endif							/* SD_STREAM_PRIVATE_H */

/*-------------------------------------------------------------------------
 *
 * reader_private.h
 *	  What reader.c (one subscription), consumer_read.c (a consumer's turns),
 *	  consumer_wait.c (waiting for one) and ack.c (outstanding batches) need of
 *	  each other.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_READER_PRIVATE_H
#define SD_READER_PRIVATE_H

#include "storage/condition_variable.h"
#include "utils/timestamp.h"

#include "reader.h"

/* This process's batch; NULL until reader_batch() has made it. */
extern ReadBatch *read_batch;

typedef enum Look
{
	LOOK_MISSING,
	LOOK_NOTHING,
	LOOK_SOMETHING
} Look;

/* Raises 42704. */
extern void reader_no_such(const char *what, const char *name) pg_attribute_noreturn();
/* The wait that this backend shows in the view consumers is over. */
extern void reader_stop_waiting(void);
/*
 * Sleeps at a wait point that was entered before, until it is woken, retry_at
 * or the deadline; false when that has passed.
 */
extern bool reader_sleep(ConditionVariable *cv, TimestampTz deadline, TimestampTz retry_at);

/* ---- a consumer's links take turns (consumer_wait.c) ---- */

/*
 * What is done before the locks are let go, in units of a subscription that is
 * looked at: so that it takes some 50 us, though most links and subscriptions are
 * in nobody's cache.
 */
#define READ_WORK		512
#define READ_WORK_LINK	3		/* a link besides */

/* Links in their turns, also over several holds of the locks. */
typedef struct ReadRound
{
	bool		pausing;		/* the locks are let go only to be taken again */
	uint32		nidle;			/* links one after the other that had a turn for nothing */
	SdLink	   *link;			/* is in its turn since the last hold; only ever compared */
	uint32		nseen;			/* subscriptions that were looked at in that turn */
	bool		took;			/* something of them */
	bool		held;			/* some of them hold a loss notice back */
} ReadRound;

/*
 * The next link, which is no longer in the list; NULL when all that are there had
 * a turn for nothing.
 */
extern SdLink *ready_pop(SdConsumer *consumer, const ReadRound *round);
/* Back it goes, to where it was. */
extern void ready_push_back(SdConsumer *consumer, SdLink *link);
/* The same in the middle of its turn, or behind all others, after it. */
extern void round_pause(ReadRound *round, SdConsumer *consumer, SdLink *link);
extern void round_had_turn(ReadRound *round, SdConsumer *consumer, SdLink *link);

/* The link's turn begins, or goes on after a pause. */
static inline void
round_enter(ReadRound *round, SdLink *link)
{
	if (round->link != link)
	{
		round->nseen = 0;
		round->took = false;
		round->held = false;
	}
	round->link = NULL;
}

/* Is there another subscription to be looked at in it?  The stream's lock is held. */
static inline bool
round_go_on(const ReadRound *round, const SdLink *link)
{
	return !sd_list_is_empty(&link->behind) && round->nseen < link->nsubscriptions;
}

/* ---- filling the batch, under locks; there must be room ---- */

#define BATCH_FIRST				sizeof(int32)
#define BATCH_TEXT_SIZE(len)	INTALIGN(VARHDRSZ + (Size) (len))

/* A text value; what aligns the next one is zero, as it is in arrays. */
static inline uint32
batch_put_text(const char *s, Size len)
{
	uint32		at = read_batch->used;
	char	   *text = read_batch->buf + at;
	Size		size = BATCH_TEXT_SIZE(len);

	memset(text + size - sizeof(int32), 0, sizeof(int32));
	SET_VARSIZE(text, VARHDRSZ + len);
	memcpy(VARDATA(text), s, len);
	read_batch->used += size;
	return at;
}

static inline uint32
batch_put_bytes(const char *s, Size len)
{
	uint32		at = read_batch->used;

	memcpy(read_batch->buf + at, s, len);
	read_batch->used += INTALIGN(len);
	return at;
}

/* Will the next row's strings fit? */
static inline bool
batch_has_room(const SdSubscription *sub)
{
	Size		need = BATCH_TEXT_SIZE(sub->id_len) + BATCH_TEXT_SIZE(sub->operation_id_len) +
		INTALIGN(sub->operation_json_len);

	if (sub_connection(sub))
		need += BATCH_TEXT_SIZE(sub_connection(sub)->namelen);
	return read_batch->nrows < read_batch->max_rows &&
		read_batch->used + need <= read_batch->max_bytes;
}

extern ReadRow *batch_add_row(SdSubscription *sub, const SdTaken *taken);

#endif							/* SD_READER_PRIVATE_H */

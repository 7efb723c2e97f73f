/*-------------------------------------------------------------------------
 *
 * ack.h
 *	  Outstanding batches: what a consumer was given and has not acknowledged.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_ACK_H
#define SD_ACK_H

#include "reader.h"

typedef enum AckTurn
{
	ACK_READ,					/* nothing is outstanding: read on */
	ACK_REPEAT,					/* what is held now is to be given once more */
	ACK_DONE,					/* what is held now was acknowledged */
	ACK_STOP,					/* the batch under construction is closed */
	ACK_WRONG,					/* no such batch */
	ACK_WRONG_FUNCTION			/* the outstanding one is the other function's */
} AckTurn;

/* What an error tells of a consumer's batches; 0: none. */
typedef struct AckNumbers
{
	uint64		outstanding;
	uint64		acknowledged;	/* the last one that was */
} AckNumbers;

/*
 * Decides what a call is to do; acking false: the caller reads at most once.
 * The caller holds the consumer's reading lock exclusively.
 */
extern AckTurn ack_begin(SdConsumer *consumer, bool acking, int64 ack, bool shared,
						 AckNumbers *numbers);
/* The same for a call that has begun a batch and wants to add to it. */
extern AckTurn ack_continue(SdConsumer *consumer);

/*
 * Before responses are taken: makes sure of the memory to keep them, and lowers
 * the batch's bounds to what fits there.  False: not enough for anything.
 * After ack_reserve(), under the same locks, comes ack_append(), which cannot
 * fail: it adds the batch, which may be empty, to what is outstanding.
 */
extern bool ack_reserve(int max);
extern void ack_append(SdConsumer *consumer, bool shared);

/* The next part of what is held; false at its end, where it starts anew. */
extern bool ack_next_part(ReadBatch *part);
extern uint64 ack_held_number(void);
/* What is outstanding, or 0.  The caller holds the reading lock. */
extern uint64 ack_number(SdConsumer *consumer);

/* Gives back what this process holds. */
extern void ack_release(void);

/*
 * The consumer goes, or starts anew: drops what is outstanding, acknowledged
 * or not.  The caller holds registry_lock exclusively, and calls ack_free()
 * when it has released it.
 */
extern void ack_drop(SdConsumer *consumer);
extern void ack_free(void);

/* For the views: takes the consumer's reading lock. */
extern void ack_show(SdConsumer *consumer, uint64 *number, uint64 *responses);

#endif							/* SD_ACK_H */

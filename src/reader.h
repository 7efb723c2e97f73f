/*-------------------------------------------------------------------------
 *
 * reader.h
 *	  Reading responses, and waiting for them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_READER_H
#define SD_READER_H

#include "stream.h"

/*
 * What a reading function collected: rows that refer to strings in buf by
 * offset, and to bodies by reference.  One batch is filled at a time, under
 * locks, from memory that was allocated before.  The bodies' references are
 * given back by reader_release(), or at the end of a failed (sub)transaction.
 */
typedef struct ReadRow
{
	SdTaken		taken;
	uint64		serial;			/* of the subscription, for subscription_forget */
	uint32		id;				/* offsets of text values in buf; see nids */
	uint32		connection;		/* 0: NULL */
	uint32		operation_id;
	uint32		operation_json; /* bytes in buf */
	uint32		operation_json_len;
	uint32		nids;			/* poll_shared: so many ids follow one another at id */
	uint32		ids_size;		/* bytes that these take, as an array's elements do */
	bool		shared;			/* poll_shared: a row that more ids may join */
	bool		omit_null_errors;	/* the setting, when it was read */
} ReadRow;

#define READ_ROWS		256		/* rows per batch */
#define READ_BYTES		(256 * 1024)	/* of strings per batch */

typedef struct ReadBatch
{
	uint32		nrows;
	uint32		max_rows;
	uint32		used;			/* of buf, INTALIGNed; offset 0 is never anything */
	uint32		max_bytes;		/* of buf */
	uint64		number;			/* of what it is part of; 0: read at most once */
	ReadRow    *rows;
	char	   *buf;			/* MAXALIGNed */
} ReadBatch;

/* The text value, which can be used where it is. */
static inline Datum
batch_text(const ReadBatch *batch, uint32 offset)
{
	return PointerGetDatum(batch->buf + offset);
}

extern void reader_init(void);	/* transaction callbacks */
extern ReadBatch *reader_batch(void);	/* this process's, empty */
extern void reader_clear(void); /* empties it, for the next part of a call's rows */
extern void reader_release(void);	/* gives everything back that a call holds */

/*
 * Reads one subscription: up to max rows.  With a timeout it waits until there
 * is at least one.  Raises 42704 if there is no such subscription.
 */
extern void reader_read(Oid owner, const char *id, int max, TimestampTz deadline);
/*
 * Its stream, which stays until reader_release(), for what is immutable in it.
 * Raises 42704 likewise.
 */
extern SdStream *reader_pin(Oid owner, const char *id);
/* Waits until it has something to read (or the deadline), reading nothing. */
extern bool reader_await(Oid owner, const char *id, TimestampTz deadline);

/* Removes those whose last message is in the batch.  Holds no lock. */
extern void reader_forget_ended(Oid owner, const ReadBatch *batch);

/* ---- a consumer (consumer_read.c) ---- */

/* A call of poll() or poll_shared(). */
typedef struct ReadPoll
{
	Oid			owner;
	const char *consumer;
	bool		shared;			/* poll_shared() */
	bool		acking;			/* ack is not NULL */
	int64		ack;
	int			max;			/* rows that may still be read */
	Size		room;			/* bytes of payload that may still be read */
	bool		first;			/* nothing was read yet: one of any size may be */
	bool		more;			/* the last turn left something, or may have */
} ReadPoll;

/*
 * Fills the batch, in turns of the consumer's subscriptions, lowers max and
 * room; does not wait.  False: the batch that is outstanding has to be repeated
 * instead, by reader_repeat(), and nothing else is to be read.
 */
extern bool reader_poll(ReadPoll *poll);
/* Its parts, one after the other; false after the last one. */
extern bool reader_repeat(const ReadPoll *poll, ReadBatch *part);
/*
 * Waits until the consumer may have something to read; false when the deadline
 * has passed.  For a caller that reads and then waits again, "may" is so each
 * time that it was woken.
 */
extern bool reader_await_consumer(Oid owner, const char *consumer, TimestampTz deadline,
								  bool reads);

#endif							/* SD_READER_H */

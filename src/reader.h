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
	uint32		id;				/* offsets of strings in buf; see nids */
	uint32		connection;		/* 0: NULL */
	uint32		operation_id;
	uint32		operation_json;
	uint32		operation_json_len;
	uint32		nids;			/* poll_shared: so many ids follow one another at id */
	bool		shared;			/* poll_shared: a row that more ids may join */
} ReadRow;

#define READ_ROWS		256		/* rows per batch */
#define READ_BYTES		(256 * 1024)	/* of strings per batch */

typedef struct ReadBatch
{
	int			nrows;
	uint32		used;			/* of buf; offset 0 is never a string */
	ReadRow		rows[READ_ROWS];
	char		buf[READ_BYTES];
} ReadBatch;

extern void reader_init(void);	/* transaction callbacks */
extern ReadBatch *reader_batch(void);	/* this process's, empty */
extern void reader_release(void);

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

/*
 * Reads a consumer's subscriptions in turn: fills the batch with up to max
 * rows and *room bytes of payload (which it lowers).  Does not wait.
 */
extern void reader_poll(Oid owner, const char *consumer, int max, Size *room, bool first,
						bool shared);
/* Waits until the consumer may have something to read. */
extern bool reader_await_consumer(Oid owner, const char *consumer, TimestampTz deadline);

#endif							/* SD_READER_H */

/*-------------------------------------------------------------------------
 *
 * bus_batch.h
 *	  What an entry of the stream in Redis holds: some events of one sender.
 *
 * Writing:	batch_begin(), batch_add() ..., batch_finish()
 * Reading:	batch_open(), batch_next() ...
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_BUS_BATCH_H
#define SD_BUS_BATCH_H

#include "bus_mac.h"
#include "database.h"
#include "event.h"
#include "lib/stringinfo.h"

#define BATCH_MAX_EVENTS	256

/* One of the events, as its sender made it. */
typedef struct BusEntry
{
	BusBytes	sender;			/* SD_SENDER_LEN hexadecimal digits */
	uint64		number;			/* of the sender's */
	int64		sent_at;		/* us of the Unix epoch */
	char		kind;			/* BUS_EVENT or BUS_GAP */
	BusBytes	channel;
	BusBytes	text;
} BusEntry;

#define BUS_EVENT		'e'		/* text: the event */
#define BUS_GAP			'g'		/* events are missing: text is that of a BusGap */

/* Committed events that will not come. */
typedef struct BusGap
{
	uint32		channels[SD_SKETCH_SIZE / 32];	/* on which, by the hash of their names */
	SdPosition	commit;			/* none committed behind this; lsn 0: not known */
} BusGap;

/* palloc'd; and the other way round: one that can't be read is about all channels. */
extern BusBytes gap_text(const BusGap *gap);
extern void gap_read(BusGap *gap, BusBytes text);

/* A batch that is written: text in the current memory context. */
typedef struct BatchWriter
{
	StringInfoData events;
	uint64		number;			/* of the first */
	uint32		count;
} BatchWriter;

extern void batch_begin(BatchWriter *batch, uint64 number);
/* The next one; no more than BATCH_MAX_EVENTS. */
extern void batch_add(BatchWriter *batch, char kind, BusBytes channel, BusBytes text);
/* All of it as text. */
extern BusBytes batch_finish(BatchWriter *batch, const char *sender, int64 sent_at);

/* A batch that is read. */
typedef struct BatchReader
{
	uint32		count;
	BusEntry	next;
	const char *at;				/* what follows is not read yet */
	const char *end;
} BatchReader;

/*
 * NULL if the text is a batch: then batch_next() can be called "count" times,
 * and gives what points into the text.  Otherwise why it is none.
 */
extern const char *batch_open(BatchReader *batch, BusBytes text);
extern void batch_next(BatchReader *batch, BusEntry *entry);

/* All of a string of digits; false for anything else. */
extern bool bus_number(const char *s, Size len, uint64 *value);

#endif							/* SD_BUS_BATCH_H */

/*-------------------------------------------------------------------------
 *
 * event.h
 *	  An event, as it lies in memory between its publication and its dispatch.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_EVENT_H
#define SD_EVENT_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "access/xlogdefs.h"
#include "lib/ilist.h"
#include "utils/jsonb.h"
#include "utils/relcache.h"

#include "subdispatch.h"

typedef enum SdSource
{
	SD_SOURCE_PUBLISH,			/* publish(): data is jsonb */
	SD_SOURCE_CHANGE,			/* publish_change(): data is row images */
	SD_SOURCE_NOTIFY			/* NOTIFY: data is jsonb */
} SdSource;

typedef enum SdOp
{
	SD_OP_INSERT, SD_OP_UPDATE, SD_OP_DELETE, SD_OP_TRUNCATE, SD_OP_NONE
} SdOp;

/*
 * Where a transaction committed: what must have been replayed before what it
 * did can be seen on a replica.
 */
typedef struct SdPosition
{
	uint64		system;			/* system identifier of the server's data */
	XLogRecPtr	lsn;			/* InvalidXLogRecPtr: not known */
	TimeLineID	timeline;
} SdPosition;

/* To be added to a TimestampTz: microseconds since 1970. */
#define UNIX_EPOCH_US \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * USECS_PER_SEC)

#define SD_MAX_EVENT_ID	(UINT64CONST(1) << 53)

#define SD_NO_STRING	0		/* offset of a string that is NULL */

/*
 * One contiguous, MAXALIGNed piece of memory without pointers; offsets count
 * from its start.  Strings end with a NUL byte.
 */
typedef struct SdEvent
{
	uint32		size;			/* of all of it, MAXALIGNed */
	uint32		ordinal;		/* within its transaction */
	uint32		channel_hash;
	uint8		source;			/* SdSource */
	uint8		op;				/* SdOp, for SD_SOURCE_CHANGE */
	bool		star_copy;		/* only for the streams of '*': the channel's own
								 * are served from another dispatcher's copy */
	bool		own_channel;	/* serve the channel's own streams */
	bool		second;			/* another copy is counted as the event */
	TimestampTz timestamp;		/* when it was published */
	uint32		channel;		/* offsets of strings */
	uint32		channel_len;
	uint32		event_type;
	uint32		correlation_id;
	uint32		federation_id;
	uint32		data;			/* publish, notify: a jsonb varlena (MAXALIGNed) */
	/* row images */
	Oid			relid;			/* the table that the trigger was made on */
	uint32		schema_name;	/* strings */
	uint32		table_name;
	uint32		natts;
	uint32		atts;			/* SdEventAtt[natts], MAXALIGNed */
	uint32		row;			/* a HeapTupleHeader datum (varlena), or 0 */
	uint32		old;			/* likewise */
	uint32		received;		/* or, all of these 0: see image_received.c */
	SdPosition	commit;			/* of its transaction, if it came through Redis */
} SdEvent;

/* A column of the table as it was when the image was made.  No padding. */
typedef struct SdEventAtt
{
	Oid			type;			/* InvalidOid: dropped */
	int32		typmod;
	Oid			collation;
	uint32		shape;			/* of the rows inside its values; 0: none */
	int16		len;
	char		align;
	bool		byval;
	NameData	name;
} SdEventAtt;

#define EVENT_STRING(ev, field) \
	((ev)->field == SD_NO_STRING ? NULL : (const char *) (ev) + (ev)->field)
#define EVENT_CHANNEL(ev)	((const char *) (ev) + (ev)->channel)

/*
 * Events of one transaction for one dispatcher, or a part of them.  Lives in
 * shared memory; owned by the list it is in.
 */
typedef struct SdBlock
{
	dlist_node	node;			/* SdDatabase->linked, or a dispatcher's queue */
	uint64		ticket;
	uint64		link_no;
	uint64		base_id;		/* id of the transaction's event 0; set in sequence */
	uint32		tx_events;		/* events of the whole transaction */
	int			dispatcher;
	Size		bytes;			/* of this block; what it counts in queue_bytes */
	uint32		nevents;
	uint32		last_ordinal;	/* of its last event */
	uint32		ndone;			/* written by the dispatcher: events done with */
	TimestampTz linked_at;
	SdPosition	commit;			/* zero unless it goes to other servers */
	/* SdEvents follow, MAXALIGNed */
} SdBlock;

#define SD_BLOCK_HEADER		MAXALIGN(sizeof(SdBlock))

static inline SdEvent *
block_first(SdBlock *block)
{
	return (SdEvent *) ((char *) block + SD_BLOCK_HEADER);
}

static inline SdEvent *
event_next(SdEvent *ev)
{
	return (SdEvent *) ((char *) ev + ev->size);
}

/* What the events of one table's changes have in common; see publish_change.c. */
typedef struct SdEventTable
{
	Oid			relid;
	char	   *schema_name;
	char	   *table_name;
	TupleDesc	desc;			/* a copy, with the table's row type */
	uint32		natts;
	SdEventAtt *atts;
} SdEventTable;

/*
 * Building (publish.c, bus_notify.c): these return a palloc'd piece in the
 * current memory context.  event_make() leaves the size to the caller;
 * event_make_change() raises 54000 for images beyond max_event_size.
 */
extern SdEvent *event_make(const char *channel, const char *event_type,
						   const char *correlation_id, const char *federation_id,
						   Jsonb *data, SdSource source);
/* JSON text as jsonb, or NULL if it is none, or none that jsonb can hold. */
extern Jsonb *event_parse_json(const char *json);
extern SdEventTable *event_table_make(Relation rel);
extern SdEvent *event_make_change(const char *channel, const char *event_type, SdOp op,
								  const SdEventTable *table, HeapTuple row, HeapTuple old);

/* Makes "to" stand for "from" where that is queued, and for the same time. */
extern void event_copy_place(SdEvent *to, const SdEvent *from);

/* Raises 54000 if an event of this size must not be published. */
extern void event_check_size(Size size);

/*
 * Reading (dispatcher).  event_data is the event's "data"; for row images it
 * needs a transaction, may run casts of the table's owner in a
 * security-restricted operation as that role, and may raise any error: call it
 * where a resolver could be called, under its time limit.  Otherwise the
 * result points into the event: it must neither be changed nor freed.
 */
extern Jsonb *event_data(const SdEvent *ev);

/*
 * May event_data() run code of users' (casts to json of their types)?  Then
 * *owner is the table's owner.
 */
extern bool event_runs_user_code(const SdEvent *ev, Oid *owner);

/* The whole event as a resolver sees it, around visible data. */
extern Jsonb *event_envelope(const SdEvent *ev, uint64 id, Jsonb *data);

/*
 * Pins DateStyle, TimeZone, ... for as long as the process lives, so that what
 * an image shows depends on nobody's settings.  For workers only.
 */
extern void event_fix_settings(void);

#endif							/* SD_EVENT_H */

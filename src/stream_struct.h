/*-------------------------------------------------------------------------
 *
 * stream_struct.h
 *	  How response streams, and the subscriptions that read them, lie in shared
 *	  memory, and who guards what of them.
 *
 * A response is stored once in its stream's ring; every subscription of the
 * stream has a cursor.  An entry is freed when the last subscription that was
 * there when it was stored has read past it, or when it is older than what any
 * drop_oldest subscription may keep.
 *
 * A subscription that overflows with drop_newest, or that ends, is "detached":
 * what it has pending moves to a private queue, and the stream no longer
 * waits for it.  One that resumes joins the ring when it has caught up; see
 * resume.c.
 *
 * Losses: the stream counts, from its beginning, the responses it lost and the
 * gaps of unknown size; an entry knows those counts at its time, a subscription
 * those that it has been told of.  So telling a loss needs no memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_STREAM_STRUCT_H
#define SD_STREAM_STRUCT_H

#include "lib/ilist.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/s_lock.h"
#include "storage/spin.h"
#include "utils/jsonb.h"

#include "match.h"
#include "ratelimit.h"
#include "shmem.h"
#include "streamvec.h"

struct SdConsumer;
struct SdConnection;
struct SdLink;
struct SdOutstanding;
struct SdResume;

/* A payload, shared by all entries that carry it. */
typedef struct SdBody
{
	pg_atomic_uint32 refs;
	uint32		len;
	uint64		event_id;
	bool		is_error;		/* the payload of a failed resolver */
	bool		has_event_id;	/* its extensions tell it */
	char		data[FLEXIBLE_ARRAY_MEMBER];	/* no NUL at its end */
} SdBody;

/* How many were lost; unknown: at least that many and nobody knows. */
typedef struct SdLoss
{
	uint64		count:63;
	uint64		unknown:1;
} SdLoss;

/*
 * One response in a stream's ring.  Of what counts without end only the low half
 * is kept here: the ring holds far less than 2^32 bytes, and no more losses are
 * counted between its oldest entry and now; see entry_bytes_before() and
 * entry_lost().
 */
typedef struct SdEntry
{
	SdBody	   *body;			/* one reference; NULL when nobody waits for it */
	uint32		bytes_before;	/* payload bytes of the stream before this one */
	uint32		lost;			/* SdStream->lost when it was stored */
	uint32		gaps;			/* SdStream->gaps likewise */
	uint32		remaining;		/* attached subscriptions still to read it */
} SdEntry;

/* The same in a private queue. */
typedef struct SdKept
{
	SdBody	   *body;			/* one reference */
	uint64		lost;
	uint32		gaps;
} SdKept;

/*
 * What a detached subscription still has to read; one reference per body.  If
 * it has ended, losses are told when that was read.
 */
typedef struct SdPrivateQueue
{
	uint32		n;
	uint32		next;
	uint32		end_gaps;		/* stream's gaps and lost when it ended */
	uint64		end_lost;
	uint64		end_skipped;	/* entries passed over while detached until then */
	SdKept		entries[FLEXIBLE_ARRAY_MEMBER];
} SdPrivateQueue;

typedef enum SdEnd
{
	SD_END_NONE,
	SD_END_COMPLETE,			/* complete() */
	SD_END_IDLE,				/* subscription_idle_timeout */
	SD_END_LIFETIME,			/* subscription_max_lifetime */
	SD_END_OVERFLOW,			/* overflow = error */
	SD_END_RESOLVER_GONE,
	SD_END_RESOLVER_DENIED,
	SD_END_RESOLVER_TIMEOUTS,	/* resolver_max_timeouts in a row */
	SD_END_ROLE_GONE,
	SD_END_RUN_AS_REVOKED,
	SD_END_CHANNEL_REVOKED
} SdEnd;

/*
 * Whoever may see the same; immutable, shared, reference counted.  Settings and
 * context lie behind it in the same piece of memory.
 */
typedef struct SdIdentity
{
	SdHashNode	hnode;
	Oid			dboid;
	Oid			owner;
	Oid			role;			/* whose rights count */
	uint32		nstreams;		/* live ones; registry_lock */
	pg_atomic_uint32 refs;		/* the registry, streams */
	struct SdQuota *user;		/* one reference; NULL without a user_id */
	struct SdQuota *role_quota; /* one reference */
	uint64		serial;			/* unique: key of the dispatchers' caches */
	Jsonb	   *settings;		/* {} or {"name": "value", ...} */
	Jsonb	   *context;		/* the security context */
} SdIdentity;

/* A hash of an identity's serial for tables of identities; good in all its bits. */
static inline uint32
serial_hash(uint64 serial)
{
	return (uint32) ((serial * UINT64CONST(0x9E3779B97F4A7C15)) >> 32);
}

/* Streams of a channel whose filter asks for one value at one path; see index.c. */
typedef struct SdBucket
{
	SdHashNode	hnode;
	struct SdIndexPath *path;
	uint64		value_hash;
	SdStreamVec vec;
} SdBucket;

typedef struct SdIndexPath
{
	dlist_node	node;			/* in SdChannel->paths */
	struct SdChannel *channel;
	uint32		nvalues;		/* that are asked for */
	int			pathlen;
	char		path[FLEXIBLE_ARRAY_MEMBER];	/* as filter_index_key gives it */
} SdIndexPath;

/* In SdChannel->gaps: some of them are not in the stream in Redis, nor missing there. */
#define SD_GAP_ELSEWHERE	UINT32_C(0x80000000)

/*
 * A channel that has subscriptions, or had (linger.c).  All under
 * registry_lock but the atomics.
 */
typedef struct SdChannel
{
	SdHashNode	hnode;
	SdDatabase *db;
	Oid			dboid;
	uint32		hash;			/* channel_hash of the name */
	int			dispatcher;
	bool		star;
	pg_atomic_uint32 refs;		/* the registry, streams, pins */
	uint32		nsubscriptions; /* live ones */
	uint32		nstreams;		/* live ones; 0: lingers, or no longer in the registry */
	uint32		ncontext;		/* of these those with has_context */
	uint32		nordinary;		/* and ordinary */
	SdStreamVec plain;			/* streams without an equality filter */
	SdStreamVec filtered;		/* those with one, which are found by value too */
	dlist_head	paths;			/* SdIndexPaths of these values */
	pg_atomic_uint32 gaps;		/* committed events lost, not yet told */
	pg_atomic_uint64 lost_elsewhere;	/* before this id some were lost that the stream
										 * in Redis knows nothing of; single writer:
										 * the channel's dispatcher */
	pg_atomic_uint64 events;	/* dispatched to it */
	pg_atomic_uint32 listening; /* the dispatcher LISTENs on it */
	pg_atomic_uint32 of_replica;	/* made in recovery, and not LISTENed on since */
	pg_atomic_uint64 kept_from; /* before this id events may never have come here */
	TimestampTz lingers_since;	/* 0: it has subscriptions */
	bool		lingers_listened;	/* was LISTENed on then */
	dlist_node	linger_node;	/* in SdDatabase->lingering */
	uint32		namelen;
	char		name[FLEXIBLE_ARRAY_MEMBER];
} SdChannel;

/*
 * The subscriptions that one consumer (or none) has in one stream.  Made and
 * freed under registry_lock and the stream's lock.  What a response looks at
 * comes first.
 */
typedef struct SdLink
{
	SdListNode	stream_node;	/* in SdStream->links */
	SdRef		consumer;		/* SdConsumer; none: read one by one */
	/* stream's lock: who may have something to read, and who surely has not */
	SdList		behind;
	SdList		current;
	bool		fresh;			/* those of "current" may, too: link_settle() */
	bool		told;			/* stream's "told": it need not be told any more */
	/* consumer's mutex; set while the stream's lock is held or by the reader */
	bool		ready;
	SdListNode	ready_node;		/* in SdConsumer->ready; its mutex */
	SdListNode	consumer_node;	/* in SdConsumer->links; registry_lock */
	SdRef		stream;			/* SdStream */
	SdList		paused;			/* stream's lock; not to be polled; see pause.c */
	uint32		nsubscriptions;
} SdLink;

/* What a stream with a rate limit has besides. */
typedef struct SdStreamLimit
{
	double		rate;			/* immutable */
	int			burst;			/* immutable */
	TokenBucket tokens;			/* single writer: the channel's dispatcher */
} SdStreamLimit;

/* What a stream has that has any of these. */
typedef struct SdStreamExtras
{
	/* immutable */
	Oid			resolver;		/* InvalidOid: none */
	SdRef		response_key;	/* char; none: no key */
	SdRef		rate;			/* SdStreamLimit; none: no limit */
	SdRef		variables;		/* Jsonb; none without a resolver */

	/* single writer: the channel's dispatcher */
	int			timeouts;		/* in a row */
} SdStreamExtras;

/* What a stream has that ever had subscriptions which are not drop_oldest. */
typedef struct SdStrict
{
	/* the stream's lock */
	uint32		n;				/* of them that are attached */
	SdList		attached;		/* by strict_node */
	SdList		ending;			/* ended here, not yet in the registry */
	uint64		limit;			/* none overflows before the stream's head */
	uint64		limit_bytes;	/* or its bytes get here */
} SdStrict;

/* Where the events of its channel find a stream; see index.c. */
typedef enum SdPlace
{
	SD_PLACE_PLAIN,				/* among those whose filter asks for no value */
	SD_PLACE_ALONE,				/* by its value, which nobody else asks for */
	SD_PLACE_BUCKET				/* with others by their value */
} SdPlace;

/*
 * There may be a million of these, so what only some need is allocated when it
 * is needed, and what it belongs to is told by short pointers (ref.h).  What
 * subscribe() gave lies behind the struct in the same piece of memory, and the
 * first link is part of it: most streams have just one.
 *
 * A response to a million streams costs what it takes to fetch them from memory.
 * So all that it looks at stands in three cache lines, which begin at hnode,
 * lock and gaps: the piece of memory begins at one, with a header of 8 bytes.
 */
typedef struct SdStream
{
	SdHashNode	hnode;			/* registry_lock */

	/* immutable */
	SdRef		channel;		/* SdChannel; one reference */
	SdRef		identity;		/* SdIdentity; one reference */
	Oid			owner;			/* the identity's */
	Oid			role;			/* the identity's */
	bool		batched:1;
	bool		immutable:1;	/* the resolver is labelled so */
	bool		has_context:1;	/* its identity has a security context */
	bool		ordinary:1;		/* its role was no superuser at subscribe() */
	uint8		place;			/* SdPlace; registry_lock */
	bool		told;			/* lock; changes each time all links are to be told */
	SdRef		filter;			/* SdFilter; none: everything passes */
	SdRef		extras;			/* SdStreamExtras; none: it has nothing of them */

	pg_atomic_uint32 refs;		/* the registry, subscriptions, pins */

	/* single writer: the channel's dispatcher (survives it) */
	uint64		last_event_id;	/* progress: done with events up to this */

	/* lock, from here to first_link */
	uint32		nattached;		/* subscriptions that read the ring */
	uint32		ndetached;		/* live ones that overflowed and don't, for now */
	LWLock		lock;

	/*
	 * Rises with every entry and loss: read without the lock to see that
	 * there is nothing new.  Written under lock.
	 */
	pg_atomic_uint64 version;
	uint64		head;			/* number of the next entry */
	uint32		nkept;			/* entries kept */
	uint32		kept_bytes;		/* their payload bytes */
	uint64		bytes;			/* payload bytes ever stored */
	uint64		lost;			/* responses lost, ever */
	SdRef		ring;			/* SdEntry[]; none while empty */
	uint32		ring_size;		/* a power of two */
	uint32		gaps;			/* losses of unknown size, ever */
	uint32		keep;			/* the largest max_pending of the attached */
	uint32		keep_bytes;		/* likewise */
	SdRef		strict;			/* SdStrict; none: there never was one */
	SdList		links;			/* SdLinks */
	uint32		nsubscriptions; /* registry_lock; live ones; 0: no longer in it */
	SdLink		first_link;		/* one of them, if it has subscriptions */
	uint64		limited;		/* lock; of the lost, those refused by a rate limit */

	/* immutable */
	SdRef		filter_json;	/* Jsonb; as the first subscriber wrote it */

	/* registry_lock; see index.c */
	uint32		filtered_pos;	/* in the channel's filtered ones */
	union
	{
		SdHashNode	alone;		/* SD_PLACE_ALONE */
		struct
		{
			SdRef		bucket; /* SD_PLACE_BUCKET: SdBucket */
			uint32		vec_pos;	/* in it, or in the channel's plain ones */
		};
	};
} SdStream;

static inline SdChannel *
stream_channel(const SdStream *stream)
{
	return (SdChannel *) sd_at(stream->channel);
}

static inline SdIdentity *
stream_identity(const SdStream *stream)
{
	return (SdIdentity *) sd_at(stream->identity);
}

static inline SdFilter *
stream_filter(const SdStream *stream)
{
	return (SdFilter *) sd_at(stream->filter);
}

static inline Jsonb *
stream_filter_json(const SdStream *stream)
{
	return (Jsonb *) sd_at(stream->filter_json);
}

/* NULL: none */
static inline SdStreamExtras *
stream_extras(const SdStream *stream)
{
	return (SdStreamExtras *) sd_at(stream->extras);
}

/* InvalidOid: none */
static inline Oid
stream_resolver(const SdStream *stream)
{
	return stream->extras ? stream_extras(stream)->resolver : InvalidOid;
}

/* NULL without a resolver. */
static inline Jsonb *
stream_variables(const SdStream *stream)
{
	return stream->extras ? (Jsonb *) sd_at(stream_extras(stream)->variables) : NULL;
}

/* NULL: none */
static inline const char *
stream_response_key(const SdStream *stream)
{
	return stream->extras ? (const char *) sd_at(stream_extras(stream)->response_key) : NULL;
}

/* NULL: no limit */
static inline SdStreamLimit *
stream_rate(const SdStream *stream)
{
	return stream->extras ? (SdStreamLimit *) sd_at(stream_extras(stream)->rate) : NULL;
}

static inline SdStrict *
stream_strict(const SdStream *stream)
{
	return (SdStrict *) sd_at(stream->strict);
}

static inline SdStream *
link_stream(const SdLink *link)
{
	return (SdStream *) sd_at(link->stream);
}

static inline struct SdConsumer *
link_consumer(const SdLink *link)
{
	return (struct SdConsumer *) sd_at(link->consumer);
}

/*
 * An idle subscription should be small: strings are stored once if they are
 * the same, and fields of which only one is in use at a time share a place.
 * The sweep looks at the first of them only, up to overflow.
 */
typedef struct SdSubscription
{
	SdHashNode	hnode;			/* id_locks */

	/* immutable */
	SdRef		stream;			/* SdStream; one reference, for as long as it exists */

	/* registry_lock */
	SdRef		consumer;		/* SdConsumer, also after its end; or none */

	/* immutable */
	TimestampTz created_at;

	/* atomic: written by readers, read by the sweep */
	pg_atomic_uint64 last_polled;	/* TimestampTz */

	/* stream's lock */
	uint8		end;			/* SdEnd */
	bool		structurally_ended; /* no longer in link, counts for no limit */
	bool		end_told;
	bool		end_held;		/* in a batch that is not acknowledged yet */
	bool		attached;		/* reads the ring */
	bool		paused;			/* registry_lock, too; either to read it */

	/* immutable */
	uint8		overflow;		/* SdOverflow */
	Oid			dboid;
	uint32		max_pending;
	uint32		max_pending_bytes;

	/* registry_lock */
	SdRef		link;			/* SdLink; none once it has ended */
	SdRef		connection;		/* SdConnection, also after its end; or none */
	SdListNode	connection_node;	/* in SdConnection->subscriptions */

	/*
	 * A list of link's under the stream's lock; after the end one of the
	 * consumer's under registry_lock exclusive.
	 */
	SdListNode	node;

	uint64		serial;			/* immutable; unique over the server's life */

	/* stream's lock */
	union
	{
		uint64		cursor;		/* while attached: next entry to read */
		uint64		detached_at;	/* else, while live: stream's head then */
	};
	SdRef		queue;			/* SdPrivateQueue while not attached; none: nothing left */
	SdRef		resume;			/* SdResume: what comes before that; none: nothing */
	uint64		lost_seen;		/* of the stream's lost and gaps, what is */
	uint32		gaps_seen;		/* collected in untold or was told */
	uint32		errors;			/* responses with errors delivered */
	SdLoss		untold;			/* collected, goes with the next response */
	union
	{
		TimestampTz last_notice;	/* while live: when a loss notice was given */
		TimestampTz ended_at;	/* then */
	};
	union
	{
		uint64		limited_from;	/* while live: stream's limited when it joined */
		uint64		rate_limited;	/* then: how many were, in all */
	};
	uint64		delivered;
	uint64		dropped;

	/* atomic, written by readers: stream's version when found empty */
	pg_atomic_uint64 seen_version;

	/* immutable; offsets into strings */
	uint32		variables;		/* MAXALIGNed jsonb, if the stream has none and
								 * they aren't {}; 0: NULL */
	uint16		id;				/* 0 but for strict ones; with a NUL behind it */
	uint16		id_len;
	uint16		operation_id;	/* as given; not always with a NUL behind it */
	uint16		operation_id_len;
	uint16		operation_json; /* as a JSON string literal */
	uint16		operation_json_len;
	uint16		operation_name; /* 0: NULL */
	char		strings[FLEXIBLE_ARRAY_MEMBER];
} SdSubscription;

/*
 * A subscription that is not drop_oldest has a node here, before its strings,
 * for the lists of SdStrict; stream's lock.
 */
#define STRICT_NODE_OFFSET	MAXALIGN(offsetof(SdSubscription, strings))

static inline SdListNode *
sub_strict_node(SdSubscription *sub)
{
	Assert(sub->overflow != SD_DROP_OLDEST);
	return (SdListNode *) ((char *) sub + STRICT_NODE_OFFSET);
}

static inline SdSubscription *
sub_of_strict_node(SdListNode *node)
{
	return (SdSubscription *) ((char *) node - STRICT_NODE_OFFSET);
}

static inline const char *
sub_id(const SdSubscription *sub)
{
	return sub->strings + sub->id;
}

static inline SdStream *
sub_stream(const SdSubscription *sub)
{
	return (SdStream *) sd_at(sub->stream);
}

/* NULL: none */
static inline struct SdConsumer *
sub_consumer(const SdSubscription *sub)
{
	return (struct SdConsumer *) sd_at(sub->consumer);
}

static inline SdLink *
sub_link(const SdSubscription *sub)
{
	return (SdLink *) sd_at(sub->link);
}

/* NULL: none */
static inline struct SdConnection *
sub_connection(const SdSubscription *sub)
{
	return (struct SdConnection *) sd_at(sub->connection);
}

static inline SdPrivateQueue *
sub_queue(const SdSubscription *sub)
{
	return (SdPrivateQueue *) sd_at(sub->queue);
}

static inline struct SdResume *
sub_resume(const SdSubscription *sub)
{
	return (struct SdResume *) sd_at(sub->resume);
}

/* Whose it is: its stream's identity's. */
static inline Oid
subscription_owner(const SdSubscription *sub)
{
	return sub_stream(sub)->owner;
}

typedef struct SdConsumer
{
	SdHashNode	hnode;			/* registry_lock */
	Oid			dboid;			/* immutable */
	Oid			owner;			/* immutable */
	SdDatabase *db;				/* immutable */
	LWLock		reading;		/* whoever reads it or looks whether it can */
	/* reading lock, or registry_lock exclusive; see ack.c */
	struct SdOutstanding *outstanding;
	uint64		last_batch;		/* the last number given */
	uint64		acknowledged;	/* the last one acknowledged; 0: none */
	slock_t		mutex;
	/* mutex */
	SdList		ready;			/* SdLinks that may have something to read */
	uint32		nready;			/* of them */
	/* registry_lock; "ended" exclusive to change */
	SdList		links;
	SdList		ended;			/* SdSubscriptions with a last message to read */
	SdList		paused_ended;	/* those of paused connections */
	pg_atomic_uint32 nended;	/* of the former */
	uint32		nsubscriptions; /* live ones */
	/* atomic */
	pg_atomic_uint64 last_polled;
	pg_atomic_uint64 pending_since; /* TimestampTz; 0: nothing pending */
	uint32		namelen;
	char		name[FLEXIBLE_ARRAY_MEMBER];
} SdConsumer;

typedef struct SdConnection
{
	SdHashNode	hnode;			/* all under registry_lock */
	Oid			dboid;
	Oid			owner;
	SdList		subscriptions;	/* live and ended ones */
	uint32		nmembers;		/* of the subscriptions */
	int			nlive;			/* of these */
	bool		paused;			/* as a whole; see pause.c */
	dlist_head	pause_exceptions;
	uint32		namelen;
	char		name[FLEXIBLE_ARRAY_MEMBER];
} SdConnection;

/*
 * How many live subscriptions a user or role has, and the user's bucket, from
 * which the dispatchers of all its streams take.  Under registry_lock unless
 * said otherwise.
 */
typedef struct SdQuota
{
	SdHashNode	hnode;
	pg_atomic_uint32 refs;		/* the registry, identities */
	uint32		nidentities;	/* live ones of the user */
	slock_t		mutex;
	TokenBucket tokens;			/* mutex */
	Oid			dboid;
	Oid			owner;
	Oid			role;
	bool		is_role;		/* counts by role alone */
	int			n;
	uint32		keylen;
	char		key[FLEXIBLE_ARRAY_MEMBER]; /* user_id as a jsonb scalar's text */
} SdQuota;

#endif							/* SD_STREAM_STRUCT_H */

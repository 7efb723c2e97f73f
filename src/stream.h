/*-------------------------------------------------------------------------
 *
 * stream.h
 *	  Response streams and the subscriptions that read them.
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
#ifndef SD_STREAM_H
#define SD_STREAM_H

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

extern const char *stream_end_message(SdEnd end);
extern int	stream_end_sqlstate(SdEnd end);

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

/* Streams of a channel whose filter asks for one value at one path. */
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
	uint32		nbuckets;
	int			pathlen;
	char		path[FLEXIBLE_ARRAY_MEMBER];	/* as filter_index_key gives it */
} SdIndexPath;

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
	SdStreamVec filtered;		/* those with one, which stand in buckets too */
	dlist_head	paths;			/* SdIndexPaths of these buckets */
	pg_atomic_uint32 gaps;		/* committed events lost, not yet told */
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
 * freed under registry_lock and the stream's lock.
 */
typedef struct SdLink
{
	dlist_node	stream_node;	/* in SdStream->links */
	dlist_node	consumer_node;	/* in SdConsumer->links; registry_lock */
	dlist_node	ready_node;		/* in SdConsumer->ready; its mutex */
	struct SdStream *stream;
	struct SdConsumer *consumer;	/* NULL: read one by one */
	uint32		nsubscriptions;
	/* consumer's mutex; set while the stream's lock is held or by the reader */
	bool		ready;
	/* stream's lock: who may have something to read, and who surely has not */
	bool		fresh;			/* those of "current" may, too: link_settle() */
	bool		told;			/* stream's "told": it need not be told any more */
	dlist_head	behind;
	dlist_head	current;
	dlist_head	paused;			/* not to be polled; see pause.c */
} SdLink;

/* What a stream with a rate limit has besides. */
typedef struct SdStreamLimit
{
	double		rate;			/* immutable */
	int			burst;			/* immutable */
	TokenBucket tokens;			/* single writer: the channel's dispatcher */
} SdStreamLimit;

/* What a stream has that ever had subscriptions which are not drop_oldest. */
typedef struct SdStrict
{
	/* the stream's lock */
	uint32		n;				/* of them that are attached */
	dlist_head	attached;		/* by strict_node */
	dlist_head	ending;			/* ended here, not yet in the registry */
	uint64		limit;			/* none overflows before the stream's head */
	uint64		limit_bytes;	/* or its bytes get here */
} SdStrict;

/*
 * There may be a million of these, so what only some need is allocated when it
 * is needed.  What subscribe() gave lies behind the struct in the same piece of
 * memory, and the first link is part of it: most streams have just one.
 */
typedef struct SdStream
{
	SdHashNode	hnode;			/* registry_lock */

	/* immutable */
	SdChannel  *channel;		/* one reference */
	SdIdentity *identity;		/* one reference */
	Oid			resolver;
	bool		batched;
	bool		immutable;		/* the resolver is labelled so */
	bool		has_context;	/* its identity has a security context */
	bool		ordinary;		/* its role was no superuser at subscribe() */
	SdFilter   *filter;			/* NULL: none */
	Jsonb	   *filter_json;	/* as the first subscriber wrote it */
	Jsonb	   *variables;		/* NULL without a resolver */
	char	   *response_key;	/* NULL: none */
	SdStreamLimit *rate;		/* NULL: no limit */

	pg_atomic_uint32 refs;		/* the registry, subscriptions, pins */

	/* registry_lock */
	uint32		nsubscriptions; /* live ones; 0: no longer in the registry */
	uint32		vec_pos;		/* in its bucket, or the channel's plain ones */
	uint32		filtered_pos;	/* in the channel's filtered ones */
	SdBucket   *bucket;			/* NULL: a plain one */

	/* single writer: the channel's dispatcher (survives it) */
	uint64		last_event_id;	/* progress: done with events up to this */
	int			timeouts;		/* in a row */

	/* lock, from here on */
	uint32		ring_size;		/* a power of two */
	LWLock		lock;

	/*
	 * Rises with every entry and loss: read without the lock to see that
	 * there is nothing new.  Written under lock.
	 */
	pg_atomic_uint64 version;
	SdEntry    *ring;			/* NULL while empty */
	uint64		tail;			/* number of the oldest entry kept */
	uint64		head;			/* number of the next entry */
	uint64		bytes;			/* payload bytes ever stored */
	uint64		lost;			/* responses lost, ever */
	uint64		limited;		/* of the lost, those refused by a rate limit */
	uint32		gaps;			/* losses of unknown size, ever */
	uint32		nattached;		/* subscriptions that read the ring */
	uint32		ndetached;		/* live ones that overflowed and don't, for now */
	uint32		keep;			/* the largest max_pending of the attached */
	uint32		keep_bytes;		/* likewise */
	bool		told;			/* changes each time all links are to be told */
	SdStrict   *strict;			/* NULL: there never was one */
	dlist_head	links;			/* SdLinks */
	SdLink		first_link;		/* one of them, if it has subscriptions */
} SdStream;

/*
 * An idle subscription should be small: strings are stored once if they are
 * the same, and fields of which only one is in use at a time share a place.
 * The sweep looks at the first of them only, up to overflow.
 */
typedef struct SdSubscription
{
	SdHashNode	hnode;			/* id_locks */

	/* immutable */
	SdStream   *stream;			/* one reference, for as long as it exists */
	TimestampTz created_at;

	/* atomic: written by readers, read by the sweep */
	pg_atomic_uint64 last_polled;	/* TimestampTz */

	/* registry_lock */
	struct SdConsumer *consumer;	/* also after its end */

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
	uint64		serial;			/* unique over the server's life */

	/* registry_lock */
	SdLink	   *link;			/* NULL once it has ended */
	struct SdConnection *connection;	/* also after its end */
	dlist_node	connection_node;

	/*
	 * A list of link's under the stream's lock; after the end one of the
	 * consumer's under registry_lock exclusive.
	 */
	dlist_node	node;

	/* stream's lock */
	dlist_node	strict_node;
	union
	{
		uint64		cursor;		/* while attached: next entry to read */
		uint64		detached_at;	/* else, while live: stream's head then */
	};
	SdPrivateQueue *queue;		/* while not attached; NULL: nothing left */
	struct SdResume *resume;	/* what comes before that; NULL: nothing */
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
	uint16		id_len;
	uint16		operation_id;	/* as given; not always with a NUL behind it */
	uint16		operation_id_len;
	uint16		operation_json; /* as a JSON string literal */
	uint16		operation_json_len;
	uint16		operation_name; /* 0: NULL */
	char		strings[FLEXIBLE_ARRAY_MEMBER]; /* id first */
} SdSubscription;

/* Whose it is: its stream's identity's. */
static inline Oid
subscription_owner(const SdSubscription *sub)
{
	return sub->stream->identity->owner;
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
	dlist_head	ready;			/* SdLinks that may have something to read */
	/* registry_lock; "ended" exclusive to change */
	dlist_head	links;
	dlist_head	ended;			/* SdSubscriptions with a last message to read */
	dlist_head	paused_ended;	/* those of paused connections */
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
	dlist_head	subscriptions;	/* live and ended ones */
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
	__builtin_prefetch(&stream->refs, 1);
	__builtin_prefetch(&stream->lock, 1);
	__builtin_prefetch(&stream->gaps, 1);
	__builtin_prefetch(&stream->first_link, 1);
	__builtin_prefetch(&stream->first_link.behind, 1);
}

static inline void
stream_fetch_parts(const SdStream *stream)
{
	__builtin_prefetch(stream->identity);
	if (stream->ring)
		__builtin_prefetch(&stream->ring[stream->head & (stream->ring_size - 1)], 1);
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
 * If the subscription's next response is a plain entry of the ring without a
 * loss to tell, returns it (a borrowed pointer, valid under the lock), else
 * NULL; stream_advance() then takes it.
 */
extern const SdEntry *stream_shared_entry(SdStream *stream, SdSubscription *sub);
extern void stream_advance(SdStream *stream, SdSubscription *sub);

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

/* Wakes whoever waits for the thing, if anybody does. */
extern void sd_wake(const void *thing);

/* ilist.h has no splice: moves all of "from" behind the last of "to". */
extern void dlist_append_all(dlist_head *to, dlist_head *from);

#endif							/* SD_STREAM_H */

/*-------------------------------------------------------------------------
 *
 * subdispatch.h
 *	  What every room of the house needs: limits, settings, small helpers.
 *
 * The way of an event, which is the order to read the files in:
 *
 *	  publish.c       a transaction collects events, and links them at commit
 *	                  (publish_sql.c, publish_change.c: its SQL functions;
 *	                  publish_copies.c: whom events concern; publish_blocks.c:
 *	                  how they lie in shared memory)
 *	  bus_memory.c    the queue in shared memory: tickets, order, room
 *	                  (bus_id.c: ids; bus_wait.c: wait_dispatched())
 *	  bus_notify.c    the other way in: NOTIFY (envelope.c), and the
 *	                  dispatcher's side of it: bus_listen.c, bus_receive.c
 *	  bus_redis.c     and through Redis: what publishers and others see of it;
 *	                  bus_worker.c (its process), redis_send.c and
 *	                  redis_read.c (its two sides), redis_begin.c (where it
 *	                  begins), redis_range.c (what is read again), elsewhere.c
 *	                  (whether events went another way, beyond a restart),
 *	                  redis_entry.c, redis_progress.c, bus_batch.c, bus_mac.c, bus_own.c,
 *	                  redis_script.c, redis_link.c, redis_conn.c and
 *	                  redis_net.c (connections), redis_url.c
 *	  dispatcher.c    a dispatcher's life: what it does in turn, housekeeping
 *	                  (worker.c: the loop and its errors, the bus worker's, too;
 *	                  dispatcher_place.c: when one starts and ends,
 *	                  gather.c: when it lets events gather)
 *	  dispatch.c      one batch: transactions, errors, attempts
 *	  history.c       dispatched events, kept for those who come back
 *	                  (resume.c: subscriptions that do, catchup.c: what the
 *	                  dispatcher does for them, runners.c: how far each is,
 *	                  backfill.c: what the stream in Redis still has)
 *	  event.c         an event as jsonb (event_image.c: row images;
 *	                  json_compose.c: objects from parts, and their text;
 *	                  event_wire.c: as text for other servers, wire.c and
 *	                  wire_read.c: its form,
 *	                  image_text.c: row images as texts)
 *	  audience.c      which streams an event concerns
 *	  dispatch_data.c what it says; of another server's row: image_received.c
 *	                  (replay.c: whether a replica can see what it is about)
 *	  respond.c       what they get (allowance.c: whether they may have more)
 *	  visibility.c    who may still subscribe: grants.c (grants on channels,
 *	                  grants_sql.c)
 *	  visible.c       what an identity sees of it: rls.c (row-level security:
 *	                  rls_cache.c, rls_plan.c, rls_run.c, rls_split.c,
 *	                  rls_many.c, rls_set.c), context.c (security contexts)
 *	  match.c         filters (match_compile.c, match_node.c: making them)
 *	  security.c      as whom user code runs (rights.c: with which settings)
 *	  resolver.c      one call of a resolver, its time limit (pytimeout.c)
 *	  payload.c       who shares a call, and the payload that comes of it
 *	  response.c      the bytes of a message
 *	  stream.c        response streams: entries, who is woken (body.c: payloads;
 *	                  stream_struct.h: how all this lies in shared memory)
 *	  trash.c         freeing what was given up under locks
 *	  gaps.c          telling streams that something is missing
 *	  cursor.c        a reader's place in a stream, overflow, losses
 *	  reader.c        reading and waiting (consumer_read.c: a consumer,
 *	                  consumer_wait.c: waiting for one, its links' turns,
 *	                  ack.c: what it has not acknowledged; sqlread.c, sqlawait.c,
 *	                  rows.c: the SQL functions)
 *	  subscription.c  who subscribed to what, for whom (sqlfuncs.c, sqlexplain.c)
 *	  ending.c        how subscriptions end (sweep.c: those nobody polls)
 *	  registry.c      the channels, streams, identities they are made of
 *	                  (index.c: where events look for streams; streamvec.c:
 *	                  arrays of them; link.c: what a consumer has in a stream;
 *	                  linger.c: channels that nobody subscribes to any more)
 *	  owned.c         consumers, connections, quotas (pause.c: slow clients)
 *
 * Around it: shmem.c (memory, hash tables; ref.h: short pointers), database.c (per-database state),
 * launcher.c (starts dispatchers), lifecycle.c (DROP, RENAME, ...),
 * replay_drop.c (the same on replicas), stats.c,
 * views.c, views_server.c, metrics.c and walk.c (what can be seen), guc.c and
 * guc_secret.c (settings), ratelimit.c and histogram.c (arithmetic), jsonc.c (json-c),
 * growing.h (arrays).
 *
 * LOCK ORDER.  A lock may be taken while those above it are held, never the
 * other way round:
 *
 *	  1. SdShared->registry_lock	  who exists: every hash table but the ids',
 *									  lists of members
 *	  2. SdShared->id_locks[]		  the hash table of subscription ids
 *	  3. SdConsumer->reading		  readers of one consumer take turns
 *	  4. SdStream->lock				  a stream's entries, its readers' cursors
 *	  5. SdConsumer->mutex (spin)	  a consumer's ready list
 *	  6. SdDatabase->order_lock		  tickets, linked transactions, queues
 *	  7. SdHistory->lock			  dispatched events that are kept
 *	  8. DSA's own locks, latches, condition variables
 *
 * SdShared->database_lock (slots of databases) is taken before all of them.
 * No user code, no catalog access and no I/O happens while any is held.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SUBDISPATCH_H
#define SUBDISPATCH_H

#include "postgres.h"
#include "compat.h"

#include "datatype/timestamp.h"

#define SD_VERSION				"0.1.0"
#define SD_EXTENSION			"subdispatch"
#define SD_SCHEMA				"subdispatch"
#define SD_STAR					"*"

#define SD_MAX_DATABASES		64	/* databases that publish or subscribe */
#define SD_MAX_DISPATCHERS		16	/* per database */
#define SD_BUS_PLACE			SD_MAX_DISPATCHERS	/* the bus worker's place */
#define SD_PLACES				(SD_MAX_DISPATCHERS + 1)
#define SD_MAX_NAME				1024	/* bytes of a channel, id, consumer, ... */
/* kB; with the hash tables of the most subscriptions it is below SD_REF_LIMIT */
#define SD_MAX_SHARED_MEMORY	(31 * 1024 * 1024)

typedef enum SdBusKind
{
	SD_BUS_MEMORY,
	SD_BUS_NOTIFY,
	SD_BUS_REDIS
} SdBusKind;

typedef enum SdOnQueueFull
{
	SD_FULL_ERROR,
	SD_FULL_GAP
} SdOnQueueFull;

typedef enum SdOverflow
{
	SD_DROP_OLDEST,
	SD_DROP_NEWEST,
	SD_OVERFLOW_ERROR
} SdOverflow;

/* Settings (guc.c); subdispatch.x is the variable subdispatch_x. */
extern int	subdispatch_event_bus;
extern int	subdispatch_dispatchers;
extern int	subdispatch_max_subscriptions;
extern int	subdispatch_shared_memory_size; /* kB */
extern int	subdispatch_event_queue_size;	/* kB */
extern int	subdispatch_event_history_size; /* kB */
extern int	subdispatch_replay_wait_timeout;	/* ms */
extern int	subdispatch_max_event_size; /* bytes */
extern int	subdispatch_publish_timeout;	/* ms */
extern int	subdispatch_on_queue_full;
extern char *subdispatch_listen_channels;
extern int	subdispatch_max_listen_channels;
extern int	subdispatch_resolver_timeout;	/* ms */
extern int	subdispatch_resolver_max_timeouts;
extern int	subdispatch_max_pending;
extern int	subdispatch_max_pending_bytes;	/* bytes */
extern int	subdispatch_overflow;
extern double subdispatch_rate_limit;	/* responses per second and stream */
extern int	subdispatch_burst;
extern double subdispatch_user_rate_limit;
extern int	subdispatch_user_burst;
extern int	subdispatch_max_subscriptions_per_user;
extern int	subdispatch_max_subscriptions_per_connection;
extern int	subdispatch_max_subscriptions_per_role;
extern int	subdispatch_max_subscription_size;	/* bytes */
extern int	subdispatch_subscription_idle_timeout;	/* s */
extern int	subdispatch_subscription_max_lifetime;	/* s */
extern char *subdispatch_context_settings;
extern char *subdispatch_redis_url;	/* the real one; see guc_secret.c */
extern char *subdispatch_bus_key;	/* likewise */
extern char *subdispatch_redis_key_prefix;
extern char *subdispatch_redis_ca_file;
extern int	subdispatch_redis_max_length;
extern int	subdispatch_redis_timeout;	/* ms */
extern int	subdispatch_redis_resume_timeout;	/* ms */
extern bool subdispatch_omit_null_errors;
extern bool subdispatch_include_event_id;
extern bool subdispatch_mask_errors;

/* Only in builds with assertions: holds up this session's commits (ms). */
extern int	subdispatch_debug_hold_commit;
/* Likewise: when workers that nobody needs end (ms). */
extern int	subdispatch_debug_idle_end;
/* Likewise: events come to their streams as if another server had sent them. */
extern bool subdispatch_debug_wire;

extern void guc_init(void);

/*
 * Raises an error that says what to add to postgresql.conf unless the library
 * was preloaded.  Every SQL function calls it first.
 */
extern void sd_require_preload(void);

#define SD_SECOND		INT64CONST(1000000)

#endif							/* SUBDISPATCH_H */

/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  The shared memory: one fixed region, asked for at start, that holds the
 *	  fixed tables and a DSA area for all that comes and goes.
 *
 * The region is mapped at the same address in every process of the server, as
 * all of PostgreSQL's main shared memory is, and the DSA area lives in place
 * inside it and never grows.  Shared structures therefore hold plain pointers,
 * or the short ones of ref.h where there are very many.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_SHMEM_H
#define SD_SHMEM_H

#include "lib/ilist.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/dsa.h"

#include "database.h"
#include "ref.h"
#include "subdispatch.h"

/* ---- hash tables of a fixed number of buckets ---- */

/* As what references refer to, nodes are aligned. */
typedef struct SdHashNode
{
	SdRef		next pg_attribute_aligned(8);
	uint32		hash;
} SdHashNode;

typedef struct SdHash
{
	uint32		mask;			/* immutable */
	SdRef	   *buckets;		/* immutable pointer; chains under the table's lock */
} SdHash;

static inline SdHashNode *
sd_hash_first(const SdHash *table, uint32 bucket)
{
	return (SdHashNode *) sd_at(table->buckets[bucket]);
}

static inline SdHashNode *
sd_hash_next(const SdHashNode *node)
{
	return (SdHashNode *) sd_at(node->next);
}

typedef bool (*SdHashMatch) (const SdHashNode *node, const void *key);

extern SdHashNode *sd_hash_find(const SdHash *table, uint32 hash, SdHashMatch match, const void *key);
extern void sd_hash_insert(SdHash *table, SdHashNode *node, uint32 hash);
extern void sd_hash_remove(SdHash *table, SdHashNode *node);

/*
 * To be called before the table's lock is taken for a walk from bucket "from" up
 * to "to": fetches the members of the chains, and what the pointer at the given
 * place in them (0: none) points to, so that nobody has to wait meanwhile.
 */
extern void sd_hash_fetch(const SdHash *table, uint64 from, uint64 to, Size pointer_at);

/* ---- allocations ---- */

typedef enum SdMemKind
{
	SD_MEM_EVENT,				/* events between commit and dispatch */
	SD_MEM_SUBSCRIPTION,		/* subscriptions, streams, identities, ... */
	SD_MEM_RESPONSE,			/* responses, rings */
	SD_MEM_HISTORY,				/* what is kept for those who resume */
	SD_MEM_KINDS
} SdMemKind;

/*
 * sd_alloc returns MAXALIGNed, zeroed memory, or NULL when shared memory is
 * used up for its kind; it never raises an error, so it may be called under an
 * LWLock and after a commit.  What is kept for those who resume is given up
 * before that.  sd_free gives it back.  Bytes are counted per kind.
 */
extern void *sd_alloc(SdMemKind kind, Size size);
extern void sd_free(void *ptr);
extern void sd_count_as(void *ptr, SdMemKind kind);	/* from now on */
extern void *sd_dup(SdMemKind kind, const void *src, Size size);

/*
 * What subscriptions leave to events and responses, when nothing was taken of
 * it; responses leave half of it to events.
 */
extern uint64 sd_reserve_bytes(void);

/* Raises 53200 with the setting to change.  Call it holding no lock. */
extern void sd_out_of_shared_memory(void) pg_attribute_noreturn();

/* ---- the region ---- */

#define SD_ID_PARTITIONS	128 /* a power of two */
#define SD_RESERVE_PIECES	256 /* at most */

/*
 * Whoever waits at the point of something else is woken for nothing each time,
 * so there are far more of them than sessions usually wait.  64 by 64, for
 * stream.c's sake.
 */
#define SD_WAIT_POINTS		4096

/*
 * A backend's place in the order of commits; see bus_memory.c.  Indexed by
 * PGPROC number.
 */
typedef struct SdTicketSlot
{
	dlist_node	node;			/* in SdDatabase->taken; order_lock */
	uint64		ticket;			/* 0: none; order_lock */
	TransactionId xid;			/* order_lock */
	void	   *waiting_on;		/* SdConsumer this backend waits for, or NULL;
								 * written by the backend, read for a view */
} SdTicketSlot;

typedef struct SdShared
{
	/* immutable after start */
	int			nslots;			/* length of slots[] */
	SdTicketSlot *slots;
	char	   *dsa_place;

	/* database_lock */
	LWLock		database_lock;
	SdDatabase	databases[SD_MAX_DATABASES];

	/* launcher.c; launcher_procno is atomic, written by the launcher */
	pg_atomic_uint32 launcher_procno;	/* PGPROC number + 1; 0: none */

	/* registry_lock guards the chains of these and all membership lists */
	LWLock		registry_lock;
	SdHash		channels;
	SdHash		streams;
	SdHash		identities;
	SdHash		consumers;
	uint32		nconsumers;		/* in it */
	SdHash		connections;
	SdHash		buckets;		/* of equality indexes */
	SdHash		quotas;
	SdHash		links;			/* but for each stream's first */

	/* subscriptions by (database, owner, id); each id lock guards a part */
	SdHash		subscriptions;
	uint32		id_shift;		/* immutable */
	LWLock		id_locks[SD_ID_PARTITIONS];
	pg_atomic_uint32 nsubscriptions;	/* live ones, all databases */
	pg_atomic_uint64 serials;	/* numbers given to subscriptions and identities */
	pg_atomic_uint64 grants_version;	/* rises when channel grants have changed */

	/* where readers wait, by hash of what they wait for */
	ConditionVariable wait_points[SD_WAIT_POINTS];

	pg_atomic_uint64 mem_used[SD_MEM_KINDS];	/* bytes */
	pg_atomic_uint64 mem_failures;	/* allocations that found no room */

	/* pieces of memory that are kept for events and responses */
	uint32		reserve_size;	/* immutable */
	slock_t		reserve_mutex;	/* guards what follows; nreserve's changes */
	pg_atomic_uint32 nreserve;
	dsa_pointer reserve[SD_RESERVE_PIECES];
} SdShared;

extern SdShared *sd_shared;		/* NULL unless preloaded */

/* An id lock guards so many buckets that follow one another. */
#define SD_ID_PARTITION_BUCKETS	((uint32) 1 << sd_shared->id_shift)

extern void shmem_init(void);	/* installs the hooks; called by _PG_init */
/* Attaches this process to the allocator; may raise an error.  Before locks. */
extern void shmem_attach(void);

extern int	sd_tranche_database;
extern int	sd_tranche_registry;
extern int	sd_tranche_ids;
extern int	sd_tranche_stream;
extern int	sd_tranche_consumer;
extern int	sd_tranche_order;
extern int	sd_tranche_history;

extern uint32 sd_hash_bytes(const void *data, Size len, uint32 seed);
extern ConditionVariable *sd_wait_point(const void *thing);

/*
 * Where to wait for a thing, or to wake those who do: which of wait_points[].
 * Things share wait points, so a waiter checks its condition anew each time it
 * wakes; a wait point never goes away, unlike the thing.
 */
static inline uint32
sd_wait_point_number(const void *thing)
{
	uint64		h = (uint64) (uintptr_t) thing * UINT64CONST(0x9E3779B97F4A7C15);

	return (uint32) (h >> 32) % SD_WAIT_POINTS;
}

extern void sd_set_latch(uint32 procno_plus_1);

#endif							/* SD_SHMEM_H */
